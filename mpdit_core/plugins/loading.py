"""A plugin's name → its class, checked against the contract → an instance with checked options.

What a plugin prints while it is imported or built is discarded.

Only code that the user names or has installed is run. A name that was read from a file of a run, a model, samples or
latents is passed with `trusted=False`, and must then be the name of an installed plugin, because somebody else may have
written the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import operator
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.plugins.contracts import KINDS, Kind, contract_problem
from mpdit_core.plugins.errors import PluginError, labels, plugin_errors
from mpdit_core.plugins.finding import Entry, find
from mpdit_core.plugins.options import checked_options


def load(kind: Kind, name: str, *, trusted: bool = True) -> Any:
    """The plugin class (of commands, the object) called `name`, or at `module:attribute`, or at `./file.py:Attribute`.

    Args:
        trusted: False for a name that was read from a file, unless the user trusts it.

    Raises:
        UserError: the plugin is unknown (`no-such-plugin`), offered by two packages (`ambiguous-plugin`), broken
            (`broken-plugin`), or code that the user did not name (`untrusted-code`).
    """
    return load_entry(resolve(kind, name, trusted=trusted))[0]


def build(kind: Kind, name: str, options: Mapping[str, Any] | None = None, *, trusted: bool = True) -> Any:
    """An instance of plugin `name` with `options` checked against its fields.

    Raises:
        UserError: as `load`, or an option is unknown (`unknown-key`), wrong or missing (`invalid-value`).
    """
    entry = resolve(kind, name, trusted=trusted)
    cls, _ = load_entry(entry)
    origin = f"{KINDS[kind].word} {name}"
    checked = checked_options(cls, options or {}, origin=origin, name=name)
    with contextlib.nullcontext() if entry.is_ours else plugin_errors(entry.label, "to start"), _quiet():
        try:
            return cls(**checked)
        except UserError:
            raise
        except ValueError as error:  # how a plugin refuses its options, in __post_init__
            remedy = f"`mpdit plugins show {name}` describes them"
            raise UserError(f"{origin}: {error}", code="invalid-value", remedy=remedy) from error


def resolve(kind: Kind, name: str, *, trusted: bool = True) -> Entry:
    """The entry that `name` stands for; without a package for `module:attribute` and files. Nothing is imported."""
    if ":" not in name:
        return find(kind, name)
    where, _, attribute = name.rpartition(":")
    if not where or not attribute.isidentifier():
        raise UserError(
            f"{name!r} is not a {KINDS[kind].word}",
            code="no-such-plugin",
            expected="a name, module:Class or ./file.py:Class",
        )
    if not trusted:
        raise UserError(
            f"a file that was read refers to the code {name}, which may do anything on this machine",
            code="untrusted-code",
            expected=f"a {KINDS[kind].word} that is installed, or code that you give on the command line",
            remedy="give its name on the command line; or, if you know who wrote it, install it as a package, or use "
            "--trust where the command has it",
        )
    return Entry(kind, name, name)


def load_entry(entry: Entry) -> tuple[Any, str]:
    """The class, or object, of an entry and what its import printed.

    Raises:
        UserError: as `import_entry`.
        PluginError: as `import_entry`, or what was imported does not fulfil the contract.
    """
    found, printed = import_entry(entry)
    with plugin_errors(entry.label, "to load"), _quiet():
        problem = contract_problem(entry.kind, found)
    if problem:
        raise PluginError(entry.label, "to load", problem)
    if isinstance(found, type):
        labels[found] = entry.label
    return found, printed


def import_entry(entry: Entry) -> tuple[Any, str]:
    """What an entry names, whatever it is, and what its import printed.

    Raises:
        UserError: there is no such file (`no-such-file`).
        PluginError: the import fails.
    """
    where, _, attribute = entry.value.partition(" [")[0].rpartition(":")
    with plugin_errors(entry.label, "to load"), _quiet() as printed:
        if where.endswith(".py"):
            module = _import_file(Path(where))
        else:
            if not entry.package:  # `module:attribute` may be in the working directory, as for `python -m`
                _add_to_path(Path.cwd())
            importlib.invalidate_caches()
            module = importlib.import_module(where)
        return operator.attrgetter(attribute)(module), printed.getvalue()


@contextlib.contextmanager
def _quiet():
    """Captures what the body prints, and yields it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


def _import_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{path} does not exist", code="no-such-file", expected="a Python file, as in ./file.py:Class")
    name = f"mpdit_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _add_to_path(path.parent)  # so that it can import other files there
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
