"""What ends a command early: a user error or a signal. Any other exception is a defect in mpdit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class UserError(ValueError):
    """An error that the user can correct: the CLI prints it without a traceback and exits with 2.

    Args:
        what: what was wrong, with the value or path that was given.
        code: a short stable name, such as `no-such-class`. Tests and callers match this, never the text.
        expected: what would have been accepted.
        remedy: what to type or change now.
    """

    def __init__(self, what: str, *, code: str = "user-error", expected: str | None = None, remedy: str | None = None):
        self.what, self.code, self.expected, self.remedy = what, code, expected, remedy
        lines = [what]
        if expected:
            lines.append(f"  expected: {expected}")
        if remedy:
            lines.append(f"  remedy:   {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:  # pickling would lose keyword-only arguments
        return (partial(UserError, code=self.code, expected=self.expected, remedy=self.remedy), (self.what,))


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """The remedy for a name that does not exist: the most similar `known` names, or `otherwise` if none is similar.

    Dotted keys that end with the same word come first: `train.optimizer.betas` for `train.betas`.
    """
    known = list(dict.fromkeys(known))
    elsewhere = [each for each in known if "." in each and each.rpartition(".")[2] == name.rpartition(".")[2]]
    near = elsewhere[:3] or difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


class Interrupted(BaseException):
    """A signal asked the process to end, and the work done so far is saved. The exit code is 128 + `signum`.

    Args:
        remedy: what to type to resume; the same command again if not given.
    """

    def __init__(self, signum: int, *, remedy: str = ""):
        self.signum, self.remedy = int(signum), remedy
        super().__init__(f"interrupted by signal {self.signum}")
