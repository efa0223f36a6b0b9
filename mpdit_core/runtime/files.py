"""Writing files so that a file under its final name is complete: write a temporary file, fsync, rename it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mpdit_core.errors import UserError
from mpdit_core.version import __version__

NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error
NOT_WRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO, errno.EFBIG,
    errno.ENAMETOOLONG, errno.ENOENT,
}  # fmt: skip


@contextmanager
def user_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors while writing `path` into a `UserError`: no space (`disk-full`); or no permission, a
    broken disk and the like (`cannot-write`).
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in NO_SPACE:
            raise UserError(
                f"no space left on the disk while writing {path}",
                code="disk-full",
                expected=f"space on the file system of {path.parent} ({size_text(free_bytes(path))} are free)",
                remedy="free some space or choose another place, then run the same command again; "
                "everything finished before is kept",
            ) from error
        if number in NOT_WRITABLE:
            raise UserError(
                f"cannot write {path}: {os.strerror(number)}",
                code="cannot-write",
                expected="a path that this user may write to, on a disk that supports it",
                remedy="choose another place or correct the permissions",
            ) from error
        raise


def _error_number(error: Exception) -> int:
    """The system's number of an error; 0 where it has none. safetensors states it in its message only."""
    if isinstance(error, OSError):
        return error.errno or 0
    if type(error).__name__ != "SafetensorError":
        return 0
    stated = re.search(r"(?:Os { code: |\(os error )(\d+)", str(error))  # of older versions, of newer ones
    return int(stated[1]) if stated else 0


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write a *file* to; renames it to `path` when the body succeeds.

    The file gets the permissions that the umask allows, whatever permissions the writer gave the temporary file.

    Raises:
        UserError: the disk is full or the place cannot be written. No temporary file is left then, and an older file
            at `path` is unchanged.
    """
    temporary = _beside(path, "part")
    try:
        with user_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            permissions = temporary.stat().st_mode & 0o666
            yield temporary
            _set_permissions(temporary, permissions)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to be seen
            temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """As `writing`, for a *folder* of files: it appears under `path` whole, or not at all.

    An older folder at `path` is replaced.
    """
    temporary = _beside(path, "part")
    try:
        with user_errors(path):
            temporary.mkdir(parents=True)
            permissions = temporary.stat().st_mode & 0o666
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _set_permissions(file, permissions)
                _sync(file)
            _sync(temporary)
            if path.exists():
                old = _beside(path, "old")
                path.replace(old)
                temporary.replace(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def reading(path: Path, kind: str, *, remedy: str = "restore it from a backup, or make it again") -> Iterator[None]:
    """Turns every error of the body into a fault of the file that it reads: readers raise many kinds of errors.

    Args:
        kind: what the file should be: "a .safetensors file".

    Raises:
        UserError: there is no such file (`no-such-file`); or the body failed, or it is a pipe (`damaged-file`).
    """
    if not path.exists() or path.is_dir():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {state}", code="no-such-file", expected=kind)
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is not a regular file")
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as {kind}: {str(error) or type(error).__name__}",
            code="damaged-file",
            expected="a complete file, unchanged since it was written",
            remedy=remedy,
        ) from error


def read_json(path: Path, kind: str = "JSON") -> Any:
    """The JSON value in a file. Raises `UserError` as `reading`."""
    with reading(path, kind):
        return json.loads(path.read_text(encoding="utf-8"))


def read_versioned(path: Path, kind: str, *, version: int, remedy: str) -> dict[str, Any]:
    """The table in a JSON file whose key `format` is the version of its format.

    Args:
        kind: what the file should be: "the record of an evaluation".

    Raises:
        UserError: as `reading`; the file holds something else (`damaged-file`), or another version (`unknown-format`).
    """
    values = read_json(path, kind)
    if not isinstance(values, dict) or "format" not in values:
        raise UserError(
            f"{path} is not {kind}", code="damaged-file", expected="a file as mpdit wrote it", remedy=remedy
        )
    require_format(values, path, version=version, remedy=remedy)
    return values


def require_format(values: dict[str, Any], path: Path, *, version: int, remedy: str) -> None:
    """Raises `UserError` (`unknown-format`) where the values of the file `path` are of another version."""
    if values.get("format") != version:
        raise UserError(
            f"{path} has format {values.get('format')}",
            code="unknown-format",
            expected=f"format {version}, which mpdit {__version__} reads",
            remedy=f"use the version of mpdit that wrote it, or {remedy}",
        )


def sha256(path: Path) -> str:
    """The hash of a file, which is read again only after it has changed."""
    there = path.stat()
    return _sha256(path.absolute(), there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, recorded: str) -> None:
    """Compares a file with its recorded hash, unless `MPDIT_VERIFY=off` is in the environment.

    Raises:
        UserError: the file is missing (`no-such-file`), or it is not what was written (`damaged-file`).
    """
    if os.environ.get("MPDIT_VERIFY", "").lower() in ("off", "0"):
        return
    try:
        found = sha256(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", code="no-such-file") from None
    if found != recorded:
        raise UserError(
            f"{path} has changed since it was written: its SHA-256 is {found[:12]}…",
            code="damaged-file",
            expected=f"{recorded[:12]}…, as recorded when it was written",
            remedy="restore the file from a copy, or make it again; MPDIT_VERIFY=off reads it without the check",
        )


def require_empty(folder: Path) -> None:
    """Raises `UserError` (`folder-not-empty`) when something is in `folder`, or a file in its place."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not empty",
            code="folder-not-empty",
            expected="a new folder, so that nothing is lost",
            remedy="choose another folder, or remove this one first" if folder.is_dir() else "choose another folder",
        )


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files and folders that a killed process left in `folder`."""
    for leftover in [*folder.glob(".*.part"), *folder.glob(".*.old")]:
        remove(leftover)


def remove(path: Path) -> None:
    """Deletes a file, or a folder with all its files, as far as this user may."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def size_text(count: float) -> str:
    """A number of bytes in the unit that fits: `312 bytes`, `1.4 MiB`, `2.00 TiB`."""
    if count < 1024:
        return f"{count:.0f} bytes"
    power = min(4, int(math.log(count, 1024)))
    value = count / 1024**power
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def memory_bytes() -> int | None:
    """Bytes of this machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def require_memory(count: int, *, what: str, remedy: str | None = None) -> None:
    """Raises `UserError` (`too-large`) when `what`, of `count` bytes, cannot fit into this machine's memory."""
    there = memory_bytes()
    if there is not None and count > there:
        raise UserError(
            f"{what} would take {size_text(count)}",
            code="too-large",
            expected=f"at most {size_text(there)}, the memory of this machine",
            remedy=remedy,
        )


def free_bytes(path: Path) -> int:
    """Bytes free on the file system that holds `path` or its nearest existing parent."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{suffix}")


def _set_permissions(file: Path, permissions: int) -> None:
    if file.stat().st_mode & 0o777 != permissions:  # some file systems refuse every change of them
        file.chmod(permissions)


def _sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders, and needs no such call
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
