"""The fault harness: breaks a running K2 on purpose and counts what became of every record."""
