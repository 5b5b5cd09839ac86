"""The version of fastmoco."""

__version__ = "0.2.0"
