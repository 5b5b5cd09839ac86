"""Weights of other runs, files and libraries, to start from."""
