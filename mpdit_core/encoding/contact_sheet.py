"""The picture that a person looks at after encoding: some sources beside what their latents are decoded to."""

from __future__ import annotations

import numpy as np

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import LUMINANCE, LoadedAutoencoder
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import Manifest
from mpdit_core.data.sources import Decode, Streamed, read_items
from mpdit_core.pictures import labelled_grid, save_png
from mpdit_core.reporting import Reporter, Saved, Warning

SHEET = "contact-sheet.png"
SHEET_IMAGES = 8
POOR_PSNR = 15.0  # dB; the Stable Diffusion autoencoder reaches about 26, a wrong pixel range about 10


def write_contact_sheet(
    folder: LatentFolder, source: Dataset, autoencoder: LoadedAutoencoder, *, report: Reporter
) -> None:
    """Draws images from all over the data set, and warns (`poor-reconstruction`) when decoding does not return them."""
    picks = _pick(folder.manifest, source)
    batch = folder.batch([index for index, _ in picks])
    decoded = np.concatenate([autoencoder.decode(mean[None]).cpu().numpy() for mean in batch.mean])
    images = np.stack([prepare(decode(), folder.spec.resolution) for _, decode in picks]).transpose(0, 3, 1, 2)
    shown = np.stack([images, decoded], axis=1).reshape(-1, *images.shape[1:])
    captions = [text for label in batch.labels.tolist() for text in (folder.spec.class_names[label], "decoded")]
    save_png(labelled_grid(shown, captions, columns=4), folder.path / SHEET)
    report(Saved(what="contact sheet, sources beside their decoded latents", path=folder.path / SHEET))
    psnr = _psnr(images, decoded, gray=autoencoder.spec.channels == 1)
    if psnr < POOR_PSNR:
        text = (
            f"the decoded latents are far from their sources (PSNR {psnr:.1f} dB): look at {folder.path / SHEET}. "
            "Is this the right autoencoder, with trained weights?"
        )
        report(Warning(code="poor-reconstruction", text=text))


def _psnr(images: np.ndarray, decoded: np.ndarray, *, gray: bool) -> float:
    """Peak signal-to-noise ratio in dB. `gray`: the autoencoder keeps no colours, so luminance is compared."""
    reference = images.astype(np.float64)
    if gray:
        luminance = np.tensordot(reference, LUMINANCE, axes=([1], [0])).round()
        reference = np.repeat(luminance[:, None], 3, axis=1)
    error = float(np.mean((reference - decoded) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error > 0 else float("inf")


def _pick(manifest: Manifest, source: Dataset) -> list[tuple[int, Decode]]:
    """(index among the latents, how to decode its picture) for evenly spaced images; the first ones of a stream."""
    count, items = min(SHEET_IMAGES, manifest.count), manifest.plan.source.items
    skipped = {item.key for item in manifest.skipped}
    if isinstance(source, Streamed):
        reading = read_items(source, 0, min(count + len(skipped), items))
        kept = [decode for item, decode in reading if item.key not in skipped]
        return list(enumerate(kept[:count]))
    keys = [item.key for item in source.items()] if skipped else []
    places = [n for n in range(items) if keys[n] not in skipped] if skipped else range(items)
    chosen = np.linspace(0, manifest.count - 1, count).astype(int).tolist()
    return [(index, _decoder(source, places[index])) for index in chosen]


def _decoder(source: Dataset, place: int) -> Decode:
    return next(read_items(source, place, place + 1))[1]
