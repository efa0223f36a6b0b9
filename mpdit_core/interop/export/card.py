"""The README.md of an exported model: what it is, its training data, its metrics, and how to train it again.

The text is in card.md.j2; this file collects the values. No export names a folder of this machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpdit_core.data.manifest import LatentSpec
from mpdit_core.evaluation import read_records
from mpdit_core.interop.export.markdown import as_shell, render
from mpdit_core.model.compute import count
from mpdit_core.models.hub import PREFIX, PREVIEW
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.settings import changes, flatten

TEMPLATE = Path(__file__).with_name("card.md.j2")
LIBRARY = {"mpdit": "mpdit", "diffusers": "diffusers", "onnx": "onnx", "torch-export": "pytorch"}


def model_card(
    model: ModelFolder, *, name: str, where: str, export_format: str, licence: str | None, grid: bool
) -> str:
    """The text of the card.

    Args:
        name: title of the card.
        where: what a user types for the model: a folder or `hf:ORG/NAME`.
        export_format: `mpdit`, `diffusers`, `onnx` or `torch-export`.
        licence: identifier of the licence; `unknown` if not given.
        grid: whether samples.png lies beside the card.
    """
    config, latents = model.config, model.latents
    return render(
        TEMPLATE,
        name=name,
        where=where,
        repository=where.removeprefix(PREFIX),
        export_format=export_format,
        licence=licence or "unknown",
        library=LIBRARY[export_format],
        kind="multi-patch transformer (MPDiT)" if len(config.model.stages) > 1 else "dense transformer (DiT)",
        resolution=config.resolution,
        preset=config.preset,
        num_classes=config.model.num_classes,
        labels=[0, min(1, config.model.labels[-1])],
        step=model.step,
        origin=model.extra.get("origin"),
        grid=PREVIEW if grid else None,
        model=_model(model),
        data=_data(model),
        source=public_source(latents.source) if latents else "",
        autoencoder=public_source(latents.autoencoder.id) if latents else "",
        compute=_compute(model),
        evaluations=_evaluations(model),
        train=train_command(model),
        notes=list(model.extra.get("notes", {}).values()),
    )


def _model(model: ModelFolder) -> dict[str, str]:
    config = model.config.model
    return {
        "stages": ", ".join(f"{depth} blocks at patch {patch}" for patch, depth in config.stages),
        "width, heads": f"{config.width}, {config.num_heads}",
        "latents": " × ".join(map(str, (config.channels, *config.input_size))),
        "classes": f"{config.num_classes or 'none'} (label {config.null_label} is the null label)",
        "switches": f"{config.modulation} modulation, {config.time_embedding} time embedding, "
        f"{config.class_tokens} class tokens, skip {'on' if config.skip else 'off'}, {config.mlp} MLP, "
        f"{config.norm} norm, QK norm {'on' if config.qk_norm else 'off'}, {config.positions} positions",
        "prediction": str(model.extra.get("prediction", "velocity")),
    }


def _data(model: ModelFolder) -> dict[str, str]:
    latents = model.latents
    if latents is None:
        return {}
    autoencoder, normalisation = latents.autoencoder, latents.normalisation
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (normalisation.mean, normalisation.std))
    revision = f" at {autoencoder.revision}" if autoencoder.revision else ""
    return {
        "source": public_source(latents.source) or "not recorded",
        "images": f"{latents.count:,}" if latents.count else "not recorded",
        "autoencoder": public_source(autoencoder.id) + revision,
        "normalisation": f"{normalisation.name}: mean {mean}; standard deviation {std}",
    }


def _compute(model: ModelFolder) -> dict[str, str]:
    true, paper = count(model.config.model), count(model.config.model, convention="paper")
    rows = {
        "parameters": f"{true.parameters:,} ({true.parameters_with_positions:,} as the paper counts)",
        "forward pass of one image": f"{true.macs / 1e9:.4g} GMACs (published convention: {paper.macs / 1e9:.4g})",
    }
    if model.images_seen:
        rows["images seen"] = f"{model.images_seen:,}"
        rows["training"] = f"{model.images_seen * true.training_macs * 2:.3g} FLOPs, forward and backward"
    return rows


def _evaluations(model: ModelFolder) -> list[dict[str, Any]]:
    """The figures of each record, and separately its protocol, without paths of this machine."""
    records = read_records(RunFolder(model.run).evals) if model.run else []
    found = []
    for record in records:
        protocol = flatten(record.model_dump(mode="json", exclude={"metrics", "path"}))
        figures = {key: value for key, value in record.metrics.items() if isinstance(value, int | float)}
        public = {key: value for key, value in protocol.items() if _is_public(value)}
        found.append({"name": record.path.stem, "figures": _short(figures), "protocol": _short(public)})
    return found


def _is_public(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != "" and not Path(str(value)).is_absolute()


def _short(values: dict[str, Any]) -> dict[str, str]:
    return {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in values.items()}


def train_command(model: ModelFolder) -> str:
    """`mpdit train --preset … --set …`: the preset, and each setting that differs from it."""
    config = model.config
    if config.preset not in preset_names():
        return "mpdit train --config config.toml"
    changed = changes(load_preset(config.preset), config)
    words = [f"mpdit train --preset {config.preset}"]
    words += [f"--set {as_shell(f'{key}={json.dumps(new)}')}" for key, (_, new) in changed.items() if new is not None]
    return " \\\n  ".join(words)


def publishable(latents: LatentSpec | None) -> LatentSpec | None:
    """The description of the latents, without the folders of the latents and of their images."""
    if latents is None:
        return None
    return latents.model_copy(update={"folder": "", "source": public_source(latents.source)})


def public_source(source: str) -> str:
    """The source without the folders above it, which are private."""
    return Path(source).name if Path(source).is_absolute() else source
