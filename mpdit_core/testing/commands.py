"""The contract of commands, as a check."""

from __future__ import annotations

import inspect

from mpdit_core.api import Command
from mpdit_core.plugins import contract_problem
from mpdit_core.testing.conformance import require


def check_command(command: Command) -> None:
    """Checks a command against its contract: options that are all described, a job that takes them, a help text.

    Raises:
        ConformanceError: it does not keep the contract.
    """
    problem = contract_problem("commands", command)
    require(problem is None, "an object with options, job and help", problem)
    for name, info in command.options.model_fields.items():
        require(info.description, f"a description of the option {name}")
    try:
        inspect.signature(command.job).bind(None, report=None)
    except TypeError as error:
        require(False, "job(options, *, report)", error)
