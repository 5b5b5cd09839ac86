"""Evaluation of a trained encoder: its features and the classifiers that learn from them."""
