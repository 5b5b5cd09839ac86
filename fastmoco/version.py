"""The version of fastmoco."""

__version__ = "0.1.0"
