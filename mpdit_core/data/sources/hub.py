"""Data sets on the Hub, or local ones in its formats, read through `datasets`: stored first, or streamed.

The column of images and the column of labels are found by their types. `ORG/NAME@revision` pins a revision, and a
path in place of ORG/NAME reads a local data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from mpdit_core.api import Item
from mpdit_core.data.images import FaultyImageError, open_image
from mpdit_core.data.sources.class_lists import match_classes, read_class_names
from mpdit_core.errors import UserError

LABEL_COLUMNS = ("label", "labels", "class", "fine_label", "cls")


@dataclass(eq=False)
class HubDataset:
    """`datasets.load_dataset(name)`: downloaded and stored in its cache at first use, then read at random."""

    name: str
    split: str | None = None
    classes: Path | None = None

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

    @cached_property
    def _built(self) -> tuple[Any, Any, str]:
        return load(self.name, self.split, streaming=self.streaming)

    @property
    def _split(self) -> str:
        return self._built[1]

    @cached_property
    def _columns(self) -> tuple[str, str]:
        return find_columns(self._built[0].features or {}, self.name)

    @cached_property
    def _data(self) -> Any:
        from datasets import Image as ImageFeature

        image, label = self._columns
        return self._built[0].select_columns([image, label]).cast_column(image, ImageFeature(decode=False))

    @cached_property
    def _labels(self) -> list[Any]:
        return list(self._data[self._columns[1]])

    @cached_property
    def _classes(self) -> tuple[list[str], dict[Any, int]]:
        """(names in label order, label of each value of the column)."""
        values, feature = set(self._labels), self._data.features[self._columns[1]]
        return class_table(feature, values, self.classes)

    @cached_property
    def _items(self) -> list[Item]:
        place = self._classes[1]
        try:
            return [Item(f"{self._split}[{row}]", place[value]) for row, value in enumerate(self._labels)]
        except KeyError as error:
            raise unlabelled(self.name, error.args[0]) from None


@dataclass(eq=False)
class HubStream(HubDataset):
    """The same, read over the network from front to back and never stored. Needs class names and a known count."""

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
                f"hf:{self.name} does not say how many images its split {self._split} has",
                code="unknown-count",
                remedy="leave --streaming out: the data set is then stored first, and counted",
            )
        return count

    def fingerprint(self) -> str:
        parts = (self.name, self._built[2], self._split, self.count(), self.class_names())
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def stream(self, start: int, stop: int) -> Iterator[tuple[Item, Any]]:
        """Items with functions that decode them. Continues where the last call ended, else skips from the front."""
        image, label = self._columns
        if self._position != start:
            self._position, self._rows = start, iter(self._data.skip(start) if start else self._data)
        place = self._classes[1]
        for _ in range(start, stop):
            row = next(self._rows, None)
            if row is None:
                raise UserError(
                    f"hf:{self.name} ended after {self._position} of {self.count()} images", code="damaged-file"
                )
            if row[label] not in place:
                raise unlabelled(self.name, row[label])
            item = Item(f"{self._split}[{self._position}]", place[row[label]])
            self._position += 1
            yield item, partial(_decode, row[image])

    @cached_property
    def _labels(self) -> list[Any]:
        """The label column alone, read over the network."""
        return [row[self._columns[1]] for row in self._data.select_columns([self._columns[1]])]

    @cached_property
    def _classes(self) -> tuple[list[str], dict[Any, int]]:
        feature = self._data.features[self._columns[1]]
        values: set[Any] = set() if getattr(feature, "names", None) else set(self._labels)
        return class_table(feature, values, self.classes)


def load(name: str, split: str | None, *, streaming: bool) -> tuple[Any, str, str]:
    """(data set, the name of its split, the builder's hash). Raises `UserError` when it cannot be loaded."""
    import datasets
    from datasets import disable_progress_bars

    disable_progress_bars()
    path, _, revision = name.partition("@")
    try:
        builder = datasets.load_dataset_builder(path, revision=revision or None)
        splits = list(builder.info.splits or datasets.get_dataset_split_names(path, revision=revision or None))
        chosen = split or ("train" if "train" in splits else splits[0])
        if chosen not in splits:
            raise UserError(
                f"split {split}: hf:{name} has none of this name", code="no-such-split", expected=", ".join(splits)
            )
        data = datasets.load_dataset(path, revision=revision or None, split=chosen, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # of the network, the Hub, or one of many file formats
        text = str(error).strip().splitlines()
        raise UserError(
            f"hf:{name} could not be loaded: {text[0] if text else type(error).__name__}",
            code="not-on-hub",
            expected="a data set of images with labels on the Hub, reachable or in the local cache",
            remedy="check the name; for gated data sets `hf auth login`",
        ) from error
    return data, chosen, str(builder.hash)


def find_columns(features: Any, name: str) -> tuple[str, str]:
    """Names of the column of images and of the column of labels."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    labels = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    labels = labels or [column for column in LABEL_COLUMNS if column in features]
    if not images or not labels:
        raise UserError(
            f"hf:{name} has no column of {'images' if not images else 'labels'}",
            code="no-images" if not images else "no-labels",
            expected=f"an image column and a class label; it has {', '.join(features) or 'none'}",
        )
    preferred = [column for column in LABEL_COLUMNS if column in labels]
    return images[0], (preferred or labels)[0]


def class_table(feature: Any, values: set[Any], listed: Path | None) -> tuple[list[str], dict[Any, int]]:
    """(class names in label order, label of each value of the column)."""
    names = list(getattr(feature, "names", None) or [])
    values = values - {None, -1}
    if names:
        if listed:
            order = match_classes(read_class_names(listed), set(names), listed)
            return order, {value: order.index(name) for value, name in enumerate(names)}
        return names, {value: value for value in range(len(names))}
    if all(isinstance(value, int) for value in values):
        names = read_class_names(listed) if listed else [str(n) for n in range(max(values, default=-1) + 1)]
        return names, {value: value for value in values if 0 <= value < len(names)}
    present = {str(value) for value in values}
    names = match_classes(read_class_names(listed), present, listed) if listed else sorted(present)
    return names, {name: label for label, name in enumerate(names)}


def unlabelled(name: str, value: Any) -> UserError:
    return UserError(
        f"hf:{name} has an image whose label is {value!r}",
        code="no-labels",
        expected="a class for every image (the test splits of many data sets have none)",
        remedy="--split with one that is labelled",
    )


def _decode(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if value is None:
        raise FaultyImageError("there is no image in this row")
    data = value.get("bytes")
    if data is None:
        try:
            data = Path(value["path"]).read_bytes()
        except OSError as error:
            raise FaultyImageError(f"{value['path']}: {error.strerror}") from None
    return open_image(data)
