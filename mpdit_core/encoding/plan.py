"""The plan that the options of `encode-latents` come to: every choice that fixes bytes is made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.manifest import EncodingPlan, SourceSpec
from mpdit_core.data.sources import classes_of, count_items, source_given, source_name
from mpdit_core.encoding.options import EncodeOptions
from mpdit_core.encoding.precision import choose_precision
from mpdit_core.errors import UserError
from mpdit_core.size import Size

DEFAULT_RESOLUTION = Size.square(256)
SHARD_BYTES = 128 * 2**20
SHARD_ITEMS = 4096
SHARDS_AT_LEAST = 16  # of a small data set, so that several processes have something to share


def make_plan(
    options: EncodeOptions, source: Dataset, autoencoder: LoadedAutoencoder, *, resolution: Size
) -> EncodingPlan:
    """Settles every option that fixes bytes; no default depends on the machine or the number of processes.

    Raises:
        UserError: the source holds no images (`no-images`), or cannot be read.
    """
    count = count_items(source)
    if count == 0:
        raise UserError(
            f"{options.source} holds no images", code="no-images", expected="at least one image in a class folder"
        )
    class_names, fingerprint = classes_of(source)
    batch_size = options.batch_size or max(1, min(256, 32 * 256**2 // resolution.area))
    plan = EncodingPlan(
        source=SourceSpec(
            given=source_given(options.source),
            name=source_name(options.source),
            split=options.split,
            options=source_arguments(options),
            fingerprint=fingerprint,
            items=count,
        ),
        resolution=resolution,
        autoencoder=autoencoder.spec,
        precision=choose_precision(options.precision, autoencoder, source, resolution=resolution),
        flip=options.flip if options.flip is not None else not autoencoder.spec.flip_equivariant,
        batch_size=batch_size,
        shard_size=options.shard_size or 1,
        class_names=class_names,
    )
    if options.shard_size:
        return plan
    fitting = min(SHARD_ITEMS, SHARD_BYTES // plan.bytes_per_image, -(-count // SHARDS_AT_LEAST))
    return plan.model_copy(update={"shard_size": max(1, round(fitting / batch_size)) * batch_size})


def source_arguments(options: EncodeOptions) -> dict[str, Any]:
    """The further arguments of `open_source`, as the manifest keeps them to open the source again."""
    given: dict[str, Any] = {
        "classes": str(options.classes.expanduser().absolute()) if options.classes else None,
        "labels": str(options.labels.expanduser().absolute()) if options.labels else None,
        "streaming": options.streaming,
        "allow_empty_classes": options.allow_empty_classes,
        "options": options.dataset_options,
    }
    return {name: value for name, value in given.items() if value}


def output_folder(options: EncodeOptions, resolution: Size) -> Path:
    """Where the latents go. Raises `UserError` (`output-in-source`) for a place within the source."""
    name = source_name(options.source) + (f"-{options.split}" if options.split else "")
    out = options.out or Path("latents") / f"{name}-{resolution}"
    root = Path(options.source).expanduser()
    if root.is_dir() and out.absolute().is_relative_to(root.absolute()):
        raise UserError(
            f"the latents would lie in {out.absolute()}, within the source {root.absolute()}",
            code="output-in-source",
            expected="a place outside the images",
            remedy="--out DIR, or run the command from another folder",
        )
    return out
