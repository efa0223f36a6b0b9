"""The README.md of an exported model: what it is, what it was trained on, what it scored, how to make it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpdit_core.config import differences
from mpdit_core.errors import UserError
from mpdit_core.model.compute import count
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.runtime.files import read_json

USAGE = {
    "mpdit": """```bash
mpdit sample {where}
```
```python
from mpdit_core import load_model

model = load_model("{where}")
velocity = model(x_t, t, labels)  # t: 1 noise, 0 data
```""",
    "diffusers": """```python
from mpdit_core.interop.pipeline import MPDiTPipeline

pipe = MPDiTPipeline.from_pretrained("{bare}")
images = pipe(class_labels=[0, 1], num_inference_steps=50).images
```""",
    "onnx": """`model.onnx` maps `x_t [B, C, H, H]`, `t [B]`, `labels [B]` to `velocity [B, C, H, H]`.""",
    "torch-export": """```python
import torch

velocity = torch.export.load("model.pt2").module()(x_t, t, labels)
```""",
}


def model_card(model: ModelFolder, *, name: str, where: str, form: str, licence: str | None, grid: bool) -> str:
    """The text. `where`: how a user will name the model; `form`: of the export; `grid`: samples.png lies beside it."""
    front = ["---", f"license: {licence}" if licence else "license: unknown", "library_name: " + _library(form)]
    front += ["pipeline_tag: unconditional-image-generation", "tags:", "- mpdit", "- flow-matching", "---"]
    parts = ["\n".join(front), f"# {name}", _what(model)]
    if grid:
        parts.append("![samples](samples.png)")
    parts += ["## Use", USAGE[form].format(where=where, bare=where.removeprefix("hf:"))]
    parts += ["## Model", _model(model), "## Data", _data(model), "## Compute", _compute(model)]
    parts += ["## Metrics", _metrics(model), "## To repeat it", _repeat(model)]
    notes = model.extra.get("notes", [])
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _library(form: str) -> str:
    return {"mpdit": "mpdit", "diffusers": "diffusers", "onnx": "onnx", "torch-export": "pytorch"}[form]


def _what(model: ModelFolder) -> str:
    config = model.config
    kind = "multi-patch transformer (MPDiT)" if len(config.model.stages) > 1 else "dense transformer (DiT)"
    origin = model.extra.get("origin")
    came = f", imported from the official checkpoint `{origin['file']}`" if origin else f" at step {model.step:,}"
    return (
        f"A class-conditional flow-matching {kind} for {config.resolution}×{config.resolution} images, "
        f"preset `{config.preset}`{came}. Made with [mpdit](https://arxiv.org/abs/2603.26357)."
    )


def _model(model: ModelFolder) -> str:
    config = model.config.model
    stages = ", ".join(f"{depth} blocks at patch {patch}" for patch, depth in config.stages)
    return _table(
        {
            "stages": stages,
            "width, heads": f"{config.width}, {config.num_heads}",
            "latents": f"{config.channels} × {config.input_size} × {config.input_size}",
            "classes": f"{config.num_classes} (label {config.null_label} is the null label)",
            "switches": f"{config.modulation} modulation, {config.time_embedding} time embedding, "
            f"{config.class_tokens} class tokens, skip {'on' if config.skip else 'off'}",
            "prediction": str(model.extra.get("prediction", "velocity")),
        }
    )


def _data(model: ModelFolder) -> str:
    latents = model.latents
    if latents is None:
        return "Not recorded."
    normalisation = latents.normalisation
    return _table(
        {
            "source": public_source(latents.source) or "not recorded",
            "images": f"{latents.count:,}" if latents.count else "not recorded",
            "autoencoder": public_source(latents.autoencoder.id)
            + (f" at {latents.autoencoder.revision}" if latents.autoencoder.revision else ""),
            "normalisation": f"{normalisation.name}: mean {list(normalisation.mean)}, std {list(normalisation.std)}",
        }
    )


def _compute(model: ModelFolder) -> str:
    true, paper = count(model.config.model), count(model.config.model, convention="paper")
    rows = {
        "parameters": f"{true.parameters:,} ({true.parameters_with_positions:,} as the paper counts)",
        "a forward pass of one image": f"{true.macs / 1e9:.4g} GMACs (published convention: {paper.macs / 1e9:.4g})",
    }
    if model.images_seen:
        rows["images seen"] = f"{model.images_seen:,}"
        rows["training"] = f"{model.images_seen * true.training_macs * 2:.3g} FLOPs, forward and backward"
    return _table(rows)


def _metrics(model: ModelFolder) -> str:
    """For each file of the run's evals/ its figures, and folded away below them the protocol behind them."""
    if model.run is None:
        return "None recorded."
    tables = []
    for file in sorted((model.run / "evals").glob("*.json")):
        try:
            values = read_json(file)
        except UserError:
            continue
        if isinstance(values, dict):
            rows = _flat(values)
            figures = {key.removeprefix("metrics."): rows.pop(key) for key in list(rows) if key.startswith("metrics.")}
            protocol = f"<details><summary>protocol of {file.stem}</summary>\n\n{_table(rows)}\n\n</details>"
            tables.append(f"{_table(figures)}\n\n{protocol}" if figures else protocol)
    return "\n\n".join(tables) or "None recorded; `mpdit eval-fid` makes them."


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            rows[prefix + key] = f"{value:.6g}"
        elif isinstance(value, str | int) and value != "" and not Path(str(value)).is_absolute():
            rows[prefix + key] = str(value)
    return rows


def _repeat(model: ModelFolder) -> str:
    if "origin" in model.extra:
        origin = model.extra["origin"]
        return f"```bash\nmpdit import {origin['file']}  # sha256 {origin['sha256']}\n```"
    lines = []
    if model.latents is not None:
        latents = model.latents
        lines.append(
            f"mpdit encode-latents {public_source(latents.source) or 'IMAGES'} --resolution {latents.resolution} "
            f"--autoencoder {public_source(latents.autoencoder.id)}"
        )
    lines.append(train_command(model))
    return "```bash\n" + "\n".join(lines) + "\n```"


def train_command(model: ModelFolder) -> str:
    """`mpdit train --preset … --set …`: the preset, and what was changed of it."""
    config = model.config
    if config.preset not in preset_names():
        return "mpdit train --config config.toml"
    words = [f"mpdit train --preset {config.preset}"]
    for line in differences(load_preset(config.preset), config):
        key = line.partition(":")[0]
        value: Any = config.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        if value is not None:
            words.append(f"--set '{key}={json.dumps(value)}'")
    return " \\\n  ".join(words)


def public_source(source: str) -> str:
    """The source without the folders above it, which are nobody's business."""
    return Path(source).name if Path(source).is_absolute() else source


def _table(rows: dict[str, str]) -> str:
    lines = "\n".join(f"| {key} | {value.replace('|', '/')} |" for key, value in rows.items())
    return f"| | |\n|---|---|\n{lines}"
