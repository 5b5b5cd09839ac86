"""Datasets: sources of images, and the checked .beton file that training reads."""
