"""The kinds of plugin and what each must have: one row per kind.

To add a kind: a protocol in mpdit_core/protocols.py, its name in mpdit_core/api.py, a row in `KINDS`, a check in
mpdit_core/testing/, and a template in templates/ for `mpdit plugins new`. Its entry points are then found in the group
`mpdit.<kind>`, listed by `mpdit plugins`, checked when they are loaded, and recorded.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mpdit_core.plugins.options import option_types
from mpdit_core.protocols import PLUGIN_API
from mpdit_core.settings import Options

Kind: TypeAlias = str
"""A key of `KINDS`: the plural that names the group of entry points."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a class of one kind must have.

    Args:
        word: the kind in messages for people.
        table: the kind in `mpdit plugins new TABLE NAME` and in `--set TABLE.KEY=VALUE`.
        methods: method → number of arguments it is called with, beside self.
        attributes: other attributes of the class.
        fields: options it must have.
        facts: attributes that `mpdit plugins show` prints if the class has them.
    """

    word: str
    table: str
    methods: Mapping[str, int] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


KINDS: dict[Kind, Contract] = {
    "samplers": Contract(
        word="sampler", table="sampler", methods={"steps": 3}, attributes=("order", "stochastic"),
        fields=("num_steps",), facts=("order", "stochastic", "adaptive"),
    ),
    "datasets": Contract(
        word="data set", table="dataset", methods={"class_names": 0, "items": 0, "image": 1, "fingerprint": 0},
        facts=("autoencoder", "resolution"),
    ),
    "features": Contract(
        word="feature extractor", table="features", methods={"load": 1, "__call__": 1, "fingerprint": 0},
        attributes=("name",),
    ),
    "autoencoders": Contract(
        word="autoencoder", table="autoencoder", methods={"load": 1, "encode": 1, "decode": 1, "fingerprint": 0},
        attributes=("channels", "factor", "stores"), facts=("channels", "factor", "stores", "flip_equivariant"),
    ),
    "objectives": Contract(
        word="objective", table="objective", methods={"modules": 1, "loss": 3}, attributes=("needs",),
        fields=("weight",), facts=("needs",),
    ),
    "commands": Contract(word="command", table="command"),  # an object: `_command_problem`
}  # fmt: skip


def contract_problem(kind: Kind, found: Any) -> str | None:
    """Why `found` is not a plugin of this kind, as a sentence; None if it is one."""
    if kind == "commands":
        return _command_problem(found)
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        shown = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        return f"it is {shown}, but the contract requires a dataclass"
    version = getattr(found, "plugin_api", PLUGIN_API)
    if version != PLUGIN_API:
        return f"it was written for version {version} of the plugin contract; this mpdit has version {PLUGIN_API}"
    contract = KINDS[kind]
    # `getattr` would find a `__call__` for every class
    missing = [f"{name}()" for name in contract.methods if not any(name in vars(base) for base in found.__mro__)]
    missing += [name for name in contract.attributes if not hasattr(found, name)]
    own_fields = {one.name for one in dataclasses.fields(found)}
    missing += [f"the field {name}" for name in contract.fields if name not in own_fields]
    if missing:
        return f"{found.__name__} lacks {', '.join(missing)} (see mpdit_core.api)"
    for method, count in contract.methods.items():
        try:
            inspect.signature(getattr(found, method)).bind(None, *[None] * count)
        except TypeError as error:
            return f"{found.__name__}.{method} does not take the {count} arguments of the contract: {error}"
        except ValueError:  # a compiled function has no signature
            continue
    try:
        option_types(found)
    except Exception as error:
        return f"the types of its options cannot be read: {type(error).__name__}: {error}"
    return None


def _command_problem(found: Any) -> str | None:
    options, job, text = (getattr(found, name, None) for name in ("options", "job", "help"))
    if not (isinstance(options, type) and issubclass(options, Options)):
        wrong = "options is not a class of options"
    elif not callable(job):
        wrong = "job is not a function job(options, *, report)"
    elif not (isinstance(text, str) and text.strip()):
        wrong = "help is not a sentence"
    else:
        return None
    return f"its attribute {wrong} (see mpdit_core.api)"
