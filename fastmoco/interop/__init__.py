"""Export of encoders to other libraries, and import of their weights."""
