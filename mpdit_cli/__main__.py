"""`python -m mpdit_cli`, as the launcher of several processes calls it."""

import os
import sys

in_group = "RANK" in os.environ
if in_group:
    from mpdit_core.runtime.distributed import watch_launcher

    watch_launcher()  # first, because the imports below take time

from mpdit_cli.app import main  # noqa: E402

code = main()
if in_group:  # everything is written, and torch may abort in a C++ destructor when Python ends normally
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
