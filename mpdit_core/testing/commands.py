"""The contract of commands, as a check."""

from __future__ import annotations

import inspect

from mpdit_core.protocols import Command
from mpdit_core.testing.conformance import require, require_contract


def check_command(command: Command) -> None:
    """Checks a command against its contract: options with descriptions, a job that takes them, and a help text.

    Raises:
        ConformanceError: it breaks the contract; the message says how.
    """
    require_contract("commands", command, "an object with options, job and help")
    for name, info in command.options.model_fields.items():
        require(info.description, f"a description of the option {name}")
    try:
        inspect.signature(command.job).bind(None, report=None)
    except TypeError as error:
        require(False, "job(options, *, report)", error)
