"""Pictures for people: labelled grids, contact sheets with axes, GIFs, and text for a terminal.

Torch-free: images are uint8 arrays or CPU tensors `[n, 3, H, W]`. With 1 channel they are grey; with 4, their
transparency is laid on white, except in `tile`. Small images are enlarged by whole factors without smoothing.

To add one: a function below that returns a `PIL.Image.Image`; `save_png` and `save_gif` write it whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mpdit_core.runtime.files import writing

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

MIN_SIDE = 72  # smallest side of an image in a grid, in pixels
GAP = 4  # between images, in pixels
LINE = 2  # between the images in a cell of a contact sheet, in pixels
TEXT_SIZE = 12
FRAME_MS, LAST_FRAME_MS = 80, 1500  # of a GIF, in milliseconds
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (150, 150, 150)


def enlargement(side: int) -> int:
    """The whole factor that enlarges `side` pixels to at least `MIN_SIDE`: 16 → 5, 32 → 3, 256 → 1."""
    return max(1, math.ceil(MIN_SIDE / side))


def tile(image: Any, factor: int = 1) -> Image.Image:
    """`image [1, 3 or 4, H, W]` uint8 as a PIL image of mode L, RGB or RGBA, each pixel `factor` × `factor` large."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3, 4):
        raise ValueError(f"expected uint8 [1, 3 or 4, H, W], got {array.dtype} {array.shape}")
    small = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    return ImageOps.scale(small, factor, Image.Resampling.NEAREST)


def labelled_grid(
    images: Any, labels: Sequence[str], columns: int, *, heads: Sequence[str] = (), gap: int = GAP
) -> Image.Image:
    """`images [n, 3, H, W]` uint8 in rows of `columns`, each with its label below; an empty list means no labels.

    Args:
        heads: headings of the first columns; the last may be wider than its column.
        gap: pixels between the images and around them.

    Raises:
        ValueError: no images, or another number of labels than images.
    """
    images = np.asarray(images)
    if len(images) == 0:
        raise ValueError("a grid needs at least one image")
    if labels and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images")
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    factor = enlargement(min(images.shape[-2:]))
    font = load_font()
    height, width = images.shape[-2] * factor, images.shape[-1] * factor
    line = text_height(font) + 2 if any(labels) else 0
    head = text_height(font) + gap if heads else 0
    paper = Image.new("RGB", (gap + columns * (width + gap), head + gap + rows * (height + line + gap)), PAPER)
    draw = ImageDraw.Draw(paper)
    for column, text in enumerate(heads):
        draw.text((gap + column * (width + gap), gap // 2), text, FAINT, font)
    for index, image in enumerate(images):
        left = gap + index % columns * (width + gap)
        top = head + gap + index // columns * (height + line + gap)
        picture = tile(image, factor)
        paper.paste(picture, (left, top), picture if picture.mode == "RGBA" else None)
        if line:
            text = shorten(labels[index], font, width)
            draw.text((left + (width - font.getlength(text)) / 2, top + height), text, INK, font)
    return paper


def contact_sheet(
    cells: Sequence[Sequence[Any]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_axis: str = "",
    column_axis: str = "",
    title: str = "",
    cell_columns: int | None = None,
) -> Image.Image:
    """A table of small grids with both axes named: `cells[row][column]` is images `[n, 3, H, W]`.

    Args:
        cell_columns: number of columns within a cell; by default the cell is nearly square.
    """
    grids = [[_bare_grid(np.asarray(cell), cell_columns) for cell in row] for row in cells]
    font = load_font()
    line = text_height(font) + 4
    width = max(grid.width for row in grids for grid in row)
    heights = [max(grid.height for grid in row) for row in grids]
    margin = int(max([font.getlength(label) for label in [*row_labels, row_axis]], default=0)) + 3 * GAP
    above = line if title else 0
    head = above + (line if column_axis else 0) + line
    total_width = max(margin + len(column_labels) * (width + 2 * GAP), int(font.getlength(title)) + 2 * GAP)
    paper = Image.new("RGB", (total_width, head + sum(heights) + 2 * GAP * len(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((GAP, GAP // 2), title, INK, font)
    draw.text((margin, above + GAP // 2), column_axis, FAINT, font)
    draw.text((GAP, head - line + GAP // 2), row_axis, FAINT, font)
    for column, label in enumerate(column_labels):
        text = shorten(label, font, width)
        left = margin + column * (width + 2 * GAP) + (width - font.getlength(text)) / 2
        draw.text((left, head - line + GAP // 2), text, INK, font)
    top = head + GAP
    for row, height in enumerate(heights):
        draw.text((GAP, top + (height - line) / 2), row_labels[row], INK, font)
        for column, grid in enumerate(grids[row]):
            paper.paste(grid, (margin + column * (width + 2 * GAP), top))
        top += height + 2 * GAP
    return paper


def _bare_grid(images: np.ndarray, columns: int | None) -> Image.Image:
    grid = labelled_grid(images, [], columns or square_columns(len(images)), gap=LINE)
    return ImageOps.crop(grid, LINE)  # the gap around the images


def square_columns(count: int, *, classes: int = 0) -> int:
    """The number of columns for `count` images: one per class, for few classes; else for about a 3:2 rectangle, with
    full rows if possible.
    """
    if 1 < classes <= 20 and count >= classes:
        return classes
    wanted = min(max(count, 1), math.ceil(math.sqrt(count * 1.5)))
    full = [columns for columns in range(1, count + 1) if count % columns == 0 and count <= columns**2 <= 4 * count]
    return min(full, key=lambda columns: abs(columns - wanted), default=wanted)


def save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG as `files.writing` does: an older file stays until the new one is complete."""
    with writing(path) as temporary:
        image.save(temporary, format="PNG")


def save_tile(image: Any, path: Path) -> None:
    """Writes `image [1, 3 or 4, H, W]` as a PNG without fsync, which would slow down a set of thousands.

    If the process is killed, the file is complete or missing; a power cut may damage it.
    """
    temporary = path.with_name(f".{path.name}.part")
    tile(image).save(temporary, format="PNG")
    temporary.replace(path)


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes an endless GIF, whose last frame is shown longer."""
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    with writing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def terminal_text(image: Image.Image, columns: int) -> str:
    """The image as lines of half blocks in 24-bit colour, at most `columns` characters wide (ANSI escapes)."""
    width = min(columns, image.width)
    height = max(2, round(image.height * width / image.width) // 2 * 2)
    small = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BOX))
    lines = []
    for y in range(0, height, 2):
        line = ""
        for upper, lower in zip(small[y].tolist(), small[y + 1].tolist(), strict=True):
            line += f"\x1b[38;2;{upper[0]};{upper[1]};{upper[2]}m\x1b[48;2;{lower[0]};{lower[1]};{lower[2]}m▀"
        lines.append(line + "\x1b[0m")
    return "\n".join(lines)


def load_font() -> Font:
    return ImageFont.load_default(TEXT_SIZE)


def text_height(font: Font) -> int:
    return math.ceil(font.getbbox("Ågjp")[3])


def shorten(text: str, font: Font, width: float) -> str:
    """`text`, cut to `width` pixels with an ellipsis where it is wider."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
