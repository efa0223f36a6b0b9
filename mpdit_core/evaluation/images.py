"""Finished images by number: a folder of image files, an `.npz` with `arr_0`, a `.safetensors`, a data set.

The same images have the same uint8 pixels in every form, and so the same features. To add a form: a function that
returns an `ImageSource`, and its line in `open_images`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpdit_core.data.autoencoders import as_rgb
from mpdit_core.data.images import FORMATS, FaultyImageError, Mode, open_image, prepare
from mpdit_core.data.sources import Entry, evenly_spread, find_images, natural_order, read_entry, source_notes
from mpdit_core.errors import UserError
from mpdit_core.evaluation.record import ImagesRecord
from mpdit_core.plugins import plugin_errors
from mpdit_core.protocols import Dataset
from mpdit_core.reporting import Note, Warning
from mpdit_core.runtime.checked_tensors import opened
from mpdit_core.runtime.files import sha256
from mpdit_core.runtime.npz import map_member, member_names
from mpdit_core.size import Size

LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")  # compression that changes the pixels
CROP_RULE = "halved by a box filter while twice too large, bicubic, centre crop (ADM)"
DECODERS = 4

Batch = Callable[[Sequence[int]], Tensor]
"""Indices → these images, [n, 3, H, W] uint8 on the CPU. Raises `UserError` with the name of an unreadable one."""


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Images 0 … count-1, all of size `resolution`, read when `batch` asks for them."""

    about: ImagesRecord  # for the record of an evaluation; see `record`
    count: int
    resolution: Size
    batch: Batch
    hash_content: Callable[[], str]  # changes with the pixels
    picture: Callable[[int], Image.Image] | None = None  # an image in its original size, where `batch` resizes
    labels: list[int] | None = None  # class of each, where it is known
    lossy: bool = False  # whether some were compressed with loss
    sorted_by_class: bool = False  # whether the first ones are of a few classes only
    notes: Sequence[Note | Warning] = ()  # for the user, about how they were found

    @cached_property
    def record(self) -> ImagesRecord:
        """`about` with the fingerprint."""
        return self.about.model_copy(update={"sha256": self.hash_content()})


def open_images(path: Path) -> ImageSource:
    """Finished samples: a folder of image files of one size, `.npz` or `.safetensors`.

    Raises:
        UserError: `path` is missing, of another kind or empty, or its images have several sizes or are not 8-bit RGB.
    """
    expected = "a folder or .tar of images, a .npz or a .safetensors file"
    if not path.exists():
        raise UserError(f"{path} does not exist", code="no-such-file", expected=expected)
    if path.is_dir() or path.suffix == ".tar":
        return folder_images(path)
    if path.suffix == ".npz":
        return npz_images(path)
    if path.suffix == ".safetensors":
        return _safetensors_images(path)
    raise UserError(f"{path} is not a collection of images", code="not-images", expected=expected)


def folder_images(path: Path, resolution: Size | None = None, *, mode: Mode = "RGB") -> ImageSource:
    """All images under `path`, a folder or .tar, in natural order of their names (2.png before 10.png).

    It finds the same files as `encode-latents`.

    Args:
        resolution: size to which they are cropped and resized by ADM's rule; None: they stay as they are, and must all
            have one size.
        mode: Pillow's name of the mode that they are converted to, if a resolution is given; transparency is laid on
            white afterwards.
    """
    found = find_images(path)
    files = sorted(found.images, key=lambda entry: natural_order(entry.key))
    if not files:
        raise UserError(f"{path} holds no images", code="no-images", expected="files such as .png, .jpg, .tif")
    return replace(image_files(path, files, resolution, mode=mode), notes=found.notes())


