"""The class of each image, from the option `classes`: ids and names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.runtime import seeding
from mpdit_core.settings import shortened

FEW = 20  # up to this number, classes are taken in their order
MAX_DIGITS = 12  # of an id


@dataclass(frozen=True)
class Labels:
    """The label of image i, which depends only on i, and on the seed if labels are random.

    `classes` are taken in turn, so that every round has each once; None: labels are random, from `num_classes` classes.
    """

    classes: tuple[int, ...] | None
    num_classes: int
    seed: int

    def __call__(self, i: int) -> int:
        if self.classes is not None:
            return self.classes[i % len(self.classes)]
        return int(torch.randint(self.num_classes, (1,), generator=seeding.generator(self.seed, "label", i)))


def read_classes(classes: str | Sequence[str | int], *, class_names: Sequence[str], seed: int) -> Labels:
    """Reads `all`, `random`, ids and names separated by commas, such as `207,volcano`, or a sequence of ids and names.

    `id:10` is the class with this id and `name:10` the class with this name; a plain 10 is refused where the two
    differ. A name is compared with the whole class name and with its parts between commas (ImageNet's classes are
    called "goldfish, Carassius auratus"). Case does not matter.

    Args:
        class_names: one for each class of the model.

    Raises:
        UserError: an id or name that no class has (`no-such-class`), a name that several classes have, or a number
            that is the id of one class and the name of another (`ambiguous-class`).
    """
    count = len(class_names)
    texts = [classes.strip()] if isinstance(classes, str) else [f"id:{c}" if isinstance(c, int) else c for c in classes]
    if texts in (["all"], ["random"]):
        return Labels(class_order(count) if texts == ["all"] else None, count, seed)
    found = [label for text in texts for label in _read(text, class_names)]
    if not found:
        raise UserError(
            f"classes {classes!r} contains no class", code="no-such-class", expected="`all`, `random`, ids or names"
        )
    return Labels(tuple(found), count, seed)


def require_classes(num_classes: int, what: str, remedy: str = "leave it out") -> None:
    """Raises `UserError` (`no-classes`) for an unconditional model. `what`: the request that needs classes."""
    if num_classes == 0:
        raise UserError(
            f"{what} needs classes, and the model was trained without them",
            code="no-classes",
            expected="a model with classes",
            remedy=remedy,
        )


def class_order(num_classes: int) -> tuple[int, ...]:
    """All classes once. Many classes are taken in golden-ratio strides, so that the first few are different kinds."""
    if num_classes <= FEW:
        return tuple(range(num_classes))
    stride = round(num_classes * 0.618)
    while math.gcd(stride, num_classes) != 1:
        stride += 1
    return tuple(i * stride % num_classes for i in range(num_classes))


def _read(text: str, class_names: Sequence[str]) -> list[int]:
    whole = _find(text, class_names)  # a single class name may itself hold commas
    if len(whole) == 1 and not text.strip().isdecimal():
        return whole
    return [_class(part.strip(), class_names) for part in text.split(",") if part.strip()]


def _class(part: str, class_names: Sequence[str]) -> int:
    """The class that `part` means: an id, a name, `id:10` or `name:10`."""
    kind, _, said = part.partition(":")
    if not said or kind not in ("id", "name") or (kind == "id" and not said.isdecimal()):
        kind, said = "", part
    ids = [int(said)] if kind != "name" and said.isdecimal() and len(said) <= MAX_DIGITS else []
    named = _find(said, class_names) if kind != "id" else []
    found = sorted({*ids, *named})
    if len(found) > 1:
        listed = ", ".join(map(str, named))
        raise UserError(
            f"{part!r} is the id of a class, and the name of class {listed}"
            if ids
            else f"{part!r} is the name of {len(named)} classes",
            code="ambiguous-class",
            expected="one class",
            remedy=f"id:{ids[0]} for the id, or name:{said} for the name" if ids else f"one of the ids {listed}",
        )
    if not found or found[0] >= len(class_names):
        some = ", ".join(class_names[:3])
        raise UserError(
            f"class {shortened(part)!r}: the model has no such class",
            code="no-such-class",
            expected=f"`all`, `random`, ids from 0 to {len(class_names) - 1}, or names such as {some}",
            remedy=None if ids else did_you_mean(said.lower(), [name.lower() for name in class_names]),
        )
    return found[0]


def _find(name: str, class_names: Sequence[str]) -> list[int]:
    """The classes with this name; where there are none, those with it as a part."""
    wanted = name.strip().lower()
    exact = [i for i, n in enumerate(class_names) if n.lower() == wanted]
    return exact or [i for i, n in enumerate(class_names) if wanted in [part.strip().lower() for part in n.split(",")]]
