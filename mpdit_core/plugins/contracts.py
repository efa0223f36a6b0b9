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
"""A key of `KINDS`: a plural, which names the group of entry points. Where a person types a kind, and in the names of
templates, it is the `singular`; in messages, the `word`."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a class of one kind must have.

    Args:
        word: the kind in messages for people.
        singular: the kind in `mpdit plugins new KIND NAME` and in `--set KIND.KEY=VALUE`.
        methods: method → number of arguments it is called with, beside self.
        attributes: other attributes of the class.
        fields: options it must have.
        facts: attributes that `mpdit plugins show` prints if the class has them.
    """

    word: str
    singular: str
    methods: Mapping[str, int] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


KINDS: dict[Kind, Contract] = {
    "samplers": Contract(
        word="sampler", singular="sampler", methods={"steps": 3}, attributes=("order", "stochastic"),
        fields=("num_steps",), facts=("order", "stochastic", "adaptive"),
    ),
    "datasets": Contract(
        word="data set", singular="dataset", methods={"class_names": 0, "items": 0, "image": 1, "fingerprint": 0},
        facts=("autoencoder", "resolution"),
    ),
    "features": Contract(
        word="feature extractor", singular="features", methods={"load": 1, "__call__": 1, "fingerprint": 0},
        attributes=("name",),
    ),
    "autoencoders": Contract(
        word="autoencoder", singular="autoencoder", methods={"load": 1, "encode": 1, "decode": 1, "fingerprint": 0},
        attributes=("channels", "factor", "stores"), facts=("channels", "factor", "stores", "flip_equivariant"),
    ),
    "objectives": Contract(
        word="objective", singular="objective", methods={"modules": 1, "loss": 3}, attributes=("needs",),
        fields=("weight",), facts=("needs",),
    ),
    # an object: `_command_problem`
    "commands": Contract(word="command", singular="command", attributes=("options", "job", "help")),
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
    if missing := _missing(kind, found):
        return f"{found.__name__} lacks {', '.join(missing)} (see mpdit_core.api)"
    for method, count in KINDS[kind].methods.items():
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


def nearest_kind(found: Any) -> Kind:
    """The first kind whose contract `found` fulfils; if there is none, the one of which it lacks least."""

    def distance(kind: Kind) -> tuple[bool, float]:
        required = len(KINDS[kind].methods) + len(KINDS[kind].attributes) + len(KINDS[kind].fields)
        return contract_problem(kind, found) is not None, len(_missing(kind, found)) / required

    return min(KINDS, key=distance)


def _missing(kind: Kind, found: Any) -> list[str]:
    """What a class or an object lacks of a contract, in words."""
    contract = KINDS[kind]
    bases = (found if isinstance(found, type) else type(found)).__mro__
    # `getattr` would find a `__call__` for every class
    missing = [f"{name}()" for name in contract.methods if not any(name in vars(base) for base in bases)]
    missing += [name for name in contract.attributes if not hasattr(found, name)]
    fields = getattr(found, "__dataclass_fields__", {})
    return missing + [f"the field {name}" for name in contract.fields if name not in fields]


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
