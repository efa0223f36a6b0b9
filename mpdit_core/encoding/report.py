"""What `encode-latents` shows at its end: a contact sheet of sources beside decoded latents, and a summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import Autoencoder
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import Manifest
from mpdit_core.data.sources import Decode, Streamed, read_items
from mpdit_core.pictures import labelled_grid, save_png
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.reporting import Event, Saved, Summary, Warn

SHEET = "contact-sheet.png"
SHEET_IMAGES = 8
POOR_PSNR = 15.0  # dB; the Stable Diffusion autoencoder reaches about 26, a wrong pixel range about 10


def contact_sheet(folder: LatentFolder, source: Dataset, autoencoder: Autoencoder) -> Iterator[Event]:
    """Draws the sheet from images spread over the data set, and warns when decoding does not give them back."""
    pairs = list(_pick(folder.manifest, source))
    if not pairs:
        return
    moments, labels = folder.batch([index for index, _ in pairs])
    mean = moments[:, : moments.shape[1] // 2]
    decoded = torch.cat([autoencoder.decode(mean[n : n + 1]).cpu() for n in range(len(mean))]).numpy()
    images = np.stack([prepare(decode(), folder.spec.resolution) for _, decode in pairs]).transpose(0, 3, 1, 2)
    shown = np.stack([images, decoded], axis=1).reshape(-1, *images.shape[1:])
    names = [folder.manifest.class_names[label] for label in labels.tolist()]
    captions = [text for name in names for text in (name, "decoded")]
    save_png(labelled_grid(shown, captions, columns=4), folder.path / SHEET)
    yield Saved(what="contact sheet, sources beside their decoded latents", path=folder.path / SHEET)
    reference = images.astype(np.float64)
    if autoencoder.spec.channels == 1:  # a grey autoencoder cannot give colours back
        grey = np.tensordot(reference, [0.299, 0.587, 0.114], axes=([1], [0])).round()
        reference = np.repeat(grey[:, None], 3, axis=1)
    error = float(np.mean((reference - decoded) ** 2))
    psnr = 10 * np.log10(255**2 / error) if error > 0 else np.inf
    if psnr < POOR_PSNR:
        yield Warn(
            text=f"the decoded latents are far from their sources (PSNR {psnr:.1f} dB): look at {folder.path / SHEET}. "
            "Is this the right autoencoder, with trained weights?"
        )


def _pick(manifest: Manifest, source: Dataset) -> Iterator[tuple[int, Decode]]:
    """(index among the latents, how to decode its picture) of images spread evenly; the first ones of a stream."""
    count = min(SHEET_IMAGES, manifest.count)
    skipped = {item.key for item in manifest.skipped}
    if isinstance(source, Streamed):
        reading = enumerate(read_items(source, 0, min(count + len(skipped), manifest.plan.source.items)))
        kept = [decode for _, (item, decode) in reading if item.key not in skipped]
        yield from enumerate(kept[:count])
        return
    items = source.items()
    kept = [n for n in range(len(items)) if items[n].key not in skipped] if skipped else range(len(items))
    for index in np.linspace(0, manifest.count - 1, count).astype(int).tolist():
        yield index, lambda item=kept[index]: source.image(item)


def summary(folder: LatentFolder, *, encoded: int, seconds: float) -> Summary:
    """Counts, rate, size, statistics, skipped files, and what to type next."""
    manifest = folder.manifest
    plan, norm = manifest.plan, manifest.normalisation
    size = sum(shard.bytes for shard in manifest.shards)
    flips = "stored" if plan.flip else ("exact, by mirroring" if folder.has_flips else "none")
    channels, height, width = _latent_shape(manifest)
    rows = {
        "images": f"{manifest.count:,} of {plan.resolution} × {plan.resolution} pixels in "
        f"{len(manifest.class_names):,} classes, mirror images: {flips}",
        "latents": f"{channels} × {height} × {width} by {plan.autoencoder.id} ({plan.precision})",
        "mean": _numbers(manifest.measured_mean),
        "std": _numbers(manifest.measured_std),
        "normalisation": norm.name
        + ("" if norm.name == "measured" else f": {_numbers(norm.mean)} / {_numbers(norm.std)}"),
        "on disk": f"{size / 2**20:,.1f} MiB in {len(manifest.shards)} shards",
    }
    if encoded and seconds > 0:
        rows["encoded now"] = f"{encoded:,} images in {_duration(seconds)}, {encoded / seconds:,.1f} images/s"
    skipped = manifest.skipped
    if skipped:
        listed = "; ".join(f"{item.key} ({item.reason})" for item in skipped[:5])
        rows["skipped"] = f"{len(skipped)}: {listed}" + ("; … all are in manifest.json" if len(skipped) > 5 else "")
    return Summary(title=f"latents in {folder.path}", rows=rows, next_command=next_command(folder.path, manifest))


def next_command(folder: Path, manifest: Manifest) -> str:
    """The `mpdit train` command for these latents: the largest preset of the paper that fits them."""
    channels, side = _latent_shape(manifest)[:2]
    fitting = []
    for name in preset_names():
        config = load_preset(name)
        fits = (config.resolution, config.model.input_size) == (manifest.plan.resolution, side)
        if fits and config.model.channels == channels and config.model.num_classes >= len(manifest.class_names):
            fitting.append(name)
    best = next((name for name in fitting if name.startswith("xl-")), fitting[0] if fitting else None)
    alone = Path("latents") == folder.parent
    where = "" if alone and best and _only_one(folder, manifest.plan.resolution) else f" --latents {folder}"
    return f"mpdit train --preset {best}{where}" if best else f"mpdit train --config FILE.toml{where}"


def _only_one(folder: Path, resolution: int) -> bool:
    return sum(1 for _ in folder.parent.glob(f"*-{resolution}/manifest.json")) == 1


def _latent_shape(manifest: Manifest) -> tuple[int, int, int]:
    channels, height, width = manifest.plan.moments_shape
    return channels // 2, height, width


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
