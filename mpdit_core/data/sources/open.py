"""Opens a data set by the name that the user gave."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpdit_core import plugins
from mpdit_core.data.sources.files import exists, printable, shown, user_path
from mpdit_core.data.sources.folder import ImageFolder
from mpdit_core.errors import UserError
from mpdit_core.protocols import Dataset

HUB = "hf:"


def open_source(
    source: str,
    *,
    split: str | None = None,
    classes: Path | str | None = None,
    labels: Path | str | None = None,
    streaming: bool = False,
    allow_empty_classes: bool = False,
    options: Mapping[str, Any] | None = None,
    trusted: bool = True,
) -> Dataset:
    """The data set called `source`. Cheap: images are found and counted when `items` is first called.

    Args:
        source: a folder or `.tar`, `hf:ORG/NAME[@revision]`, or the name of a data set plugin. A name that is both a
            plugin and a folder is refused; `./NAME` is the folder.
        split: part of it; for a folder, a subfolder.
        classes: file with one class name per line, in label order.
        labels: for a folder of images without class folders, the file that gives each its class.
        streaming: read from the Hub without storing the data set first.
        allow_empty_classes: keep class folders that hold no images as classes, instead of refusing them.
        options: fields of a plugin; of the Hub, `image` and `label`: the columns to read.
        trusted: False for a source that was read from a file, which must not be code.

    Raises:
        UserError: there is no such source (`no-such-source`), it cannot be read (`cannot-read`), an option does not
            apply to it (`option-does-not-apply`), or it is code that may not be run (`untrusted-code`).
    """
    if source != printable(os.fsencode(source)):
        raise UserError(
            f"the name {printable(os.fsencode(source))} has bytes that are not UTF-8 text",
            code="cannot-read",
            expected="a name in UTF-8",
            remedy="rename it, or make a link to it with such a name",
        )
    classes, labels = _file(classes, "class names"), _file(labels, "labels")
    if source.startswith(HUB):
        from mpdit_core.data.sources.hub import HubDataset, HubStream

        _refuse(source, labels=labels, allow_empty_classes=allow_empty_classes)
        columns = dict(options or {})
        image, label = columns.pop("image", None), columns.pop("label", None)
        _refuse(source, **{f"dataset.{key}": str(value) for key, value in columns.items()})
        kind = HubStream if streaming else HubDataset
        return kind(source.removeprefix(HUB), split=split, classes=classes, image_column=image, label_column=label)
    _refuse(source, streaming=streaming)
    named = _is_plugin(source)
    path = user_path(source)
    there = exists(path)
    if there and named and source == path.name:
        raise UserError(
            f"{source} is both a folder here and an installed data set",
            code="ambiguous-source",
            expected="one of the two",
            remedy=f"./{source} for the folder; for the data set, run the command in another folder or rename this one",
        )
    if there:
        _refuse(source, dataset=options)
        return ImageFolder(path, split=split, classes=classes, labels=labels, allow_empty_classes=allow_empty_classes)
    if named:
        _refuse(source, classes=classes, labels=labels, allow_empty_classes=allow_empty_classes)
        return _plugin(source, split=split, options=dict(options or {}), trusted=trusted)
    raise UserError(
        f"{shown(source)}: there is no such folder or archive, and no data set of this name",
        code="no-such-source",
        expected="a folder of class folders, a .tar of one, hf:ORG/NAME, or a data set: "
        + (", ".join(plugins.names("datasets")) or "none is installed"),
        remedy="check the spelling; `mpdit plugins` lists what is installed",
    )


def require_trusted(source: str, *, trust: bool) -> None:
    """Raises `UserError` (`untrusted-code`) for a source that is code, unless `trust` is set; nothing is opened."""
    if _is_plugin(source) and not source.startswith(HUB):
        plugins.resolve("datasets", source, trusted=trust)


def source_name(source: str) -> str:
    """A short name for folders and titles: `imagenet` for both `/data/imagenet/` and `hf:ORG/imagenet`."""
    if source.startswith(HUB):
        source = source.removeprefix(HUB).partition("@")[0]
    elif ":" in source and _is_plugin(source):
        source = source.rpartition(":")[2].lower()
    path = user_path(source)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return name.removesuffix(".tar") or "images"


def absolute_source(source: str) -> str:
    """`source` in a form that is valid in any working directory."""
    if source.startswith(HUB) or (_is_plugin(source) and not exists(user_path(source))):
        return source
    return str(user_path(source).absolute())


def _is_plugin(source: str) -> bool:
    return source in plugins.names("datasets") or (":" in source and not exists(user_path(source)))


def _plugin(source: str, *, split: str | None, options: dict[str, Any], trusted: bool) -> Dataset:
    if split is not None:
        fields = {field.name for field in dataclasses.fields(plugins.load("datasets", source, trusted=trusted))}
        if "split" not in fields:
            raise UserError(
                f"split {split}: the data set {source} has no splits",
                code="no-such-split",
                remedy="leave --split out",
            )
        options["split"] = split
    return plugins.build("datasets", source, options, trusted=trusted)


def _file(path: Path | str | None, what: str) -> Path | None:
    if path is None:
        return None
    path = user_path(path)
    if not exists(path) or not path.is_file():
        raise UserError(f"the file of {what}, {shown(path)}, does not exist or is not a file", code="no-such-file")
    return path


def _refuse(source: str, **given: Any) -> None:
    """Raises `UserError` for the first option that has a value: it does not apply to this kind of source."""
    for option, value in given.items():
        if value:
            raise UserError(
                f"the option {option} does not apply to {source}",
                code="option-does-not-apply",
                remedy="leave it out",
            )
