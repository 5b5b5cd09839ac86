"""Fine-tuning of an encoder with labels."""
