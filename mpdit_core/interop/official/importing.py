"""`import_official`: a checkpoint file of the official code in, a model folder of ours out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpdit_core.config import ModelConfig, RunConfig
from mpdit_core.data.autoencoders import DEFAULT_AUTOENCODER
from mpdit_core.data.manifest import PUBLISHED_MEAN, PUBLISHED_STD, AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.errors import UserError
from mpdit_core.interop.official.file_signatures import like_tensors
from mpdit_core.interop.official.kinds import Kind, detect_kind, drop_variance, has_variance, reverse_time
from mpdit_core.interop.official.names import convert_state_dict
from mpdit_core.interop.official.reading import OfficialFile, Weights, read_official
from mpdit_core.model.tokens import position_table
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import ModelFolder, open_model, save_model
from mpdit_core.presets import MODELS, load_preset
from mpdit_core.runtime import files

SD_SCALE = 0.18215  # DiT and SiT multiply the raw latents by it (Stable Diffusion's scaling factor)
FACTOR = 8  # pixels per latent pixel of the autoencoder all these models were trained with
IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 1_281_167


def import_official(
    path: str | Path,
    *,
    out: str | Path,
    num_heads: int | None = None,
    kind: str = "auto",
    weights: Weights | None = None,
    autoencoder: str = DEFAULT_AUTOENCODER,
) -> ModelFolder:
    """Converts an official MPDiT, MPDiT v2, DiT or SiT checkpoint and writes it as a model folder.

    Shape and switches are read off the tensors. Numbers change in no other way than `kinds.py` says.

    Args:
        path: `.pt` with `model`, `ema`, `opt`, `args`, or a plain state dict as `.pt` or `.safetensors`.
        out: folder to make; it must not hold anything yet.
        num_heads: needed only where the width is not that of a published model.
        kind: `mpdit`, `dit`, `sit`, or `auto` to tell by the parts, the arguments stored and the file's name.
        weights: `ema` or `model`; the EMA if not said.
        autoencoder: Hub id or folder that decodes the latents.

    Raises:
        UserError: not such a file, or nothing tells DiT from SiT, or `out` is not free. Nothing is written then.
    """
    out = Path(out)
    _family(kind)
    check_free(out)
    file = read_official(Path(path), weights=weights)
    family, config, state, notes = convert(file, kind=kind, num_heads=num_heads)
    latents, more = _latents(config, family, autoencoder)
    extra: dict[str, Any] = {
        "origin": {
            "file": file.path.name,
            "sha256": files.sha256(file.path),
            "kind": family,
            "weights": file.weights,
            "arguments": file.arguments,
        },
        "prediction": "epsilon" if family == "dit" else "velocity",
        "notes": notes + more,
    }
    save_model(out, state, config=_run_config(config), latents=latents, extra=extra)
    return open_model(out)


def convert(
    file: OfficialFile, *, kind: str = "auto", num_heads: int | None = None
) -> tuple[Kind, ModelConfig, dict[str, Tensor], list[str]]:
    """The family, our configuration, our tensors in float32, and what a user should know of the conversion."""
    official, notes = file.tensors, []
    try:
        family = _family(kind) or detect_kind(official, name=file.path.name, arguments=file.arguments)
        _check_trained_as(family, file.arguments)
        if has_variance(official):
            official = drop_variance(official)
            notes.append("the variance half of the output channels is left out: sampling does not need it")
        if family == "sit":
            official = reverse_time(official)
            notes.append("SiT's time runs from noise to data: turned round in the weights, velocity = −SiT(x, 1 − t)")
        if family == "dit":
            notes.append("this is an epsilon model (it predicts noise): it loads, but it is no flow to be sampled")
        config, state = convert_state_dict(official, num_heads=num_heads)
    except UserError as error:
        what = like_tensors(file.tensors)
        if what is None or error.remedy in ("--num-heads N", "--kind dit, or --kind sit"):
            raise
        raise UserError(f"{file.path} looks like {what}", expected="an MPDiT, DiT or SiT checkpoint") from error
    _check_complete(config, state)
    _check_positions(config, official)
    return family, config, {name: tensor.float() for name, tensor in state.items()}, notes


def _family(kind: str) -> Kind | None:
    """The kind as given; None for auto."""
    if kind == "auto":
        return None
    if kind == "mpdit" or kind == "dit" or kind == "sit":
        return kind
    raise UserError(f"--kind {kind}", expected="auto, mpdit, dit, sit")


def check_free(folder: Path) -> None:
    """Raises `UserError` when `folder` holds something that writing there would destroy."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not empty",
            expected="a new folder, so that nothing is lost",
            remedy="choose another --out, or remove it first" if folder.is_dir() else "choose another --out",
        )


