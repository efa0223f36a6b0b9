"""A safetensors file as shards use it: written in one pass together with its hash, and read by mapping it into memory.

In place of the library's own writer, which needs the whole file in memory once more, and reader, which reads it whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpdit_core.errors import UserError

DTYPES = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FIRST_READ = 64 * 2**10  # bytes of a file: its header and the labels of some 8,000 images, in one go
BLOCK = 256 * 2**10  # bytes hashed and written at once, so that they are in the processor's cache the second time


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Writes contiguous int64, float16 and uint8 arrays as safetensors; returns the file's size and SHA-256."""
    header, offset = {}, 0
    for name, array in tensors.items():
        stop = offset + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        for data in (len(text).to_bytes(8, "little") + text, *(a.reshape(-1).view(np.uint8) for a in tensors.values())):
            view = memoryview(data)
            for start in range(0, len(view), BLOCK):
                block = view[start : start + BLOCK]
                digest.update(block)
                _write_all(file, block)
            size += len(view)
    return size, digest.hexdigest()


def _write_all(file: io.FileIO, data: memoryview) -> None:
    """An unbuffered file may take less than it is given."""
    while data:
        data = data[file.write(data) :]


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, mapped into memory and not read.

    Raises:
        UserError: the file is not whole (`damaged-file`).
    """
    with open(path, "rb", buffering=FIRST_READ) as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)
            arrays = {}
            for name, entry in header.items():
                if name != "__metadata__":
                    start, stop = entry["data_offsets"]
                    dtype = DTYPES[entry["dtype"]]
                    flat = np.frombuffer(mapped, dtype, (stop - start) // dtype.itemsize, 8 + length + start)
                    arrays[name] = flat.reshape(entry["shape"])
            return arrays
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged: {error}",
                code="damaged-file",
                expected="a shard as mpdit wrote it",
                remedy="run `mpdit encode-latents SOURCE --verify`, then the same without --verify to rebuild it",
            ) from error


def prefetch(mapped: np.ndarray, rows: np.ndarray) -> None:
    """Lets the system read `rows` of a mapped array all at once: some ten times faster than page by page as touched.

    `mapped` is an array that `map_tensors` gave. Does nothing where the system has no such call.
    """
    memory = mapped.base
    while isinstance(memory, np.ndarray):
        memory = memory.base
    file = memory.obj if isinstance(memory, memoryview) else memory
    if not isinstance(file, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    begin = mapped.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
    for start in (begin + rows * mapped.strides[0]).tolist():
        page = start - start % mmap.PAGESIZE
        file.madvise(mmap.MADV_WILLNEED, page, start - page + mapped.strides[0])
