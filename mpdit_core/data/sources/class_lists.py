"""Files that users have beside their images: lists of class names, and lists of the class of each image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mpdit_core.errors import UserError

LABEL_FILES = ("labels.txt", "labels.csv", "val.txt", "LOC_val_solution.csv")
"""Looked for in a folder of images without class folders, when `--labels` is not given."""


def read_class_names(path: Path) -> list[str]:
    """One name per line, in label order; empty lines and lines that begin with `#` are left out.

    Raises:
        UserError: the file cannot be read as text (`damaged-file`), holds no name or one twice (`bad-class-list`).
    """
    names = [line for line in (line.strip() for line in _lines(path)) if line and not line.startswith("#")]
    if not names:
        raise UserError(
            f"{path} holds no class names", code="bad-class-list", expected="one name per line, in label order"
        )
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{path} names {twice[0]!r} more than once", code="bad-class-list", expected="each class once")
    return names


def match_classes(listed: Sequence[str], present: set[str], path: Path) -> list[str]:
    """Class names in the order of `listed`, as the data call them.

    A line may continue after the name, as in `n01440764 tench, Tinca tinca`: then its first word is the name.

    Raises:
        UserError: the data have classes that the list lacks (`bad-class-list`).
    """
    names = [line if line in present else _first_word(line, present) for line in listed]
    missing = sorted(present - set(names))
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(present)} classes of the data: {', '.join(missing[:5])}"
            + (", …" if len(missing) > 5 else ""),
            code="bad-class-list",
            expected="every class, one per line, in label order",
        )
    return names


def read_image_classes(path: Path, images: Sequence[str]) -> list[str]:
    """The class of each of `images` (keys in order), as text.

    Understood are lines `FILE CLASS` (blank or comma between; the file with or without suffix), Kaggle's
    `LOC_val_solution.csv`, and one class per line for the images in sorted order.

    Raises:
        UserError: an image has no line, or lines and images do not match in number (`bad-label-file`).
    """
    rows = [row for row in (_fields(line) for line in _lines(path)) if row]
    if rows and rows[0][0].lower() in ("imageid", "image", "file", "filename", "file_name", "path"):
        rows = rows[1:]
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(images):
            raise UserError(
                f"{path} has {len(rows)} lines for {len(images)} images",
                code="bad-label-file",
                expected="one class per line, for the images in sorted order, or lines `FILE CLASS`",
            )
        return [row[0] for row in rows]
    table = {row[0]: row[1] for row in rows if len(row) > 1}
    by_stem = {_stem(name): value for name, value in table.items()}
    found = [table.get(image) or table.get(Path(image).name) or by_stem.get(_stem(image)) for image in images]
    missing = [image for image, name in zip(images, found, strict=True) if name is None]
    if missing:
        raise UserError(
            f"{path} gives no class for {len(missing)} of {len(images)} images, such as {missing[0]}",
            code="bad-label-file",
            expected="a line `FILE CLASS` for every image",
        )
    return [name for name in found if name is not None]


def label_numbers(classes: Sequence[str], listed: Sequence[str] | None, path: Path) -> tuple[list[str], list[int]]:
    """(class names in label order, label of each image) from the text that `read_image_classes` gives.

    Numbers are labels already when every class is one: places in `listed`, or 0..n-1.

    Raises:
        UserError: numbers that cannot be labels (`bad-label-file`).
    """
    present = set(classes)
    if all(name.isdecimal() for name in present) and not (listed and present <= set(listed)):
        numbers = [int(name) for name in classes]
        names = list(listed) if listed else [str(n) for n in range(max(numbers) + 1)]
        if max(numbers) >= len(names) or (listed is None and min(numbers) > 0):
            raise UserError(
                f"{path} has labels {min(numbers)} to {max(numbers)}"
                + (f" for the {len(names)} names in the list of classes" if listed else ""),
                code="bad-label-file",
                expected="labels that begin at 0 (the ILSVRC development kit counts from 1, in an order of its own)",
                remedy="write class names in place of the numbers",
            )
        return names, numbers
    names = match_classes(listed, present, path) if listed else sorted(present)
    place = {name: n for n, name in enumerate(names)}
    return names, [place[name] for name in classes]


def _first_word(line: str, present: set[str]) -> str:
    word = line.replace(",", " ").split()[0]
    return word if word in present else line


def _fields(line: str) -> list[str]:
    line = line.strip()
    if not line or line.startswith("#"):
        return []
    if "," in line:
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        return [cells[0], *(cells[1].split() or [""])] if len(cells) > 1 else cells
    name, _, rest = line.rpartition(" ") if " " in line else line.rpartition("\t")
    return [name.strip(), rest] if name else [rest]


def _stem(name: str) -> str:
    return Path(name).stem


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}", code="damaged-file") from error
