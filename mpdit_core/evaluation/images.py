"""Finished images by number: a folder of image files, an `.npz` with `arr_0`, a `.safetensors`, a data set.

All give the same uint8 pixels, so the same images have the same features in every form. To add a form: a class with
the members of `ImageSource`, and its line in `open_images`.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mpdit_core.api import Dataset
from mpdit_core.data.images import prepare
from mpdit_core.errors import UserError
from mpdit_core.evaluation.record import ImagesRecord
from mpdit_core.plugins import plugin_errors
from mpdit_core.runtime.files import sha256

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LOSSY = (".jpg", ".jpeg")  # compression that changes the pixels
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


def open_images(path: Path) -> ImageSource:
    """Finished samples: a folder of image files of one size, `.npz` or `.safetensors`.

    Raises:
        UserError: missing, of another kind, empty, of several sizes, or not 8-bit RGB.
    """
    path = Path(path)
    expected = "a folder of images, a .npz or a .safetensors file"
    if path.is_dir():
        return FolderImages(path)
    if not path.exists():
        raise UserError(f"{path} does not exist", code="no-such-file", expected=expected)
    if path.suffix == ".npz":
        return NpzImages(path)
    if path.suffix == ".safetensors":
        return SafetensorsImages(path)
    raise UserError(f"{path} is no collection of images", code="not-images", expected=expected)


class FolderImages(ImageSource):
    """All image files under `path`, in natural order of their names (2.png before 10.png).

    Args:
        resolution: side that they are cropped and resized to by ADM's rule; None: they stay as they are, and must have
            one square size.
    """

    def __init__(self, path: Path, resolution: int | None = None):
        self.path = Path(path)
        files = [f for f in self.path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()]
        files = [f for f in files if not any(p.startswith(".") for p in f.relative_to(self.path).parts)]
        self.files = sorted(files, key=lambda f: _natural(str(f.relative_to(self.path))))
        if not self.files:
            raise UserError(
                f"{path} holds no images", code="no-images", expected=f"files ending in {', '.join(SUFFIXES)}"
            )
        self.count = len(self.files)
        self._prepared = resolution is not None
        self.resolution = resolution if resolution is not None else self._one_size()

    def batch(self, indices: Sequence[int]) -> Tensor:
        with ThreadPoolExecutor(DECODERS) as pool:
            return _stack(list(pool.map(self._read, indices)))

    @property
    def lossy(self) -> bool:
        return any(file.suffix.lower() in LOSSY for file in self.files)

    def compute_fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.resolution if self._prepared else 'as is'}".encode())
        for file in self.files:
            status = file.stat()
            digest.update(f"{file.relative_to(self.path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
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
            return Image.open(self.files[index])
        except (OSError, UnidentifiedImageError) as error:
            raise _unreadable(self.files[index], error) from error

    def _read(self, index: int) -> np.ndarray:
        path = self.files[index]
        try:
            with Image.open(path) as image:
                if self._prepared:
                    return prepare(image, self.resolution)
                if image.mode not in ("RGB", "L"):
                    raise UserError(
                        f"{path} is a {image.mode} image",
                        code="not-rgb",
                        expected="8-bit RGB or grey samples, without transparency",
                    )
                if image.size != (self.resolution, self.resolution):
                    raise UserError(
                        f"{path} is {image.width} × {image.height}, others are {self.resolution} × {self.resolution}",
                        code="several-sizes",
                        expected="samples of one size",
                    )
                return np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise _unreadable(path, error) from error

    def _one_size(self) -> int:
        sizes: dict[tuple[int, int], Path] = {}
        for file in self.files:  # reads headers only
            try:
                with Image.open(file) as image:
                    sizes.setdefault(image.size, file)
            except (OSError, UnidentifiedImageError) as error:
                raise _unreadable(file, error) from error
        if len(sizes) > 1:
            (a, file_a), (b, file_b) = list(sizes.items())[:2]
            raise UserError(
                f"{self.path} holds images of {len(sizes)} sizes: {file_a.name} is {a[0]} × {a[1]}, {file_b.name} "
                f"{b[0]} × {b[1]}",
                code="several-sizes",
                expected="samples of one size",
                remedy="keep grids and other pictures out of the folder",
            )
        ((width, height),) = sizes
        return _square(self.path, height, width)


class NpzImages(ImageSource):
    """`arr_0 [N, H, W, 3]` uint8 of an ADM-style `.npz`; `arr_1` are labels, where there are any.

    Read from the disk as needed: mapped as `np.savez` writes them; compressed ones are unpacked to a temporary file.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        with reading_npz(self.path) as archive:
            if "arr_0" not in archive.files:
                raise UserError(
                    f"{path} holds {', '.join(archive.files) or 'nothing'}",
                    code="no-images",
                    expected="arr_0, the images",
                )
            self.labels = archive["arr_1"].reshape(-1).tolist() if "arr_1" in archive.files else None
        self.images = map_npz_member(self.path, "arr_0")
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise UserError(
                f"{path}: arr_0 is {self.images.dtype} {list(self.images.shape)}",
                code="not-rgb",
                expected="uint8 [N, H, W, 3]",
            )
        self.count = len(self.images)
        self.resolution = _square(path, *self.images.shape[1:3])

    def batch(self, indices: Sequence[int]) -> Tensor:
        return _stack([self.images[i] for i in indices])

    def compute_fingerprint(self) -> str:
        return sha256(self.path)

    def describe(self) -> ImagesRecord:
        return ImagesRecord(kind="npz", path=str(self.path), sha256=self.fingerprint, order="as in the file")


