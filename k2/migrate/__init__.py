"""Older records into today's: read where they are, written to the log of record."""
