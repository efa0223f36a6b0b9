"""Data sets on the Hub, or local ones in its formats, read through `datasets`: stored first, or streamed.

The column of images and the column of labels are found by their types and, where there are several, by their names
(the first of `IMAGE_COLUMNS` and of `LABEL_COLUMNS` that exists). `ORG/NAME@revision` pins a revision; a path in place
of ORG/NAME reads a local data set. Labels are those of the data set: class names, whole numbers from 0 on, or texts,
which are sorted. Without a column of labels, images have no classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from mpdit_core.data.images import FaultyImageError, open_image
from mpdit_core.data.sources.class_lists import class_order, label_names, refuse_list, sort_classes
from mpdit_core.data.sources.files import read_regular
from mpdit_core.errors import UserError
from mpdit_core.protocols import Item
from mpdit_core.reporting import Note, Warning

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label", "cls", "category", "target")
TYPES_OF_LABELS = ("string", "large_string", "bool", "int", "uint", "float")  # beginnings of their names


@dataclass(eq=False)
class HubDataset:
    """`datasets.load_dataset(name)`: downloaded and stored in its cache at first use, then read at random."""

    name: str
    split: str | None = None
    classes: Path | None = None
    image_column: str | None = None
    label_column: str | None = None

    streaming = False

    def class_names(self) -> list[str]:
        return self._classes[0]

    def items(self) -> list[Item]:
        return self._items

    def image(self, index: int) -> Image.Image:
        return _decode(self._data[index][self._columns[0]])

    def fingerprint(self) -> str:
        """Hash of the builder's own hash (which covers revision and files), the split and its size."""
        info = self._data.info
        parts = (info.dataset_name, info.config_name, str(info.version), self._built[2], self._split, len(self._items))
        return hashlib.sha256(repr((parts, self.class_names())).encode()).hexdigest()[:32]

    def notes(self) -> list[Note | Warning]:
        """Which columns were taken where there are several, and how classes are ordered."""
        names, features = self.class_names(), self._built[0].features or {}
        notes: list[Note | Warning] = []
        for what, chosen, others in zip(("image", "label"), self._columns, _candidates(features), strict=True):
            others = [column for column in others if column != chosen]
            if others:
                text = f"the column of {what}s is {chosen}; others are {', '.join(others)} (dataset.{what} chooses)"
                notes.append(Note(text=text))
        if self._columns[1] is None:
            notes.append(Note(text=f"images without classes: hf:{self.name} has no column of labels"))
        if sorted(names) == names and names != sort_classes(names):
            text = f"the data set orders its classes as {', '.join(names[:4])}, …: a label is a position, not the name"
            notes.append(Warning(code="numbers-as-names", text=text))
        return notes

    @cached_property
    def _built(self) -> tuple[Any, Any, str]:
        """(data set, name of its split, hash of its builder)."""
        import datasets

        datasets.disable_progress_bars()
        path, _, revision = self.name.partition("@")
        with datasets_errors(self.name):
            builder = datasets.load_dataset_builder(path, revision=revision or None)
            splits = list(builder.info.splits or datasets.get_dataset_split_names(path, revision=revision or None))
            split = self.split or ("train" if "train" in splits else splits[0])
            if split not in splits:
                raise UserError(
                    f"split {split}: hf:{self.name} has no split of this name",
                    code="no-such-split",
                    expected=", ".join(splits),
                )
            data = datasets.load_dataset(path, revision=revision or None, split=split, streaming=self.streaming)
        return data, split, str(builder.hash)

    @property
    def _split(self) -> str:
        return self._built[1]

    @cached_property
    def _columns(self) -> tuple[str, str | None]:
        return find_columns(self._built[0].features or {}, self.name, image=self.image_column, label=self.label_column)

    @cached_property
    def _data(self) -> Any:
        from datasets import Image as ImageFeature

        columns = [column for column in self._columns if column]
        return self._built[0].select_columns(columns).cast_column(columns[0], ImageFeature(decode=False))

    @cached_property
    def _labels(self) -> list[Any]:
        label = self._columns[1]
        with datasets_errors(self.name):
            return list(self._data[label]) if label else [None] * len(self._data)

    @cached_property
    def _classes(self) -> tuple[list[str], dict[Any, int]]:
        """(names in label order, label of each value of the column)."""
        where, label = f"hf:{self.name}", self._columns[1]
        if label is None:
            refuse_list(self.classes, where)
            return [], {None: 0}
        feature = self._data.features[label]
        values: set[Any] = set() if getattr(feature, "names", None) else set(self._labels)  # this reads a stream once
        return class_table(feature, values, self.classes, where)

    @cached_property
    def _items(self) -> list[Item]:
        place = self._classes[1]
        try:
            return [Item(f"{self._split}[{row}]", place[value]) for row, value in enumerate(self._labels)]
        except KeyError as error:
            raise unlabelled(self.name, error.args[0]) from None


