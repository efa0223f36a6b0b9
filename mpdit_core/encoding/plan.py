"""Makes the plan of `encode-latents` from its options: every choice that determines the bytes is made here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mpdit_core.config import ComputeType
from mpdit_core.data.autoencoders import LoadedAutoencoder, read_stored
from mpdit_core.data.images import prepare
from mpdit_core.data.manifest import EncodingPlan, SourceSpec
from mpdit_core.data.sources import (
    absolute_source,
    classes_and_fingerprint,
    count_items,
    read_class_names,
    read_items,
    source_name,
)
from mpdit_core.encoding.foreign_latents import ForeignLatents, LatentFormat
from mpdit_core.encoding.options import EncodeOptions
from mpdit_core.errors import UserError
from mpdit_core.protocols import Dataset
from mpdit_core.runtime.precision import MIN_PARAMETERS, TRIED_AT, TRIED_ON, fastest_that_agrees, require
from mpdit_core.size import Size

DEFAULT_RESOLUTION = Size.square(256)
SHARD_BYTES, SHARD_ITEMS = 128 * 2**20, 4096  # at most, unless --shard-size is given
SHARDS_AT_LEAST = 16  # for a small data set, so that several processes can share the work
MAX_DIFFERENCE = 1e-2  # between the posterior's mean and the mean that float32 gives, in raw units
FOR_IMAGES = frozenset(  # options that --from-latents refuses
    {"split", "labels", "streaming", "allow_empty_classes", "dataset_options", "resolution", "flip", "on_error",
     "precision", "batch_size", "reference_stats", "reconstruction_fid"}
)  # fmt: skip


def make_plan(
    options: EncodeOptions,
    source: Dataset,
    autoencoder: LoadedAutoencoder,
    *,
    resolution: Size,
    begun: EncodingPlan | None,
) -> EncodingPlan:
    """Decides every option that determines the bytes; no default depends on the number of processes.

    Args:
        begun: the plan under which encoding has begun; for `auto`, its precision is kept.

    Raises:
        UserError: the source holds no images (`no-images`), or cannot be read.
    """
    count, given = count_items(source), what_is_encoded(options)
    if count == 0:
        raise UserError(f"{given} holds no images", code="no-images", expected="at least one image in a class folder")
    class_names, fingerprint = classes_and_fingerprint(source)
    plan = EncodingPlan(
        source=SourceSpec(
            given=absolute_source(given),
            split=options.split,
            options=source_arguments(options),
            fingerprint=fingerprint,
            items=count,
        ),
        resolution=resolution,
        autoencoder=autoencoder.spec,
        precision=begun.precision
        if begun and options.precision == "auto"
        else choose_precision(options.precision, autoencoder, source, resolution=resolution),
        flip=options.flip if options.flip is not None else not autoencoder.spec.flip_equivariant,
        batch_size=options.batch_size or max(1, min(256, 32 * 256**2 // resolution.area)),
        shard_size=1,
        class_names=class_names,
    )
    return _in_shards(plan, options.shard_size)


def choose_precision(
    wanted: Literal["auto", "float32", "tf32", "bfloat16"],
    autoencoder: LoadedAutoencoder,
    source: Dataset,
    *,
    resolution: Size,
) -> ComputeType:
    """The type that the encoder computes in: `wanted`, or for `auto` the fastest whose means of the first images are
    within `MAX_DIFFERENCE` of float32's.

    Raises:
        UserError: the device does not have the precision (`no-such-precision`).
    """
    device = autoencoder.encode_device
    if wanted != "auto":
        return require(wanted, device)
    if autoencoder.parameters < MIN_PARAMETERS:
        return "float32"
    size, pictures = autoencoder.spec.trial_size(resolution, TRIED_AT), []
    for _, decode in read_items(source, 0, min(TRIED_ON, count_items(source))):
        with suppress(UserError):  # reported when it is encoded
            pictures.append(prepare(decode(), size, autoencoder.mode))
    if not pictures:
        return "float32"
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    def means(name: ComputeType) -> torch.Tensor:
        autoencoder.precision = name
        return read_stored(autoencoder.encode(images), autoencoder.spec.stores)[0]

    return fastest_that_agrees(
        ("bfloat16", "tf32") if device.type == "cuda" else ("bfloat16",),
        means,
        difference=lambda a, b: (a - b).abs().max().item(),
        limit=MAX_DIFFERENCE,
    )


def plan_import(options: EncodeOptions, found: ForeignLatents, latent_format: LatentFormat) -> EncodingPlan:
    """The plan for latents that another program made.

    Raises:
        UserError: an option for images is given (`option-does-not-apply`), or there are fewer class names than labels
            (`no-such-class`).
    """
    given = options.model_fields_set & FOR_IMAGES
    if given:
        raise UserError(
            f"the option {sorted(given)[0]} does not apply to --from-latents",
            code="option-does-not-apply",
            expected="options of latents only; no image is read",
            remedy="leave it out",
        )
    most = int(found.labels.max()) + 1
    names = tuple(read_class_names(options.classes)) if options.classes else tuple(map(str, range(most)))
    if len(names) < most:
        raise UserError(
            f"the latents have labels up to {most - 1}, but {options.classes} has {len(names)} names",
            code="no-such-class",
            expected=f"{most} names",
        )
    plan = EncodingPlan(
        source=SourceSpec(
            given=str(found.folder),
            options={"latents_scale": options.latents_scale},
            fingerprint=found.fingerprint(),
            items=len(found),
        ),
        resolution=latent_format.size * latent_format.autoencoder.factor,
        autoencoder=latent_format.autoencoder,
        flip=latent_format.has_flips,
        batch_size=1,
        shard_size=1,
        class_names=names,
    )
    return _in_shards(plan, options.shard_size)


def _in_shards(plan: EncodingPlan, wanted: int | None) -> EncodingPlan:
    """`plan` with `wanted` items per shard; by default with whole batches of at most about `SHARD_BYTES`."""
    fitting = min(SHARD_ITEMS, SHARD_BYTES // plan.bytes_per_image, -(-plan.source.items // SHARDS_AT_LEAST))
    whole_batches = max(1, round(fitting / plan.batch_size)) * plan.batch_size
    return plan.model_copy(update={"shard_size": wanted or whole_batches})


def what_is_encoded(options: EncodeOptions) -> str:
    """The source of the images or latents. Raises `UserError` (`no-source`) unless exactly one is given."""
    if (options.source is None) == (options.from_latents is None):
        both = options.source is not None
        raise UserError(
            "both SOURCE and --from-latents are given" if both else "nothing is given to encode",
            code="no-source",
            expected="images to encode, or latents of another program to import",
            remedy="mpdit encode-latents SOURCE",
        )
    return options.source or str(options.from_latents)


def source_arguments(options: EncodeOptions) -> dict[str, Any]:
    """The further arguments of `open_source`, which the manifest keeps to open the source again."""
    given: dict[str, Any] = {
        "classes": str(options.classes.expanduser().absolute()) if options.classes else None,
        "labels": str(options.labels.expanduser().absolute()) if options.labels else None,
        "streaming": options.streaming,
        "allow_empty_classes": options.allow_empty_classes,
        "options": options.dataset_options,
    }
    return {name: value for name, value in given.items() if value}


def output_folder(options: EncodeOptions, resolution: Size) -> Path:
    """The folder for the latents. Raises `UserError` (`output-in-source`) for one within the source."""
    given = what_is_encoded(options)
    name = source_name(given) + (f"-{options.split}" if options.split else "")
    out = options.out or Path("latents") / f"{name}-{resolution}"
    root = Path(given).expanduser()
    if root.is_dir() and out.absolute().is_relative_to(root.absolute()):
        raise UserError(
            f"the latents would be written to {out.absolute()}, inside the source {root.absolute()}",
            code="output-in-source",
            expected="a folder outside the source",
            remedy="--out DIR, or run the command from another folder",
        )
    return out
