"""What the repository is kept with; not part of the package."""
