"""Pictures of what goes into a run and of how it went."""
