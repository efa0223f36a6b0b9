"""`python -m mpdit_cli`, as the launcher of several processes calls it."""

from mpdit_cli.app import entry_point

entry_point()