def _check_trained_as(family: str, arguments: Mapping[str, Any]) -> None:
    """SiT can be trained on other paths and targets, for which the conversion is not true."""
    path, prediction = arguments.get("path_type", "Linear"), arguments.get("prediction", "velocity")
    if family == "sit" and (path != "Linear" or prediction != "velocity"):
        raise UserError(
            f"this SiT was trained with path_type {path} and prediction {prediction}",
            expected="path_type Linear and prediction velocity, the flow that mpdit samples",
        )


def _check_complete(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in MPDiT(config).named_parameters()}
    wrong = sorted(n for n in expected if n not in state or tuple(state[n].shape) != expected[n])
    wrong += sorted(n for n in state if n not in expected)
    if wrong:
        given = tuple(state[wrong[0]].shape) if wrong[0] in state else "missing"
        raise UserError(
            f"{len(wrong)} tensors do not fit the model that the others imply; {wrong[0]} (our name) is {given}",
            expected=str(expected.get(wrong[0], "no such tensor")),
            remedy="the checkpoint may be of changed code",
        )


def _check_positions(config: ModelConfig, official: Mapping[str, Tensor]) -> None:
    for name, table in official.items():
        if name.startswith("pos_embed"):
            ours = position_table(config.width, round(table.shape[-2] ** 0.5))
            if ours.shape != table.shape[-2:] or not torch.allclose(
                ours, table.float().view_as(ours), atol=2e-2 if table.dtype != torch.float32 else 1e-3
            ):
                raise UserError(
                    f"the position table {name} is not the fixed sine-cosine one",
                    expected="the table of the official code",
                    remedy="a model with learnt or scaled positions cannot be imported",
                )


def _run_config(model: ModelConfig) -> RunConfig:
    """The preset that has this model, so that its training recipe comes along; otherwise `custom`."""
    resolution = model.input_size * FACTOR
    for name, row in MODELS.items():
        if row[0] == resolution:
            preset = load_preset(name)
            if preset.model == model:
                return preset
    return RunConfig(preset="custom", resolution=resolution, model=model)


def _latents(config: ModelConfig, family: Kind, autoencoder: str) -> tuple[LatentSpec | None, list[str]]:
    """What the model was trained on, as published; None with a note where that cannot be."""
    if config.channels != len(PUBLISHED_MEAN):
        note = f"no autoencoder is known for {config.channels} channels: latents can be sampled, not images"
        return None, [note]
    if family == "mpdit":
        mean, std = PUBLISHED_MEAN, PUBLISHED_STD
    else:
        mean, std = (0.0,) * config.channels, (1 / SD_SCALE,) * config.channels
    imagenet = config.num_classes == IMAGENET_CLASSES
    spec = LatentSpec(
        resolution=config.input_size * FACTOR,
        autoencoder=AutoencoderSpec(id=autoencoder, factor=FACTOR, channels=config.channels),
        normalisation=Normalisation(name="published", mean=mean, std=std),
        class_names=tuple(str(label) for label in range(config.num_classes)),
        source="imagenet" if imagenet else "",
        count=IMAGENET_IMAGES if imagenet else 0,
    )
    return spec, []
