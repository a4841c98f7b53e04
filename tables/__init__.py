"""Faust tables."""
