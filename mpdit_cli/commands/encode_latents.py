"""`mpdit encode-latents`: images to latents, once, before training."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Optional

import typer

from mpdit_cli import console, options

OptionalInt = Optional[int]  # noqa: UP045 - typer reads these at run time
OptionalStr = Optional[str]  # noqa: UP045
OptionalBool = Optional[bool]  # noqa: UP045


class OnError(StrEnum):
    fail = "fail"
    skip = "skip"


class Normalisation(StrEnum):
    measured = "measured"
    published = "published"


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder of class folders (or a .tar of one), hf:ORG/NAME, or a data set."
        ),
    ],
    resolution: Annotated[
        OptionalInt, typer.Option("--resolution", min=1, help="Side of the images in pixels.", show_default="256")
    ] = None,
    autoencoder: Annotated[
        OptionalStr,
        typer.Option(
            "--autoencoder",
            metavar="ID|DIR|pixels",
            help="A Hub id, a local folder, pixels, or pixels-gray.",
            show_default="stabilityai/sd-vae-ft-ema",
        ),
    ] = None,
    out: Annotated[
        options.OptionalPath,
        typer.Option("--out", metavar="DIR", help="Folder to write.", show_default="latents/SOURCE-RESOLUTION"),
    ] = None,
    split: Annotated[
        OptionalStr, typer.Option("--split", help="Part of the data set; of a folder, a subfolder.")
    ] = None,
    classes: Annotated[
        options.OptionalPath, typer.Option("--classes", metavar="FILE", help="Class names in label order, one a line.")
    ] = None,
    labels: Annotated[
        options.OptionalPath,
        typer.Option("--labels", metavar="FILE", help="Lines `IMAGE CLASS`, for images without class folders."),
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read from the Hub without storing the data set first.")
    ] = False,
    flip: Annotated[
        OptionalBool,
        typer.Option(
            "--flip/--no-flip", help="Store the mirror images too.", show_default="flip, unless exact without"
        ),
    ] = None,
    batch_size: Annotated[
        OptionalInt,
        typer.Option("--batch-size", min=1, help="Images the encoder sees at once.", show_default="by resolution"),
    ] = None,
    shard_size: Annotated[
        OptionalInt, typer.Option("--shard-size", min=1, help="Images a file.", show_default="about 128 MiB")
    ] = None,
    workers: Annotated[
        OptionalInt, typer.Option("--workers", min=1, help="Threads that decode, a process.", show_default="cores")
    ] = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Of the encoder; auto: the fastest that stays within 1e-2.")
    ] = Precision.auto,
    normalisation: Annotated[
        Optional[Normalisation],  # noqa: UP045
        typer.Option("--normalisation", help="Statistics that training uses.", show_default="measured"),
    ] = None,
    on_error: Annotated[
        OnError, typer.Option("--on-error", help="At an image that cannot be read: stop, or leave it out and list it.")
    ] = OnError.fail,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check finished shards; bad ones are made anew by the next run.")
    ] = False,
    reference_stats: Annotated[
        bool, typer.Option("--reference-stats", help="Also compute what eval-fid compares samples with.")
    ] = False,
    settings: options.Set = None,
    nproc: options.Nproc = "1",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Encode a data set of images into latents, once, for training.

    Killed at any point, the same command goes on where it stopped. `--set dataset.KEY=VALUE` sets a field of a data set
    plugin.
    """
    from mpdit_core.encoding.job import EncodeOptions, encode
    from mpdit_core.runtime.device import select_device

    encoding = EncodeOptions(
        source=source,
        resolution=resolution,
        autoencoder=autoencoder,
        out=out,
        split=split,
        classes=classes,
        labels=labels,
        streaming=streaming,
        assignments=tuple(settings or ()),
        batch_size=batch_size,
        shard_size=shard_size,
        workers=workers,
        flip=flip,
        precision=precision.value,
        normalisation=normalisation.value if normalisation else None,
        on_error=on_error.value,
        verify=verify,
        reference_stats=reference_stats,
    )
    console.launch_or_run(nproc, device, lambda: encode(encoding, device=select_device(device)))
