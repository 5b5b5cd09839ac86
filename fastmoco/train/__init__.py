"""The trainer: step, loop, schedules, checkpoints, metrics."""
