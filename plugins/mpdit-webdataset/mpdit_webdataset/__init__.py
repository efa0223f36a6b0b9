"""Tar shards as a data set for mpdit: the WebDataset format, `000123.jpg` beside `000123.cls` in .tar files."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand
from PIL import Image

from mpdit_core.api import Item, UserError, option

PICTURES = ("jpg", "jpeg", "png", "webp", "ppm")


class _Place(NamedTuple):
    """Where a picture's bytes are."""

    shard: str
    start: int
    size: int


@dataclass
class WebDataset:
    """Labelled pictures in uncompressed .tar shards; their places are listed once, then they are read at random."""

    shards: str = option("", "path of the shards, with braces for numbers: data/train-{0000..0041}.tar")
    classes: str = option("", "file with one class name per line, in label order; empty: the labels themselves")

    @cached_property
    def _index(self) -> tuple[list[Item], list[_Place]]:
        paths = list(braceexpand(self.shards))
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise UserError(
                f"there is no shard {missing[0]!r} ({len(missing)} of {len(paths)} are missing)",
                code="no-such-file",
                expected="local .tar files",
                remedy="e.g. shards='data/train-{0000..0041}.tar'",
            )
        items, places = [], []
        for path in paths:
            labels: dict[str, int] = {}
            pictures: dict[str, _Place] = {}
            try:
                with tarfile.open(path, "r:") as archive:
                    for member in archive:
                        key, _, suffix = member.name.partition(".")
                        if suffix.lower() in PICTURES:
                            pictures[key] = _Place(path, member.offset_data, member.size)
                        elif suffix == "cls":
                            labels[key] = int(archive.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]
            except (tarfile.TarError, ValueError) as error:
                raise UserError(
                    f"{path} is not a shard: {error}", code="damaged-file", expected="an uncompressed .tar"
                ) from error
            unlabelled = sorted(pictures.keys() - labels.keys())
            if unlabelled:
                raise UserError(
                    f"{path}: {unlabelled[0]} has no .cls beside it",
                    code="no-labels",
                    expected="a label for each picture",
                )
            items += [Item(f"{path}/{key}", labels[key]) for key in pictures]
            places += pictures.values()
        return items, places

    def class_names(self) -> list[str]:
        if self.classes:
            return Path(self.classes).read_text(encoding="utf-8").split("\n")[:-1]
        return [str(label) for label in range(max(item.label for item in self.items()) + 1)]

    def items(self) -> list[Item]:
        return self._index[0]

    def image(self, index: int) -> Image.Image:
        place = self._index[1][index]
        with open(place.shard, "rb") as file:
            file.seek(place.start)
            return Image.open(io.BytesIO(file.read(place.size)))

    def fingerprint(self) -> str:
        stats = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in braceexpand(self.shards)]
        return hashlib.sha256(repr((stats, self.class_names())).encode()).hexdigest()
