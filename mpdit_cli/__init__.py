"""The command line: reads what is typed and prints; the work is done by `mpdit_core`."""

import os

# Pydantic looks for plugins of its own in every installed package, and one malformed entry_points.txt stops it. It
# reads this when it is first imported.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
