"""Faust agents: thin loops around the steps of `k2.pipeline`."""
