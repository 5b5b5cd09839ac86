"""Triton kernels, each in a file of its own; their plain twins are in `fastmoco.moco`."""
