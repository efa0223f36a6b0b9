"""A folder or `.tar` of class folders as a data set; or images in one folder, with or without a file of their classes.

The class of an image is its first folder below the root, at any depth; a `.tar` counts as a folder with its name, so
ImageNet's archive of class archives is read as it is. Labels follow the sorted class names (`class_lists.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from mpdit_core.data.images import FORMATS, open_image
from mpdit_core.data.sources.class_lists import class_order, label_numbers, refuse_list
from mpdit_core.data.sources.files import shown
from mpdit_core.data.sources.label_files import LABEL_FILES, read_image_classes
from mpdit_core.data.sources.scan import Found, counted, find_images, read_entry
from mpdit_core.errors import UserError
from mpdit_core.protocols import Item
from mpdit_core.reporting import Note, Warning

TRAINING = ("train", "training")
SPLITS = (*TRAINING, "val", "valid", "validation", "test", "testing", "dev", "eval")
"""Names of folders that are parts of a data set, not classes; one of `TRAINING` is read unless another is asked for."""


@dataclass(eq=False)
class ImageFolder:
    """The data set in a folder or archive; see the module. Scanned at first use, in sorted order."""

    root: Path
    split: str | None = None
    classes: Path | None = None
    labels: Path | None = None
    allow_empty_classes: bool = False

    def class_names(self) -> list[str]:
        return self._table[0]

    def items(self) -> list[Item]:
        return self._table[1]

    def image(self, index: int) -> Image.Image:
        """Raises `FaultyImageError` for a file that is damaged or gone."""
        return open_image(read_entry(self._found.images[index]))

    def fingerprint(self) -> str:
        """Hash of labels, names, sizes and times of change of all files."""
        digest = hashlib.sha256()
        for item, entry in zip(self.items(), self._found.images, strict=True):
            digest.update(f"{item.label}\0{item.key}\0{entry.size}\0{entry.modified}\n".encode())
        digest.update("\n".join(self.class_names()).encode())
        return digest.hexdigest()[:32]

    def notes(self) -> list[Note | Warning]:
        """What a person should know about how the folder was read."""
        found, names = self._found, self.class_names()
        notes: list[Note | Warning] = []
        if found.entered:
            notes.append(Note(text=f"reading {shown(self._place)}"))
        notes += found.notes()
        if not names:
            text = f"{len(found.images):,} images without classes: no class folders, and no file that gives classes"
            notes.append(Note(text=text))
        if len(names) == 1:
            notes.append(Warning(code="one-class", text=f"there is only one class, {names[0]!r}"))
        if not self._is_flat and self.classes is None:
            notes += _notes_on_splits(found, names)
            if names != sorted(names):  # other programs sort them as text, and have other labels
                text = f"class names are numbers, sorted as numbers: {names[0]} is label 0, {names[-1]} is the last"
                notes.append(Note(text=text))
        return notes

    @cached_property
    def _found(self) -> Found:
        """What lies in the folder that holds the class folders: the root, or one below it."""
        found = find_images(self.root)
        if not found.images:
            counts = found.left_out_in()
            raise UserError(
                f"{shown(self.root)} holds no images" + (f", but {counted(counts)}" if counts else ""),
                code="no-images",
                expected=f"class folders with images ({', '.join(FORMATS)})",
            )
        return _descend(found, self.root, self.split)

    @property
    def _place(self) -> Path:
        """The folder that holds the class folders."""
        return self.root.joinpath(*self._found.entered)

    @property
    def _is_flat(self) -> bool:
        """Whether folders are not classes: there are none, or a label file is given."""
        return self.labels is not None or all(len(entry.parts) == 1 for entry in self._found.images)

    @cached_property
    def _table(self) -> tuple[list[str], list[Item]]:
        """(class names, items)."""
        entries = self._found.images
        keys = [entry.key for entry in entries]
        if self._is_flat:
            path = self.labels or self._label_file()
            if path is None:
                refuse_list(self.classes, shown(self.root))
                return [], [Item(key, 0) for key in keys]
            names, labels = label_numbers(read_image_classes(path, keys), self.classes, shown(path))
            return names, [Item(key, label) for key, label in zip(keys, labels, strict=True)]
        flat = [entry for entry in entries if len(entry.parts) == 1]
        if flat:
            raise UserError(
                f"{shown(self.root)} has images outside its class folders, such as {flat[0].key}",
                code="mixed-layout",
                expected="all images in class folders, or all in one folder with a file that gives their classes",
                remedy="move them into the folder of their class, or --labels FILE",
            )
        present = {entry.parts[0] for entry in entries}
        empty = {parts[0] for parts in self._found.folders} - present
        if empty and not self.classes and not self.allow_empty_classes:
            raise self._empty_class(min(empty), len(empty))
        names = class_order(present if self.classes else present | empty, self.classes)
        place = {name: label for label, name in enumerate(names)}
        return names, [Item(entry.key, place[entry.parts[0]]) for entry in entries]

    def _empty_class(self, name: str, count: int) -> UserError:
        what = f"the class folder {shown(self._place / name)} holds no images"
        remedy = "convert its images, or remove it; --allow-empty-classes keeps it as a class without images"
        if archive := self._found.unread.get((name,)):
            what = f"{archive} lies beside class folders, and archives of its kind are not read"
            remedy = "unpack it into a class folder, or move it elsewhere"
        elif counts := self._found.left_out_in(name):
            what += f", but {counted(counts)}"
        return UserError(
            what + (f" ({count} classes are like this)" if count > 1 else ""),
            code="empty-class",
            expected=f"images in every class folder ({', '.join(FORMATS)}) or uncompressed .tar",
            remedy=remedy,
        )

    def _label_file(self) -> Path | None:
        """The label file beside the images; None where there is none, and images have no classes."""
        found = [path for name in LABEL_FILES if (path := self._place / name).is_file()]
        if len(found) > 1:
            raise UserError(
                f"{shown(self._place)} has {len(found)} label files",
                code="ambiguous-labels",
                expected="one file that gives each image its class",
                remedy=f"--labels {shown(found[0])}",
            )
        return found[0] if found else None


def _descend(found: Found, root: Path, split: str | None) -> Found:
    """Enters single folders (`ILSVRC/Data/CLS-LOC/train/…`) and the split that is wanted."""
    while True:
        images, here = found.images, root.joinpath(*found.entered)
        tops = sorted({entry.parts[0] for entry in images if len(entry.parts) > 1})
        in_folders = all(len(entry.parts) > 1 for entry in images)
        only = len(tops) == 1 and all(len(entry.parts) > 2 for entry in images)
        if split in tops:
            chosen, split = split, None
        elif split is None and tops and in_folders and all(top.lower() in SPLITS for top in tops):
            chosen = next((top for top in tops if top.lower() in TRAINING), tops[0])
        elif only:
            chosen = tops[0]
            _refuse_empty_beside(found, chosen, here)
        elif split is not None:
            raise UserError(
                f"split {split}: {shown(here)} has no folder with images of this name",
                code="no-such-split",
                expected=f"one of {', '.join(tops[:8])}" + (", …" if len(tops) > 8 else ""),
            )
        else:
            return found
        found = found.within(chosen)


def _refuse_empty_beside(found: Found, chosen: str, folder: Path) -> None:
    """Raises `UserError` where a folder beside `chosen` may be a class with images in formats that are not read."""
    for name in sorted({parts[0] for parts in found.folders} - {chosen}):
        if counts := found.left_out_in(name):
            raise UserError(
                f"of the folders in {shown(folder)} only {chosen} holds images; {name} holds {counted(counts)}",
                code="empty-class",
                expected=f"images in every class folder ({', '.join(FORMATS)})",
                remedy=f"if both are classes, convert or unpack {name}; otherwise use {shown(folder / chosen)}",
            )


def _notes_on_splits(found: Found, names: list[str]) -> list[Note | Warning]:
    """A warning where the class folders look like splits: by their names, or because all hold the same folders."""
    below: dict[str, set[str]] = {}
    for entry in found.images:
        below.setdefault(entry.parts[0], set()).update(entry.parts[1:2] if len(entry.parts) > 2 else ())
    same = {frozenset(folders) for folders in below.values()}
    by_name = [name for name in names if name.lower() in SPLITS]
    if len(names) > 1 and (by_name or (len(same) == 1 and same != {frozenset()})):
        text = f"the classes are {', '.join(names[:5])}: if these are parts of the data set, choose one with --split"
        return [Warning(code="splits-as-classes", text=text)]
    return []
