"""Finished images by number: a folder of image files, an `.npz` with `arr_0`, a `.safetensors`, a data set.

All give the same uint8 pixels, so the same images have the same features in every form. To add a form: a class with
the members of `ImageSource`, and its line in `open_images`.
"""

from __future__ import annotations

import hashlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpdit_core.api import Dataset
from mpdit_core.data.images import FORMATS, FaultyImageError, open_image, prepare
from mpdit_core.data.sources import evenly_spread, find_images, read_entry, source_notes
from mpdit_core.errors import UserError
from mpdit_core.evaluation.record import ImagesRecord
from mpdit_core.plugins import plugin_errors
from mpdit_core.reporting import Note, Warning
from mpdit_core.runtime.checked_tensors import opened
from mpdit_core.runtime.files import sha256
from mpdit_core.runtime.npz import map_member, member_names

LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")  # compression that changes the pixels
CROP_RULE = "halved by a box filter while twice too large, bicubic, centre crop (ADM)"
DECODERS = 4


class ImageSource(ABC):
    """Images 0 … count-1, all `resolution` × `resolution`."""

    count: int
    resolution: int
    labels: list[int] | None = None  # class of each, where it is known

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Tensor:
        """These images, [n, 3, H, W] uint8 on the CPU. Raises `UserError` naming one that cannot be read."""

    @abstractmethod
    def describe(self) -> ImagesRecord:
        """What the record of an evaluation says of them."""

    @abstractmethod
    def compute_fingerprint(self) -> str:
        """A hash that changes with the pixels."""

    @cached_property
    def fingerprint(self) -> str:
        """`compute_fingerprint`, computed once."""
        return self.compute_fingerprint()

    @property
    def lossy(self) -> bool:
        """Whether some of them were compressed with loss."""
        return False

    @property
    def sorted_by_class(self) -> bool:
        """Whether the first of them are all of a few classes."""
        return bool(self.labels) and len(set(self.labels)) > 1 and self.labels == sorted(self.labels)

    def notes(self) -> list[Note | Warning]:
        """What a person should know about how they were found."""
        return []


def open_images(path: Path) -> ImageSource:
    """Finished samples: a folder of image files of one size, `.npz` or `.safetensors`.

    Raises:
        UserError: missing, of another kind, empty, of several sizes, or not 8-bit RGB.
    """
    path = Path(path)
    expected = "a folder or .tar of images, a .npz or a .safetensors file"
    if not path.exists():
        raise UserError(f"{path} does not exist", code="no-such-file", expected=expected)
    if path.is_dir() or path.suffix == ".tar":
        return FolderImages(path)
    if path.suffix == ".npz":
        return NpzImages(path)
    if path.suffix == ".safetensors":
        return SafetensorsImages(path)
    raise UserError(f"{path} is no collection of images", code="not-images", expected=expected)


