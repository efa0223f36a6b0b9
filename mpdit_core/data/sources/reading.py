"""Reading any data set: how many items it has, and its items with functions that decode them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, runtime_checkable

from PIL import Image

from mpdit_core.api import Dataset, Item
from mpdit_core.data.sources.class_lists import empty_classes
from mpdit_core.plugins import plugin_errors
from mpdit_core.reporting import Note, Warning

Decode = Callable[[], Image.Image]


@runtime_checkable
class Streamed(Protocol):
    """A data set that is best read from front to back; its labels come with its images."""

    def count(self) -> int: ...

    def stream(self, start: int, stop: int) -> Iterator[tuple[Item, Decode]]: ...


def count_items(dataset: Dataset) -> int:
    """Number of items."""
    if isinstance(dataset, Streamed):
        return dataset.count()
    with plugin_errors(dataset, "in items"):
        return len(dataset.items())


def read_items(dataset: Dataset, start: int, stop: int) -> Iterator[tuple[Item, Decode]]:
    """Items `start` to `stop` in order, each with a function that decodes its picture (in any thread)."""
    if isinstance(dataset, Streamed):
        yield from dataset.stream(start, stop)
        return
    with plugin_errors(dataset, "in items"):
        items = dataset.items()
    for index in range(start, stop):
        yield items[index], partial(read_image, dataset, index)


def read_image(dataset: Dataset, index: int) -> Image.Image:
    """The picture of item `index`. Raises `UserError` where it cannot be used, or where the data set's plugin fails."""
    with plugin_errors(dataset, "in image"):
        return dataset.image(index)


def evenly_spread(total: int, count: int) -> list[int]:
    """`count` places in a list of `total`, at even distances: a part of a list that is sorted by class has all classes.

    Raises:
        ValueError: more places than there are.
    """
    if count > total:
        raise ValueError(f"{count} of {total}")
    return [(2 * n + 1) * total // (2 * count) for n in range(count)]


def source_notes(dataset: Dataset) -> list[Note | Warning]:
    """What a person should know about how images and labels were found, left out or chosen."""
    if hasattr(dataset, "notes"):
        return dataset.notes()  # pyright: ignore[reportAttributeAccessIssue]
    with plugin_errors(dataset, "in class_names or items"):
        return empty_classes(dataset.class_names(), (item.label for item in dataset.items()))
