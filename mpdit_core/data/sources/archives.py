"""Finds the files in a .tar and where their bytes are; strict, so that no image is lost behind a damaged header.

Python's `TarFile` stops without an error at a damaged header or a cut, accepts sizes below 0, and reads headers of any
length into memory; here its `TarInfo` reads single headers. Formats: ustar, GNU and pax, uncompressed. Nothing is
unpacked.
"""

from __future__ import annotations

import posixpath
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mpdit_core.data.sources.files import open_regular, printable, shown
from mpdit_core.errors import UserError

BLOCK = 512
MAX_HEADER_BYTES = 2**20  # of long names and pax records
MAX_LINKS = 40  # from a link to the file; more are a loop
MAX_FILES_BY_LINKS = 100_000  # that links to folders may add, beyond ten times the plain files
EXTENSIONS = b"gxXLK"  # kinds of headers with a part of the next one: pax records, long names
WITHOUT_DATA = b"123456"  # kinds of members without bytes: links, devices, folders, pipes
NOWHERE = -1  # as an offset: the archive has no bytes for this member
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
"""Compressed files by their first bytes."""


class Member(NamedTuple):
    """A file in an archive. `path` is relative, without `.` and `..`."""

    path: str
    offset: int  # of its bytes; NOWHERE for a link that leads to no file of the archive, and for pipes and devices
    size: int
    modified: int  # ns


class Archive(NamedTuple):
    """The content of an archive. Of several members with one path the last counts, as when the archive is unpacked."""

    files: list[Member]
    folders: list[str]


def read_archive(path: Path | str, *, start: int = 0, size: int | None = None) -> Archive:
    """The files of a .tar, or of one that lies in `path` from byte `start` on; links in it are followed.

    Raises:
        UserError: the file cannot be opened (`cannot-read`), is compressed (`unread-archive`), or is not a complete
            archive (`damaged-archive`).
    """
    with open_regular(path) as file:
        end = file.seek(0, 2) if size is None else start + size
        try:
            return _resolve(_headers(file, start, end))
        except (ValueError, OSError) as error:
            head = _read_up_to(file, start, min(start + 8, end))
            kind = next((kind for begin, kind in COMPRESSIONS.items() if head.startswith(begin)), None)
            raise UserError(
                f"the archive {shown(path)}{f' (the one at byte {start} in it)' if start else ''} is "
                + (f"compressed with {kind}" if kind else f"damaged: {error}"),
                code="unread-archive" if kind else "damaged-archive",
                expected="an uncompressed .tar, complete to its last block",
                remedy="unpack it and use the folder" + ("" if kind else ", or download it again"),
            ) from error


