"""Reproduce published tables and figures: sweeps of runs, and tables from their folders."""
