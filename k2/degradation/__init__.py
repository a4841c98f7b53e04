"""Doing less under overload, and saying so."""
