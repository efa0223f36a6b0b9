"""Reading any data set: its number of items, its classes, its items with functions that decode them, and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from PIL import Image

from mpdit_core.data.sources.class_lists import empty_classes, similar_classes
from mpdit_core.data.sources.hub import HubStream
from mpdit_core.plugins import broken, plugin_errors
from mpdit_core.protocols import Dataset, Item
from mpdit_core.reporting import Note, Warning

Decode = Callable[[], Image.Image]


def count_items(dataset: Dataset) -> int:
    return dataset.count() if isinstance(dataset, HubStream) else len(items_of(dataset))


def items_of(dataset: Dataset) -> Sequence[Item]:
    """All items. Raises `UserError` where the data set's plugin fails, or gives no list."""
    with plugin_errors(dataset, "in items"):
        items = dataset.items()
    if not isinstance(items, Sequence):
        raise broken(dataset, "in items", f"it returns {type(items).__name__}, not a list of items")
    return items


def classes_and_fingerprint(dataset: Dataset) -> tuple[tuple[str, ...], str]:
    """(class names, fingerprint). Raises `UserError` where the data set's plugin fails, or gives something else."""
    with plugin_errors(dataset, "in class_names or fingerprint"):
        names, fingerprint = tuple(dataset.class_names()), dataset.fingerprint()
    for value in (*names, fingerprint):
        if not isinstance(value, str):
            raise broken(dataset, "in class_names or fingerprint", f"it returns {type(value).__name__}, not text")
    return names, fingerprint


def read_items(dataset: Dataset, start: int, stop: int) -> Iterator[tuple[Item, Decode]]:
    """Items `start` to `stop` in order, each with a function that decodes its picture (in any thread)."""
    if isinstance(dataset, HubStream):
        yield from dataset.stream(start, stop)
        return
    items = items_of(dataset)
    for index in range(start, stop):
        item = items[index]
        if not (isinstance(item, Item) and isinstance(item.key, str) and isinstance(item.label, int)):
            raise broken(dataset, "in items", f"item {index} is {item!r:.80}, not Item(key: text, label: integer)")
        yield item, partial(read_image, dataset, index)


def read_image(dataset: Dataset, index: int) -> Image.Image:
    """The picture of item `index`. Raises `UserError` where it cannot be used, or where the data set's plugin fails."""
    with plugin_errors(dataset, "in image"):
        image = dataset.image(index)
    if not isinstance(image, Image.Image):
        raise broken(dataset, "in image", f"it returns {type(image).__name__}, not a Pillow image")
    return image


def evenly_spread(total: int, count: int) -> list[int]:
    """`count` places in a list of `total`, at even distances, so that a part of a list sorted by class has all classes.

    Raises:
        ValueError: more places than there are.
    """
    if count > total:
        raise ValueError(f"{count} of {total}")
    return [(2 * n + 1) * total // (2 * count) for n in range(count)]


def source_notes(dataset: Dataset) -> list[Note | Warning]:
    """What a person should know about how images and labels were found, left out or chosen."""
    with plugin_errors(dataset, "in class_names, items or notes"):
        names, notes = dataset.class_names(), getattr(dataset, "notes", None)
        found = notes() if notes else []
        if not isinstance(dataset, HubStream):  # whose labels come with the images
            found = found + empty_classes(names, (item.label for item in dataset.items()))
    return found + similar_classes(names)
