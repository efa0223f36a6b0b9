"""`mpdit export`: a model for others, as a folder or on the Hub; or latents as a Hugging Face data set."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.interop.export.card import model_card, public_source
from mpdit_core.interop.official.importing import check_free
from mpdit_core.models import hub
from mpdit_core.models.model_folder import CONFIG, WEIGHTS, ModelFolder, open_model, read_weights, save_model
from mpdit_core.reporting import Event, Note, Progress, Result, Saved, Summary, Warn
from mpdit_core.runtime import files
from mpdit_core.settings import Settings

Form = Literal["mpdit", "diffusers", "onnx", "torch-export", "datasets"]


class ExportOptions(Settings):
    """What `mpdit export` can be told."""

    form: Form = "mpdit"
    half: bool = Field(default=False, description="weights as float16")
    push: str | None = Field(default=None, description="ORG/NAME on the Hub")
    private: bool = False
    licence: str | None = Field(default=None, description="identifier for the model card")


def export(where: str, out: Path, options: ExportOptions) -> Iterator[Event]:
    """Events of writing model `where` (for `datasets`: a folder of latents) to the new folder `out`.

    Raises:
        UserError: nothing to export, `out` is not free, or the form cannot hold this model. Nothing is written then.
            After a failed push the folder stands complete, and says how to go on.
    """
    check_free(out)
    if options.half and options.form in ("onnx", "torch-export", "datasets"):
        raise UserError(f"--half with --format {options.form}", expected="--half with mpdit or diffusers")
    if options.form == "datasets":
        yield from _export_dataset(where, out, options)
        return
    model = open_model(where)
    if options.form != "mpdit":
        model.require_flow()
    if model.latents is not None and Path(model.latents.autoencoder.id).is_absolute():
        yield Warn(text=f"its autoencoder is the local folder {model.latents.autoencoder.id}: others will not have it")
    facts = yield from _write(model, out, options)
    yield Saved(what="export", path=out)
    yield from _push_and_sum_up(out, options, title=f"exported {where} as {options.form}", facts=facts)


def _write(model: ModelFolder, out: Path, options: ExportOptions) -> Generator[Event, None, dict[str, Any]]:
    """Writes everything beside `out` and moves it there whole; returns what the result should tell."""
    facts: dict[str, Any] = {"step": model.step, "weights_sha256": model.weights_sha256}
    grid = newest_grid(model)
    with files.writing_folder(out) as temporary:
        if options.form == "mpdit":
            _write_model(model, temporary, half=options.half)
        elif options.form == "diffusers":
            from mpdit_core.interop.export.diffusers_folder import write_pipeline

            write_pipeline(model, temporary, half=options.half)
        else:
            from mpdit_core.interop.export import graph

            yield Note(text="tracing the network; a large one takes minutes")
            write = graph.write_onnx if options.form == "onnx" else graph.write_torch_export
            name = "model.onnx" if options.form == "onnx" else "model.pt2"
            facts["relative_difference"] = write(model.load(), temporary / name)
            shutil.copyfile(model.path / CONFIG, temporary / CONFIG)
        if grid is not None:
            shutil.copyfile(grid, temporary / hub.PREVIEW)
        address = f"{hub.PREFIX}{options.push}" if options.push else out.name
        card = model_card(
            model, name=out.name, where=address, form=options.form, licence=options.licence, grid=grid is not None
        )
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return facts


def _write_model(model: ModelFolder, folder: Path, *, half: bool) -> None:
    state = read_weights(model.path / WEIGHTS)
    if half:
        state = {name: _halved(name, tensor) for name, tensor in state.items()}
    save_model(
        folder,
        state,
        config=model.config,
        latents=publishable(model.latents),
        step=model.step,
        images_seen=model.images_seen,
        extra=model.extra | ({"stored_as": "float16"} if half else {}),
    )


def _halved(name: str, tensor: Tensor) -> Tensor:
    halved = tensor.half()
    if not bool(torch.isfinite(halved).all()):
        raise UserError(f"--half: {name} holds values beyond float16", remedy="export without --half")
    return halved


def publishable(latents: LatentSpec | None) -> LatentSpec | None:
    """Without the paths of this machine."""
    if latents is None:
        return None
    return latents.model_copy(update={"folder": "", "source": public_source(latents.source)})


def newest_grid(model: ModelFolder) -> Path | None:
    """The last preview of the model's run (of its EMA), or the picture an export carries."""
    if model.run is None:
        carried = model.path / hub.PREVIEW
        return carried if carried.exists() else None
    grids = [p for p in sorted((model.run / "samples").glob("step-*.png")) if not p.stem.endswith("-raw")]
    upto = [p for p in grids if int(p.stem.split("-")[1]) <= model.step] or grids
    return upto[-1] if upto else None


def _export_dataset(where: str, out: Path, options: ExportOptions) -> Iterator[Event]:
    from mpdit_core.interop.export.hf_dataset import write_dataset

    if options.push:
        raise UserError(
            "--push with --format datasets",
            expected="a model to push",
            remedy=f"export to a folder, then: hf upload ORG/NAME {out} --repo-type dataset",
        )
    latents = LatentFolder(where)
    with files.writing_folder(out) as temporary:
        for done in write_dataset(latents, temporary):
            yield Progress(task="export", done=done, total=len(latents), unit="images")
    yield Saved(what="data set", path=out)
    yield Summary(
        title=f"exported {where}",
        rows={"images": f"{len(latents):,}", "read it": f'datasets.load_dataset("{out}", split="train")'},
    )
    yield Result(data={"path": out, "format": "datasets", "images": len(latents)})


def _push_and_sum_up(out: Path, options: ExportOptions, *, title: str, facts: dict[str, Any]) -> Iterator[Event]:
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    rows = {"folder": str(out), "size": f"{size / 2**20:,.1f} MiB"}
    if "relative_difference" in facts:
        rows["checked"] = f"differs from the network by {facts['relative_difference']:.1e} of the largest velocity"
    url = None
    if options.push:
        yield Note(text=f"uploading to {options.push}")
        try:
            url = hub.upload_folder(out, options.push, private=options.private)
        except UserError as error:
            raise UserError(
                error.what,
                expected=error.expected,
                remedy=f"{error.remedy or 'try again'}; the export is complete: hf upload {options.push} {out}",
            ) from error
        rows["on the Hub"] = url
    following = f"mpdit sample {f'hf:{options.push}' if options.push else out}" if options.form == "mpdit" else ""
    yield Summary(title=title, rows=rows, next_command=following)
    yield Result(data={"path": out, "format": options.form, "bytes": size, "url": url, **facts})
