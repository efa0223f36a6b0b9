"""`mpdit import`: an official checkpoint becomes a model folder."""

from __future__ import annotations

import re
from pathlib import Path

from mpdit_core.interop.official.importing import import_official
from mpdit_core.interop.options import ImportOptions, ImportResult
from mpdit_core.reporting import Note, Reporter, Saved, Warning, silent

WARNINGS = ("epsilon-model", "no-null-label", "other-image-size", "no-autoencoder")
"""Notes on a conversion after which the model does less than others, or may be another than meant."""


def import_checkpoint(options: ImportOptions, *, report: Reporter = silent) -> ImportResult:
    """Converts `options.file` into `options.out`, by default `models/<name of the file>`.

    Raises:
        UserError: as `import_official`.
    """
    out = options.out or Path("models") / (re.sub(r"[^\w.-]+", "-", options.file.stem).lower() or "imported")
    report(Note(text=f"reading {options.file}"))
    model = import_official(
        options.file,
        out=out,
        num_heads=options.num_heads,
        kind=options.kind,
        weights=options.weights,
        autoencoder=options.autoencoder,
    )
    report(Saved(what="model", path=out))
    for code, text in model.extra["notes"].items():
        report(Warning(code=code, text=text) if code in WARNINGS else Note(text=text))
    origin, latents = model.extra["origin"], model.latents
    return ImportResult(
        model=out,
        file=origin["file"],
        kind=origin["kind"],
        weights=origin["weights"],
        prediction=model.extra["prediction"],
        preset=model.config.preset,
        config=model.config.model.model_dump(mode="json"),
        autoencoder=latents.autoencoder.id if latents else None,
        normalisation=latents.normalisation.name if latents else None,
        notes=model.extra["notes"],
    )
