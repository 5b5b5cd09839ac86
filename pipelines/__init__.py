"""The data path: from a file on disk to two augmented views on the device."""