class FolderImages(ImageSource):
    """All images under `path`, a folder or .tar, in natural order of their names (2.png before 10.png).

    What counts as an image is the same as in `encode-latents`.

    Args:
        resolution: side that they are cropped and resized to by ADM's rule; None: they stay as they are, and must have
            one square size.
    """

    def __init__(self, path: Path, resolution: int | None = None):
        self.path = Path(path)
        found = find_images(self.path)
        self._notes = found.notes()
        self.files = sorted(found.images, key=lambda entry: _natural(entry.key))
        if not self.files:
            raise UserError(f"{path} holds no images", code="no-images", expected="files such as .png, .jpg, .tif")
        self.count = len(self.files)
        self._prepared = resolution is not None
        self.resolution = resolution if resolution is not None else self._one_size()

    def batch(self, indices: Sequence[int]) -> Tensor:
        with ThreadPoolExecutor(DECODERS) as pool:
            return _stack(list(pool.map(self._read, indices)))

    @property
    def lossy(self) -> bool:
        return any(entry.key.lower().endswith(LOSSY) for entry in self.files)

    @property
    def sorted_by_class(self) -> bool:
        return len({entry.parts[:-1] for entry in self.files}) > 1

    def notes(self) -> list[Note | Warning]:
        return self._notes

    def compute_fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.resolution if self._prepared else 'as is'}".encode())
        for entry in self.files:
            digest.update(f"{entry.key}\0{entry.size}\0{entry.modified}\n".encode())
        return digest.hexdigest()

    def describe(self) -> ImagesRecord:
        return ImagesRecord(
            kind="folder",
            path=str(self.path),
            sha256=self.fingerprint,
            resize=CROP_RULE if self._prepared else "none",
            order="by file name, numbers in order",
        )

    def picture(self, index: int) -> Image.Image:
        """Image `index` in its own size. Raises `UserError` where it cannot be read."""
        try:
            return open_image(read_entry(self.files[index]))
        except FaultyImageError as error:
            raise _unreadable(self._name(index), error) from error

    def _one_size(self) -> int:
        sizes: dict[tuple[int, int], str] = {}
        for index, entry in enumerate(self.files):  # decodes headers only
            try:
                with Image.open(io.BytesIO(read_entry(entry)), formats=FORMATS) as image:
                    sizes.setdefault(image.size, entry.key)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise _unreadable(self._name(index), error) from error
        if len(sizes) > 1:
            (a, file_a), (b, file_b) = list(sizes.items())[:2]
            raise UserError(
                f"{self.path} holds images of {len(sizes)} sizes: {file_a} is {a[0]} × {a[1]}, "
                f"{file_b} {b[0]} × {b[1]}",
                code="several-sizes",
                expected="samples of one size",
                remedy="keep grids and other pictures out of the folder",
            )
        ((width, height),) = sizes
        return _square(self.path, height, width)

    def _name(self, index: int) -> str:
        return f"{self.path}/{self.files[index].key}"

    def _read(self, index: int) -> np.ndarray:
        image = self.picture(index)
        if self._prepared:
            try:
                return prepare(image, self.resolution)
            except FaultyImageError as error:
                raise _unreadable(self._name(index), error) from error
        if image.mode not in ("RGB", "L") or image.has_transparency_data:
            transparent = " with transparency" if image.has_transparency_data else ""
            raise UserError(
                f"{self._name(index)} is a {image.mode} image{transparent}",
                code="not-rgb",
                expected="8-bit RGB or grey samples, without transparency",
            )
        if image.size != (self.resolution, self.resolution):
            raise UserError(
                f"{self._name(index)} is {image.width} × {image.height}, "
                f"others are {self.resolution} × {self.resolution}",
                code="several-sizes",
                expected="samples of one size",
            )
        return np.asarray(image.convert("RGB"))


class SpreadImages(ImageSource):
    """`count` images at even distances of a `source` that is sorted by class, so that all classes are among them."""

    def __init__(self, source: ImageSource, count: int):
        self.source, self.count, self.resolution = source, count, source.resolution
        self._places = evenly_spread(source.count, count)
        self.labels = [source.labels[place] for place in self._places] if source.labels else None

    def batch(self, indices: Sequence[int]) -> Tensor:
        return self.source.batch([self._places[index] for index in indices])

    @property
    def lossy(self) -> bool:
        return self.source.lossy

    def notes(self) -> list[Note | Warning]:
        text = f"{self.count} of {self.source.count} images, at even distances, because they are sorted by class"
        return [*self.source.notes(), Note(text=text)]

    def compute_fingerprint(self) -> str:
        return self.source.fingerprint

    def describe(self) -> ImagesRecord:
        whole = self.source.describe()
        order = f"{self.count} of {self.source.count} at even distances, {whole.order}"
        return whole.model_copy(update={"order": order})


