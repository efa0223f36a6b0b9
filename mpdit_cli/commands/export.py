"""Placeholder of the first hour; replaced by its owner."""


def command() -> None:
    """Not there yet."""
