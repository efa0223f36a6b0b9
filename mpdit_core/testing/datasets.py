"""The contract of data sets, as a check."""

from __future__ import annotations

import pickle

import numpy as np
from PIL import Image

from mpdit_core.protocols import Dataset
from mpdit_core.testing.conformance import require, require_contract, require_fingerprint


def check_dataset(dataset: Dataset, *, pictures: int = 8) -> None:
    """Checks a data set against its contract: names, items, labels, pictures and fingerprint, the same every time.

    Args:
        dataset: an instance with real or made-up data.
        pictures: number of pictures to decode, at even distances.

    Raises:
        ConformanceError: it breaks the contract; the message says how.
    """
    require_contract("datasets", type(dataset), "a data set class")
    names = dataset.class_names()
    require(all(isinstance(n, str) and n for n in names), "class names that are not empty", names)
    require(len(set(names)) == len(names), "no class name twice", names)
    items, last = list(dataset.items()), max(len(names) - 1, 0)  # without classes all labels are 0
    require(items, "at least one item")
    for item in items:
        fits = isinstance(item.label, int) and 0 <= item.label <= last
        require(fits, f"labels as int, 0 to {last}", f"{item.label!r} ({item.key})")
    require(len({item.key for item in items}) == len(items), "no key twice", f"{len(items)} items")
    require(list(dataset.items()) == items, "the same items in the same order every time")
    copy = pickle.loads(pickle.dumps(dataset))
    require(list(copy.items()) == items, "the same items from a pickled copy, as worker processes get it")
    require_fingerprint(dataset)
    require(copy.fingerprint() == dataset.fingerprint(), "the same fingerprint from a copy")
    count = min(pictures, len(items))
    for index in (round(i * (len(items) - 1) / max(count - 1, 1)) for i in range(count)):
        picture = dataset.image(index)
        require(isinstance(picture, Image.Image), "a PIL image", type(picture).__name__)
        again = np.asarray(copy.image(index))
        require(np.array_equal(np.asarray(picture), again), f"picture {index} to be the same every time")
