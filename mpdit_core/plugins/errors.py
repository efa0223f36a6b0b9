"""What a plugin raises, reported with its package and line where the plugin was called.

    with plugin_errors(sampler, "in steps"):
        step = next(steps)

An error is the plugin's where the innermost frame that is ours or the plugin's is the plugin's: what our own velocity
function raises while a plugin's sampler calls it passes as it is, and so does every error of our own classes.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpdit_core.errors import UserError

OURS = Path(__file__).parents[1]
CALLED_BY_PLUGINS = (OURS / "api.py",)  # of our files, those whose errors are a plugin's wrong call


class PluginError(UserError):
    """A plugin failed. `reason` alone says how, for the list of plugins."""

    def __init__(self, label: str, doing: str, reason: str):
        self.label, self.doing, self.reason = label, doing, reason
        super().__init__(
            f"{label} failed {doing}: {reason}",
            code="broken-plugin",
            remedy="report it to the author of the plugin, or use another (`mpdit plugins` checks them all)",
        )

    def __reduce__(self):
        return (PluginError, (self.label, self.doing, self.reason))


@contextmanager
def plugin_errors(plugin: object, doing: str) -> Iterator[None]:
    """Turns what the body raises into a `PluginError`, where it is the fault of `plugin` (an instance or a label).

    Let through as they are: `UserError`, Ctrl-C, termination, a device out of memory, and errors of ours.
    """
    label = plugin if isinstance(plugin, str) else label_of(type(plugin))
    try:
        yield
    except SystemExit as error:
        raise PluginError(label, doing, f"it calls sys.exit({error.code!r}){_where(error)}") from error
    except Exception as error:
        if isinstance(error, UserError) or type(error).__name__ == "OutOfMemoryError" or _is_ours(error):
            raise
        raise PluginError(label, doing, reason(error)) from error


def label_of(kind: type) -> str:
    """`Dopri5 (package mpdit-torchdiffeq)`; the module where it is in no package."""
    from importlib.metadata import packages_distributions

    top = kind.__module__.partition(".")[0]
    packages = packages_distributions().get(top)
    return f"{kind.__qualname__} ({f'package {packages[0]}' if packages else f'module {kind.__module__}'})"


def reason(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (mine.py, line 12)`."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}{': ' if text else ''}{text}{_where(error)}"


def _is_ours(error: BaseException) -> bool:
    """Whether the innermost frame that is no library's is ours."""
    frames = [Path(f.filename) for f in traceback.extract_tb(error.__traceback__)]
    inner = [f for f in frames if "site-packages" not in f.parts and "importlib" not in str(f)] or frames
    last = inner[-1] if inner else OURS
    return last.is_relative_to(OURS) and last not in CALLED_BY_PLUGINS


def _where(error: BaseException) -> str:
    """The innermost line that is the plugin's, not a library's or ours."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if "importlib" not in f.filename and not Path(f.filename).is_relative_to(OURS)]
    outside = [f for f in theirs if "site-packages" not in f.filename] or theirs
    return f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
