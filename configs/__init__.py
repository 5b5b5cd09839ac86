"""Hydra presets: defaults of commands, and the groups experiment, protocol, recipe, sweep."""
