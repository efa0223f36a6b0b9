"""How finished blocks of samples are written: PNGs, one npz, or latents.

To add a format: a subclass of `Writer` below, a line in `WRITERS`, and its name in `Format` (options.py).
"""

# ruff: noqa: ARG002 - all formats get the same arguments

from __future__ import annotations

import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from mpdit_core.data.autoencoders import as_rgb
from mpdit_core.errors import UserError
from mpdit_core.pictures import save_tile
from mpdit_core.runtime import files
from mpdit_core.runtime.checked_tensors import opened
from mpdit_core.runtime.npz import map_member
from mpdit_core.sampling.generator import SampleBlock
from mpdit_core.sampling.options import Format
from mpdit_core.sampling.sample_set import PROGRESS, SampleSet

ENCODERS = 4  # threads that compress PNGs
PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"


class Writer:
    """Writes the blocks of a set in one format. A file under its final name is complete."""

    needs_images = True
    result_name: ClassVar[str]

    def __init__(self, samples: SampleSet, class_names: list[str]):
        self.samples, self.class_names = samples, class_names
        self.result = samples.path / self.result_name  # the file or folder that holds the finished samples

    def write(self, block: SampleBlock) -> None:
        raise NotImplementedError

    def is_complete(self, number: int, indices: list[int], labels: list[int]) -> bool:
        """Whether the files of a marked block are complete: always after a kill, perhaps not after a power cut."""
        raise NotImplementedError

    def finish(self, num_blocks: int) -> None:
        """Writes the files of the whole set. Rank 0 calls it once, when all blocks are finished."""

    def image(self, index: int, label: int) -> np.ndarray:
        """Image `index` as it was written, uint8 [3 or 4, H, W]; only for formats with `needs_images`."""
        raise NotImplementedError


class PngWriter(Writer):
    result_name = "images"

    def path(self, index: int, label: int) -> Path:
        folder = self.result / self.class_folder(label) if self.samples.by_class else self.result
        return folder / f"{index:06d}.png"

    def class_folder(self, label: int) -> str:
        slug = re.sub(r"[^\w.-]+", "_", self.class_names[label]).strip("_.")[:60]
        return slug if slug == str(label) else f"{label:04d}-{slug}"

    def is_complete(self, number: int, indices: list[int], labels: list[int]) -> bool:
        return all(_is_whole_png(self.path(i, label)) for i, label in zip(indices, labels, strict=True))

    def write(self, block: SampleBlock) -> None:
        paths = [self.path(i, label) for i, label in zip(block.indices, block.labels, strict=True)]
        with files.user_errors(self.result):
            for folder in {path.parent for path in paths}:
                folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(ENCODERS) as pool:
                list(pool.map(save_tile, block.images.numpy(), paths))

    def image(self, index: int, label: int) -> np.ndarray:
        path = self.path(index, label)
        try:
            with Image.open(path) as opened:
                return np.asarray(opened.convert("RGBA")).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read: {error}",
                code="damaged-file",
                expected="the image that was written",
                remedy="delete it and run the same command again: it makes the image again",
            ) from error


def _is_whole_png(path: Path) -> bool:
    """Whether a PNG has its first and last bytes: files torn by a power cut are empty, cut short or full of zeros."""
    try:
        with open(path, "rb") as file:
            begin = file.read(len(PNG_BEGIN))
            file.seek(-len(PNG_END), os.SEEK_END)
            return (begin, file.read()) == (PNG_BEGIN, PNG_END)
    except OSError:
        return False


class NpzWriter(Writer):
    result_name = "samples.npz"

    def block_path(self, number: int) -> Path:
        return self.samples.path / PROGRESS / f"{number:06d}.npz"

    def write(self, block: SampleBlock) -> None:
        pixels = as_rgb(block.images).permute(0, 2, 3, 1).contiguous().numpy()
        with files.writing(self.block_path(block.number)) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=pixels, arr_1=np.asarray(block.labels, dtype=np.int64))

    def is_complete(self, number: int, indices: list[int], labels: list[int]) -> bool:
        try:
            images, stored = (map_member(self.block_path(number), name) for name in ("arr_0", "arr_1"))
        except UserError:
            return False
        is_rgb = images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8
        return is_rgb and len(images) == len(indices) and stored.tolist() == labels

    def finish(self, num_blocks: int) -> None:
        """Joins the blocks, with one in memory at a time. Until it returns, the images are on the disk twice."""
        shape = (self.samples.num_samples, *map_member(self.block_path(0), "arr_0").shape[1:])
        with (
            files.writing(self.result) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            for name, descr, full_shape in (("arr_0", "|u1", shape), ("arr_1", "<i8", shape[:1])):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": descr, "fortran_order": False, "shape": full_shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    for number in range(num_blocks):
                        member.write(map_member(self.block_path(number), name).tobytes())

    def image(self, index: int, label: int) -> np.ndarray:
        number, row = divmod(index, self.samples.options.batch_size)
        return np.array(map_member(self.block_path(number), "arr_0")[row]).transpose(2, 0, 1)


class LatentsWriter(Writer):
    needs_images = False
    result_name = "latents"

    def block_path(self, number: int) -> Path:
        return self.result / f"{number:06d}.safetensors"

    def write(self, block: SampleBlock) -> None:
        tensors = {
            "latents": block.latents.contiguous(),
            "labels": torch.tensor(block.labels),
            "indices": torch.tensor(block.indices),
        }
        with files.writing(self.block_path(block.number)) as temporary:
            save_file(tensors, temporary)

    def is_complete(self, number: int, indices: list[int], labels: list[int]) -> bool:
        try:
            with opened(self.block_path(number)) as file:
                size = file.get_slice("latents").get_shape()[0]
                stored = [file.get_tensor(name).tolist() for name in ("indices", "labels")]
        except UserError:
            return False
        return size == len(indices) and stored == [indices, labels]


WRITERS: dict[Format, type[Writer]] = {"png": PngWriter, "npz": NpzWriter, "latents": LatentsWriter}
