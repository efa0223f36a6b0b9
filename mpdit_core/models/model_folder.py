"""Folders that hold a model: writing them whole, finding the newest, opening any of them by path or name on the Hub.

    <folder>/model.safetensors   the weights to use (in training: the first EMA), names without prefixes
    <folder>/config.json         format, configuration, description of the latents, step
    <folder>/training.safetensors    in a run's checkpoints only; training/ if sharded
    <folder>/ema-<decay>.safetensors, power-<width>.safetensors     likewise: the other averages

Only safetensors and JSON are read: opening somebody else's model runs none of their code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpdit_core.config import ModelConfig, RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.model.compute import image_tokens, parameter_count
from mpdit_core.model.transformer import MPDiT, without_values
from mpdit_core.models.hub import CONFIG, PREFIX, WEIGHTS, download_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import preset_names
from mpdit_core.runtime import files
from mpdit_core.runtime.checked_tensors import opened
from mpdit_core.settings import Settings, setting, validate
from mpdit_core.version import __version__

FORMAT = 3
"""Version of a model folder; any other is refused."""

FILE_METADATA = {"format": "pt"}
RESTORE_OR_REMOVE = "restore it, or remove this folder to continue from the checkpoint before it"
TRAINING = "training.safetensors"
SHARDS = "training"
"""In place of TRAINING in a sharded run: a folder with one file per process, whose number is in `extra`."""


class ModelFolder(Settings):
    """An opened model folder: everything but the weights, which `weights` and `load` read."""

    path: Path = setting(..., "the folder; not stored in it")
    config: RunConfig
    latents: LatentSpec | None = None
    step: NonNegativeInt = 0
    images_seen: NonNegativeInt = 0
    extra: dict[str, Any] = setting({}, "further facts that its writer recorded: origin, notes, position of a run")
    sha256: dict[str, str] = setting({}, "hashes of its files, recorded when they were written")

    @property
    def run(self) -> Path | None:
        """The run that this checkpoint belongs to, if it is in one."""
        parent = self.path.parent
        return parent.parent if parent.name == "checkpoints" else None

    @cached_property
    def weights_sha256(self) -> str:
        return files.sha256(self.path / WEIGHTS)

    def verify(self) -> None:
        """Compares all files with their recorded hashes, see `files.verify`."""
        for name, recorded in self.sha256.items():
            files.verify(self.path / name, recorded)

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the weights file, after a check of its hash and its size.

        Raises:
            UserError: the file is torn or has changed, or does not fit the configuration (`damaged-file`).
        """
        path, model = self.path / WEIGHTS, self.config.model
        if WEIGHTS in self.sha256:
            files.verify(path, self.sha256[WEIGHTS])
        with opened(path) as file:  # sizes first: a configuration that does not fit could be too large to build
            found = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
            wanted = parameter_count(model)
            if found != wanted:
                raise _misfit(path, f"it holds {found:,} numbers", f"{wanted:,} numbers")
            size = 4 * model.width * sum(image_tokens(model))
            files.require_memory(size, what=f"the position tables of {path.parent}")
        state = load_file(path)
        require_shapes(parameter_shapes(model), state, where=path)
        return state

    def require_flow(self) -> None:
        """Raises `UserError` (`not-a-flow`) for an imported epsilon model (DiT): no sampler here applies to it."""
        if self.extra.get("prediction", "velocity") != "velocity":
            raise UserError(
                f"{self.path} predicts noise (epsilon), as DiT does: it is not a flow and mpdit cannot sample it",
                code="not-a-flow",
                expected="a model that predicts velocity: one of mpdit's own, MPDiT's or SiT's",
                remedy="sample it with diffusers' DiTPipeline, or train a flow from it: mpdit train --init-from MODEL",
            )

    def require_latents(self, *, remedy: str | None = None) -> LatentSpec:
        """The description of its latents. Raises `UserError` (`no-autoencoder`) where there is none."""
        if self.latents is None:
            raise UserError(
                f"{self.path} does not state which autoencoder its latents belong to",
                code="no-autoencoder",
                expected="a model that was trained or imported with a description of its latents",
                remedy=remedy,
            )
        return self.latents

    def load(self, device: torch.device | str = "cpu") -> MPDiT:
        """The network in float32 and eval mode, parameters frozen. Raises `UserError` as `weights`."""
        state = self.weights()
        model = without_values(self.config.model)
        model.load_state_dict({n: t.float() for n, t in state.items()}, assign=True)
        return model.to(device).eval().requires_grad_(False)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of the network, by name."""
    return {name: tuple(parameter.shape) for name, parameter in without_values(config).named_parameters()}


def require_shapes(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor], *, where: Path | str) -> None:
    """Raises `UserError` (`damaged-file`) where tensors are missing, unknown or of another shape."""
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        name = wrong[0]
        raise _misfit(where, f"{name} is {found.get(name, 'missing')}", f"{expected.get(name, 'no such tensor')}")


def _misfit(where: Path | str, found: str, expected: str) -> UserError:
    return UserError(
        f"{where} does not fit its configuration: {found}",
        code="damaged-file",
        expected=expected,
        remedy="restore all files of that folder from the same checkpoint",
    )


def load_model(where: str | Path, device: torch.device | str = "cpu") -> MPDiT:
    """The network of a run, checkpoint folder, export or `hf:ORG/NAME[@revision]`, ready for inference."""
    return open_model(where).load(device)


def open_model(where: str | Path) -> ModelFolder:
    """Opens a run (its newest complete checkpoint), a checkpoint folder, an export or `hf:ORG/NAME[@revision]`.

    Raises:
        UserError: nothing there, no complete checkpoint, or a folder that is not a model.
    """
    if str(where).startswith(PREFIX):
        return _read_folder(download_model(str(where)))
    folder = Path(where)
    try:
        is_folder = folder.is_dir()
    except OSError:  # a name too long
        is_folder = False
    if not is_folder:
        raise UserError(
            f"{where} is not a folder",
            code="no-such-file",
            expected="a run, a checkpoint folder, an exported model, or hf:ORG/NAME",
            remedy=_remedy_for_no_folder(str(where)),
        )
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        return _read_folder(folder)
    complete, torn = find_checkpoints(folder)
    if complete:
        return _read_folder(complete[-1])
    if torn:
        _require_complete(torn[-1][0])  # raises the fault
    raise UserError(
        f"there is no model in {folder}",
        code="not-a-model",
        expected="checkpoints/step-… with model.safetensors and config.json",
        remedy="train until the first checkpoint is written (train.checkpoint_every)",
    )


def _remedy_for_no_folder(where: str) -> str:
    if where in preset_names():
        return f"{where} is a preset: `mpdit train --preset {where}`, `mpdit profile-flops --preset {where}`"
    near = sorted(str(p) for p in Path("runs").glob("*")) if Path("runs").is_dir() else []
    return f"existing runs: {', '.join(near[:5])}" if near else "make a model with `mpdit train` or `mpdit import`"


def find_checkpoints(run: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Complete checkpoints of a run in order of step, and the damaged ones with what is wrong with each."""
    complete, torn = [], []
    for folder in RunFolder(run).checkpoint_folders():
        try:
            _require_complete(folder)
        except UserError as error:
            torn.append((folder, error.what))
        else:
            complete.append(folder)
    return complete, torn