class SafetensorsImages(ImageSource):
    """Tensor `images` uint8, [N, 3, H, W] or [N, H, W, 3]; `labels [N]`, where there are any."""

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            with safe_open(self.path, "pt") as file:
                names = list(file.keys())
                if "images" not in names:
                    held = ", ".join(names[:5]) or "nothing"
                    raise UserError(f"{path} holds {held}", code="no-images", expected="a tensor `images`")
                view = file.get_slice("images")
                shape, kind = view.get_shape(), view.get_dtype()
                self.labels = file.get_tensor("labels").tolist() if "labels" in names else None
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable .safetensors file: {error}", code="damaged-file") from error
        if len(shape) != 4 or kind != "U8" or 3 not in (shape[1], shape[3]):
            raise UserError(
                f"{path}: images is {kind} {shape}", code="not-rgb", expected="uint8 [N, 3, H, W] or [N, H, W, 3]"
            )
        self._channels_last = shape[3] == 3
        self.count = shape[0]
        self.resolution = _square(path, *(shape[1:3] if self._channels_last else shape[2:4]))

    def batch(self, indices: Sequence[int]) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
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

    def _read(self, index: int) -> np.ndarray:
        try:
            return prepare(self.picture(index), self.resolution)
        except (OSError, UnidentifiedImageError) as error:
            raise _unreadable(self.items[index].key, error) from error

    def picture(self, index: int) -> Image.Image:
        """Image `index` in its own size."""
        with plugin_errors(self.dataset, "in image"):
            return self.dataset.image(self._kept[index] if self._kept else index)


def reading_npz(path: Path) -> Any:
    """`np.load` of an archive, nothing unpickled. Raises `UserError`."""
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npz file: {error}", code="damaged-file") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path} holds a single array", code="not-images", expected="an .npz archive")
    return archive


def map_npz_member(path: Path, name: str) -> np.ndarray:
    """Array `name` of the archive, memory-mapped, so that it may be larger than memory. Raises `UserError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return _map_npy(path, _data_offset(path, member.header_offset))
            with tempfile.TemporaryDirectory() as folder:
                unpacked = Path(archive.extract(member, folder))
                return _map_npy(unpacked, 0)  # the mapping keeps the deleted file alive
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{path}: {name} cannot be read: {error}", code="damaged-file", remedy="the file may be truncated"
        ) from error


def _data_offset(path: Path, header: int) -> int:
    """Where a stored member's bytes begin: behind the local header of 30 bytes, its name and its extra field."""
    with open(path, "rb") as file:
        file.seek(header + 26)
        name, extra = np.frombuffer(file.read(4), dtype="<u2")
    return header + 30 + int(name) + int(extra)


def _map_npy(path: Path, offset: int) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(file)
        start = file.tell()
    if kind.hasobject:
        raise ValueError("it holds Python objects")
    return np.memmap(path, kind, "r", offset=start, shape=shape, order="F" if fortran else "C")


def _stack(images: list[np.ndarray]) -> Tensor:
    stacked = np.stack(images)  # [n, H, W, 3]
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _square(path: Path, height: int, width: int) -> int:
    if height != width:
        raise UserError(f"{path}: images are {width} × {height}", code="not-square", expected="square images")
    return int(height)


def _unreadable(name: Path | str, error: BaseException) -> UserError:
    return UserError(f"{name} cannot be read: {error}", code="damaged-file", remedy="remove or replace it")


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
