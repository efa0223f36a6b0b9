"""A file that gives each image its class, for images without class folders.

Its format, one image per line, in UTF-8:

    NAME,CLASS          also with a tab or a semicolon; cells may be quoted: `0.png,"tench, Tinca tinca"`
    NAME CLASS          everything after the name is the class: `0.png golden retriever`
    CLASS               one line per image, if sorting as text and as numbers gives one order (not for 2.png, 10.png)

A first line of column names (`NAMES`, `LABELS`) chooses the columns; Kaggle's `LOC_val_solution.csv` is known. NAME is
the path of an image below the root, or the end of that path if it fits one image only, or a longer path that ends with
it. All names may lack their extension. Empty lines and lines that begin with `#` are skipped. A file is refused if it
can be read in two ways that give different classes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from posixpath import splitext

from mpdit_core.data.images import suffixes
from mpdit_core.data.sources.files import natural_order, read_lines, shown
from mpdit_core.errors import UserError

LABEL_FILES = ("labels.txt", "labels.csv", "val.txt", "LOC_val_solution.csv")
"""Looked for in a folder of images without class folders, when `--labels` is not given."""

NAMES = (
    "file_name", "filename", "file", "image", "image_name", "image_path", "path", "filepath", "file_path", "imageid",
    "image_id", "img", "name", "id",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "class_name", "classname", "category", "target", "label_name", "cls", "class_id",
    "classid", "label_id", "category_id", "category_name", "fine_label", "coarse_label", "predictionstring", "species",
    "breed",
)  # fmt: skip
"""Names of columns, in lower case."""

LOCALISATION = "predictionstring"  # Kaggle's column: `n01440764 85 1 499 272`, a class and a box, any number of times
COLUMNS = {"\t": "columns between tabs", ",": "columns between commas", ";": "columns between semicolons"}
BLANKS = {" ": "a name, a space and a class"}
MAX_LINE = 10_000
SEVERAL = -1  # as a place: the name fits several images

Rows = list[tuple[int, str, str]]  # (line, name, class)
Lines = list[tuple[int, str]]  # (number, text)


class _MisfitError(Exception):
    """The file cannot be read in a certain way; the text says why."""


class _AmbiguousError(Exception):
    """The file can be read in more than one way; the text says how."""


def read_image_classes(path: Path, images: Sequence[str]) -> list[str]:
    """The class of each of `images` (keys in order), as text; see the module.

    Raises:
        UserError: the file can be read in several ways (`ambiguous-labels`), or in none: an image has no line, or the
            numbers of lines and images differ (`bad-label-file`); or it is unreadable (`cannot-read`, `damaged-file`).
    """
    lines = [(n, line) for n, line in enumerate(read_lines(path), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise _refusal(path, "is empty")
    if max(len(line) for _, line in lines) > MAX_LINE:
        raise _refusal(path, f"has a line of more than {MAX_LINE:,} characters")
    problems: list[str] = []
    try:
        for with_extension in (True, False):
            names = _ImageNames(images, with_extension=with_extension)
            columns = {delimiter: way for delimiter, way in COLUMNS.items() if delimiter in lines[0][1]}
            for ways in (columns, BLANKS):
                if classes := _read_in(ways, lines, names, problems):
                    return classes
        return _one_per_line([line.strip() for _, line in lines], images)
    except _AmbiguousError as error:
        raise _refusal(path, str(error), code="ambiguous-labels") from None
    except _MisfitError as error:
        raise _refusal(path, f"does not fit: {problems[0] if problems else error}") from None


def _read_in(ways: dict[str, str], lines: Lines, names: _ImageNames, problems: list[str]) -> list[str] | None:
    """The class of each image, if a way of reading fits; why the others do not fit is added to `problems`."""
    fitting = {}
    for delimiter, way in ways.items():
        try:
            rows = _blanks(lines, names) if delimiter == " " else _columns(lines, delimiter, names)
            fitting[way] = _assign(rows, names)
        except _MisfitError as error:
            problems.append(f"read as {way}, {error}")
    if len({tuple(classes) for classes in fitting.values()}) > 1:
        raise _AmbiguousError(f"is ambiguous: the classes differ when it is read as {' or as '.join(fitting)}")
    return next(iter(fitting.values()), None)


def _columns(lines: Lines, delimiter: str, names: _ImageNames) -> Rows:
    rows = _cells(lines, delimiter)
    header = [cell.lower() for cell in rows[0][1]]
    width = len(header)
    name_columns = [n for n, cell in enumerate(header) if cell in NAMES]
    label_columns = [n for n, cell in enumerate(header) if cell in LABELS]
    if name_columns and (label_columns or width == 2):
        del rows[0]
        name_columns.sort(key=lambda n: NAMES.index(header[n]))
    else:
        header, name_columns, label_columns = [], list(range(width)), []
    name_columns = [n for n in name_columns if names.all_in(row[n] for _, row in rows)]
    if not name_columns:
        raise _MisfitError("no column names all images")
    if len(name_columns) > 1 and not header:
        raise _AmbiguousError(f"has {len(name_columns)} columns that name all images")
    name = name_columns[0]
    label_columns = [n for n in label_columns or range(width) if n != name]
    if len(label_columns) != 1:
        which = ", ".join(header[n] if header else str(n + 1) for n in label_columns)
        raise _AmbiguousError(f"has {len(label_columns)} columns that may be the classes: {which}")
    label = label_columns[0]
    has_boxes = bool(header) and header[label] == LOCALISATION
    return [(line, row[name], row[label].partition(" ")[0] if has_boxes else row[label]) for line, row in rows]


def _cells(lines: Lines, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line, cells) of each row, all of one width."""
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        rows = [(lines[reader.line_num - 1][0], [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise _MisfitError(f"the quotes in line {lines[reader.line_num - 1][0]} are wrong: {error}") from None
    width = len(rows[0][1])
    odd = next((line for line, row in rows if len(row) != width), None)
    if odd is not None:
        raise _MisfitError(
            f"line {odd} does not have as many columns as the first, {width} (a name with a comma is quoted)"
        )
    return rows


def _blanks(lines: Lines, names: _ImageNames) -> Rows:
    """The name ends at the blank that follows the name of an image; lines without such a blank are skipped."""
    rows: Rows = []
    for number, line in lines:
        text = line.strip()
        ends = [blank.start() for blank in re.finditer(r"\s+", text) if names.find(text[: blank.start()]) is not None]
        if len(ends) > 1:
            raise _AmbiguousError(f"names two images in line {number}: {text[:200]}")
        rows += [(number, text[:end], text[end:].strip()) for end in ends]
    return rows


def _assign(rows: Rows, names: _ImageNames) -> list[str]:
    """The class of each image. Lines for other images are skipped."""
    classes: dict[int, str] = {}
    for line, name, value in rows:
        place = names.find(name)
        if place is None:
            continue
        if place == SEVERAL:
            raise _AmbiguousError(f"names {name} in line {line}, which matches several images")
        if not value:
            raise _MisfitError(f"line {line} has no class for {name}")
        if classes.setdefault(place, value) != value:
            raise _AmbiguousError(f"gives {names.keys[place]} the classes {classes[place]!r} and {value!r}")
    missing = [key for place, key in enumerate(names.keys) if place not in classes]
    if missing:
        raise _MisfitError(f"it gives no class for {len(missing)} of {len(names.keys)} images, such as {missing[0]}")
    return [classes[place] for place in range(len(names.keys))]


def _one_per_line(lines: list[str], images: Sequence[str]) -> list[str]:
    if any(splitext(word)[1].lower() in suffixes() for line in lines for word in re.split(r"[\s,;\"]+", line)):
        raise _MisfitError("it does not name all images")
    values = [line[1:-1].replace('""', '"') if re.fullmatch('".*"', line) else line for line in lines]
    if len(values) == len(images) + 1 and values[0].lower() in LABELS:
        del values[0]
    if len(values) != len(images):
        raise _MisfitError(f"it has {len(values)} lines for {len(images)} images")
    if not all(values):
        raise _MisfitError("a class is empty")
    if list(images) != sorted(images, key=natural_order):
        raise _AmbiguousError(
            "has one class per line, but the order of the images is ambiguous: 10.png before 2.png, or after it"
        )
    if len(values) > 1 and len(set(values)) == len(values) and any(re.search(r"[\s,;]", line) for line in lines):
        raise _AmbiguousError(
            "has a different text in every line, which may be a class, or another image and its class"
        )
    return values


class _ImageNames:
    """Finds the image with a name: by its whole path, or by an end of it that fits one image only."""

    def __init__(self, keys: Sequence[str], *, with_extension: bool):
        self.keys = keys
        self._with_extension = with_extension
        self._depth = max((key.count("/") + 1 for key in keys), default=0)
        self._by_end: dict[int, dict[str, int]] = {}

    def find(self, name: str) -> int | None:
        """Place of the image called `name`; None: there is none; SEVERAL: there is more than one."""
        name = name.strip().replace("\\", "/").removeprefix("./").lstrip("/")
        if (splitext(name)[1].lower() in suffixes()) != self._with_extension:
            return None
        whole, parts = self._ends(self._depth), name.split("/")
        if name in whole:
            return whole[name]
        if len(parts) < self._depth and name in self._ends(len(parts)):
            return self._ends(len(parts))[name]
        ends = ("/".join(parts[n:]) for n in range(max(1, len(parts) - self._depth), len(parts)))
        return next((whole[end] for end in ends if end in whole), None)

    def all_in(self, names: Iterable[str]) -> bool:
        """Whether `names` name every image, or several at once."""
        places = {self.find(name) for name in names}
        return SEVERAL in places or len(places - {None}) == len(self.keys)

    def _ends(self, count: int) -> dict[str, int]:
        """Image by the last `count` parts of its path."""
        if count not in self._by_end:
            table: dict[str, int] = {}
            for place, key in enumerate(self.keys):
                name = key if self._with_extension else splitext(key)[0]
                end = "/".join(name.split("/")[-count:])
                table[end] = place if end not in table else SEVERAL
            self._by_end[count] = table
        return self._by_end[count]


def _refusal(path: Path, what: str, *, code: str = "bad-label-file") -> UserError:
    header = "add a first line `file,class` that names the columns, and quote names that contain commas"
    return UserError(
        f"the label file {shown(path)} {what}",
        code=code,
        expected="a line `NAME,CLASS` with the whole path of each image, or one class per line (see docs/data.md)",
        remedy=header if code == "ambiguous-labels" else None,
    )
