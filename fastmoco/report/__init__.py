"""The report of a run as one HTML file, and the list of runs."""
