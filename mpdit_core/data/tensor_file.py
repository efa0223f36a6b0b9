"""A safetensors file as shards use it: written and hashed in one pass, and read by mapping it into memory.

The safetensors library needs a second copy in memory to write, and reads the whole file at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpdit_core.errors import UserError
from mpdit_core.runtime.files import writing

DTYPES = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FIRST_READ = 64 * 2**10  # bytes of a file: its header and the labels of some 8,000 images, in one read
MAX_HEADER_BYTES = 2**20  # bytes; ours have some 300
BLOCK = 256 * 2**10  # bytes hashed and written at once, so that they are in the processor's cache the second time


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Writes contiguous int64, float16 and uint8 arrays as safetensors; returns the file's size and SHA-256.

    Raises:
        UserError: the disk is full or the place cannot be written; an older file at `path` is unchanged then.
    """
    header, offset = {}, 0
    for name, array in tensors.items():
        stop = offset + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    digest, size = hashlib.sha256(), 0
    with writing(path) as temporary, open(temporary, "wb") as file:
        for part in (np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8), *tensors.values()):
            view = part.reshape(-1).view(np.uint8).data
            for start in range(0, len(view), BLOCK):
                block = view[start : start + BLOCK]
                digest.update(block)
                file.write(block)
            size += len(view)
    return size, digest.hexdigest()


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, mapped into memory and not read.

    Raises:
        UserError: the file is missing, not regular or not whole, or its header does not describe it (`damaged-file`).
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
            raise ValueError("it is not a regular file")
        size = about.st_size
        with open(path, "rb", buffering=FIRST_READ) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        return _arrays(header, mapped, begin=8 + length, size=size)
    except FileNotFoundError as error:
        raise missing(path) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, str(error), "a shard as mpdit wrote it") from error


def missing(path: Path) -> UserError:
    remedy = "run the `mpdit encode-latents` command of this folder again; it makes only what is missing"
    return UserError(f"{path} is missing", code="no-such-file", remedy=remedy)


def damaged(path: Path, what: str, expected: str) -> UserError:
    remedy = "run the `mpdit encode-latents` command of this folder again, first with --verify, then without"
    return UserError(f"{path} is damaged: {what}", code="damaged-file", expected=expected, remedy=remedy)


def _arrays(header: Mapping[str, Any], mapped: mmap.mmap, *, begin: int, size: int) -> dict[str, np.ndarray]:
    """The arrays that `header` describes. Raises `ValueError` unless they cover the file in order, from `begin`."""
    arrays, end = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, stop) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
            raise ValueError(f"the shape or position of {name} is not possible")
        if start != end or stop - start != math.prod(shape) * dtype.itemsize or begin + stop > size:
            raise ValueError(f"{name} of shape {shape} does not fit bytes {start} to {stop}")
        arrays[name] = np.frombuffer(mapped, dtype, math.prod(shape), begin + start).reshape(shape)
        end = stop
    if begin + end != size:
        raise ValueError(f"{size - begin - end} surplus bytes")
    return arrays


def prefetch(mapped: np.ndarray, rows: np.ndarray) -> None:
    """Asks the system for `rows` of an array of `map_tensors` at once: some ten times faster than page by page.

    Does nothing where the system has no such call.
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
