"""Encoders handed on to other libraries, and taken in from them."""
