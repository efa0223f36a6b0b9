"""Runs as HTML, and images as PNGs that hold their settings. No Gradio."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mpdit_core.pictures import tile
from mpdit_playground.columns import Column, Picture
from mpdit_playground.session import Run, Visitor

CHUNK = "mpdit"
"""Keyword of the PNG text chunk that holds the settings as JSON."""

BLURRED_BELOW = 100  # pixels; smaller images are enlarged without smoothing
PREVIEW_QUALITY = 80

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

ON_LOAD = """
element.addEventListener('click', event => {
    const button = event.target.closest('button[data-pick]');
    if (button) trigger('select', {pick: button.dataset.pick});
});
"""


def png(column: Column, picture: Picture) -> bytes:
    """A finished image as a PNG file with a text chunk `mpdit`."""
    info = PngInfo()
    info.add_itxt(CHUNK, json.dumps(column.settings(picture), ensure_ascii=False))
    return _encoded(tile(picture.image), format="PNG", pnginfo=info)


def run_html(run: Run, chosen: tuple[int, int] | None = None) -> str:
    """The columns side by side; with several models and settings, one row per model.

    Args:
        chosen: the column and image to mark.
    """
    columns = [_column(run, number, chosen) for number in range(len(run.columns))]
    settings = len(columns) // len(run.request.models)
    across = settings if settings > 1 else len(columns)
    rows = ["".join(columns[i : i + across]) for i in range(0, len(columns), across)]
    return "".join(f'<div class="columns">{row}</div>' for row in rows)


def _title(run: Run, column: Column) -> str:
    """The model, by the last part of its path if that is unique, and the setting that is varied."""
    models = run.request.models
    names = [Path(model).name for model in models]
    model = Path(column.model).name if len(set(names)) == len(models) else column.model
    lines = (escape(model) if len(models) > 1 else "", f"<small>{escape(column.varied)}</small>" * bool(column.varied))
    return f"<h3>{''.join(lines)}</h3>" if any(lines) else ""


def _column(run: Run, number: int, chosen: tuple[int, int] | None) -> str:
    column = run.columns[number]
    head = _title(run, column)
    t = max(picture.t for picture in column.pictures)
    done = ' class="done"' * (t == 0)  # hidden, but keeps its place, so that columns stay aligned
    bar = f'<progress value="{1 - t:.3f}" aria-label="progress"{done}></progress>'
    cells = "".join(_cell(column, p, f"{number},{p.index}", chosen == (number, p.index)) for p in column.pictures)
    side = next((p.image.shape[-1] for p in column.pictures if p.image is not None), 0)
    return f'<section>{head}{bar}<div class="pictures{_small(side)}">{cells}</div></section>'


def _small(side: int) -> str:
    """A class of CSS for images that are enlarged without smoothing."""
    return " small" if side < BLURRED_BELOW else ""


def _cell(column: Column, picture: Picture, pick: str, chosen: bool) -> str:
    name = escape(column.class_name(picture))
    mark = ' aria-current="true"' if chosen else ""
    caption = f"<span>{name}</span>" if name else ""
    title = f"image {picture.index} {name}"
    return f'<button data-pick="{pick}"{mark} title="{title}">{_image(column, picture)}{caption}</button>'


def _image(column: Column, picture: Picture) -> str:
    if picture.image is None:
        return '<i class="empty"></i>'
    if not picture.html:
        if picture.latent is not None:
            uri = _uri("png", png(column, picture))
        else:
            lossless = picture.image.shape[-1] < BLURRED_BELOW
            uri = _uri("webp", _encoded(tile(picture.image), format="WEBP", lossless=lossless, quality=PREVIEW_QUALITY))
        picture.html = f'<img decoding="sync" alt="" src="{uri}">'
    return picture.html


def details_html(run: Run, chosen: tuple[int, int]) -> str:
    """The chosen image, large, with a link that saves it."""
    column = run.columns[chosen[0]]
    picture = column.pictures[chosen[1]]
    if picture.latent is None or picture.image is None:
        return ""
    facts = {
        "Image": str(picture.index),
        "Class": f"{column.class_name(picture)} ({picture.label})" if column.class_name(picture) else "",
        "Model": f"{column.model}, step {column.generator.folder.step}",
        "Setting": column.varied,
        "Evaluations": str(column.nfe),
    }
    rows = "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in facts.items() if v)
    name = f"{Path(column.model).name}-seed-{column.generator.options.seed}-{picture.index:06d}.png"
    link = f'<a class="save" download="{escape(name)}" href="{_uri("png", png(column, picture))}">Save PNG</a>'
    small = _small(picture.image.shape[-1])
    return f'<div class="details{small}">{_image(column, picture)}<div><dl>{rows}</dl>{link}</div></div>'


def nearest_html(found: Sequence[tuple[Image.Image, str]]) -> str:
    """Training images with their captions, side by side."""
    cells = [
        f'<figure><img alt="" src="{_uri("png", _encoded(image, format="PNG"))}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for image, text in found
    ]
    return f'<div class="pictures{_small(found[0][0].width)}">{"".join(cells)}</div>'


def history_html(visitor: Visitor) -> str:
    """The visitor's runs, newest first, each with its first images."""
    entries = "".join(_entry(number, run, run is visitor.shown) for number, run in enumerate(visitor.runs))
    return f'<h2>History</h2><div class="history">{entries}</div>'


def _entry(number: int, run: Run, shown: bool) -> str:
    column = run.columns[0]
    images = "".join(_thumbnail(picture) for picture in column.pictures[:4] if picture.image is not None)
    mark = ' aria-current="true"' if shown else ""
    text = escape(run.summary + (", stopped" if run.stopped else ""))
    return f'<button data-pick="{number}"{mark}><div>{images}</div><span>{text}</span></button>'


def _thumbnail(picture: Picture) -> str:
    image = tile(picture.image)
    image.thumbnail((64, 64))
    return f'<img alt="" src="{_uri("webp", _encoded(image, format="WEBP", quality=PREVIEW_QUALITY))}">'


def status_html(text: str, *, kind: str = "") -> str:
    """The line above the pictures. `kind`: `error`, `busy`, or an empty string."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="status {kind}" role="{role}">{escape(text)}</div>'


def finished_text(run: Run) -> str:
    count = sum(picture.latent is not None for column in run.columns for picture in column.pictures)
    ended = "Stopped" if run.stopped else "Finished"
    evaluations = " or ".join(dict.fromkeys(str(column.nfe) for column in run.columns))
    text = f"{ended}: {count} images in {run.seconds:.1f} s"
    return text if run.stopped else f"{text}, {evaluations} evaluations each"


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()
