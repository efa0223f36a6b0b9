"""`python -m mpdit_cli`, as the launcher of several processes calls it."""

import os
import sys

from mpdit_cli.app import main
from mpdit_core.runtime.distributed import under_torchrun

code = main()
if (
    under_torchrun()
):  # all is written and closed; torch 2.15 may abort in a C++ destructor after distributed checkpoints
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
