"""`mpdit import`: from a checkpoint file of the official code to a model folder of mpdit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpdit_core.config import ModelConfig, RunConfig
from mpdit_core.data.manifest import PUBLISHED_MEAN, PUBLISHED_STD, AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.errors import UserError
from mpdit_core.interop.official.file_signatures import like_tensors
from mpdit_core.interop.official.kinds import Kind, detect_kind, drop_variance, has_variance, reverse_time
from mpdit_core.interop.official.names import convert_state_dict
from mpdit_core.interop.official.reading import read_official
from mpdit_core.interop.options import PUBLISHED_AUTOENCODER, ImportOptions, ImportResult
from mpdit_core.model.positions import position_table
from mpdit_core.models.model_folder import ModelFolder, open_model, parameter_shapes, require_shapes, save_model
from mpdit_core.presets import LATENT_FACTOR, MODELS, load_preset
from mpdit_core.reporting import Note, Reporter, Saved, Warning, silent
from mpdit_core.runtime import files
from mpdit_core.settings import validate
from mpdit_core.size import Size

SD_SCALE = 0.18215  # DiT and SiT multiply the raw latents by it (Stable Diffusion's scaling factor)
CLASS_TABLE = "y_embedder.embedding_table.weight"
IMPORTABLE = "an MPDiT, DiT or SiT checkpoint"
IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 1_281_167

NOTES = {
    "variance-dropped": "the output channels for the variance are not imported: sampling does not need them",
    "time-reversed": "SiT's time runs from noise to data; it is reversed in the weights: velocity = −SiT(x, 1 − t)",
    "epsilon-model": "this is an epsilon model (it predicts noise): it is not a flow and cannot be sampled",
    "no-null-label": "it was trained without label dropout: its null label is a row of zeros; do not use guidance",
    "other-image-size": "its arguments and its position table have different image sizes; the table's is used",
    "no-autoencoder": "no autoencoder is known for its number of channels: samples are latents, not images",
}
"""Notes for the user about a conversion, by code; a model folder keeps those that apply as `extra["notes"]`."""

WARNINGS = ("epsilon-model", "no-null-label", "other-image-size", "no-autoencoder")
"""Notes that are warnings: the model is limited, or may not be the one that was meant."""


def import_checkpoint(options: ImportOptions, *, report: Reporter = silent) -> ImportResult:
    """Converts `options.file` into `options.out`, by default `models/<name of the file>`.

    Shape and switches are read from the tensors. Only the conversions in `kinds.py` change numbers.

    Raises:
        UserError: the file cannot be used (codes as in `read_official`, `detect_kind`, `convert_state_dict`), or the
            folder is not empty (`folder-not-empty`). Then nothing is written.
    """
    out = options.out or Path("models") / (re.sub(r"[^\w.-]+", "-", options.file.stem).lower() or "imported")
    files.require_empty(out)
    report(Note(text=f"reading {options.file}"))
    file = read_official(options.file, weights=options.weights)
    if what := like_tensors(file.tensors):
        raise UserError(f"{options.file} seems to be {what}", code="wrong-model", expected=IMPORTABLE)
    official, arguments, notes = file.tensors, file.arguments, []
    try:
        kind = options.kind
        if kind == "auto":
            kind = detect_kind(official, name=options.file.name, arguments=arguments)
        _check_trained_as(kind, arguments)
        if has_variance(official):
            official = drop_variance(official)
            notes.append("variance-dropped")
        if kind == "sit":
            official = reverse_time(official)
            notes.append("time-reversed")
        if kind == "dit":
            notes.append("epsilon-model")
        if not _has_null_label(official, arguments):
            official = official | {CLASS_TABLE: F.pad(official[CLASS_TABLE], (0, 0, 0, 1))}
            notes.append("no-null-label")
        config, state = convert_state_dict(official, num_heads=options.num_heads)
        _check_complete(config, state, options.file)
        _check_positions(config, official)
    except UserError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:  # shapes of no such model
        raise UserError(
            f"the tensors of {options.file} do not fit together: {error}",
            code="unknown-architecture",
            expected=IMPORTABLE + ("" if options.kind == "auto" else f", and one of kind {options.kind}"),
        ) from error
    side = config.input_size.height * LATENT_FACTOR
    if arguments.get("image_size", side) != side:
        notes.append("other-image-size")
    latents = _latents(config, kind, options.autoencoder)
    if latents is None:
        notes.append("no-autoencoder")
    run_config = _run_config(config)
    result = ImportResult(
        model=out,
        file=options.file.name,
        kind=kind,
        weights=file.weights,
        prediction="epsilon" if kind == "dit" else "velocity",
        preset=run_config.preset,
        config=config.model_dump(mode="json"),
        autoencoder=latents.autoencoder.id if latents else None,
        normalisation=latents.normalisation.name if latents else None,
        notes={code: NOTES[code] for code in notes},
    )
    origin = {
        "file": result.file,
        "sha256": files.sha256(options.file),
        "kind": kind,
        "weights": file.weights,
        "arguments": arguments,
    }
    extra = {"origin": origin, "prediction": result.prediction, "notes": result.notes}
    state = {name: tensor.float() for name, tensor in state.items()}
    save_model(out, state, config=run_config, latents=latents, extra=extra)
    report(Saved(what="model", path=out))
    for code, text in result.notes.items():
        report(Warning(code=code, text=text) if code in WARNINGS else Note(text=text))
    return result


def import_official(
    path: str | Path,
    *,
    out: str | Path,
    num_heads: int | None = None,
    kind: Literal["auto", "mpdit", "dit", "sit"] = "auto",
    weights: Literal["ema", "model"] | None = None,
    autoencoder: str = PUBLISHED_AUTOENCODER,
) -> ModelFolder:
    """Converts an official MPDiT, MPDiT v2, DiT or SiT checkpoint, and opens the model folder.

    Args:
        path: `.pt` with `model`, `ema`, `opt`, `args`, or a plain state dict as `.pt` or `.safetensors`.
        out: folder to write; it must not hold anything yet.
        num_heads, kind, weights, autoencoder: as the fields of `ImportOptions`.

    Raises:
        UserError: as `import_checkpoint`, or an argument has an impossible value (`invalid-value`).
    """
    given = dict(file=path, out=out, num_heads=num_heads, kind=kind, weights=weights, autoencoder=autoencoder)
    return open_model(import_checkpoint(validate(ImportOptions, given, origin="import")).model)


def _check_trained_as(kind: Kind, arguments: Mapping[str, Any]) -> None:
    """Refuses a SiT that was trained on another path or target: the conversion does not hold for it."""
    path, prediction = arguments.get("path_type", "Linear"), arguments.get("prediction", "velocity")
    if kind == "sit" and (path != "Linear" or prediction != "velocity"):
        raise UserError(
            f"this SiT was trained with path_type {path} and prediction {prediction}",
            code="not-a-linear-flow",
            expected="path_type Linear and prediction velocity, the flow that mpdit samples",
        )


def _has_null_label(official: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> bool:
    """Whether the last row of the class table is the null label.

    Raises:
        UserError: the arguments name a number of classes that the table cannot have (`classes-do-not-fit`).
    """
    rows = len(official[CLASS_TABLE]) if CLASS_TABLE in official else 0
    classes = arguments.get("num_classes")
    if not isinstance(classes, int):
        return arguments.get("class_dropout_prob") != 0 and rows != IMAGENET_CLASSES
    if rows not in (classes, classes + 1):
        raise UserError(
            f"the arguments name {classes} classes, but the class table has {rows} rows",
            code="classes-do-not-fit",
            expected=f"{classes} rows, or {classes + 1} with the null label",
        )
    return rows == classes + 1


def _check_complete(config: ModelConfig, state: Mapping[str, Tensor], path: Path) -> None:
    shapes = parameter_shapes(config)
    try:
        require_shapes(shapes, state, where=f"{path}, in the tensor names of mpdit,")
    except UserError as error:
        remedy = "check its origin: the code that wrote it may have been changed"
        raise UserError(error.what, code="tensors-do-not-fit", expected=error.expected, remedy=remedy) from error


def _check_positions(config: ModelConfig, official: Mapping[str, Tensor]) -> None:
    for name, table in official.items():
        if not name.startswith("pos_embed"):
            continue
        ours = position_table(config.width, Size.square(round(table.shape[-2] ** 0.5)))
        tolerance = 1e-3 if table.dtype == torch.float32 else 2e-2
        if ours.shape != table.shape[-2:] or not torch.allclose(ours, table.float().view_as(ours), atol=tolerance):
            raise UserError(
                f"the position table {name} is not the fixed sine-cosine one",
                code="unknown-positions",
                expected="the table of the official code: learnt or scaled positions cannot be imported",
            )


def _run_config(model: ModelConfig) -> RunConfig:
    """The preset that has this model, so that its training recipe is kept; otherwise `custom`."""
    custom = RunConfig(preset="custom", resolution=model.input_size * LATENT_FACTOR, model=model)
    return next((preset for preset in map(load_preset, MODELS) if preset.model == model), custom)


def _latents(config: ModelConfig, kind: Kind, autoencoder: str) -> LatentSpec | None:
    """The latents that the model was trained on, as published; None for another number of channels."""
    if config.channels != len(PUBLISHED_MEAN):
        return None
    mean, std = (0.0,) * config.channels, (1 / SD_SCALE,) * config.channels
    if kind == "mpdit":
        mean, std = PUBLISHED_MEAN, PUBLISHED_STD
    imagenet = config.num_classes == IMAGENET_CLASSES
    return LatentSpec(
        resolution=config.input_size * LATENT_FACTOR,
        autoencoder=AutoencoderSpec(id=autoencoder, factor=LATENT_FACTOR, channels=config.channels),
        normalisation=Normalisation(name="published", mean=mean, std=std),
        class_names=tuple(str(label) for label in range(config.num_classes)),
        source="imagenet" if imagenet else "",
        count=IMAGENET_IMAGES if imagenet else 0,
    )
