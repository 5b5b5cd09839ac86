"""Dataset files elsewhere: read by fsspec, checked, and kept in a cache on this machine."""
