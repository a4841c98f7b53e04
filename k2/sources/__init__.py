"""Sessions with exchanges and the mapping of their frames."""
