"""The options and the result of `mpdit ls`. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mpdit_core.settings import Options, Result, setting

Kind = Literal["run", "latents", "samples", "evaluation"]
Status = Literal["ok", "unfinished", "damaged"]


class ListOptions(Options):
    """The folder to search."""

    folder: Path = setting(Path(), "folder to search, two levels deep", argument=True, metavar="DIR", strict=False)


class Entry(Result):
    """One run, folder of latents, set of samples or evaluation. A value that it does not have is none."""

    kind: Kind = setting(..., "kind of the entry")
    path: Path = setting(..., "its folder; for an evaluation, its record")
    changed: str = setting(..., "time of the last change, ISO 8601 in UTC")
    bytes: int = setting(..., "size of all its files")
    status: Status = setting("ok", "unfinished: the command that makes it was stopped and can resume")
    problem: str = setting("", "what is damaged or unfinished")
    remedy: str = setting("", "what to do about it")
    preset: str | None = setting(None, "preset of the model")
    of: str = setting("", "what it was made from or measured on: latents, a model or samples")
    about: str = setting("", "its main settings, as text")
    step: int | None = setting(None, "training step")
    images_seen: int | None = setting(None, "images that the network was trained on, repeats included")
    images: int | None = setting(None, "number of images it holds or was measured on")
    loss: float | None = setting(None, "loss of the last logged step")
    distance: float | None = setting(None, "Fréchet distance; for a run, the lowest of its evaluations")
    distance_name: str = setting("", "FID, or the name of the features of the distance")


class Listing(Result):
    """All entries, newest first."""

    folder: Path = setting(..., "folder that was searched")
    entries: tuple[Entry, ...] = setting(..., "one per run, latents folder, set of samples or evaluation")
    damaged: int = setting(..., "number of damaged entries")