def image_files(path: Path, files: list[Entry], resolution: Size | None = None, *, mode: Mode = "RGB") -> ImageSource:
    """These files under `path` as images, in this order; the other arguments are those of `folder_images`."""

    def name(index: int) -> str:
        return f"{path}/{files[index].key}"

    def picture(index: int) -> Image.Image:
        with _naming(name(index)):
            return open_image(read_entry(files[index]))

    def pixels(index: int) -> np.ndarray:
        image = picture(index)
        transparent = " with transparency" if "transparency" in image.info else ""
        if image.mode not in ("RGB", "L", "RGBA") or transparent:
            raise UserError(
                f"{name(index)} is a {image.mode} image{transparent}",
                code="not-rgb",
                expected="8-bit RGB, RGBA or grey samples, without a transparent colour",
            )
        return np.asarray(image if image.mode == "RGBA" else image.convert("RGB"))

    def hash_content() -> str:
        digest = hashlib.sha256(f"{'as is' if resolution is None else resolution}{_in_mode(mode)}".encode())
        for entry in files:
            digest.update(f"{entry.key}\0{entry.size}\0{entry.modified}\n".encode())
        return digest.hexdigest()

    return ImageSource(
        about=ImagesRecord(
            kind="folder",
            path=str(path),
            resize="none" if resolution is None else CROP_RULE,
            order="by file name, numbers in order",
        ),
        count=len(files),
        resolution=_one_size(path, files) if resolution is None else resolution,
        batch=_in_threads(pixels) if resolution is None else _resized(picture, name, resolution, mode),
        hash_content=hash_content,
        picture=picture,
        lossy=any(entry.key.lower().endswith(LOSSY) for entry in files),
        sorted_by_class=len({entry.parts[:-1] for entry in files}) > 1,
    )


def _one_size(path: Path, files: list[Entry]) -> Size:
    """The size that all of them have, read from their headers."""
    sizes: dict[Size, str] = {}
    for entry in files:
        with (
            _naming(f"{path}/{entry.key}"),
            Image.open(io.BytesIO(read_entry(entry)), formats=FORMATS) as image,
        ):
            sizes.setdefault(Size(image.height, image.width), entry.key)
    if len(sizes) > 1:
        (a, file_a), (b, file_b) = list(sizes.items())[:2]
        raise UserError(
            f"{path} holds images of {len(sizes)} sizes: {file_a} is {a} px, {file_b} {b} px",
            code="several-sizes",
            expected="samples of one size",
            remedy="remove grids and other images from the folder",
        )
    return next(iter(sizes))


def npz_images(path: Path) -> ImageSource:
    """`arr_0 [N, H, W, 3]` uint8 of an ADM-style `.npz`, with labels where there is an `arr_1`.

    They are mapped from the disk; compressed arrays are unpacked to a temporary file first.
    """
    names = member_names(path)
    if "arr_0" not in names:
        raise no_images(path, names, expected="arr_0, the images")
    images = map_member(path, "arr_0")
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(
            f"{path}: arr_0 is {images.dtype} {list(images.shape)}", code="not-rgb", expected="uint8 [N, H, W, 3]"
        )
    labels = _labels(map_member(path, "arr_1"), len(images)) if "arr_1" in names else None
    resolution = Size(*map(int, images.shape[1:3]))
    return _in_one_file(path, len(images), resolution, lambda indices: _stack(images[i] for i in indices), labels)


def _safetensors_images(path: Path) -> ImageSource:
    """Tensor `images` uint8, [N, 3, H, W] or [N, H, W, 3]; and `labels [N]`, where it is there."""
    with opened(path) as file:
        names = list(file.keys())
        if "images" not in names:
            raise no_images(path, names, expected="a tensor `images`")
        view = file.get_slice("images")
        shape, kind = view.get_shape(), view.get_dtype()
        labels = _labels(file.get_tensor("labels").numpy(), shape[0]) if "labels" in names else None
    if len(shape) != 4 or kind != "U8" or 3 not in (shape[1], shape[3]):
        raise UserError(
            f"{path}: images is {kind} {shape}", code="not-rgb", expected="uint8 [N, 3, H, W] or [N, H, W, 3]"
        )
    channels_last = shape[3] == 3

    def batch(indices: Sequence[int]) -> Tensor:
        with opened(path) as file:
            view = file.get_slice("images")
            images = torch.cat([view[i : i + 1] for i in indices])
        return images.permute(0, 3, 1, 2).contiguous() if channels_last else images

    return _in_one_file(path, shape[0], Size(*(shape[1:3] if channels_last else shape[2:4])), batch, labels)


def no_images(path: Path, names: Iterable[str], *, expected: str) -> UserError:
    """The refusal of a file that holds arrays or tensors with these names, but no images."""
    held = ", ".join(sorted(names)[:5]) or "nothing"
    return UserError(f"{path} holds {held}", code="no-images", expected=expected)


