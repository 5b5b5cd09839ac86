"""Checks of a machine: what training needs, what makes it faster, and how to get it."""
