"""What `train` is asked for, and what it returns. The settings of the run itself are in `RunConfig`. Torch-free."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from mpdit_core.config import RunConfig
from mpdit_core.settings import DeviceOptions, Result, flatten, parse_value, setting, toml_value


class TrainOptions(DeviceOptions):
    """A run to begin or to resume."""

    preset: str | None = setting(
        None, "name of the preset to start from",
        chosen="from --config or the run, otherwise one that fits the latents", sweepable=True,
    )  # fmt: skip
    latents: Path | None = setting(
        None, "folder of latents", metavar="DIR", strict=False, chosen="the matching one under latents/"
    )
    steps: PositiveInt | None = setting(None, "number of optimizer steps", chosen="from train.epochs")
    config: Path | None = setting(
        None, "TOML file whose values replace those of the preset", metavar="FILE", strict=False, chosen="none"
    )
    settings: dict[str, Any] = setting(
        {}, "single values of the configuration, by dotted key", table="*", typed=False, sweepable=True
    )
    init_from: str | None = setting(
        None, "model whose weights a new run starts with", metavar="MODEL", chosen="random weights"
    )
    run: Path | None = setting(
        None, "folder of the run or the sweep; an existing one is resumed", metavar="DIR",
        panel="Output", strict=False, chosen="a new one under runs/",
    )  # fmt: skip
    resume: bool = setting(True, "resume the run or sweep in --run, if it exists", panel="Output")
    dry_run: bool = setting(
        False, "check everything and show configuration, memory and disk; write nothing", panel="Output"
    )
    sweep: tuple[str, ...] = setting(
        (), "train every combination of these values, such as train.learning_rate=1e-4,2e-4; "
        "`;` separates values that contain commas",
        strict=False, repeated=True, metavar="KEY=V1,V2,…", panel="Other work",
    )  # fmt: skip
    seeds: PositiveInt = setting(1, "number of seeds, with one run per seed", panel="Other work")
    trust: bool = setting(
        False,
        "run code that the run, its configuration or its latents refer to, such as file.py:Class",
        panel="Running",
    )
    runs_root: Path = setting(Path("runs"), "folder in which new runs are made", typed=False)
    latents_root: Path = setting(Path("latents"), "folder that is searched for latents", typed=False)

    def command_line(self) -> str:
        """The command line that starts this training as a new run."""
        words = ["mpdit", "train"]
        for name in ("preset", "config", "latents", "init_from", "steps"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        for key, value in flatten(self.settings).items():
            is_word = isinstance(value, str) and parse_value(value) == value
            words += ["--set", f"{key}={value if is_word else toml_value(value, comma=',')}"]
        return shlex.join(words)


class TrainResult(Result):
    """A finished run."""

    run: Path = setting(..., "the run folder")
    step: int = setting(..., "optimizer steps done")
    images_seen: int = setting(..., "images the network was trained on, repeats included")
    loss: float | None = setting(..., "loss of the last step; none: no step was taken")
    checkpoint: Path | None = setting(None, "the newest checkpoint")


class ResourceEstimate(Result):
    """What a run will need."""

    memory_bytes: int = setting(..., "memory needed on each device")
    activation_bytes: int = setting(..., "memory needed for activations, included in memory_bytes")
    switched_memory_bytes: int = setting(..., "memory needed with the opposite setting of activation checkpointing")
    checkpoint_bytes: int = setting(..., "size of one checkpoint")
    disk_bytes: int = setting(..., "disk space needed for checkpoints")


class DryRunResult(ResourceEstimate):
    """The run that would be started, and what it would need. Nothing was written."""

    run: Path = setting(..., "the run folder")
    latents: Path = setting(..., "the latents")
    images: int = setting(..., "number of images in them")
    total_steps: int = setting(..., "optimizer steps")
    config: RunConfig = setting(..., "the resolved configuration")
    origins: dict[str, str] = setting(..., "source of each value, by dotted key; others are defaults")
    free_bytes: int = setting(..., "free disk space")
