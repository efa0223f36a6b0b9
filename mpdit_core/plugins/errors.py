"""Turns what a plugin raises into an error that names its package and line.

    with plugin_errors(sampler, "in steps"):
        step = next(steps)

The body is the call and nothing else. An error belongs to the plugin unless it comes from code that the plugin was
given: what our own velocity function raises while a plugin's sampler calls it is raised unchanged. A library that the
plugin calls is part of the plugin.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpdit_core.errors import Interrupted, UserError

CORE = Path(__file__).parents[1]
CALLED_BY_PLUGINS = {
    CORE / name
    for name in (
        "protocols.py",
        "data/autoencoders/pixel_range.py",
        "data/images.py",
        "data/sources/archives.py",
        "data/sources/class_lists.py",
        "data/sources/files.py",
    )
}
"""The files with the helpers of api.py: an error in one of them comes from a wrong call by the plugin."""

STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]

labels: dict[type, str] = {}
"""`sampler 'mine' (package my-sampler 0.1.0)`, for every plugin class of other packages that was loaded."""


class PluginError(UserError):
    """A plugin failed. `reason` says how, without the plugin's name."""

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
    """Turns what the body raises into a `PluginError` if it is the fault of `plugin`.

    Raised unchanged: every error of a plugin of mpdit itself, `UserError`, Ctrl-C, termination, a device out of memory,
    and errors of code that the plugin was given.

    Args:
        plugin: an instance; or the label of a plugin that is being loaded or built: then every error is its fault.
        doing: for the message, such as `in steps`.
    """
    if type(plugin).__module__.startswith("mpdit_core."):
        yield
        return
    try:
        yield
    except (UserError, KeyboardInterrupt, Interrupted):
        raise
    except BaseException as error:  # also SystemExit, and a GeneratorExit that the plugin raises itself
        frames, home = _inside(error)
        own = [path for path, _ in frames if _is_in(home, path) or not _is_library(path)]
        is_its_fault = isinstance(plugin, str) or isinstance(error, SystemExit) or not own or _is_in(home, own[-1])
        if type(error).__name__ == "OutOfMemoryError" or not is_its_fault:
            raise
        lines = [f" ({path.name}, line {line})" for path, line in frames if _is_in(home, path)]
        text = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}{': ' if text else ''}{text}"
        if isinstance(error, SystemExit):
            reason = f"it calls sys.exit({error.code!r})"
        raise broken(plugin, doing, reason + (lines[-1] if lines else "")) from error


def broken(plugin: object, doing: str, reason: str) -> PluginError:
    """The error for a plugin that returned what its contract does not allow; `reason` says what."""
    label = plugin if isinstance(plugin, str) else labels.get(type(plugin), type(plugin).__qualname__)
    return PluginError(label, doing, reason)


def _inside(error: BaseException) -> tuple[list[tuple[Path, int]], Path]:
    """The frames from the first one in the plugin, and the plugin's folder or file; no frames: it was never entered.

    The first frame in the plugin is the first after `plugin_errors` and its body that is neither ours nor the standard
    library's.
    """
    frames = [
        (Path(frame.filename), frame.lineno or 0)
        for frame in traceback.extract_tb(error.__traceback__)[2:]  # after plugin_errors and its body
        if not frame.filename.startswith("<") and Path(frame.filename) not in CALLED_BY_PLUGINS
    ]
    for number, (path, _) in enumerate(frames):
        if not path.is_relative_to(CORE) and (_is_installed(path) or not _is_library(path)):
            return frames[number:], _home(path)
    return [], Path()


def _home(path: Path) -> Path:
    """The outermost package of the file. Without a package: the file itself among libraries, elsewhere its folder."""
    home = path
    while (home.parent / "__init__.py").exists():
        home = home.parent
    return home if home != path or _is_library(path) else path.parent


def _is_in(home: Path, path: Path) -> bool:
    """Whether a file is the plugin's; its folder may also contain an environment or a checkout of mpdit."""
    return path.is_relative_to(home) and not path.is_relative_to(CORE) and _is_library(path) == _is_library(home)


def _is_library(path: Path) -> bool:
    """Whether a file is of an installed package or the standard library; ours are not, where mpdit is installed too."""
    return not path.is_relative_to(CORE) and (_is_installed(path) or path.is_relative_to(STANDARD_LIBRARY))


def _is_installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts))
