"""Reads files whose names come from users, folders and archives: only regular ones, because a pipe would block.

Also shows such names in messages, and orders them.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from mpdit_core.errors import UserError

MAX_TEXT_BYTES = 256 * 2**20  # of a list of classes or labels; ImageNet's has 60 MB


def open_regular(path: Path | str) -> BinaryIO:
    """The file, opened for reading. Raises `UserError` (`cannot-read`) if it is unreadable or not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(
            f"{shown(path)} is not a regular file",
            code="cannot-read",
            expected="a file, not a folder, pipe, socket or device",
        )
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path | str, *, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a regular file, or `size` of them from `offset` on. Raises `UserError` (`cannot-read`)."""
    with open_regular(path) as file:
        try:
            file.seek(offset)
            return file.read() if size is None else file.read(size)
        except OSError as error:
            raise cannot_read(path, error) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark, with any line ends.

    Raises:
        UserError: the file is unreadable (`cannot-read`), too large or not UTF-8 (`damaged-file`).
    """
    with open_regular(path) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    try:
        if len(data) > MAX_TEXT_BYTES:
            raise ValueError("it is too large")
        text = data.decode("utf-8-sig")
    except ValueError as error:
        raise UserError(
            f"{shown(path)} cannot be read as text: {error}",
            code="damaged-file",
            expected=f"text in UTF-8, at most {MAX_TEXT_BYTES >> 20} MiB",
            remedy=None if len(data) > MAX_TEXT_BYTES else "save it as UTF-8",
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n") if text else []


def exists(path: Path) -> bool:
    """Whether there is something at `path`. Raises `UserError` (`cannot-read`) where the system does not tell."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error
    return True


def user_path(text: Path | str) -> Path:
    """`text` as a path, `~` replaced. Raises `UserError` (`cannot-read`) for the home of an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise cannot_read(text, error) from error


def cannot_read(path: Path | str, error: Exception) -> UserError:
    return UserError(
        f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}",
        code="cannot-read",
        expected="a file or folder that exists and that this user may read",
    )


def shown(path: Path | str) -> str:
    """`path` as messages give it: printable, and the middle left out where it is very long."""
    text = printable(os.fsencode(path))
    return text if len(text) < 400 else f"{text[:150]}…{text[-150:]}"


def printable(name: bytes) -> str:
    r"""A name as text; bytes that are not UTF-8 are written out, as in `caf\xe9.png`."""
    return name.decode("utf-8", "backslashreplace")


def natural_order(name: str) -> list[int | str]:
    """The key that sorts 2.png before 10.png."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split(r"([0-9]{1,18})", name))]
