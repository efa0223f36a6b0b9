"""`python -m mpdit_cli`, the same as `mpdit`."""

from mpdit_cli.app import entry_point

entry_point()
