"""Published tables and figures, made again: sweeps of runs, and tables from their folders."""
