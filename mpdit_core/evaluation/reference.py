"""The reference of an evaluation: ADM's `.npz`, a folder of images, a data set, or the source of a latents folder.

A `Reference` holds the Gaussian of all images, and for precision and recall the pool features of at most 10,000 of them
(as many as ADM's `arr_0` holds). It is measured once, then kept in the latents folder's `reference.safetensors` or in
the user's cache, under a key made from the format version and the fingerprints of extractor and images.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpdit_core.data.images import Mode, upright
from mpdit_core.data.manifest import MANIFEST, read_manifest
from mpdit_core.data.sources import open_source
from mpdit_core.errors import UserError
from mpdit_core.evaluation.collecting import collect, finished_blocks
from mpdit_core.evaluation.images import ImageSource, dataset_images, folder_images, no_images, open_images
from mpdit_core.evaluation.progress import locked_by_main
from mpdit_core.evaluation.record import ReferenceRecord
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.features import extract, features_name
from mpdit_core.metrics.statistics import Gaussian
from mpdit_core.models.hub import WEIGHTS
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.protocols import FeatureExtractor
from mpdit_core.reporting import Reporter, Warning, silent
from mpdit_core.runtime.checked_tensors import read_checked, write_checked
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import sha256, writing
from mpdit_core.runtime.npz import map_member, member_names
from mpdit_core.size import Size

FORMAT = "3"
"""Version of the cached reference; one of another version is measured again."""

ROWS = 10_000
STORE = "reference.safetensors"
BATCH = 64
SECONDS_TO_WAIT = 6 * 3600.0  # for another process that measures the same reference
LOOKED_AT = 8  # number of images of a folder or data set whose size is checked
UNKNOWN_COUNT = 2**31  # stands for the number of images, where statistics (of a whole data set) do not state it


@dataclass(frozen=True)
class Reference:
    """Statistics of the real images. `about` goes into the record of an evaluation."""

    pool: Gaussian
    spatial: Gaussian | None
    rows: Tensor | None  # [≤ 10,000, F] float32
    about: ReferenceRecord


@dataclass(frozen=True)
class ReferencePlan:
    """A reference that was found and checked, but not measured yet."""

    name: str
    images: ImageSource | None = None  # None: statistics only
    statistics: Path | None = None  # an ADM-style npz with mu and sigma
    latents_folder: Path | None = None  # where the measured reference is kept, if it can be written

    def fingerprint(self) -> str:
        """A hash that changes with the images and with the given statistics."""
        images = self.images.record.sha256 if self.images else ""
        return hashlib.sha256(f"{images} {sha256(self.statistics) if self.statistics else ''}".encode()).hexdigest()


def plan_reference(
    given: str,
    *,
    resolution: Size | None,
    extractor: FeatureExtractor,
    mode: Mode = "RGB",
    typed: bool = True,
    trust: bool = False,
) -> ReferencePlan:
    """Finds the reference and checks everything that can be known without measuring it.

    Args:
        given: an `.npz`, a `.safetensors`, a folder (of images, of class folders, or of latents), or a data set.
        resolution: size of the samples in pixels; images of folders and data sets are cropped and resized to it.
        extractor: loaded.
        mode: Pillow's name of the mode that images of a folder or data set are converted to; latents state their own.
        typed: whether the user typed `given`; otherwise it was read from a file.
        trust: whether a name that was read from a file may be code.

    Raises:
        UserError: missing, a model, of another resolution, or with statistics of other features than `extractor`'s.
    """
    path = Path(given).expanduser()
    if RunFolder.exists(path) or (path / WEIGHTS).is_file():
        raise UserError(
            f"{given} is a model", code="no-images", expected="real images: a folder, a data set, latents or an .npz"
        )
    if path.is_dir() and (path / MANIFEST).is_file():
        return _plan_latents(path, resolution, trust=trust)
    is_folder = path.is_dir() or (path.suffix == ".tar" and path.exists())
    if path.suffix in (".npz", ".safetensors") or (path.is_file() and not is_folder):
        return _plan_file(path, resolution, extractor)
    if resolution is None:
        raise UserError(
            f"{given} has no fixed resolution",
            code="no-resolution",
            expected="the size in pixels to which images are cropped and resized",
            remedy="--resolution N, or HxW",
        )
    if is_folder:
        images = folder_images(path, resolution, mode=mode)
    else:
        images = dataset_images(open_source(given, trusted=typed or trust), resolution, given, mode=mode)
    _require_large_enough(images, given)
    return ReferencePlan(given, images)


def _require_large_enough(images: ImageSource, given: str) -> None:
    """Raises `UserError` where the first images are all smaller than the samples: enlarged, they would be blurred."""
    assert images.picture is not None
    pictures = [images.picture(index) for index in range(min(LOOKED_AT, images.count))]
    sizes = [Size(shown.height, shown.width) for shown in (upright(picture, picture) for picture in pictures)]
    height, width = images.resolution
    if not any(size.height >= height and size.width >= width for size in sizes):
        raise _other_resolution(given, max(sizes, key=min), images.resolution)


def _other_resolution(name: str | Path, there: Size, wanted: Size) -> UserError:
    return UserError(
        f"the reference {name} has {there} px, the samples have {wanted} px",
        code="other-resolution",
        expected="a reference at the samples' resolution, or larger images to crop and resize",
        remedy="choose another --reference",
    )


def _plan_latents(path: Path, resolution: Size | None, *, trust: bool) -> ReferencePlan:
    manifest = read_manifest(path)
    source = manifest.plan.source
    if resolution not in (None, manifest.plan.resolution):
        raise _other_resolution(path, manifest.plan.resolution, resolution)
    try:
        dataset = open_source(source.given, split=source.split, trusted=trust, **source.options)
    except (UserError, TypeError) as error:
        if getattr(error, "code", "") == "untrusted-code":
            raise
        reason = error.what if isinstance(error, UserError) else str(error)
        raise UserError(
            f"the images that {path} was made from cannot be opened: {reason}",
            code="no-source",
            expected=f"the images at {source.given}",
            remedy="restore them, or choose another --reference",
        ) from error
    skipped = frozenset(item.key for item in manifest.skipped)
    mode = manifest.plan.autoencoder.mode
    images = dataset_images(dataset, manifest.plan.resolution, source.given, skipped=skipped, mode=mode)
    return ReferencePlan(source.given, images, latents_folder=path)


def _plan_file(path: Path, resolution: Size | None, extractor: FeatureExtractor) -> ReferencePlan:
    """Images in one file, or statistics of these features; those of other features are ignored beside images."""
    if not path.exists():
        raise UserError(
            f"the reference {path} does not exist",
            code="no-such-file",
            expected="an ADM .npz, a folder, a latents folder or a data set",
            remedy="for ImageNet: VIRTUAL_imagenet256_labeled.npz of OpenAI's guided-diffusion evaluations",
        )
    names = set(member_names(path)) if path.suffix == ".npz" else set()
    images = open_images(path) if "arr_0" in names or path.suffix != ".npz" else None
    features = None
    if {"mu", "sigma"} <= names:
        features = str(map_member(path, "features")) if "features" in names else "inception"
    statistics = path if features is not None and features == features_name(extractor) else None
    if images is None and features is None:
        raise no_images(path, names, expected="arr_0, or mu and sigma")
    if images is None and statistics is None:
        raise UserError(
            f"{path} holds statistics of {features} features; these features are {extractor.name}",
            code="other-features",
            expected=f"a reference that holds images, or statistics of {features_name(extractor)}",
            remedy=_remedy(extractor),
        )
    if images is not None and resolution not in (None, images.resolution):
        raise _other_resolution(path, images.resolution, resolution)
    return ReferencePlan(str(path), images, statistics)


def _remedy(extractor: FeatureExtractor) -> str:
    return f"mpdit eval-fid SOURCE --features {extractor.name} --make-reference OUT.npz"


STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))
"""Names of mean and covariance in an ADM-style npz: of pool features, and of spatial features, if it has them."""


def require_statistics(plan: ReferencePlan, extractor: FeatureExtractor, device: torch.device) -> None:
    """Raises `UserError` where given statistics are damaged, or have another number of features than `extractor`."""
    if plan.statistics is None:
        return
    features = extract(extractor, torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device))
    for found, rows in zip(_read_npz(plan.statistics), (features.pool, features.spatial), strict=True):
        if found is not None and rows is not None and found.size != rows.shape[1]:
            raise UserError(
                f"{plan.statistics} has {found.size} features; {extractor.name} computes {rows.shape[1]}",
                code="other-features",
                expected="statistics of the same features",
                remedy=_remedy(extractor),
            )


def measure_reference(
    plan: ReferencePlan,
    extractor: FeatureExtractor,
    *,
    device: torch.device,
    world: World,
    report: Reporter = silent,
    rows: bool = True,
) -> Reference:
    """Measures the reference, or reads it where it was measured before. All processes of `world` call it.

    Args:
        rows: whether features of single images are needed (precision, recall, KID).

    Raises:
        UserError: an image cannot be read, or another process measures this reference for more than six hours.
    """
    measured = None
    if plan.images is not None and (plan.statistics is None or rows):
        measured = _measured_images(plan, extractor, device, world, report)
    if plan.statistics is None:
        assert measured is not None
        return measured
    pool, spatial = _read_npz(plan.statistics)
    about = ReferenceRecord(
        kind="stored statistics",
        path=plan.name,
        sha256=sha256(plan.statistics),
        count=None if pool.count == UNKNOWN_COUNT else pool.count,
        rows=measured.about.rows if measured else 0,
        extractor=extractor.fingerprint(),
    )
    return Reference(pool, spatial, measured.rows if measured else None, about)


def _measured_images(
    plan: ReferencePlan, extractor: FeatureExtractor, device: torch.device, world: World, report: Reporter
) -> Reference:
    """The reference of `plan.images`: from the latents folder, else from the user's cache, else measured now."""
    images = plan.images
    assert images is not None
    count = images.count
    if count < 2:
        raise UserError(f"the reference {plan.name} has {count} image", code="too-few-images", expected="at least 2")
    key = hashlib.sha256(f"{FORMAT} {extractor.fingerprint()} {images.record.sha256}".encode()).hexdigest()
    shared = _cache_folder() / f"reference-{key[:16]}.safetensors"
    places = [plan.latents_folder / STORE, shared] if plan.latents_folder else [shared]
    found = world.on_main(lambda: _cached(places, key, report))
    if found is not None:
        return found
    path = world.on_main(lambda: next((place for place in places if _may_write_in(place.parent)), shared))
    partial = path.with_suffix(f".{key[:8]}.partial")
    with locked_by_main(partial, world, wait=SECONDS_TO_WAIT, report=report):
        found = world.on_main(lambda: _cached(places, key, silent))
        if found is not None:  # another command has measured it while this one waited
            return found
        kept = chosen_rows(count)
        accumulator = FeatureAccumulator(count, keep=kept.tolist(), device=device)
        about = ReferenceRecord(
            **images.record.model_dump(), count=count, rows=len(kept), extractor=extractor.fingerprint()
        )
        return collect(
            finished_blocks(images, count),
            extractor,
            accumulator,
            folder=partial,
            world=world,
            report=report,
            task="reference",
            finish=lambda _: _cache(path, key, accumulator, about),
            needs_logits=False,
        )


