"""The options of `encode-latents`, and the plan they come to: every choice that fixes bytes is made here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mpdit_core.api import Dataset
from mpdit_core.data.autoencoders import Autoencoder
from mpdit_core.data.latents import MIRRORED_EXACTLY
from mpdit_core.data.manifest import EncodingPlan, SourceSpec
from mpdit_core.data.sources import count_items, source_given, source_name
from mpdit_core.encoding.precision import choose_precision
from mpdit_core.errors import UserError
from mpdit_core.settings import parse_assignments

DEFAULT_RESOLUTION = 256
SHARD_BYTES = 128 * 2**20
SHARD_ITEMS = 4096
SHARDS_AT_LEAST = 16  # of a small data set, so that several processes have something to share


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What the command line offers. None: chosen by the source, the resolution or the autoencoder."""

    source: str
    resolution: int | None = None
    autoencoder: str | None = None
    out: Path | None = None
    split: str | None = None
    classes: Path | None = None
    labels: Path | None = None
    streaming: bool = False
    assignments: tuple[str, ...] = ()
    batch_size: int | None = None
    shard_size: int | None = None
    workers: int | None = None
    flip: bool | None = None
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    normalisation: Literal["measured", "published"] | None = None
    on_error: Literal["fail", "skip"] = "fail"
    verify: bool = False
    reference_stats: bool = False


def make_plan(options: EncodeOptions, source: Dataset, autoencoder: Autoencoder, *, resolution: int) -> EncodingPlan:
    """Settles every option that fixes bytes; no default depends on the machine or the number of processes."""
    count = count_items(source)
    if count == 0:
        raise UserError(f"{options.source} holds no images", expected="at least one image in a class folder")
    class_names = tuple(source.class_names())
    flip = options.flip if options.flip is not None else autoencoder.spec.id not in MIRRORED_EXACTLY
    batch_size = options.batch_size or max(1, min(256, 32 * 256**2 // resolution**2))
    plan = EncodingPlan(
        source=SourceSpec(
            given=source_given(options.source),
            name=source_name(options.source),
            split=options.split,
            options=open_options(options),
            fingerprint=source.fingerprint(),
            items=count,
        ),
        resolution=resolution,
        autoencoder=autoencoder.spec,
        precision=choose_precision(options.precision, autoencoder, source, resolution=resolution),
        flip=flip,
        batch_size=batch_size,
        shard_size=options.shard_size or 1,
        class_names=class_names,
    )
    autoencoder.precision = plan.precision
    if options.shard_size:
        return plan
    fitting = min(SHARD_ITEMS, SHARD_BYTES // plan.bytes_per_image, -(-count // SHARDS_AT_LEAST))
    batches = max(1, round(fitting / batch_size))
    return plan.model_copy(update={"shard_size": batches * batch_size})


def open_options(options: EncodeOptions) -> dict[str, Any]:
    """The further arguments of `open_source`, as the manifest keeps them to open the source again."""
    given: dict[str, Any] = {
        "classes": str(options.classes.expanduser().absolute()) if options.classes else None,
        "labels": str(options.labels.expanduser().absolute()) if options.labels else None,
        "streaming": options.streaming,
        "options": _dataset_options(options),
    }
    return {name: value for name, value in given.items() if value}


def _dataset_options(options: EncodeOptions) -> dict[str, Any]:
    """The fields of a data set plugin that `--set dataset.KEY=VALUE` sets."""
    tree = parse_assignments(options.assignments)
    unknown = sorted(tree.keys() - {"dataset"})
    values = tree.get("dataset", {})
    if unknown or not isinstance(values, dict):
        raise UserError(
            f"--set {unknown[0] if unknown else 'dataset'} is no setting of encode-latents",
            expected="--set dataset.KEY=VALUE, a field of a data set plugin",
        )
    return values


def place_of(options: EncodeOptions, resolution: int) -> Path:
    """Where the latents go. Raises `UserError` for a place within the source."""
    name = source_name(options.source) + (f"-{options.split}" if options.split else "")
    out = options.out or Path("latents") / f"{name}-{resolution}"
    root = Path(options.source).expanduser()
    if root.is_dir() and out.absolute().is_relative_to(root.absolute()):
        raise UserError(
            f"the latents would lie in {out.absolute()}, within the source {root.absolute()}",
            expected="a place outside the images",
            remedy="--out DIR, or run the command from another folder",
        )
    return out
