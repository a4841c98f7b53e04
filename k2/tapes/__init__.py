"""Recorded tapes (CSV) into the log of record."""
