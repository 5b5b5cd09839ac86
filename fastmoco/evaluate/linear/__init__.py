"""A linear classifier on a frozen encoder."""