def _in_one_file(path: Path, count: int, resolution: Size, batch: Batch, labels: list[int] | None) -> ImageSource:
    return ImageSource(
        about=ImagesRecord(kind=path.suffix.removeprefix("."), path=str(path), order="as in the file"),
        count=count,
        resolution=resolution,
        batch=batch,
        hash_content=lambda: sha256(path),
        labels=labels,
        sorted_by_class=are_sorted(labels),
    )


def dataset_images(
    dataset: Dataset,
    resolution: Size,
    name: str,
    *,
    skipped: frozenset[str] = frozenset(),
    mode: Mode = "RGB",
) -> ImageSource:
    """The images of a data set (plugin, class folders, Hub), cropped and resized by ADM's rule.

    Args:
        name: name to show.
        skipped: keys of faulty images, which are left out.
        mode: Pillow's name of the mode that they are converted to; transparency is laid on white afterwards.
    """
    with plugin_errors(dataset, "in items"):
        items = dataset.items()
    kept = [place for place, item in enumerate(items) if item.key not in skipped]
    if not kept:
        raise UserError(f"{name} holds no images", code="no-images")

    def picture(index: int) -> Image.Image:
        with plugin_errors(dataset, "in image"):
            return dataset.image(kept[index])

    def hash_content() -> str:
        with plugin_errors(dataset, "in fingerprint"):
            text = f"{dataset.fingerprint()} {resolution} {CROP_RULE}{_in_mode(mode)}"
        if skipped:
            text += f" without {sorted(skipped)}"
        return hashlib.sha256(text.encode()).hexdigest()

    return ImageSource(
        about=ImagesRecord(kind="data set", path=name, resize=CROP_RULE, order="of the data set"),
        count=len(kept),
        resolution=resolution,
        batch=_resized(picture, lambda index: items[kept[index]].key, resolution, mode),
        hash_content=hash_content,
        picture=picture,
        notes=source_notes(dataset),
    )


def evenly_spread_images(source: ImageSource, count: int) -> ImageSource:
    """`count` images at even distances, so that all classes are among them where the source is sorted by class."""
    places, part = evenly_spread(source.count, count), f"{count} of {source.count}"
    note = Note(text=f"{part} images, at even distances, because they are sorted by class")
    return replace(
        source,
        about=source.about.model_copy(update={"order": f"{part} at even distances, {source.about.order}"}),
        count=count,
        batch=lambda indices: source.batch([places[index] for index in indices]),
        labels=source.labels and [source.labels[place] for place in places],
        notes=[*source.notes, note],
    )


def _in_mode(mode: Mode) -> str:
    return "" if mode == "RGB" else f" in mode {mode}"


def _resized(picture: Callable[[int], Image.Image], name: Callable[[int], str], resolution: Size, mode: Mode) -> Batch:
    def pixels(index: int) -> np.ndarray:
        with _naming(name(index)):
            return prepare(picture(index), resolution, mode)

    return _in_threads(pixels)


def _in_threads(pixels: Callable[[int], np.ndarray]) -> Batch:
    def batch(indices: Sequence[int]) -> Tensor:
        with ThreadPoolExecutor(DECODERS) as pool:
            return _stack(pool.map(pixels, indices))

    return batch


def _stack(images: Iterable[np.ndarray]) -> Tensor:
    rgb = [as_rgb(torch.from_numpy(image.copy()).permute(2, 0, 1)[None]) for image in images]  # of [H, W, K]
    return torch.cat(rgb).contiguous()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns errors of image decoders in the body into a `UserError` that names the image."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError) and not isinstance(error, FaultyImageError):
            raise  # it is from a plugin, or names the image already
        reason = error.what if isinstance(error, UserError) else str(error)
        raise UserError(
            f"{name} cannot be read: {reason}",
            code="damaged-file",
            expected="a complete image",
            remedy="remove or replace it",
        ) from error


def _labels(found: np.ndarray, count: int) -> list[int] | None:
    """The class of each image; None where the array holds something else."""
    return found.reshape(-1).tolist() if found.dtype.kind in "iu" and found.size == count else None


def are_sorted(labels: list[int] | None) -> bool:
    """Whether images with these labels are sorted by class."""
    return labels is not None and len(set(labels)) > 1 and labels == sorted(labels)