class NpzImages(ImageSource):
    """`arr_0 [N, H, W, 3]` uint8 of an ADM-style `.npz`; `arr_1` are labels, where there are any.

    Read from the disk as needed: mapped as `np.savez` writes them; compressed ones are unpacked to a temporary file.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        names = member_names(self.path)
        if "arr_0" not in names:
            raise UserError(
                f"{path} holds {', '.join(names[:5]) or 'nothing'}", code="no-images", expected="arr_0, the images"
            )
        self.images = map_member(self.path, "arr_0")
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise UserError(
                f"{path}: arr_0 is {self.images.dtype} {list(self.images.shape)}",
                code="not-rgb",
                expected="uint8 [N, H, W, 3]",
            )
        self.count = len(self.images)
        self.resolution = _square(path, *self.images.shape[1:3])
        if "arr_1" in names:
            self.labels = _labels(map_member(self.path, "arr_1"), self.count)

    def batch(self, indices: Sequence[int]) -> Tensor:
        return _stack([self.images[i] for i in indices])

    def compute_fingerprint(self) -> str:
        return sha256(self.path)

    def describe(self) -> ImagesRecord:
        return ImagesRecord(kind="npz", path=str(self.path), sha256=self.fingerprint, order="as in the file")


class SafetensorsImages(ImageSource):
    """Tensor `images` uint8, [N, 3, H, W] or [N, H, W, 3]; `labels [N]`, where there are any."""

    def __init__(self, path: Path):
        self.path = Path(path)
        with opened(self.path) as file:
            names = list(file.keys())
            if "images" not in names:
                held = ", ".join(names[:5]) or "nothing"
                raise UserError(f"{path} holds {held}", code="no-images", expected="a tensor `images`")
            view = file.get_slice("images")
            shape, kind = view.get_shape(), view.get_dtype()
            labels = file.get_tensor("labels").numpy() if "labels" in names else None
        if len(shape) != 4 or kind != "U8" or 3 not in (shape[1], shape[3]):
            raise UserError(
                f"{path}: images is {kind} {shape}", code="not-rgb", expected="uint8 [N, 3, H, W] or [N, H, W, 3]"
            )
        self._channels_last = shape[3] == 3
        self.count = shape[0]
        self.resolution = _square(path, *(shape[1:3] if self._channels_last else shape[2:4]))
        self.labels = None if labels is None else _labels(labels, self.count)

    def batch(self, indices: Sequence[int]) -> Tensor:
        with opened(self.path) as file:
            view = file.get_slice("images")
            images = torch.cat([view[i : i + 1] for i in indices])
        return images.permute(0, 3, 1, 2).contiguous() if self._channels_last else images

    def compute_fingerprint(self) -> str:
        return sha256(self.path)

    def describe(self) -> ImagesRecord:
        return ImagesRecord(kind="safetensors", path=str(self.path), sha256=self.fingerprint, order="as in the file")


@dataclass
class DatasetImages(ImageSource):
    """The images of a data set (plugin, class folders, Hub), cropped and resized by ADM's rule."""

    dataset: Dataset
    resolution: int
    name: str
    skipped: frozenset[str] = frozenset()  # keys of faulty images, which are left out

    def __post_init__(self) -> None:
        with plugin_errors(self.dataset, "in items"):
            items = self.dataset.items()
        self._kept = [n for n in range(len(items)) if items[n].key not in self.skipped] if self.skipped else None
        self.items = items if self._kept is None else [items[n] for n in self._kept]
        self.count = len(self.items)
        self.labels = [item.label for item in self.items]
        if not self.count:
            raise UserError(f"{self.name} holds no images", code="no-images")

    def batch(self, indices: Sequence[int]) -> Tensor:
        with ThreadPoolExecutor(DECODERS) as pool:
            return _stack(list(pool.map(self._read, indices)))

    def compute_fingerprint(self) -> str:
        with plugin_errors(self.dataset, "in fingerprint"):
            text = f"{self.dataset.fingerprint()} {self.resolution} {CROP_RULE}"
        if self.skipped:
            text += f" without {sorted(self.skipped)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> ImagesRecord:
        return ImagesRecord(
            kind="data set", path=self.name, sha256=self.fingerprint, resize=CROP_RULE, order="of the data set"
        )

    def notes(self) -> list[Note | Warning]:
        return source_notes(self.dataset)

    def _read(self, index: int) -> np.ndarray:
        try:
            return prepare(self.picture(index), self.resolution)
        except (OSError, FaultyImageError) as error:
            raise _unreadable(self.items[index].key, error) from error

    def picture(self, index: int) -> Image.Image:
        """Image `index` in its own size."""
        with plugin_errors(self.dataset, "in image"):
            return self.dataset.image(self._kept[index] if self._kept else index)


def _stack(images: list[np.ndarray]) -> Tensor:
    stacked = np.stack(images)  # [n, H, W, 3]
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _labels(found: np.ndarray, count: int) -> list[int] | None:
    """The class of each image; None where the array is something else."""
    return found.reshape(-1).tolist() if found.dtype.kind in "iu" and found.size == count else None


def _square(path: Path, height: int, width: int) -> int:
    if height != width or height < 1:
        raise UserError(f"{path}: images are {width} × {height}", code="not-square", expected="square images")
    return int(height)


def _unreadable(name: str, error: Exception) -> UserError:
    reason = error.what if isinstance(error, UserError) else str(error)
    return UserError(f"{name} cannot be read: {reason}", code="damaged-file", remedy="remove or replace it")


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)]
