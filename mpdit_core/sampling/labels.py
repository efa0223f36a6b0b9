"""Which class image i belongs to: read from the option `classes`, by id or by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpdit_core.errors import UserError
from mpdit_core.runtime.seeding import generator

FEW = 20  # classes up to this number are taken in their order
MOST_DIGITS = 12  # of an id


@dataclass(frozen=True)
class Labels:
    """Image i's label, a function of i (and, where drawn, of the seed) alone.

    `classes` are taken in turn, so any whole number of rounds is balanced; None: drawn at random from `num_classes`.
    """

    classes: tuple[int, ...] | None
    num_classes: int
    seed: int

    def __call__(self, i: int) -> int:
        if self.classes is not None:
            return self.classes[i % len(self.classes)]
        return int(torch.randint(self.num_classes, (1,), generator=generator(self.seed, "label", i)))


def read_classes(
    classes: str | Sequence[str | int], *, class_names: Sequence[str], num_classes: int, seed: int
) -> Labels:
    """Reads `all`, `random`, ids and names separated by commas, such as `207,volcano`, or a sequence of ids and names.

    `id:10` is the class of this id and `name:10` the one of this name; a plain 10 is refused where the two differ. A
    name is compared without regard to case, with the whole class name and with its parts between commas (ImageNet's
    classes are called "goldfish, Carassius auratus").

    Raises:
        UserError: an id or name that no class has (`no-such-class`), a name that several have, or a number that is the
            id of one class and the name of another (`ambiguous-class`).
    """
    if not isinstance(classes, str):
        texts = [f"id:{item}" if isinstance(item, int) else item for item in classes]
        found = [label for text in texts for label in _read(text, class_names, num_classes)]
        if not found:
            raise UserError("no class is named", code="no-such-class", expected="ids or names of classes")
        return Labels(tuple(found), num_classes, seed)
    if classes.strip() == "random":
        return Labels(None, num_classes, seed)
    if classes.strip() == "all":
        return Labels(class_order(num_classes), num_classes, seed)
    return Labels(tuple(_read(classes, class_names, num_classes)), num_classes, seed)


def class_order(num_classes: int) -> tuple[int, ...]:
    """All classes once. Many are visited in golden-ratio strides, so that the first few are of all kinds."""
    if num_classes <= FEW:
        return tuple(range(num_classes))
    stride = round(num_classes * 0.618)
    while math.gcd(stride, num_classes) != 1:
        stride += 1
    return tuple(i * stride % num_classes for i in range(num_classes))


def _read(text: str, class_names: Sequence[str], num_classes: int) -> list[int]:
    whole = _find(text, class_names)  # a single class name may itself hold commas
    if len(whole) == 1 and not text.strip().isdecimal():
        return whole
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(
            f"classes {text!r} names no class", code="no-such-class", expected="`all`, `random`, ids or names"
        )
    return [_class(part, class_names, num_classes) for part in parts]


def _class(part: str, class_names: Sequence[str], num_classes: int) -> int:
    """The class that an id, a name, `id:10` or `name:10` means."""
    kind, _, said = part.partition(":")
    if kind == "id" and said.isdecimal():
        return _by_id(said, num_classes)
    if kind == "name" and said:
        return _by_name(said, class_names, num_classes)
    if not part.isdecimal():
        return _by_name(part, class_names, num_classes)
    named = _find(part, class_names)
    if named and (len(named) > 1 or str(named[0]) != str(int(part[:MOST_DIGITS]))):
        raise UserError(
            f"class {part}: the class of this name has the id {_join(named)}",
            code="ambiguous-class",
            expected="an id or a name, where numbers are the names of other classes",
            remedy=f"id:{part} for the class of this id, name:{part} for the one of this name",
        )
    return _by_id(part, num_classes)


def _by_id(digits: str, num_classes: int) -> int:
    if len(digits) > MOST_DIGITS or int(digits) >= num_classes:
        raise UserError(
            f"class {digits[:MOST_DIGITS]}: the model has no class of this number",
            code="no-such-class",
            expected=f"0 to {num_classes - 1}",
        )
    return int(digits)


def _by_name(name: str, class_names: Sequence[str], num_classes: int) -> int:
    ids = _find(name, class_names)
    if len(ids) > 1:
        raise UserError(
            f"class {name!r}: {len(ids)} classes of the model have this name",
            code="ambiguous-class",
            expected="one",
            remedy=f"one of the ids {_join(ids)}",
        )
    if not ids:
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in class_names], n=3, cutoff=0.5)
        raise UserError(
            f"class {name!r}: the model has no class of this name",
            code="no-such-class",
            expected=f"`all`, `random`, ids from 0 to {num_classes - 1}, or names such as "
            + ", ".join(class_names[:3]),
            remedy=f"did you mean {' or '.join(near)}?" if near else None,
        )
    return ids[0]


def _find(name: str, class_names: Sequence[str]) -> list[int]:
    wanted = name.strip().lower()
    exact = [i for i, n in enumerate(class_names) if n.lower() == wanted]
    return exact or [i for i, n in enumerate(class_names) if wanted in [part.strip().lower() for part in n.split(",")]]


def _join(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
