"""Hydra presets: data/, pipeline/, model/, optimizer/ and experiment/."""
