"""Optimizers, learning-rate schedules, loss scaling and precision."""
