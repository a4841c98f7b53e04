"""Candles: folded from the validated stream, exact, kept as versions in the lake."""
