"""Figures beside those of others, taken in the same run: `pytest benchmarks/ --benchmark`."""
