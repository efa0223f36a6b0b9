"""Tar shards as a data set for mpdit: the WebDataset format, `000123.jpg` beside `000123.cls` in .tar files.

The key of a sample is its path up to the first dot of the file name: `v1.0/0001.input.png` has the key `v1.0/0001`.
The label is in `KEY.cls`, or in `KEY.json` under "label" or "cls". It is a whole number, or a text; texts are numbered
in sorted order. To read another extension of images: `PICTURES`.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand
from PIL import Image

from mpdit_core.api import Item, UserError, open_image, option, read_archive, read_class_names, read_regular

PICTURES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff", "avif", "jp2", "qoi")
LABELS = ("cls", "json")
MAX_LABEL_BYTES = 2**20


class _Place(NamedTuple):
    """Where a picture's bytes are."""

    shard: str
    start: int
    size: int


@dataclass
class WebDataset:
    """Labelled pictures in uncompressed .tar shards. The places of all pictures are found once, then read directly."""

    shards: str = option("", "path of the shards, with a range in braces: data/train-{0000..0041}.tar")
    classes: str = option("", "file with one class name per line, in label order; empty: the labels themselves")

    def class_names(self) -> list[str]:
        return self._table[0]

    def items(self) -> list[Item]:
        return self._table[1]

    def image(self, index: int) -> Image.Image:
        place = self._pictures[index]
        return open_image(read_regular(place.shard, offset=place.start, size=place.size))

    def fingerprint(self) -> str:
        """Hash of the sizes and times of change of all shards, and of the class names."""
        stats = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in self._paths]
        return hashlib.sha256(repr((stats, self.class_names())).encode()).hexdigest()

    @cached_property
    def _paths(self) -> list[str]:
        try:
            paths = list(braceexpand(self.shards))
        except ValueError as error:
            raise UserError(f"the braces in {self.shards!r} are wrong: {error}", code="invalid-value") from error
        missing = [path for path in paths if not _is_file(path)]
        if missing:
            raise UserError(
                f"there is no shard {missing[0]!r} ({len(missing)} of {len(paths)} are missing)",
                code="no-such-file",
                expected="local .tar files",
                remedy="e.g. shards='data/train-{0000..0041}.tar'",
            )
        path, count = Counter(paths).most_common(1)[0]
        if count > 1:
            raise UserError(
                f"the shard {path} is named {count} times", code="counted-twice", expected="each shard once"
            )
        return paths

    @cached_property
    def _index(self) -> list[tuple[str, _Place, int | str]]:
        """(key with its shard, picture, label) of each sample, in the order of the shards and of the keys in them."""
        return [sample for path in self._paths for sample in _samples(path)]

    @cached_property
    def _pictures(self) -> list[_Place]:
        return [place for _, place, _ in self._index]

    @cached_property
    def _table(self) -> tuple[list[str], list[Item]]:
        keys, labels = [key for key, _, _ in self._index], [label for _, _, label in self._index]
        listed = read_class_names(Path(self.classes).expanduser()) if self.classes else None
        names, numbers = _number(labels, listed, self.shards)
        return names, [Item(key, label) for key, label in zip(keys, numbers, strict=True)]


def _samples(shard: str) -> Iterator[tuple[str, _Place, int | str]]:
    """(key with its shard, picture, label) of each sample of one shard, in the order of their keys."""
    pictures: dict[str, _Place] = {}
    labels: dict[str, int | str] = {}
    for path, start, size, _ in read_archive(shard).files:
        folder, name = posixpath.split(path)
        stem, _, extension = name.partition(".")
        suffix = extension.lower().rpartition(".")[2]
        key = posixpath.join(folder, stem)
        if not stem or not (suffix in PICTURES or suffix in LABELS):
            continue
        if start < 0:
            raise _bad(shard, f"{path} is a broken link, or not a regular file")
        if suffix in PICTURES:
            if key in pictures:
                raise _bad(shard, f"{key} has several pictures, such as {path}", "one picture for each key")
            pictures[key] = _Place(shard, start, size)
        elif extension.lower() in LABELS:
            label = _label(shard, path, read_regular(shard, offset=start, size=min(size, MAX_LABEL_BYTES)))
            if label is not None and labels.setdefault(key, label) != label:
                raise _bad(shard, f"{key} has the labels {labels[key]!r} and {label!r}", "one label for each key")
    for key in sorted(pictures.keys() ^ labels.keys()):
        if key in pictures:
            raise _bad(shard, f"{key} has no label", 'KEY.cls, or KEY.json with a "label", for each picture')
        raise _bad(shard, f"{key} has a label, but no picture that can be read", f"KEY.{', KEY.'.join(PICTURES)}")
    return ((f"{shard}/{key}", pictures[key], labels[key]) for key in sorted(pictures))


def _label(shard: str, path: str, data: bytes) -> int | str | None:
    """The label in a file; None for a .json that has none."""
    try:
        text = data.decode("utf-8").strip()
        if path.lower().endswith(".json"):
            values = json.loads(text)
            fields = [values[key] for key in ("label", "cls") if key in values] if isinstance(values, dict) else []
            if not fields:
                return None
            if isinstance(fields[0], bool) or not isinstance(fields[0], int | str):
                raise ValueError(f"the label {fields[0]!r}")
            text = str(fields[0]).strip()
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise _bad(shard, f"{path} holds no label: {error}", "an integer or a string") from error
    if not text:
        raise _bad(shard, f"{path} is empty", "an integer or a string")
    return int(text) if text.lstrip("-").isdecimal() and text.isascii() and len(text) < 10 else text


def _number(labels: Sequence[int | str], listed: list[str] | None, where: str) -> tuple[list[str], list[int]]:
    """(class names, labels). Whole numbers are labels; a text has its place in `listed`, or in sorted order."""
    if not labels:
        raise UserError(f"{where} holds no samples", code="no-images", expected="pictures with labels")
    numbers = [label for label in labels if isinstance(label, int)]
    if not numbers:
        names = listed or sorted({str(label) for label in labels})
        place = {name: n for n, name in enumerate(names)}
        missing = sorted({str(label) for label in labels} - place.keys())
        if missing:
            raise UserError(
                f"the list of classes lacks {missing[0]!r}, a label in {where}",
                code="bad-class-list",
                expected="every label, one per line",
                remedy="correct the file that --set dataset.classes names",
            )
        return names, [place[str(label)] for label in labels]
    top = len(listed) if listed else 100_000
    if len(numbers) < len(labels) or min(numbers) < 0 or max(numbers) >= top or (not listed and min(numbers) > 0):
        text = next((label for label in labels if isinstance(label, str)), None)
        raise UserError(
            f"{where} has labels from {min(numbers)} to {max(numbers)}"
            + (f" and the text {text!r}" if text is not None else "")
            + (f" for {len(listed)} class names" if listed else ""),
            code="bad-label-file",
            expected="integers of at least 0, or strings",
            remedy="name a file with a class name for each label from 0 on: --set dataset.classes=FILE",
        )
    return listed or [str(n) for n in range(max(numbers) + 1)], numbers


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # the name is too long, or impossible
        return False


def _bad(shard: str, what: str, expected: str | None = None) -> UserError:
    return UserError(f"the shard {shard}: {what}", code="bad-shard", expected=expected)
