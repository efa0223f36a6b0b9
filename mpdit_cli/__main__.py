"""`python -m mpdit_cli`, as the launcher of several processes calls it."""

import os
import sys

from mpdit_cli.app import main

code = main()
if "RANK" in os.environ:  # one of a group: all is written and closed, and torch may abort in a C++ destructor now
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
