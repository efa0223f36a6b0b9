"""Keeps what a plugin does wrong from reaching anything else.

While a plugin is imported or built its prints are caught. Whatever it raises then, or later in a method of its
contract, becomes a `UserError` that names package, method and line; so does `sys.exit`. Our own classes are not
guarded: an error of theirs is a defect of ours and keeps its traceback. What is printed later is the CLI's affair: it
goes to stderr while a job runs with `--json` (mpdit_cli/console.py).
"""

from __future__ import annotations

import contextlib
import functools
import io
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.plugins.finding import Kind

METHODS: dict[Kind, tuple[str, ...]] = {
    "samplers": ("steps",),
    "datasets": ("class_names", "items", "image", "fingerprint"),
    "features": ("load", "__call__", "fingerprint"),
}


class PluginError(UserError):
    """A plugin failed. `reason` alone says how, for the list of plugins."""

    def __init__(self, label: str, doing: str, reason: str):
        self.reason = reason
        super().__init__(
            f"{label} failed {doing}: {reason}",
            remedy="this is a fault of the plugin: report it to its author, or use another "
            "(`mpdit plugins` checks them all)",
        )

    def __reduce__(self):
        return (UserError, (str(self),))


@contextlib.contextmanager
def contained(label: str, doing: str, *, catch_output: bool = False) -> Iterator[io.StringIO]:
    """Turns what the body raises into a `PluginError`; yields what it printed, if that is to be caught.

    Let through as they are: `UserError`, Ctrl-C, termination, and a device out of memory.
    """
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        if catch_output:
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(printed))
        try:
            yield printed
        except SystemExit as error:
            raise PluginError(label, doing, f"it calls sys.exit({error.code!r}){_where(error)}") from error
        except Exception as error:
            if isinstance(error, UserError) or type(error).__name__ == "OutOfMemoryError":
                raise
            raise PluginError(label, doing, reason(error)) from error


def reason(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (mine.py, line 12)`."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}{': ' if text else ''}{text}{_where(error)}"


def _where(error: BaseException) -> str:
    """The innermost line that is the plugin's, not a library's or ours."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if "importlib" not in f.filename and Path(f.filename).parent != Path(__file__).parent]
    outside = [f for f in theirs if "site-packages" not in f.filename] or theirs
    return f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""


def guarded(kind: Kind, loaded: type, label: str, name: str) -> type:
    """A subclass of the plugin's class whose contract methods are contained. Pickles by `name`."""
    namespace: dict[str, Any] = {"__doc__": loaded.__doc__, "__module__": loaded.__module__, "__slots__": ()}
    for method in METHODS[kind]:
        original = getattr(loaded, method)
        namespace[method] = _guarded_steps(original, label) if method == "steps" else _guarded(original, label)

    def reduce(self: Any, _protocol: Any) -> Any:
        _, _, *state = object.__reduce_ex__(self, 2)
        return (_unpickle, (kind, name), *state)

    namespace["__reduce_ex__"] = reduce
    namespace["mpdit_plugin"] = (kind, name)
    return type(loaded.__name__, (loaded,), namespace)


def _unpickle(kind: Kind, name: str) -> Any:
    from mpdit_core.plugins.loading import guarded_class

    return object.__new__(guarded_class(kind, name))


def _guarded(original: Callable, label: str) -> Callable:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with contained(label, f"in {original.__name__}"):
            return original(self, *args, **kwargs)

    return method


def _guarded_steps(original: Callable, label: str) -> Callable:
    """As `_guarded`, for a generator; what the velocity function raises is not the sampler's fault and passes as is."""

    @functools.wraps(original)
    def steps(self: Any, velocity_fn: Callable, *args: Any, **kwargs: Any) -> Iterator[Any]:
        ours: list[BaseException] = []

        def watched(x_t: Any, t: Any) -> Any:
            try:
                return velocity_fn(x_t, t)
            except BaseException as error:
                ours.append(error)
                raise

        iterator = None
        while True:
            try:
                with contained(label, "in steps"):
                    if iterator is None:
                        iterator = iter(original(self, watched, *args, **kwargs))
                    step = next(iterator, None)
            except PluginError as error:
                if error.__cause__ in ours:
                    raise ours[-1] from None
                raise
            if step is None:
                return
            yield step

    return steps
