"""How well decoded latents match their images: an upper bound for the quality of every model trained on them.

A random sample of images, the same for every call, is compared with its decoded latents, and some of both are drawn
side by side on a contact sheet. The figures are kept in `reconstruction.json` beside the manifest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import Manifest, read_record
from mpdit_core.data.sources import Decode, HubStream, evenly_spread, read_items
from mpdit_core.metrics.similarity import psnr, ssim
from mpdit_core.pictures import labelled_grid, save_png
from mpdit_core.protocols import Dataset, Item
from mpdit_core.reporting import Progress, Reporter, Saved, Warning
from mpdit_core.runtime.files import write_json
from mpdit_core.settings import Settings, setting

SHEET = "contact-sheet.png"
SHEET_IMAGES = 8
FIGURES = "reconstruction.json"
COMPARED_AT_ONCE = 16  # images
POOR_PSNR = 15.0  # dB; the Stable Diffusion autoencoder reaches about 26, a wrong pixel range about 10


class Reconstruction(Settings):
    """Means over a random sample of images."""

    images: PositiveInt = setting(..., "number of images compared")
    psnr: float = setting(..., "peak signal-to-noise ratio in dB, mean over images; 100: exact")
    ssim: float = setting(..., "structural similarity, mean over images; 1: exact")


def read_reconstruction(folder: Path) -> Reconstruction | None:
    """The figures of a folder of latents; None where none were measured."""
    path = folder / FIGURES
    return read_record(Reconstruction, path) if path.is_file() else None


def is_inspected(folder: LatentFolder, *, images: int) -> bool:
    """Whether the contact sheet exists, and figures of at least `images` images."""
    before = read_reconstruction(folder.path)
    measured = before.images if before else 0
    return (folder.path / SHEET).exists() and measured >= _count(folder.manifest, images)


def inspect_reconstruction(
    folder: LatentFolder, source: Dataset, autoencoder: LoadedAutoencoder, *, images: int, report: Reporter
) -> None:
    """Compares `images` images (0: none), writes the figures and the contact sheet, and warns (`poor-reconstruction`)
    where decoded latents differ strongly from their images."""
    picks = pick_images(folder.manifest, source, _count(folder.manifest, images or SHEET_IMAGES))
    shown = evenly_spread(len(picks), min(SHEET_IMAGES, len(picks)))
    psnrs, ssims, cells, captions = [], [], [], []
    for start in range(0, len(picks), COMPARED_AT_ONCE):
        part = slice(start, min(start + COMPARED_AT_ONCE, len(picks)))
        batch = folder.batch([number for number, _, _ in picks[part]])
        decoded = autoencoder.decode(batch.mean).cpu()
        pictures = [prepare(decode(), folder.spec.resolution, autoencoder.mode) for _, _, decode in picks[part]]
        originals = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        psnrs += psnr(originals, decoded).tolist()
        ssims += ssim(originals, decoded).tolist()
        for row in [place - part.start for place in shown if part.start <= place < part.stop]:
            cells += [originals[row], decoded[row]]
            captions += [folder.spec.class_name(int(batch.labels[row])), "decoded"]
        report(Progress(task="decode", done=part.stop, total=len(picks), unit="images"))
    _save_sheet(folder, cells, captions, what="sources next to their decoded latents", report=report)
    found = Reconstruction(images=len(picks), psnr=fmean(psnrs), ssim=fmean(ssims))
    if images:
        write_json(folder.path / FIGURES, found.model_dump(mode="json"))
    if found.psnr < POOR_PSNR:
        text = (
            f"the decoded latents differ strongly from their sources (PSNR {found.psnr:.1f} dB): look at "
            f"{folder.path / SHEET}, and check that this is the right autoencoder, with trained weights"
        )
        report(Warning(code="poor-reconstruction", text=text))


def draw_decoded(folder: LatentFolder, autoencoder: LoadedAutoencoder, *, report: Reporter) -> None:
    """Draws some decoded latents, where there are no images to compare them with: they show a wrong scale."""
    batch = folder.batch(evenly_spread(len(folder), min(SHEET_IMAGES, len(folder))))
    cells = list(autoencoder.decode(batch.mean).cpu())
    captions = [folder.spec.class_name(label) for label in batch.labels.tolist()]
    _save_sheet(folder, cells, captions, what="decoded latents", report=report)


def _count(manifest: Manifest, images: int) -> int:
    """How many of `images` images are compared; of pixels, which are exact, only those on the contact sheet."""
    autoencoder = manifest.plan.autoencoder
    is_exact = autoencoder.stores == "uint8" and autoencoder.factor == 1
    return min(images, manifest.count, SHEET_IMAGES if is_exact else images)


def _save_sheet(
    folder: LatentFolder, cells: Sequence[Tensor], captions: Sequence[str], *, what: str, report: Reporter
) -> None:
    path = folder.path / SHEET
    save_png(labelled_grid(torch.stack(list(cells)).numpy(), captions, columns=4), path)
    report(Saved(what=f"contact sheet, {what}", path=path))


def pick_images(manifest: Manifest, source: Dataset, count: int, *, seed: int = 0) -> list[tuple[int, Item, Decode]]:
    """(number among the latents, item, function that decodes its picture) of random images; of a stream, the first."""
    items = manifest.plan.source.items
    skipped = {item.key for item in manifest.skipped}
    if isinstance(source, HubStream):
        reading = read_items(source, 0, min(count + len(skipped), items))
        kept = [(item, decode) for item, decode in reading if item.key not in skipped]
        return [(number, item, decode) for number, (item, decode) in enumerate(kept[:count])]
    places = [n for n, item in enumerate(source.items()) if item.key not in skipped] if skipped else range(items)
    chosen = sorted(random.Random(seed).sample(range(manifest.count), count))
    return [(number, *next(read_items(source, places[number], places[number] + 1))) for number in chosen]
