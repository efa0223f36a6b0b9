"""Reading `.npz` archives of any origin: nothing is unpickled, and no more is allocated than the file holds.

Arrays are memory-mapped, so they may be larger than memory. Those of `np.savez` are mapped in place; compressed ones
are first unpacked to a temporary file.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from mpdit_core.errors import UserError
from mpdit_core.runtime.files import reading, size_text

LOCAL_HEADER = 30  # bytes before the name of a member


def member_names(path: Path) -> list[str]:
    """Names of the arrays in the archive. Raises `UserError` as `files.reading`."""
    with reading(path, "an .npz archive"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def map_member(path: Path, name: str) -> np.ndarray:
    """Array `name` of the archive, memory-mapped.

    Raises:
        UserError: the file is missing (`no-such-file`); the array is missing, torn, of Python objects or larger in its
            header than in the file (`damaged-file`); there is no room to unpack it (`disk-full`).
    """
    with reading(path, f"an .npz archive with the array {name}"), zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type == zipfile.ZIP_STORED:
            return _map(path, _data_offset(path, member.header_offset), member.file_size)
        _require_room(path, name, member.file_size)
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / "array.npy"
            with archive.open(member) as source, open(unpacked, "wb") as target:
                shutil.copyfileobj(source, target)
            return _map(unpacked, 0, unpacked.stat().st_size)  # the mapping keeps the deleted file alive


def _require_room(path: Path, name: str, size: int) -> None:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise UserError(
            f"{path}: {name} is compressed and needs {size_text(size)} when unpacked",
            code="disk-full",
            expected=f"at most the {size_text(free)} that are free in {tempfile.gettempdir()}",
            remedy="write it with np.savez, which does not compress, or set TMPDIR to a larger disk",
        )


def _data_offset(path: Path, header: int) -> int:
    """Where the bytes of a stored member begin: after its local header, its name and its extra field."""
    with open(path, "rb") as file:
        file.seek(header + LOCAL_HEADER - 4)
        name, extra = np.frombuffer(file.read(4), dtype="<u2")
    return header + LOCAL_HEADER + int(name) + int(extra)


def _map(path: Path, offset: int, size: int) -> np.ndarray:
    """The array whose `size` bytes, header included, begin at `offset`. Raises `ValueError`."""
    with open(path, "rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(file)
        start = file.tell()
    if kind.hasobject:
        raise ValueError("it holds Python objects")
    needed = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or start + needed > min(offset + size, path.stat().st_size):
        raise ValueError(f"its header states {kind} {list(shape)}, more than the file holds")
    if needed == 0:
        return np.empty(shape, kind)
    return np.memmap(path, kind, "r", offset=start, shape=shape, order="F" if fortran else "C")
