"""`mpdit import`: an official checkpoint becomes a model folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mpdit_core.data.autoencoders import DEFAULT_AUTOENCODER
from mpdit_core.interop.official import import_official
from mpdit_core.interop.official.reading import Weights
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.reporting import Event, Note, Result, Saved, Summary, Warn
from mpdit_core.settings import Settings


class ImportOptions(Settings):
    """What `mpdit import` can be told."""

    out: Path | None = None
    kind: str = "auto"
    num_heads: int | None = None
    weights: Weights | None = None
    autoencoder: str = DEFAULT_AUTOENCODER


def import_checkpoint(path: Path, options: ImportOptions) -> Iterator[Event]:
    """Events of converting the file `path` into `options.out`, by default `models/<name of the file>`.

    Raises:
        UserError: as `import_official`.
    """
    out = options.out or Path("models") / (re.sub(r"[^\w.-]+", "-", path.stem).lower() or "imported")
    yield Note(text=f"reading {path}")
    model = import_official(
        path,
        out=out,
        num_heads=options.num_heads,
        kind=options.kind,
        weights=options.weights,
        autoencoder=options.autoencoder,
    )
    yield Saved(what="model", path=out)
    for note in model.extra["notes"]:
        yield Warn(text=note) if "epsilon" in note or "no autoencoder" in note else Note(text=note)
    yield summary(model, out)
    config, origin = model.config.model, model.extra["origin"]
    yield Result(
        data={
            "model": out,
            "kind": origin["kind"],
            "weights": origin["weights"],
            "prediction": model.extra["prediction"],
            "preset": model.config.preset,
            "config": config.model_dump(mode="json"),
            "notes": model.extra["notes"],
        }
    )


def summary(model: ModelFolder, out: Path) -> Summary:
    config, origin = model.config.model, model.extra["origin"]
    rows = {
        "kind": f"{origin['kind']}, weights: {origin['weights']}",
        "preset": model.config.preset,
        "stages": " ".join(f"{depth} blocks at patch {patch}" for patch, depth in config.stages),
        "shape": f"width {config.width}, {config.num_heads} heads, latents {config.channels}×{config.input_size}²",
        "switches": f"{config.modulation} modulation, {config.time_embedding} time, {config.class_tokens} class tokens",
    }
    if model.latents:
        rows["decoded by"] = f"{model.latents.autoencoder.id}, {model.latents.normalisation.name} normalisation"
    sampled = model.extra["prediction"] == "velocity"
    return Summary(title=f"imported {origin['file']}", rows=rows, next_command=f"mpdit sample {out}" if sampled else "")