def _require_complete(checkpoint: Path) -> None:
    """Raises `UserError` for a checkpoint that lacks a file or has one that is torn."""
    parts = _read_folder(checkpoint).extra.get(SHARDS, 0)
    there = len(list((checkpoint / SHARDS).glob("*.safetensors")))
    if there < parts:
        raise UserError(
            f"{checkpoint / SHARDS} holds {there} of its {parts} parts", code="damaged-file", remedy=RESTORE_OR_REMOVE
        )
    for file in checkpoint.rglob("*.safetensors"):
        _require_header(file)


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
        extra: further facts to record, as JSON values.
        more: by name, the tensors of a further file, or a folder beside `folder` that is moved into it.

    Raises:
        UserError: the disk is full or the place cannot be written; what was there stays.
    """
    with files.writing_folder(folder) as temporary:
        for name, content in {WEIGHTS: state, **(more or {})}.items():
            if isinstance(content, Path):
                content.rename(temporary / name)
            else:
                tensors = {n: t.detach().cpu().contiguous() for n, t in content.items()}
                save_file(tensors, temporary / name, metadata=FILE_METADATA)
        model = ModelFolder(
            path=folder,
            config=config,
            latents=latents,
            step=step,
            images_seen=images_seen,
            extra=dict(extra or {}),
            sha256={
                file.relative_to(temporary).as_posix(): files.sha256(file)
                for file in sorted(temporary.rglob("*.safetensors"))
            },
        )
        description = {"format": FORMAT, "mpdit": __version__} | model.model_dump(mode="json", exclude={"path"})
        (temporary / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises `UserError` when it is missing or torn."""
    _require_header(path)
    return load_file(path)


def _require_header(path: Path) -> None:
    with opened(path, remedy=RESTORE_OR_REMOVE):
        pass


def _read_folder(folder: Path) -> ModelFolder:
    description = files.read_json(folder / CONFIG)
    if not isinstance(description, dict) or "config" not in description:
        raise UserError(
            f"{folder / CONFIG} is not a model of mpdit",
            code="not-a-model",
            expected="a folder written by `mpdit train`, `import` or `export`",
            remedy="`mpdit import FILE` converts official checkpoints",
        )
    files.require_format(description, folder / CONFIG, version=FORMAT, remedy="train or import it again")
    given = {name: description[name] for name in ModelFolder.model_fields.keys() & description.keys()}
    model = validate(ModelFolder, given | {"path": folder}, origin=str(folder / CONFIG))
    _require_header(folder / WEIGHTS)
    return model
