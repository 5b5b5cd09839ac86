"""``make gpu``: what a machine with a GPU can prove and measure in nine minutes."""
