"""What `profile-flops` is asked for. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import PositiveInt

from mpdit_core.model.compute import Convention
from mpdit_core.settings import DeviceOptions, Settings, parse_assignments, setting, validate
from mpdit_core.size import Size

S = TypeVar("S", bound=Settings)


class ProfileOptions(DeviceOptions):
    """Which models, and what to count, plan, search or measure."""

    model: str | None = setting(
        None, "model to count: a run, checkpoint folder, exported model or hf:ORG/NAME", argument=True, metavar="MODEL"
    )
    preset: tuple[str, ...] = setting(
        (), "preset, or published name such as DiT-XL/2, SiT-B/4, MPDiT-XL/4x (two stages) or /8x (three); repeatable",
        strict=False, repeated=True, chosen="all presets",
    )  # fmt: skip
    settings: dict[str, Any] = setting(
        {}, "values that change every configuration, by dotted key", table="*", typed=False
    )
    resolution: Size | None = setting(
        None, "size of the images in pixels, divisible into patches",
        chosen="from the preset",
    )  # fmt: skip
    batch_size: PositiveInt = setting(1, "number of images per training step, for the memory and for --measure")
    convention: Convention = setting("true", "token counts of attention: the true ones, or the paper's")
    plan: str | None = setting(
        None, "cost of training to compute, such as 'epochs=240, dense_epochs=1400, hardware=h100, devices=8, "
        "utilisation=0.4, watts=700, images=1281167'; 'default': the preset's epochs; "
        "hardware=measured times this machine",
        metavar="KEYS", panel="Other work", chosen="none",
    )  # fmt: skip
    search: str | None = setting(
        None, "search for network shapes within a budget, such as 'target_macs=30e9, stages=[2,3], show=20'",
        metavar="KEYS", panel="Other work", chosen="none",
    )  # fmt: skip
    measure: bool = setting(False, "run and time the given models on this machine", panel="Other work")
    plot: Path | None = setting(
        None, "figure to write: MACs against resolution", metavar="FILE", panel="Output", strict=False, chosen="none"
    )
    csv: Path | None = setting(
        None, "CSV file to write, with all numbers", metavar="FILE", panel="Output", strict=False, chosen="none"
    )
    markdown: Path | None = setting(
        None, "Markdown file to write, with tables for a paper", metavar="FILE", panel="Output", strict=False,
        chosen="none",
    )  # fmt: skip


def parse_keys(kind: type[S], text: str, *, origin: str) -> S:
    """The text of `--plan` or `--search`, `"epochs=240, stages=[2,3]"`, as a `kind`. `default` stands for no keys.

    Raises:
        UserError: an unknown key (`unknown-key`) or an invalid value (`invalid-value`).
    """
    outside_brackets = r"[,\s]+(?![^\[]*\])"
    words = [word for word in re.split(outside_brackets, text) if word not in ("", "default", "defaults")]
    return validate(kind, parse_assignments(words), origin=origin)
