"""An extension of griffe: what `setting(default, "description", …)` says of a field is shown as its documentation."""

from __future__ import annotations

import ast
import pydoc
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension


class Fields(Extension):
    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        call = attr.value
        if isinstance(call, ExprCall) and call.function.canonical_path == "mpdit_core.settings.setting":
            default, description = call.arguments[:2]
            text = ast.literal_eval(description) if isinstance(description, str) else _read(attr)
            attr.docstring = Docstring(f"{text[0].upper()}{text[1:]}.".replace("][", "]\\["), parent=attr)
            attr.value = None if str(default) == "..." else default


def _read(attr: Attribute) -> str:
    """A description that is computed, from the class itself."""
    settings: Any = pydoc.locate(attr.parent.path)
    return settings.model_fields[attr.name].description
