"""The version of mpdit."""

__version__ = "0.2.0"
