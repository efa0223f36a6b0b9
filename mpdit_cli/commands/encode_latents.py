"""`mpdit encode-latents SOURCE`: images to latents, once, before training."""

from __future__ import annotations

import math

from mpdit_cli import console
from mpdit_cli.fields import NprocOne, options_command
from mpdit_core.encoding.options import EncodeOptions, EncodeResult
from mpdit_core.errors import UserError
from mpdit_core.presets import propose_preset
from mpdit_core.training.options import TrainOptions

LISTED = 5  # skipped images
FLIPS = {"stored": "stored too", "mirrored": "computed from the latents, exactly", "none": "none"}


@options_command(EncodeOptions)
def command(options: EncodeOptions, nproc: NprocOne = "1") -> None:
    """Encode a data set of images into latents, once, for training.

    Example: mpdit encode-latents images/ --resolution 256

    If it is stopped or killed, the same command resumes it. Options of plugins:
    `--set dataset.KEY=VALUE`, `--set autoencoder.KEY=VALUE` and `--set teacher.KEY=VALUE`.
    """
    from mpdit_core.encoding import encode_latents

    result = console.run(encode_latents, options, nproc=nproc, device=options.device)
    console.show(result, summary(result))


def summary(result: EncodeResult) -> console.Summary:
    """Counts, shape, statistics, size, quality, rate, skipped files, and what to type next."""
    channels, height, width = result.latent_shape
    pixels = f"{result.resolution.height} × {result.resolution.width} pixels"
    classes = f"in {result.classes:,} classes" if result.classes else "without classes"
    rows = {
        "images": f"{result.count:,} of {pixels} {classes}",
        "mirror images": FLIPS[result.flips],
        "latents": f"{channels} × {height} × {width} by {result.autoencoder} ({result.precision})",
        "mean": _numbers(result.measured_mean),
        "std": _numbers(result.measured_std),
        "normalisation": result.normalisation,
        "on disk": f"{result.bytes / 2**20:,.1f} MiB in {result.shards} shards",
    }
    if result.normalisation != "measured":
        rows["normalisation"] += f": {_numbers(result.normalisation_mean)} / {_numbers(result.normalisation_std)}"
    if result.teacher and result.teacher_shape:
        tokens, features = result.teacher_shape
        rows["teacher"] = f"{tokens} tokens of {features} features by {result.teacher}"
    if result.psnr is not None:
        exact = math.isclose(result.ssim or 0, 1, abs_tol=1e-12)
        rfid = f", rFID {result.rfid:.2f}" if result.rfid is not None else ""
        rows["reconstruction"] = f"exact{rfid}" if exact else f"PSNR {result.psnr:.1f} dB, SSIM {result.ssim:.3f}{rfid}"
    if result.images_per_second is not None:
        duration = f"{result.seconds:.1f} s" if result.seconds < 90 else f"{result.seconds / 60:.1f} min"
        rows["encoded now"] = f"{result.encoded_now:,} images in {duration}, {result.images_per_second:,.1f} images/s"
    if result.skipped:
        listed = "; ".join(f"{item.key} ({item.reason})" for item in result.skipped[:LISTED])
        more = "; … all are in manifest.json" if len(result.skipped) > LISTED else ""
        rows["skipped"] = f"{len(result.skipped)}: {listed}{more}"
    return console.Summary(title=f"latents in {result.latents}", rows=rows, next_command=next_command(result))


def next_command(result: EncodeResult) -> str:
    """The `mpdit train` command for these latents, with the preset that `mpdit train` would choose itself."""
    from mpdit_core.data.manifest import find_latents

    best = propose_preset(resolution=result.resolution, latent_shape=result.latent_shape, images=result.count)
    try:
        found = find_latents(resolution=result.resolution)  # as `mpdit train` does without --latents
    except UserError:  # there are several
        found = None
    latents = None if found == result.latents else result.latents
    return TrainOptions(preset=best.preset, latents=latents, settings=best.fit).command_line()


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
