"""What ends a command early: a mistake the user can mend, or a signal. Anything else that is raised is our defect."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: the CLI prints it without a traceback and exits with 2.

    Args:
        what: what was wrong, with the value or path that was given.
        expected: what would have been accepted.
        remedy: what to type or change now.
    """

    def __init__(self, what: str, *, expected: str | None = None, remedy: str | None = None):
        self.what, self.expected, self.remedy = what, expected, remedy
        lines = [what]
        if expected:
            lines.append(f"  expected: {expected}")
        if remedy:
            lines.append(f"  remedy:   {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self):  # keyword-only arguments would be lost by the default pickling
        return (_rebuild, (self.what, self.expected, self.remedy))


def _rebuild(what: str, expected: str | None, remedy: str | None) -> UserError:
    return UserError(what, expected=expected, remedy=remedy)


class Interrupted(BaseException):
    """A signal asked the process to end, and what was there to save is saved. The exit code is 128 + `signum`."""

    def __init__(self, signum: int):
        self.signum = int(signum)
        super().__init__(f"interrupted by signal {self.signum}")
