"""Folders that hold a model: writing them whole, finding the newest, opening any of them by path or Hub id.

    <folder>/model.safetensors   the weights to use (in training: the first EMA), names without prefixes
    <folder>/config.json         format, configuration, what the latents were, step
    <folder>/training.safetensors, ema-<decay>.safetensors     only in a run's checkpoints; training/ if sharded

Only safetensors and JSON are ever read: opening a model from somebody else runs none of their code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpdit_core import __version__
from mpdit_core.config import RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import preset_names
from mpdit_core.runtime import files
from mpdit_core.settings import settings_error

FORMAT = 2
"""Version of a model folder; any other is refused."""

WEIGHTS, CONFIG, TRAINING = "model.safetensors", "config.json", "training.safetensors"
SHARDS = (
    "training"  # for a sharded run, in place of TRAINING: a folder with one file per process; `extra` has their number
)


@dataclass(frozen=True)
class ModelFolder:
    """An opened model folder: everything but the weights, which `load` reads."""

    path: Path
    config: RunConfig
    latents: LatentSpec | None
    step: int
    images_seen: int
    extra: dict[str, Any]  # what else the writer of the folder recorded: origin, notes, position of a run

    @property
    def run(self) -> Path | None:
        """The run this checkpoint belongs to, if it lies in one."""
        parent = self.path.parent
        return parent.parent if parent.name == "checkpoints" else None

    @cached_property
    def weights_sha256(self) -> str:
        return files.sha256(self.path / WEIGHTS)

    def require_flow(self) -> None:
        """Raises `UserError` (`not-a-flow`) for an imported epsilon model (DiT): no sampler here applies to it."""
        if self.extra.get("prediction", "velocity") != "velocity":
            raise UserError(
                f"{self.path} predicts noise (epsilon), as DiT does: it is no flow and cannot be sampled here",
                code="not-a-flow",
                expected="a model that predicts velocity: one of mpdit's own, MPDiT's or SiT's",
                remedy="sample it with diffusers' DiTPipeline, or train a flow from it: mpdit train --init-from MODEL",
            )

    def load(self, device: torch.device | str = "cpu") -> MPDiT:
        """The network in float32 and eval mode, parameters frozen.

        Raises:
            UserError: the weights are torn or do not fit the configuration (`damaged-file`).
        """
        with torch.device("meta"):
            model = MPDiT(self.config.model)
        state = read_weights(self.path / WEIGHTS)
        expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if expected != given:
            wrong = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
            raise UserError(
                f"{self.path / WEIGHTS} does not fit the configuration beside it: {wrong[0]} is "
                f"{given.get(wrong[0], 'missing')}",
                code="damaged-file",
                expected=f"{expected.get(wrong[0], 'no such tensor')}",
                remedy="restore both files from the same checkpoint",
            )
        model.load_state_dict({n: t.float() for n, t in state.items()}, assign=True)
        rebuild_positions(model)
        return model.to(device).eval().requires_grad_(False)


def load_model(where: str | Path, device: torch.device | str = "cpu") -> MPDiT:
    """The network of a run, checkpoint folder, export or `hf:ORG/NAME[@revision]`, ready for inference."""
    return open_model(where).load(device)


def open_model(where: str | Path) -> ModelFolder:
    """Opens a run (its newest complete checkpoint), a checkpoint folder, an export or `hf:ORG/NAME[@revision]`.

    Raises:
        UserError: nothing there, no complete checkpoint, or a folder that is not a model.
    """
    if str(where).startswith("hf:"):
        from mpdit_core.models.hub import download_model

        return _read_folder(download_model(str(where)))
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(
            f"{where} is not a folder",
            code="no-such-file",
            expected="a run, a checkpoint folder, an exported model, or hf:ORG/NAME",
            remedy=_remedy_for_no_folder(str(where)),
        )
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        return _read_folder(folder)
    complete, torn = find_checkpoints(folder)
    if not complete and torn:
        _check_complete(torn[-1][0])
    if not complete:
        raise UserError(
            f"there is no model in {folder}",
            code="not-a-model",
            expected="checkpoints/step-… with model.safetensors and config.json",
            remedy="train until the first checkpoint is written (train.checkpoint_every)",
        )
    return _read_folder(complete[-1])


def _remedy_for_no_folder(where: str) -> str:
    if where in preset_names():
        return f"{where} is a preset: `mpdit train --preset {where}`, `mpdit profile-flops --preset {where}`"
    near = sorted(str(p) for p in Path("runs").glob("*")) if Path("runs").is_dir() else []
    return f"here are {', '.join(near[:5])}" if near else "`mpdit train` makes one, `mpdit import` another"


def find_checkpoints(run: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Complete checkpoints of a run in order of step, and the damaged ones with what is wrong with each."""
    complete, torn = [], []
    for folder in sorted(run.glob("checkpoints/step-*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0)):
        try:
            _check_complete(folder)
        except UserError as error:
            torn.append((folder, error.what))
        else:
            complete.append(folder)
    return complete, torn


def _check_complete(checkpoint: Path) -> None:
    """Raises `UserError` for a checkpoint that lacks a file or has one that is torn."""
    parts = _read_folder(checkpoint).extra.get(SHARDS, 0)
    there = len(list((checkpoint / SHARDS).glob("*.safetensors")))
    if there < parts:
        raise UserError(f"{checkpoint / SHARDS} holds {there} of its {parts} parts", code="damaged-file")
    for file in checkpoint.rglob("*.safetensors"):
        _check_header(file)


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    config: RunConfig,
    latents: LatentSpec | None,
    step: int = 0,
    images_seen: int = 0,
    extra: Mapping[str, Any] | None = None,
    more: Mapping[str, Mapping[str, Tensor] | Path] | None = None,
) -> None:
    """Writes a model folder whole or not at all.

    Args:
        extra: what else to record, in plain JSON values.
        more: by name, the tensors of a further file, or a folder beside `folder` that is moved into it.

    Raises:
        UserError: the disk is full or the place cannot be written; what was there stays.
    """
    with files.writing_folder(folder) as temporary:
        for name, content in {WEIGHTS: state, **(more or {})}.items():
            if isinstance(content, Path):
                content.rename(temporary / name)
            else:
                _save_tensors(content, temporary / name)
        description = {
            "format": FORMAT,
            "mpdit": __version__,
            "step": step,
            "images_seen": images_seen,
            "config": config.model_dump(mode="json"),
            "latents": latents.model_dump(mode="json") if latents else None,
            "extra": dict(extra or {}),
        }
        (temporary / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it hides the OSError it met
        if "No space left" in str(error) or "os error 28" in str(error):
            raise OSError(28, "No space left on device") from error
        raise


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises `UserError` when it is missing or torn."""
    _check_header(path)
    return load_file(path)


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, "pt"):
            pass
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist", code="no-such-file", expected="the weights beside config.json"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is torn or not a safetensors file: {error}",
            code="damaged-file",
            remedy="restore it, or remove this folder to fall back on the checkpoint before it",
        ) from None


def _read_folder(folder: Path) -> ModelFolder:
    description = files.read_json(folder / CONFIG)
    if not isinstance(description, dict) or "config" not in description:
        raise UserError(
            f"{folder / CONFIG} is not a model of mpdit",
            code="not-a-model",
            expected="a folder written by `mpdit train`, `import` or `export`",
            remedy="`mpdit import FILE` reads official checkpoints",
        )
    if description.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {description.get('format')}",
            code="unknown-format",
            expected=f"format {FORMAT}, which mpdit {__version__} reads",
            remedy=f"use the version that wrote it ({description.get('mpdit', 'unknown')})",
        )
    try:
        config = RunConfig.model_validate_json(json.dumps(description["config"]))
        latents = description.get("latents") and LatentSpec.model_validate_json(json.dumps(description["latents"]))
    except ValidationError as error:
        raise settings_error(error, origin=str(folder / CONFIG)) from None
    _check_header(folder / WEIGHTS)
    return ModelFolder(
        path=folder,
        config=config,
        latents=latents or None,
        step=description.get("step", 0),
        images_seen=description.get("images_seen", 0),
        extra=description.get("extra", {}),
    )


def rebuild_positions(model: MPDiT) -> None:
    """Computes the fixed position tables of a model that was made on the meta device."""
    from mpdit_core.model.tokens import position_table

    for stage, shape in zip(model.stages, model.config.stages, strict=True):
        side = model.config.input_size // shape.patch_size
        stage.positions = position_table(model.config.width, side)
