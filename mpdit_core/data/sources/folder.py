"""A folder or `.tar` of class folders as a data set; or images in one folder with a file that gives their classes.

The class of an image is its first folder below the root, however deep it lies; a `.tar` counts as a folder of its name
(so that ImageNet's archive of class archives can be read as it is). Labels follow the sorted class names.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from mpdit_core.api import Item
from mpdit_core.data.images import FaultyImageError, open_image
from mpdit_core.data.sources.class_lists import (
    LABEL_FILES,
    label_numbers,
    match_classes,
    read_class_names,
    read_image_classes,
)  # fmt: skip
from mpdit_core.errors import UserError
from mpdit_core.reporting import Note, Warning

SPLITS = ("train", "val", "valid", "validation", "test")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Entry(NamedTuple):
    """An image file: where it lies below the root, and where its bytes are."""

    parts: tuple[str, ...]  # path below the root; archives without their suffix
    file: str
    offset: int  # in `file`; -1: the whole of it
    size: int
    modified: int  # ns

    @property
    def key(self) -> str:
        return "/".join(self.parts)


@dataclass(eq=False)
class ImageFolder:
    """The data set in a folder or archive; see the module. Scanned at first use, in sorted order."""

    root: Path
    split: str | None = None
    classes: Path | None = None
    labels: Path | None = None

    def class_names(self) -> list[str]:
        return self._table[0]

    def items(self) -> list[Item]:
        return self._table[1]

    def image(self, index: int) -> Image.Image:
        """Raises `FaultyImageError` for a file that is damaged or gone."""
        return open_image(self._read(self._entries[index]))

    def fingerprint(self) -> str:
        """Hash of labels, names, sizes and times of change of all files."""
        digest = hashlib.sha256()
        for item, entry in zip(self.items(), self._entries, strict=True):
            digest.update(f"{item.label}\0{item.key}\0{entry.size}\0{entry.modified}\n".encode())
        digest.update("\n".join(self.class_names()).encode())
        return digest.hexdigest()[:32]

    def notes(self) -> list[Note | Warning]:
        """What a person should know about how the folder was read."""
        notes: list[Note | Warning] = []
        if self._descended:
            notes.append(Note(text=f"reading {'/'.join((str(self.root), *self._descended))}"))
        if len(self.class_names()) == 1:
            notes.append(Warning(code="one-class", text=f"there is only one class, {self.class_names()[0]!r}"))
        seen = {item.label for item in self.items()}
        empty = [name for label, name in enumerate(self.class_names()) if label not in seen]
        if empty:
            text = f"{len(empty)} classes have no images: {', '.join(empty[:5])}"
            notes.append(Warning(code="empty-classes", text=text))
        return notes

    def _read(self, entry: Entry) -> bytes:
        try:
            with open(entry.file, "rb") as file:
                if entry.offset < 0:
                    return file.read()
                file.seek(entry.offset)
                return file.read(entry.size)
        except OSError as error:
            raise FaultyImageError(f"{entry.file} cannot be read: {error.strerror}") from None

    @cached_property
    def _scanned(self) -> tuple[tuple[str, ...], list[Entry]]:
        """(folders entered from the root on, images below there)."""
        entries = sorted(_scan(self.root))
        if not entries:
            raise UserError(
                f"{self.root} holds no images",
                code="no-images",
                expected="class folders with images in any format Pillow reads (.jpg, .png, .webp, …)",
            )
        return _descend(entries, self.root, self.split)

    @property
    def _descended(self) -> tuple[str, ...]:
        return self._scanned[0]

    @property
    def _entries(self) -> list[Entry]:
        return self._scanned[1]

    @cached_property
    def _table(self) -> tuple[list[str], list[Item]]:
        listed = read_class_names(self.classes) if self.classes else None
        flat = [entry for entry in self._entries if len(entry.parts) == 1]
        keys = [entry.key for entry in self._entries]
        if self.labels or len(flat) == len(self._entries):
            path = self.labels or self._label_file()
            names, labels = label_numbers(read_image_classes(path, keys), listed, path)
            return names, [Item(key, label) for key, label in zip(keys, labels, strict=True)]
        if flat:
            raise UserError(
                f"{self.root} has images beside its class folders, such as {flat[0].key}",
                code="mixed-layout",
                expected="all images in class folders, or all in one folder with a file that gives their classes",
                remedy="move them into the folder of their class, or --labels FILE",
            )
        present = {entry.parts[0] for entry in self._entries}
        names = match_classes(listed, present, self.classes) if listed and self.classes else sorted(present)
        place = {name: label for label, name in enumerate(names)}
        return names, [Item(entry.key, place[entry.parts[0]]) for entry in self._entries]

    def _label_file(self) -> Path:
        folder = self.root.joinpath(*self._descended)
        beside = [folder / name for name in LABEL_FILES] if folder.is_dir() else []
        found = [path for path in beside if path.is_file()]
        if len(found) != 1:
            raise UserError(
                f"{folder} has images but no class folders" + (f", and {len(found)} label files" if found else ""),
                code="no-labels",
                expected="a folder for each class, or a file that gives each image its class",
                remedy="--labels FILE, with lines `FILE CLASS`",
            )
        return found[0]


def _descend(entries: list[Entry], root: Path, split: str | None) -> tuple[tuple[str, ...], list[Entry]]:
    """Enters single folders (`ILSVRC/Data/CLS-LOC/train/…`) and the split that is wanted."""
    entered: tuple[str, ...] = ()
    while True:
        tops = sorted({entry.parts[0] for entry in entries if len(entry.parts) > 1})
        only = len(tops) == 1 and all(len(entry.parts) > 2 for entry in entries)
        if split in tops:
            chosen, split = split, None
        elif split is None and tops and all(top.lower() in SPLITS for top in tops) and _in_folders(entries):
            chosen = next((top for top in tops if top.lower() == "train"), tops[0])
        elif only:
            chosen = tops[0]
        elif split is not None:
            raise UserError(
                f"split {split}: {root.joinpath(*entered)} has no folder of this name",
                code="no-such-split",
                expected=f"one of {', '.join(tops[:8])}" + (", …" if len(tops) > 8 else ""),
            )
        else:
            return entered, entries
        entries = [entry._replace(parts=entry.parts[1:]) for entry in entries if entry.parts[0] == chosen]
        entered = (*entered, chosen)


def _in_folders(entries: list[Entry]) -> bool:
    return all(len(entry.parts) > 1 for entry in entries)


def _suffixes() -> set[str]:
    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _scan(root: Path) -> Iterator[Entry]:
    suffixes = _suffixes()
    if root.is_dir():
        yield from _scan_folder(root, (), suffixes, set())
    elif root.name.lower().endswith(".tar"):
        yield from _scan_tar(root, (), suffixes)
    else:
        compressed = root.name.lower().endswith(COMPRESSED)
        raise UserError(
            f"{root} is "
            + ("a compressed archive, in which nothing can be read at random" if compressed else "a file"),
            code="no-images",
            expected="a folder of class folders, or an uncompressed .tar of one",
            remedy="unpack it",
        )


def _scan_folder(folder: Path, parts: tuple[str, ...], suffixes: set[str], above: set[tuple]) -> Iterator[Entry]:
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}", code="cannot-read") from error
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    for child in children:
        if child.name.startswith((".", "__MACOSX")):
            continue
        suffix = os.path.splitext(child.name)[1].lower()  # noqa: PTH122 - a Path for each of a million files is slow
        if child.is_dir():
            yield from _scan_folder(Path(child.path), (*parts, child.name), suffixes, above | {here})
        elif suffix == ".tar":
            yield from _scan_tar(Path(child.path), (*parts, child.name[:-4]), suffixes)
        elif suffix in suffixes:
            try:
                status = child.stat()
                yield Entry((*parts, child.name), child.path, -1, status.st_size, status.st_mtime_ns)
            except FileNotFoundError:  # a broken link: reported when it is read
                yield Entry((*parts, child.name), child.path, -1, 0, 0)


def _scan_tar(path: Path, parts: tuple[str, ...], suffixes: set[str]) -> Iterator[Entry]:
    try:
        with tarfile.open(path, "r:") as archive:
            yield from _scan_members(archive, str(path), 0, parts, suffixes)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read as an archive: {error}",
            code="damaged-file",
            expected="an uncompressed, complete .tar",
            remedy="check the download, or unpack it and give the folder",
        ) from error


def _scan_members(
    archive: tarfile.TarFile, file: str, base: int, parts: tuple[str, ...], suffixes: set[str]
) -> Iterator[Entry]:
    for member in archive:
        path = PurePosixPath(member.name)
        below = tuple(part for part in path.parts if part not in (".", "/"))
        if not member.isfile() or any(part.startswith((".", "__MACOSX")) for part in below):
            continue
        if path.suffix.lower() == ".tar":
            inner = archive.extractfile(member)
            assert inner is not None
            names = (*parts, *below[:-1], below[-1][:-4])
            with tarfile.open(fileobj=inner, mode="r:") as nested:
                yield from _scan_members(nested, file, base + member.offset_data, names, suffixes)
        elif path.suffix.lower() in suffixes:
            yield Entry((*parts, *below), file, base + member.offset_data, member.size, int(member.mtime * 1e9))
        archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - else a million members stay in memory
