"""What keeps the lake small and fast: compaction, history, clean-up."""
