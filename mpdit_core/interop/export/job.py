"""`mpdit export`: a model for others, as a folder or on the Hub; or latents as a Hugging Face data set.

To add a format: its name in `ExportOptions.format`, a branch in `_write_model`, a section "Use" in card.md.j2.
A Space is a page around a model in the format `mpdit`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mpdit_core.data.latents import LatentFolder
from mpdit_core.errors import UserError
from mpdit_core.interop.export import space
from mpdit_core.interop.export.card import model_card, publishable
from mpdit_core.interop.options import ExportOptions, ExportResult
from mpdit_core.models import hub
from mpdit_core.models.ema_snapshots import at_ema_width
from mpdit_core.models.model_folder import CONFIG, ModelFolder, open_model, save_model
from mpdit_core.models.run_folder import RunFolder, step_of
from mpdit_core.reporting import Note, Progress, Reporter, Saved, Warning, silent
from mpdit_core.runtime import files

HALVED = ("mpdit", "diffusers", "space")
"""Formats that can hold float16 weights."""


def export_model(options: ExportOptions, *, report: Reporter = silent) -> ExportResult:
    """Writes `options.model` (for `datasets`: a folder of latents) to the new folder `options.out`.

    Raises:
        UserError: there is nothing to export, `out` is not empty, or the format cannot hold this model; then nothing
            is written. After a failed upload the folder is complete, and the remedy says how to upload it.
    """
    files.require_empty(options.out)
    if options.half and options.format not in HALVED:
        raise UserError(
            f"the format {options.format} cannot hold half-precision weights",
            code="invalid-value",
            expected=f"one of the formats {', '.join(HALVED)}",
        )
    if options.format == "datasets":
        return _export_dataset(options, report)
    model = at_ema_width(open_model(options.model), options.ema_width)
    if options.format != "mpdit":
        model.require_flow()
    if options.format in ("diffusers", "space"):
        model.require_latents(remedy="--format mpdit, which needs none")
    if model.latents is not None and Path(model.latents.autoencoder.id).is_absolute():
        text = f"its autoencoder is the local folder {model.latents.autoencoder.id}: other users cannot load it"
        report(Warning(code="local-autoencoder", text=text))
    with files.writing_folder(options.out) as folder:
        place = folder / space.MODEL if options.format == "space" else folder
        difference = _write_model(model, place, options, report)
        _write_card(model, place, options)
        if options.format == "space":
            package = model.require_latents().autoencoder.package
            space.write_page(folder, name=options.out.name, licence=options.licence, package=package)
    report(Saved(what="export", path=options.out))
    return ExportResult(
        path=options.out,
        format=options.format,
        bytes=_size(options.out),
        step=model.step,
        weights_sha256=model.weights_sha256,
        relative_difference=difference,
        url=_upload(options.push, options, report) if options.push else None,
    )


def _write_model(model: ModelFolder, folder: Path, options: ExportOptions, report: Reporter) -> float | None:
    """Writes everything but the card; returns the difference of a graph from the network."""
    latents = publishable(model.latents)
    if options.format == "diffusers":
        from mpdit_core.interop.pipeline import make_pipeline

        make_pipeline(model, half=options.half).save_pretrained(folder)
        return None
    if options.format in ("onnx", "torch-export"):
        from mpdit_core.interop.export import graph

        report(Note(text="tracing the network, which takes minutes for a large one"))
        described = {"latents": latents.model_dump(mode="json") if latents else None}
        described |= {"step": model.step, "images_seen": model.images_seen, "extra": model.extra}
        files.write_json(folder / CONFIG, files.read_json(model.path / CONFIG) | described)
        if options.format == "onnx":
            return graph.write_onnx(model.load(), folder / "model.onnx")
        return graph.write_torch_export(model.load(), folder / "model.pt2")
    state, extra = model.weights(), model.extra
    if options.half:
        state, extra = {name: tensor.half() for name, tensor in state.items()}, extra | {"stored_as": "float16"}
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"{name} holds values outside the range of float16",
                    code="beyond-float16",
                    remedy="export without half precision",
                )
    save_model(
        folder, state, config=model.config, latents=latents, step=model.step, images_seen=model.images_seen, extra=extra
    )
    return None


def _write_card(model: ModelFolder, folder: Path, options: ExportOptions) -> None:
    """Writes README.md, and the newest picture of samples beside it."""
    grid = newest_grid(model)
    if grid is not None:
        shutil.copyfile(grid, folder / hub.PREVIEW)
    if options.format == "space":
        export_format, where = "mpdit", space.MODEL
    else:
        export_format = options.format
        where = f"{hub.PREFIX}{options.push}" if options.push else options.out.name
    card = model_card(
        model,
        name=options.out.name,
        where=where,
        export_format=export_format,
        licence=options.licence,
        grid=grid is not None,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def newest_grid(model: ModelFolder) -> Path | None:
    """The last preview of the run up to the model's step; of an exported model, its own picture."""
    if model.run is None:
        carried = model.path / hub.PREVIEW
        return carried if carried.exists() else None
    grids = RunFolder(model.run).previews()
    earlier = [path for path in grids if step_of(path) <= model.step] or grids
    return earlier[-1] if earlier else None


def _export_dataset(options: ExportOptions, report: Reporter) -> ExportResult:
    from mpdit_core.interop.export.hf_dataset import write_dataset

    if options.push:
        raise UserError(
            "--push does not apply to the format datasets",
            code="invalid-value",
            expected="a model to upload",
            remedy=f"export to a folder, then: hf upload ORG/NAME {options.out} --repo-type dataset",
        )
    if options.ema_width is not None:
        raise UserError(
            "an EMA width does not apply to the format datasets", code="invalid-value", expected="a model to export"
        )
    latents = LatentFolder(options.model)
    with files.writing_folder(options.out) as folder:
        for done in write_dataset(latents, folder):
            report(Progress(task="export", done=done, total=len(latents), unit="images"))
    report(Saved(what="data set", path=options.out))
    return ExportResult(path=options.out, format="datasets", bytes=_size(options.out), images=len(latents))


def _upload(name: str, options: ExportOptions, report: Reporter) -> str:
    report(Note(text=f"uploading to {name}"))
    kind = "space" if options.format == "space" else "model"
    try:
        return hub.upload_folder(options.out, name, kind=kind, private=options.private)
    except UserError as error:
        again = f"hf upload {name} {options.out} --repo-type {kind}"
        remedy = f"{error.remedy or 'try again'}; the export is complete: {again}"
        raise UserError(error.what, code=error.code, expected=error.expected, remedy=remedy) from error


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
