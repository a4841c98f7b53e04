"""Doubles and starters for tests, shipped with the product."""