@dataclass(eq=False)
class HubStream(HubDataset):
    """The same, read over the network from front to back and never stored. The Hub must state the number of images."""

    streaming = True

    def __post_init__(self) -> None:
        self._position: int = -1
        self._rows: Iterator[Any] = iter(())

    def count(self) -> int:
        """Number of images. Raises `UserError` (`unknown-count`) when the Hub does not say it."""
        splits = self._built[0].info.splits or {}
        count = splits[self._split].num_examples if self._split in splits else None
        if not count:
            raise UserError(
                f"hf:{self.name} does not state how many images its split {self._split} has",
                code="unknown-count",
                remedy="leave --streaming out: the data set is then stored first, and counted",
            )
        return count

    def fingerprint(self) -> str:
        parts = (self.name, self._built[2], self._split, self.count(), self.class_names())
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def stream(self, start: int, stop: int) -> Iterator[tuple[Item, Any]]:
        """Items with functions that decode them. Continues from the end of the last call, or skips from the front."""
        image, label = self._columns
        if self._position != start:
            with datasets_errors(self.name):
                self._position, self._rows = start, iter(self._data.skip(start) if start else self._data)
        place = self._classes[1]
        for _ in range(start, stop):
            with datasets_errors(self.name):
                row = next(self._rows, None)
            if row is None:
                raise UserError(
                    f"hf:{self.name} ended after {self._position} of {self.count()} images",
                    code="damaged-file",
                    remedy="run the same command again, or leave --streaming out",
                )
            value = row[label] if label else None
            if value not in place:
                raise unlabelled(self.name, value)
            item = Item(f"{self._split}[{self._position}]", place[value])
            self._position += 1
            yield item, partial(_decode, row[image])

    @cached_property
    def _labels(self) -> list[Any]:
        """The label column alone, read over the network."""
        with datasets_errors(self.name):
            return [row[self._columns[1]] for row in self._data.select_columns([self._columns[1]])]


@contextmanager
def datasets_errors(name: str) -> Iterator[None]:
    """Turns what `datasets` raises while it loads or reads the data set `name` into a `UserError` (`not-on-hub`)."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of the network, the Hub, or one of many file formats
        reasons = [str(e).strip().partition("\n")[0] or type(e).__name__ for e in (error, error.__cause__) if e]
        raise UserError(
            f"hf:{name} cannot be loaded: {': '.join(reasons)}",
            code="not-on-hub",
            expected="a data set of images on the Hub, reachable or in the local cache",
            remedy="check the name; for gated data sets `hf auth login`",
        ) from error


def find_columns(
    features: Any, name: str, *, image: str | None = None, label: str | None = None
) -> tuple[str, str | None]:
    """Names of the column of images and of the column of labels; None where no column looks like labels.

    Args:
        features: features of the data set, by column.
        name: name of the data set, for messages.
        image: the column to take; None: the only one, or the first of `IMAGE_COLUMNS`.
        label: the same for labels and `LABEL_COLUMNS`.

    Raises:
        UserError: no column, or not the requested one, holds images (`no-images`) or numbers or texts as labels
            (`no-labels`); or several do, and none has a known name (`ambiguous-columns`).
    """
    images, labels = _candidates(features)
    has_labels = label or labels or any(map(_has_label_name, features))
    return (
        _choose(image, images, IMAGE_COLUMNS, what="image", name=name, features=features),
        _choose(label, labels, LABEL_COLUMNS, what="label", name=name, features=features) if has_labels else None,
    )


def _candidates(features: Any) -> tuple[list[str], list[str]]:
    """(columns of images, columns that may be labels)."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    labels = [
        column
        for column, feature in features.items()
        if isinstance(feature, ClassLabel)
        or (_has_label_name(column) and getattr(feature, "dtype", "").startswith(TYPES_OF_LABELS))
    ]
    return images, labels


def _has_label_name(column: str) -> bool:
    return column in LABEL_COLUMNS or "label" in column


def _choose(
    wanted: str | None, candidates: list[str], known: tuple[str, ...], *, what: str, name: str, features: Any
) -> str:
    if wanted is not None and wanted in features and (wanted in candidates or what == "label"):
        return wanted
    if wanted is not None or not candidates:
        raise UserError(
            f"hf:{name} has no column of {what}s" + (f" called {wanted}" if wanted else ""),
            code=f"no-{what}s",
            expected=f"a column of images and one of labels; its columns are {', '.join(features) or 'none'}",
            remedy=f"--set dataset.{what}=COLUMN",
        )
    named = [column for column in known if column in candidates]
    if len(candidates) > 1 and not named:
        raise UserError(
            f"hf:{name} has several columns of {what}s: {', '.join(candidates)}",
            code="ambiguous-columns",
            expected=f"one, or one called {', '.join(known[:3])}",
            remedy=f"--set dataset.{what}=COLUMN",
        )
    return (named or candidates)[0]


def class_table(feature: Any, values: set[Any], listed: Path | None, where: str) -> tuple[list[str], dict[Any, int]]:
    """(class names in label order, label of each value of the column).

    Raises:
        UserError: the values cannot be labels (`bad-label-file`), or do not fit the list (`bad-class-list`).
    """
    stated = list(getattr(feature, "names", None) or [])
    values = {value for value in values if value is not None and value != -1 and value == value}  # -1, NaN: unlabelled
    if not stated and all(isinstance(value, int | float) for value in values):
        odd = next((value for value in values if value != value // 1), None)
        if odd is not None:
            raise UserError(f"{where} has the label {odd}", code="bad-label-file", expected="integers, or strings")
        names = label_names([int(value) for value in values], listed, where)
        return names, {value: int(value) for value in values}
    name_of = dict(enumerate(stated)) or {value: str(value) for value in values}
    names = stated if stated and not listed else class_order(set(name_of.values()), listed)
    place = {name: label for label, name in enumerate(names)}
    return names, {value: place[name] for value, name in name_of.items()}


def unlabelled(name: str, value: Any) -> UserError:
    return UserError(
        f"hf:{name} has an image whose label is {value!r}",
        code="no-labels",
        expected="a class for every image (the test splits of many data sets have none)",
        remedy="--split NAME with a split that has labels",
    )


def _decode(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if value is None:
        raise FaultyImageError("there is no image in this row")
    data = value.get("bytes")
    if data is None:
        try:
            data = read_regular(value["path"] or "")
        except UserError as error:
            raise FaultyImageError(error.what) from None
    return open_image(data)