def _cached(places: Sequence[Path], key: str, report: Reporter) -> Reference | None:
    """The reference with this key in the first of the `places` that has it; None where none has."""
    for path in filter(Path.exists, places):
        try:
            tensors, about = read_checked(path)
        except UserError as error:
            report(Warning(code="damaged-reference", text=f"{error.what}: the reference is measured again"))
            continue
        if about.get("key") == key:
            pool, spatial = (
                Gaussian(int(about["count"]), tensors[f"{kind}.mean"], tensors[f"{kind}.covariance"])
                if f"{kind}.mean" in tensors
                else None
                for kind in ("pool", "spatial")
            )
            assert pool is not None
            return Reference(pool, spatial, tensors["rows"], ReferenceRecord.model_validate_json(about["about"]))
    return None


def chosen_rows(count: int) -> np.ndarray:
    """Indices of the images whose features are kept: all, or 10,000 random ones, always the same."""
    return np.sort(np.random.RandomState(0).permutation(count)[:ROWS])


def _cache(path: Path, key: str, accumulator: FeatureAccumulator, about: ReferenceRecord) -> Reference:
    """Writes the reference with what was measured, and returns it."""
    pool, spatial, rows = accumulator.gaussian(), accumulator.spatial_gaussian(), accumulator.kept_rows()
    tensors = {"rows": rows}
    for kind, gaussian in (("pool", pool), ("spatial", spatial)):
        if gaussian is not None:
            tensors |= {f"{kind}.mean": gaussian.mean, f"{kind}.covariance": gaussian.covariance}
    write_checked(path, tensors, {"key": key, "count": str(pool.count), "about": about.model_dump_json()})
    return Reference(pool, spatial, rows, about)


