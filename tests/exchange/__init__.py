"""Tests of the exchange side."""
