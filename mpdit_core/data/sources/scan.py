"""Finding the image files in a folder or .tar, at any depth, and counting the other files, which are left out.

A file is an image by its extension (`mpdit_core.data.images.suffixes`). An archive counts as a folder with its name: a
`.tar` with its images, an archive of another kind without any. Hidden files (`.…`, `__MACOSX`, `Thumbs.db`,
`desktop.ini`) do not count.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mpdit_core.data.images import FaultyImageError, suffixes
from mpdit_core.data.sources.archives import NOWHERE, read_archive
from mpdit_core.data.sources.files import cannot_read, printable, read_regular, shown
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note, Warning

JUNK = (".", "__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r")
"""Beginnings of the names of files that operating systems and programs add, not the user."""

TEXTS = frozenset((
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".xml", ".html", ".htm", ".yaml", ".yml", ".toml", ".ini",
    ".log", ".py", ".sh", ".pbtxt", ".bib",
))  # fmt: skip
"""Extensions of texts and tables, which nobody takes for images: not counted as left out."""

UNREAD_ARCHIVES = (
    ".zip", ".7z", ".rar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
"""Ends of names of archives that are not read: images must be found in place, without unpacking."""

MAX_DEPTH_OF_ARCHIVES = 8
WHOLE = -1  # as an offset: the file from its beginning to its end


class Entry(NamedTuple):
    """An image file: where it lies below the root, and where its bytes are."""

    parts: tuple[str, ...]  # path below the root; archives without their suffix
    file: str
    offset: int  # in `file`; WHOLE for all of it
    size: int  # NOWHERE: not to be read, see `read_entry`
    modified: int  # ns

    @property
    def key(self) -> str:
        return "/".join(self.parts)


@dataclass
class Found:
    """What lies below a root. All paths are tuples of names below it."""

    entered: tuple[str, ...] = ()  # the folders between the root that was given and this one
    images: list[Entry] = field(default_factory=list)  # sorted by path
    folders: set[tuple[str, ...]] = field(default_factory=set)
    archives: dict[tuple[str, ...], str] = field(default_factory=dict)  # path without suffix → as messages call it
    unread: dict[tuple[str, ...], str] = field(default_factory=dict)  # the same for archives that are not read
    left_out: Counter[tuple[tuple[str, ...], str]] = field(default_factory=Counter)  # (folder, extension) → files
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)  # folder with images → archive they are in, or ""

    def add(self, image: Entry, *, mount: tuple[str, ...] = (), archive: str = "") -> None:
        """Adds an image of a folder, or of an `archive` that counts as the folder `mount`.

        Raises:
            UserError: images of this folder lie elsewhere too (`counted-twice`).
        """
        self.images.append(image)
        if self.origins.get(image.parts[:-1]) == archive:
            return
        for depth in range(max(1, len(mount)), len(image.parts)):
            folder = image.parts[:depth]
            other = self.origins.setdefault(folder, archive)
            if other != archive:
                places = " and ".join(f"in {name or 'a folder'}" for name in (other, archive))
                raise counted_twice(f"{'/'.join(folder)} has images {places}", "move one of the two elsewhere")

    def left_out_in(self, *folder: str) -> Counter[str]:
        """Number of files that are no images, by extension, in `folder` and below."""
        counts: Counter[str] = Counter()
        for (parts, suffix), count in self.left_out.items():
            if parts[: len(folder)] == folder:
                counts[suffix] += count
        return counts

    def within(self, folder: str) -> Found:
        """What lies below `folder`, with paths relative to it."""

        def is_inside(parts: tuple[str, ...]) -> bool:
            return len(parts) > 1 and parts[0] == folder

        return Found(
            entered=(*self.entered, folder),
            images=[e._replace(parts=e.parts[1:]) for e in self.images if is_inside(e.parts)],
            folders={parts[1:] for parts in self.folders if is_inside(parts)},
            unread={parts[1:]: name for parts, name in self.unread.items() if is_inside(parts)},
            left_out=Counter({(parts[1:], s): n for (parts, s), n in self.left_out.items() if parts[:1] == (folder,)}),
        )

    def notes(self) -> list[Note | Warning]:
        """What was left out, counted by extension."""
        text = f"skipped, because their format is not supported: {counted(self.left_out_in())}"
        return [Warning(code="files-left-out", text=text)] if self.left_out else []


def counted(by_suffix: dict[str, int]) -> str:
    """`3 files .heic, 1 file without extension`"""
    most = sorted(by_suffix.items(), key=lambda pair: (-pair[1], pair[0]))
    texts = [f"{n:,} file{'s' if n > 1 else ''} {suffix or 'without extension'}" for suffix, n in most[:8]]
    return ", ".join(texts) + (", …" if len(most) > 8 else "")


def find_images(root: Path) -> Found:
    """All images below `root`, a folder or an uncompressed .tar.

    Raises:
        UserError: a folder cannot be read (`cannot-read`), an archive is damaged (`damaged-archive`), a folder or its
            images are met twice (`counted-twice`), or `root` is neither (`unread-archive`, `no-images`).
    """
    found = Found()
    if root.is_dir():
        _scan_folders(root, found)
    elif root.suffix.lower() == ".tar":
        _scan_archive(str(root), (), found)
    else:
        is_archive = root.name.lower().endswith(UNREAD_ARCHIVES)
        raise UserError(
            f"{shown(root)} is " + ("an archive of a kind that is not read" if is_archive else "a file"),
            code="unread-archive" if is_archive else "no-images",
            expected="a folder of class folders, or an uncompressed .tar of one",
            remedy="unpack it and use the folder" if is_archive else None,
        )
    found.images.sort()
    _refuse_archive_of_all(found)
    return found


def read_entry(entry: Entry) -> bytes:
    """The bytes of an image file. Raises `FaultyImageError` if it is missing or not a regular file."""
    if entry.size == NOWHERE:
        raise FaultyImageError(f"{entry.key} in {shown(entry.file)} is a broken link, or not a regular file")
    try:
        if entry.offset == WHOLE:
            return read_regular(entry.file)
        return read_regular(entry.file, offset=entry.offset, size=entry.size)
    except FaultyImageError:
        raise
    except UserError as error:
        raise FaultyImageError(error.what) from error


def _scan_folders(root: Path, found: Found) -> None:
    """Visits every folder once; a stack, not recursion, because folders can be nested thousands deep."""
    seen: dict[tuple[int, int], Path] = {}
    waiting: list[tuple[Path, tuple[str, ...], frozenset]] = [(root, (), frozenset())]
    while waiting:
        folder, parts, above = waiting.pop()
        try:
            status = folder.stat()
            with os.scandir(folder) as listing:
                children = list(listing)
        except OSError as error:
            raise cannot_read(folder, error) from error
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link to a folder that it lies in
            continue
        if here in seen:
            raise counted_twice(f"{shown(seen[here])} and {shown(folder)} are the same folder", "remove the link")
        seen[here] = folder
        if parts:
            found.folders.add(parts)
        for child in children:
            if child.name.startswith(JUNK):
                continue
            below = (*parts, printable(os.fsencode(child.name)))
            if _is_folder(child):
                waiting.append((Path(child.path), below, above | {here}))
            elif child.name.lower().endswith(".tar"):
                _scan_archive(child.path, (*below[:-1], below[-1][:-4]), found)
            elif _counts_as_image(below, child.path, found):
                found.add(_entry(child, below))


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link into a folder that this user may not read
        return False


def _entry(child: os.DirEntry[str], parts: tuple[str, ...]) -> Entry:
    try:
        status = child.stat()
    except OSError:  # a link that leads nowhere: reported when it is read
        return Entry(parts, child.path, WHOLE, NOWHERE, 0)
    size = status.st_size if stat.S_ISREG(status.st_mode) else NOWHERE
    return Entry(parts, child.path, WHOLE, size, status.st_mtime_ns)


def _scan_archive(
    file: str, parts: tuple[str, ...], found: Found, *, start: int = 0, size: int | None = None, depth: int = 1
) -> None:
    """Adds what an archive holds, as the folder `parts`: the archive is `file`, or `size` bytes of it from `start`."""
    if depth > MAX_DEPTH_OF_ARCHIVES:
        raise UserError(
            f"{shown(file)} holds nested archives, {depth} deep",
            code="damaged-archive",
            expected=f"at most {MAX_DEPTH_OF_ARCHIVES}",
        )
    archive = read_archive(file, start=start, size=size)
    name = shown(file) if depth == 1 else f"{shown(file)} ({'/'.join(parts)})"
    if parts:
        if parts in found.archives:
            raise counted_twice(
                f"{found.archives[parts]} and {name} are read as the same folder", "move one of them elsewhere"
            )
        found.archives[parts] = name
        found.folders.add(parts)
    for folder in archive.folders:
        below = folder.split("/")
        if folder != "." and not any(name.startswith(JUNK) for name in below):
            found.folders.add((*parts, *below))
    for member in archive.files:
        names = member.path.split("/")
        below = (*parts, *names)
        if any(name.startswith(JUNK) for name in names):
            continue
        if names[-1].lower().endswith(".tar") and member.offset != NOWHERE:
            inner = (*below[:-1], below[-1][:-4])
            _scan_archive(file, inner, found, start=member.offset, size=member.size, depth=depth + 1)
        elif _counts_as_image(below, f"{file}/{member.path}", found):
            length = NOWHERE if member.offset == NOWHERE else member.size
            found.add(Entry(below, file, member.offset, length, member.modified), mount=parts, archive=name)
        found.folders.update(below[:n] for n in range(len(parts) + 1, len(below)))


def _counts_as_image(parts: tuple[str, ...], path: str, found: Found) -> bool:
    """Whether the file at `parts` is an image by its name. Otherwise it is counted as left out, unless it is a text."""
    suffix = os.path.splitext(parts[-1])[1].lower()  # noqa: PTH122 - a Path for each of a million files is slow
    if suffix in suffixes():
        return True
    folder = parts[:-1]
    if end := next((end for end in UNREAD_ARCHIVES if parts[-1].lower().endswith(end)), ""):
        folder, suffix = (*folder, parts[-1].removesuffix(parts[-1][-len(end) :])), end
        found.folders.add(folder)
        found.unread[folder] = shown(path)
    if suffix not in TEXTS:
        found.left_out[folder, suffix] += 1
    return False


def _refuse_archive_of_all(found: Found) -> None:
    """Raises `UserError` where an archive holds the class folders that lie, unpacked, beside it."""
    tops = {parts[0] for parts in found.folders}
    inside: dict[str, set[str]] = {}
    for parts in found.folders:
        if len(parts) > 1 and parts[:1] in found.archives:
            inside.setdefault(parts[0], set()).add(parts[1])
    for top, names in inside.items():
        if names <= tops - {top}:
            raise counted_twice(
                f"{found.archives[top,]} holds folders of the same names as those beside it, such as {min(names)}",
                "move the archive elsewhere",
            )


def counted_twice(what: str, remedy: str) -> UserError:
    return UserError(
        f"{what}: they would count twice", code="counted-twice", expected="each image in one place", remedy=remedy
    )