def _may_write_in(folder: Path) -> bool:
    """Whether `folder` exists or can be made, and files can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _read_npz(path: Path) -> tuple[Gaussian, Gaussian | None]:
    """The Gaussians of pool and spatial features in an ADM-style file. Raises `UserError` (`damaged-file`)."""
    names = member_names(path)
    count = int(map_member(path, "count")) if "count" in names else UNKNOWN_COUNT
    found: list[Gaussian | None] = []
    for pair in STATISTICS:
        if pair[0] not in names:
            found.append(None)
            continue
        mean, covariance = (map_member(path, name) for name in pair)
        is_float = mean.dtype.kind == covariance.dtype.kind == "f"
        fits = is_float and mean.ndim == 1 and covariance.shape == mean.shape * 2
        if not fits or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError(
                f"{path}: {pair[0]} and {pair[1]} are {mean.dtype} {list(mean.shape)} and {covariance.dtype} "
                f"{list(covariance.shape)}" + (", not all finite" if fits else ""),
                code="damaged-file",
                expected="finite floating-point arrays [F] and [F, F]",
            )
        found.append(Gaussian(count, *(torch.from_numpy(np.array(a, np.float64)) for a in (mean, covariance))))
    pool, spatial = found
    assert pool is not None
    return pool, spatial


def write_npz(path: Path, reference: Reference, images: ImageSource, features: str) -> None:
    """An ADM-compatible file: mu, sigma, mu_s, sigma_s of all images; arr_0, the images for precision and recall."""
    chosen = chosen_rows(images.count)
    parts = np.array_split(chosen, -(-len(chosen) // BATCH))
    arrays: dict[str, Any] = {
        "arr_0": np.concatenate([images.batch(part.tolist()).permute(0, 2, 3, 1).numpy() for part in parts]),
        "count": np.int64(images.count),
        "features": np.str_(features),
    }
    for (mean, covariance), gaussian in zip(STATISTICS, (reference.pool, reference.spatial), strict=True):
        if gaussian is not None:
            arrays |= {mean: gaussian.mean.numpy(), covariance: gaussian.covariance.numpy()}
    with writing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _cache_folder() -> Path:
    base = os.environ.get("MPDIT_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")) + "/mpdit"
    return Path(base) / "references"
