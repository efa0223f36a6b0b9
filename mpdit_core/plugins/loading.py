"""A plugin's name → its class, checked against the contract → an instance with checked options."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from mpdit_core.api import PLUGIN_API
from mpdit_core.errors import UserError
from mpdit_core.plugins.finding import WORDS, Entry, Kind, find
from mpdit_core.plugins.guard import METHODS, PluginError, contained, guarded
from mpdit_core.plugins.options import check_options, option_types

ATTRIBUTES: dict[Kind, tuple[str, ...]] = {
    "samplers": ("order", "stochastic"),
    "datasets": (),
    "features": ("name",),
}
ARGUMENTS = {"steps": 3, "image": 1, "load": 1, "__call__": 1}  # of the contract's methods, without self


def load(kind: Kind, name: str) -> type:
    """The plugin class called `name`, or at `module:attribute`, or at `./file.py:Attribute`.

    Raises:
        UserError: unknown (with the nearest names), ambiguous (naming both packages), or broken (with the reason).
    """
    return load_entry(resolve(kind, name))[0]


def resolve(kind: Kind, name: str) -> Entry:
    """The entry that `name` stands for; one without a package for `module:attribute` and files."""
    if ":" not in name:
        return find(kind, name)
    where, _, attribute = name.rpartition(":")
    if not where or not attribute.isidentifier():
        raise UserError(f"{name!r} is not a {WORDS[kind]}", expected="a name, module:Class or ./file.py:Class")
    return Entry(kind, name, name, "(unpackaged)", "")


def load_entry(entry: Entry) -> tuple[type, str]:
    """The class of an entry and what its import printed.

    Raises:
        UserError: there is no such file.
        PluginError: it does not import, or is not what the contract asks for.
    """
    where, _, attribute = entry.value.partition(" [")[0].rpartition(":")
    label = _label(entry)
    with contained(label, "to load", catch_output=True) as printed:
        module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where, entry)
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    problem = contract_problem(entry.kind, found)
    if problem:
        raise PluginError(label, "to load", problem)
    return found, printed.getvalue()


def contract_problem(kind: Kind, found: Any) -> str | None:
    """What keeps `found` from being a plugin of this kind, or None."""
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        return f"it is {_shown(found)}, where the contract asks for a dataclass"
    api = getattr(found, "plugin_api", PLUGIN_API)
    if api != PLUGIN_API:
        return f"it was written for version {api} of the plugin contract; this mpdit has version {PLUGIN_API}"
    missing = [f"{m}()" for m in METHODS[kind] if not callable(getattr(found, m, None)) or not _own(found, m)]
    missing += [a for a in ATTRIBUTES[kind] if not hasattr(found, a)]
    if kind == "samplers" and "num_steps" not in {f.name for f in dataclasses.fields(found)}:
        missing.append("the field num_steps")
    if missing:
        return f"{found.__name__} lacks {', '.join(missing)} (see mpdit_core.api)"
    for method in METHODS[kind]:
        count = ARGUMENTS.get(method, 0)
        try:
            inspect.signature(getattr(found, method)).bind(None, *[None] * count)
        except TypeError as error:
            return f"{found.__name__}.{method} does not take the {count} arguments of the contract: {error}"
        except ValueError:  # no signature to be had, e.g. of a compiled function
            continue
    try:
        option_types(found)
    except Exception as error:
        return f"the types of its options cannot be read: {type(error).__name__}: {error}"
    return None


def _own(found: type, method: str) -> bool:
    """A class is always callable, so `__call__` must be looked for in its bases."""
    return any(method in vars(base) for base in found.__mro__)


def _shown(found: Any) -> str:
    if isinstance(found, ModuleType):
        return f"the module {found.__name__}"
    return f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"


def _label(entry: Entry) -> str:
    return entry.label if entry.version else f"{WORDS[entry.kind]} {entry.value}"


def _import_module(name: str, entry: Entry) -> ModuleType:
    importlib.invalidate_caches()
    if not entry.version:  # `module:attribute` typed by the user: the working folder counts, as for `python -m`
        _add_to_path(Path.cwd())
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{path} does not exist", expected="./file.py:Class")
    name = f"mpdit_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _add_to_path(path.parent)  # so that it can import its neighbours
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


def build(kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """An instance of plugin `name` with `options` checked against its fields. Another package's is guarded.

    Raises:
        UserError: as `load`, or an option that does not exist, does not fit, or is missing.
    """
    entry = resolve(kind, name)
    cls = _guarded(entry, load_entry(entry)[0])
    origin = f"{kind.removesuffix('s')} {name}"
    checked = check_options(cls, options or {}, origin=origin)
    with nullcontext() if entry.is_ours else contained(_label(entry), "to start", catch_output=True):
        try:
            return cls(**checked)
        except UserError:
            raise
        except ValueError as error:  # what a plugin says of its own options, in __post_init__
            raise UserError(f"{origin}: {error}", remedy=f"`mpdit plugins show {name}` describes them") from error


def guarded_class(kind: Kind, name: str) -> type:
    entry = resolve(kind, name)
    return _guarded(entry, load_entry(entry)[0])


@functools.cache
def _guarded(entry: Entry, loaded: type) -> type:
    return loaded if entry.is_ours else guarded(entry.kind, loaded, _label(entry), entry.name)
