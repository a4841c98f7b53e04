"""Stored records once more, in order: for backtests, for other programs, for an exchange."""
