"""Files of a run: checkpoints, run folder, metrics, log, and what its processes agree on."""
