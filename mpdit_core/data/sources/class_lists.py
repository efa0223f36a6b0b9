"""Names of classes and their order: from a list that users give, or sorted.

Names that are all decimal numbers are sorted as numbers (`10` comes after `9`), all others as text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mpdit_core.data.sources.files import read_lines, shown
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note, Warning

MAX_CLASSES = 100_000  # larger numbers are taken for something else than labels
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}(\.0*)?")  # pandas writes whole labels as 3.0 where some are missing


def read_class_names(path: Path) -> list[str]:
    """One name per line, in label order; empty lines and lines that begin with `#` are left out.

    Raises:
        UserError: the file cannot be read as text (`cannot-read`, `damaged-file`), holds no name, or one twice
            (`bad-class-list`).
    """
    names = [line for line in map(str.strip, read_lines(path)) if line and not line.startswith("#")]
    if not names:
        raise UserError(
            f"{shown(path)} holds no class names", code="bad-class-list", expected="one name per line, in label order"
        )
    _refuse_repeated(names, path)
    return names


def class_order(present: set[str], listed: Path | None) -> list[str]:
    """Names of the classes in label order, as the data call them: those in the file `listed`, or `present`, sorted.

    A line may continue after the name, as in `n01440764 tench, Tinca tinca`: then its first word is the name.

    Raises:
        UserError: the data have classes that the list lacks, or two lines name one class (`bad-class-list`), or as
            `read_class_names`.
    """
    if listed is None:
        return sort_classes(present)
    names = []
    for line in read_class_names(listed):
        word = re.split(r"[\s,]", line, maxsplit=1)[0]
        names.append(word if line not in present and word in present else line)
    missing = sorted(present - set(names))
    if missing:
        raise UserError(
            f"{shown(listed)} lacks {len(missing)} of the {len(present)} classes of the data: {', '.join(missing[:5])}"
            + (", …" if len(missing) > 5 else ""),
            code="bad-class-list",
            expected="every class, one per line, in label order",
        )
    _refuse_repeated(names, listed)
    return names


def refuse_list(listed: Path | None, where: str) -> None:
    """Raises `UserError` (`no-labels`) for a list of classes where no image has a class."""
    if listed is not None:
        raise UserError(
            f"{shown(listed)} lists classes, but the images of {where} have none",
            code="no-labels",
            expected="a folder for each class, or labels for the images",
            remedy="leave --classes out, for images without classes",
        )


def label_numbers(classes: Sequence[str], listed: Path | None, where: str) -> tuple[list[str], list[int]]:
    """(class names in label order, label of each image) from the class of each image as text.

    If every class is a whole number, these numbers are the labels: positions in `listed`, or 0..n-1.

    Raises:
        UserError: numbers that cannot be labels (`bad-label-file`), or as `class_order`.
    """
    present = set(classes)
    are_names = listed and present <= set(read_class_names(listed))
    if not are_names and all(WHOLE_NUMBER.fullmatch(name) for name in present):
        numbers = [int(name.partition(".")[0]) for name in classes]
        return label_names(numbers, listed, where), numbers
    names = class_order(present, listed)
    place = {name: n for n, name in enumerate(names)}
    return names, [place[name] for name in classes]


def label_names(numbers: Collection[int], listed: Path | None, where: str) -> list[str]:
    """Class names for labels that are numbers: those in the file `listed`, or the numbers from 0 to the last.

    Raises:
        UserError: numbers below 0, beyond the list, or beginning above 0 where there is no list (`bad-label-file`).
    """
    names = read_class_names(listed) if listed else None
    low, high = min(numbers, default=0), max(numbers, default=0)
    if low < 0 or high >= (len(names) if names else MAX_CLASSES) or (names is None and low > 0):
        raise UserError(
            f"{where} has labels {low} to {high}"
            + (f" for the {len(names)} names in {shown(listed)}" if listed and names else ""),
            code="bad-label-file",
            expected="labels that begin at 0 (the ILSVRC development kit counts from 1, in a different order)",
            remedy="write class names in place of the numbers, or list a name for each label from 0 on: --classes FILE",
        )
    return names or [str(n) for n in range(high + 1)]


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in label order, see the module."""
    plain = sorted(names)
    if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in plain):
        return sorted(plain, key=int)
    return plain


def empty_classes(names: Sequence[str], labels: Iterable[int]) -> list[Note | Warning]:
    """A warning that names the classes without an image."""
    seen = set(labels)
    empty = [name for label, name in enumerate(names) if label not in seen]
    if not empty:
        return []
    text = f"{len(empty)} of {len(names)} classes have no images: {', '.join(empty[:5])}" + (", …" * (len(empty) > 5))
    return [Warning(code="empty-classes", text=text)]


def similar_classes(names: Sequence[str]) -> list[Note | Warning]:
    """A warning for names that look the same to people: they differ only in capitals or in their Unicode form."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(unicodedata.normalize("NFD", name).casefold(), []).append(name)
    return [
        Warning(code="similar-classes", text=f"{' and '.join(map(ascii, same))} look alike but are different classes")
        for same in alike.values()
        if len(same) > 1
    ]


def _refuse_repeated(names: Sequence[str], path: Path) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{shown(path)} names the class {name!r} {count} times", code="bad-class-list", expected="each class once"
        )
