"""Requests for labels, and bringing granted labels back."""