def _headers(file: BinaryIO, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """All members in order. Raises `ValueError` where the bytes `start` to `end` are not an archive."""
    at, common, own = start, {}, {}  # values of pax headers: for all members that follow, for the next one
    while any(block := _read(file, at, BLOCK, end, "its end is missing (two blocks of zeros)")):
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise ValueError(f"the header at byte {at} is wrong: {error}") from error
        member.offset_data = at + BLOCK
        if member.type in EXTENSIONS:
            if not 0 <= member.size <= MAX_HEADER_BYTES:
                raise ValueError(f"the header at byte {at} claims {member.size:,} bytes")
            values = _extension(member.type, _read(file, member.offset_data, member.size, end, "it is cut short"))
            common, own = (common | values, own) if member.type == b"g" else (common, own | values)
        else:
            _complete(member, block, common | own)
            own = {}
            if member.offset_data + member.size > end:
                raise ValueError(f"it is cut short in {member.name}")
            yield member
        at = member.offset_data + -(-member.size // BLOCK) * BLOCK
    if any(_read_up_to(file, at, min(end, at + 2**24))):
        raise ValueError(f"more data follows its end at byte {at} (archives are joined with tar -A, not with cat)")


def _complete(member: tarfile.TarInfo, block: bytes, values: dict[str, bytes]) -> None:
    """Adds what pax headers and long names state, and refuses what cannot be."""
    if member.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in values):
        raise ValueError("it has sparse files, whose bytes are not contiguous")
    if block[257:263] != b"ustar\0":  # GNU's headers hold times where others have the beginning of a long path
        member.name = printable(_text(block[:100]))
    if "path" in values:
        member.name = printable(values["path"])
    if "linkpath" in values:
        member.linkname = printable(values["linkpath"])
    member.type = block[156:157]  # as it is written: the type of an old header depends on the whole name
    if member.isreg() and member.name.endswith("/"):
        member.type = tarfile.DIRTYPE
    if "size" in values:
        member.size = int(values["size"])
    if "mtime" in values:
        member.mtime = float(values["mtime"])
    if member.type in WITHOUT_DATA:
        member.size = 0
    if member.size < 0 or not abs(member.mtime) < 1e15:  # also refuses NaN
        raise ValueError(f"{member.name} has a size of {member.size} bytes and a time of {member.mtime} seconds")


def _extension(kind: bytes, data: bytes) -> dict[str, bytes]:
    """What a header states of the next member: a long name, or pax records `LENGTH KEY=VALUE`."""
    if kind in b"LK":
        return {"path" if kind == b"L" else "linkpath": _text(data)}
    values, at = {}, 0
    while at < len(data) and data[at]:
        length, space, _ = data[at : at + 20].partition(b" ")
        stop = at + int(length) if space and length.isdigit() else -1
        key, equals, value = data[at + len(length) + 1 : stop - 1].partition(b"=")
        if stop <= at or not equals or data[stop - 1 : stop] != b"\n":
            raise ValueError("a pax header is wrong")
        values[key.decode("utf-8", "replace")] = value
        at = stop
    return values


def _resolve(members: Iterator[tarfile.TarInfo]) -> Archive:
    """The last member of each path. A hard link leads to the latest file before it, a symbolic link to the last one."""
    files: dict[str, Member] = {}
    links: dict[str, str] = {}
    folders: set[str] = set()
    for member in members:
        path = _normal(member.name)
        if member.isdir():
            folders.add(path)
            continue
        links.pop(path, None)
        files[path] = Member(path, NOWHERE, 0, int(member.mtime * 1e9))
        if member.isreg():
            files[path] = files[path]._replace(offset=member.offset_data, size=member.size)
        elif member.issym():
            links[path] = _normal(posixpath.join(posixpath.dirname(path), member.linkname))
        elif member.islnk():
            target = _normal(member.linkname)
            if target in links:
                links[path] = links[target]
            elif target in files:
                files[path] = files[target]._replace(path=path)
    plain = {path: member for path, member in files.items() if path not in links}
    names = sorted(plain)
    for path, target in links.items():
        target = _last_target(target, links)
        below = [] if path.startswith(f"{target}/") else _below(names, target)  # a folder that the link is in: a loop
        if target in plain:
            files[path] = plain[target]._replace(path=path)
        elif below:
            del files[path]
            copies = [plain[name]._replace(path=path + name[len(target) :]) for name in below]
            files |= {copy.path: copy for copy in copies}
        if len(files) > MAX_FILES_BY_LINKS + 10 * len(plain):
            raise ValueError(f"its links to folders make more than {len(files):,} files of {len(plain):,}")
    return Archive(sorted(files.values()), sorted(folders))


def _last_target(target: str, links: dict[str, str]) -> str:
    for _ in range(MAX_LINKS):
        if target not in links:
            break
        target = links[target]
    return target


def _below(names: list[str], folder: str) -> list[str]:
    """Those of the sorted `names` that lie in `folder`."""
    return names[bisect_left(names, f"{folder}/") : bisect_left(names, f"{folder}0")]  # "0" comes after "/"


def _read(file: BinaryIO, at: int, size: int, end: int, otherwise: str) -> bytes:
    data = _read_up_to(file, at, min(at + size, end))
    if len(data) < size:
        raise ValueError(otherwise)
    return data


def _read_up_to(file: BinaryIO, at: int, end: int) -> bytes:
    file.seek(at)
    return file.read(max(0, end - at))


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _normal(name: str) -> str:
    """`name` below the root of the archive: `./a/../b` and `/b` are `b`."""
    return posixpath.normpath(f"/{name}").lstrip("/") or "."
