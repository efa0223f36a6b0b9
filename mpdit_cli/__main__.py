"""`python -m mpdit_cli`, as the launcher of several processes calls it."""

import os
import sys

in_group = "RANK" in os.environ
if in_group:
    from mpdit_core.runtime.distributed import watch_launcher

    watch_launcher()  # before anything else takes time

from mpdit_cli.app import main  # noqa: E402

code = main()
if in_group:  # all is written and closed, and torch may abort in a C++ destructor now
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
