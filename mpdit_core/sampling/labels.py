"""The class of each image, from the option `classes`: ids and names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpdit_core.errors import UserError
from mpdit_core.runtime import seeding

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
    if kind == "id" and said.isdecimal():
        return _by_id(said, len(class_names))
    if kind == "name" and said:
        return _by_name(said, class_names)
    if not part.isdecimal():
        return _by_name(part, class_names)
    named = _find(part, class_names)
    if named and named != [int(part[:MAX_DIGITS])]:
        raise UserError(
            f"class {part}: the class of this name has the id {_join(named)}",
            code="ambiguous-class",
            expected="id:N or name:N, because some classes have numbers as names",
            remedy=f"id:{part} for the class with this id, name:{part} for the class with this name",
        )
    return _by_id(part, len(class_names))


def _by_id(digits: str, num_classes: int) -> int:
    if len(digits) > MAX_DIGITS or int(digits) >= num_classes:
        raise UserError(
            f"class {digits[:MAX_DIGITS]}: the model has no class with this id",
            code="no-such-class",
            expected=f"0 to {num_classes - 1}",
        )
    return int(digits)


def _by_name(name: str, class_names: Sequence[str]) -> int:
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
        some = ", ".join(class_names[:3])
        raise UserError(
            f"class {name!r}: the model has no class of this name",
            code="no-such-class",
            expected=f"`all`, `random`, ids from 0 to {len(class_names) - 1}, or names such as {some}",
            remedy=f"did you mean {' or '.join(near)}?" if near else None,
        )
    return ids[0]


def _find(name: str, class_names: Sequence[str]) -> list[int]:
    """The classes with this name; where there are none, those with it as a part."""
    wanted = name.strip().lower()
    exact = [i for i, n in enumerate(class_names) if n.lower() == wanted]
    return exact or [i for i, n in enumerate(class_names) if wanted in [part.strip().lower() for part in n.split(",")]]


def _join(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
