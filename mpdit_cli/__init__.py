"""The command line: reads what is typed and prints; the work is done by `mpdit_core`."""

import os

# Pydantic searches every installed package for plugins of its own, and fails where an entry_points.txt is malformed. It
# reads this variable when it is first imported.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
