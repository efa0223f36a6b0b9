"""What samples are compared with: ADM's `.npz`, a folder of images, a data set, or the source of a latents folder.

A `Reference` is the Gaussian of all its images, and the pool features of at most 10,000 of them for precision and
recall (ADM's `arr_0` holds as many). Measuring is done once: it is kept in the latents folder's
`reference.safetensors`, or in the user's cache, under a key of the extractor's weights and the data's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpdit_core.api import FeatureExtractor
from mpdit_core.data.manifest import MANIFEST, read_manifest
from mpdit_core.data.sources import open_source
from mpdit_core.errors import UserError
from mpdit_core.evaluation.accumulator import Tally
from mpdit_core.evaluation.images import (
    DatasetImages,
    FolderImages,
    ImageSource,
    NpzImages,
    blocks,
    map_npz_member,
    open_images,
    reading_npz,
)
from mpdit_core.metrics.features import extract, is_published
from mpdit_core.metrics.statistics import Gaussian
from mpdit_core.reporting import Event, Progress
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import sha256, writing

ROWS = 10_000
STORE = "reference.safetensors"
BATCH = 64


@dataclass(frozen=True)
class Reference:
    """Statistics of the real images. `about` goes into the protocol record."""

    pool: Gaussian
    spatial: Gaussian | None
    rows: Tensor | None  # [≤ 10,000, F] float32
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A reference that was found and checked, but not measured yet."""

    images: ImageSource | None  # None: statistics only
    stored: Path | None  # an ADM-style npz with mu and sigma
    cache: Path
    name: str
    resolution: int | None
    count: int | None

    def fingerprint(self) -> str:
        """Changes with the reference's content: its pictures, and its stored statistics."""
        pictures = self.images.fingerprint() if self.images else ""
        return hashlib.sha256(f"{pictures} {sha256(self.stored) if self.stored else ''}".encode()).hexdigest()


def plan_reference(given: str, *, resolution: int | None, extractor: FeatureExtractor) -> Plan:
    """Finds the reference and checks everything that can be known without measuring it.

    Args:
        given: an `.npz`, a `.safetensors`, a folder (of images, of class folders, or of latents), or a data set.
        resolution: of the samples; folders and data sets are cropped and resized to it.

    Raises:
        UserError: missing, of another resolution, or with statistics of other features than `extractor`'s.
    """
    path = Path(given).expanduser()
    if path.is_dir() and (path / MANIFEST).is_file():
        return _plan_latents(path, resolution)
    if path.suffix in (".npz", ".safetensors") or path.is_file():
        return _plan_file(path, resolution, extractor)
    if path.is_dir():
        if resolution is None:
            raise UserError(f"{given}: to which resolution?", remedy="--resolution N")
        images = FolderImages(path, resolution)
        return Plan(images, None, _cache_folder() / STORE, str(path), resolution, images.count)
    if resolution is None:
        raise UserError(f"{given}: to which resolution?", remedy="--resolution N")
    images = DatasetImages(open_source(given), resolution, given)
    return Plan(images, None, _cache_folder() / STORE, given, resolution, images.count)


def _plan_latents(path: Path, resolution: int | None) -> Plan:
    manifest = read_manifest(path)
    source = manifest.plan.source
    if resolution is not None and resolution != manifest.plan.resolution:
        raise UserError(
            f"the reference {path} is of {manifest.plan.resolution} px, the samples of {resolution} px",
            expected="one resolution",
            remedy="--reference with latents, a folder or a data set of the samples' resolution",
        )
    try:
        dataset = open_source(source.given, split=source.split, **source.options)
    except (UserError, TypeError) as error:
        reason = error.what if isinstance(error, UserError) else str(error)
        raise UserError(
            f"the images that {path} was made from cannot be opened: {reason}",
            expected=source.given,
            remedy="bring them back, or name another --reference",
        ) from error
    skipped = frozenset(item.key for item in manifest.skipped)
    images = DatasetImages(dataset, manifest.plan.resolution, source.given, skipped)
    return Plan(images, None, path / STORE, source.given, manifest.plan.resolution, images.count)


def _plan_file(path: Path, resolution: int | None, extractor: FeatureExtractor) -> Plan:
    if not path.exists():
        raise UserError(
            f"the reference {path} does not exist",
            expected="an ADM .npz, a folder, a latents folder or a data set",
            remedy="for ImageNet: VIRTUAL_imagenet256_labeled.npz of OpenAI's guided-diffusion evaluations",
        )
    if path.suffix != ".npz":
        images: ImageSource | None = open_images(path)
        stored = None
    else:
        with reading_npz(path) as archive:
            names = set(archive.files)
            features = str(archive["features"]) if "features" in names else "inception"
        stored = path if {"mu", "sigma"} <= names else None
        images = NpzImages(path) if "arr_0" in names else None
        if stored is None and images is None:
            raise UserError(f"{path} holds {', '.join(sorted(names)) or 'nothing'}", expected="arr_0, or mu and sigma")
        if stored is not None and features != _features_of(extractor):
            if images is None:
                raise UserError(
                    f"{path} holds statistics of {features} features, --features is {extractor.name}",
                    expected=f"a reference with images, or statistics of {_features_of(extractor)}",
                    remedy=f"mpdit eval-fid --features {extractor.name} --make-reference OUT.npz SOURCE",
                )
            stored = None
        if stored is not None:
            _check_stored(path, names)
    if images is not None and resolution is not None and images.resolution != resolution:
        raise UserError(
            f"the reference {path} is of {images.resolution} px, the samples of {resolution} px",
            expected="one resolution",
            remedy="take the reference made for this resolution",
        )
    size = images.resolution if images else None
    return Plan(images, stored, _cache_folder() / STORE, str(path), size, images.count if images else None)


def _features_of(extractor: FeatureExtractor) -> str:
    return "inception" if is_published(extractor) else f"{extractor.name} {extractor.fingerprint()}"


def _check_stored(path: Path, names: set[str]) -> None:
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean in names:
            shapes = [map_npz_member(path, n).shape for n in (mean, covariance) if n in names]
            if len(shapes) < 2 or shapes[1] != (*shapes[0], *shapes[0]):
                raise UserError(f"{path}: {mean} and {covariance} do not fit: {shapes}", expected="[F] and [F, F]")


def measure_reference(
    plan: Plan, extractor: FeatureExtractor, *, device: torch.device, world: World, rows: bool = True
) -> Iterator[Event]:
    """Yields progress and **returns** the `Reference`; from the cache where that is possible. All processes call it.

    Args:
        rows: whether features of single images are wanted (precision, recall, KID).
    """
    measured: Reference | None = None
    if plan.images is not None and (plan.stored is None or rows):
        key = hashlib.sha256(f"1 {extractor.fingerprint()} {plan.images.fingerprint()}".encode()).hexdigest()
        path = plan.cache.with_name(f"{plan.cache.stem}-{key[:16]}.safetensors")
        if plan.cache.parent.name != "references":  # a latents folder: one file, replaced when its key is another
            path = plan.cache
        measured = _read_store(path, key)
        if measured is None:
            measured = yield from _measure(plan, extractor, device=device, world=world, path=path, key=key)
    if plan.stored is not None:
        about = {"path": plan.name, "sha256": sha256(plan.stored), "kind": "stored statistics"}
        pool, spatial = _read_npz(plan.stored)
        return Reference(pool, spatial, measured.rows if measured else None, about)
    assert measured is not None
    return measured


def _measure(
    plan: Plan, extractor: FeatureExtractor, *, device: torch.device, world: World, path: Path, key: str
) -> Iterator[Event]:
    images = plan.images
    assert images is not None
    if images.count < 2:
        raise UserError(f"the reference {plan.name} has {images.count} image", expected="at least 2")
    chosen = np.sort(np.random.RandomState(0).permutation(images.count)[:ROWS])
    tally = Tally(images.count, keep=chosen.tolist(), device=device, folder=path.with_suffix(f".{key[:8]}.partial"))
    world.barrier()  # all have read what is there before the first writes anew
    done = int(tally.done_before.sum())
    try:
        for block in blocks(images.count, BATCH, rank=world.rank, processes=world.size):
            indices = tally.todo(block)
            if indices:
                tally.add(indices, extract(extractor, images.batch(indices).to(device)))
                done = min(done + len(indices) * world.size, images.count)
                yield Progress(task="reference", done=done, total=images.count, unit="images")
    except BaseException:
        tally.save()
        raise
    tally.finish(world)
    about = {
        **images.describe(),
        "sha256": images.fingerprint(),
        "count": images.count,
        "rows": len(chosen),
        "extractor": extractor.fingerprint(),
    }
    reference = Reference(tally.gaussian(), tally.spatial_gaussian(), tally.kept_rows(), about)
    if world.is_main:
        _write_store(path, key, reference)
    world.barrier()
    if world.is_main:
        tally.remove()
    return reference


def _write_store(path: Path, key: str, reference: Reference) -> None:
    tensors = {"pool.mean": reference.pool.mean, "pool.covariance": reference.pool.covariance}
    if reference.spatial is not None:
        tensors |= {"spatial.mean": reference.spatial.mean, "spatial.covariance": reference.spatial.covariance}
    if reference.rows is not None:
        tensors["rows"] = reference.rows
    metadata = {"format": "1", "key": key, "count": str(reference.pool.count), "about": json.dumps(reference.about)}
    with writing(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata=metadata)


def _read_store(path: Path, key: str) -> Reference | None:
    """The stored reference, if it is there, whole and of this key."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (FileNotFoundError, SafetensorError, OSError):
        return None
    count = int(metadata["count"])
    spatial = None
    if "spatial.mean" in tensors:
        spatial = Gaussian(count, tensors["spatial.mean"], tensors["spatial.covariance"])
    pool = Gaussian(count, tensors["pool.mean"], tensors["pool.covariance"])
    return Reference(pool, spatial, tensors.get("rows"), json.loads(metadata["about"]))


def _read_npz(path: Path) -> tuple[Gaussian, Gaussian | None]:
    with reading_npz(path) as archive:
        count = int(archive["count"]) if "count" in archive.files else 2**31  # ADM's do not say: the whole data set
        tensors = {
            name: torch.from_numpy(np.asarray(archive[name], dtype=np.float64))
            for name in ("mu", "sigma", "mu_s", "sigma_s")
            if name in archive.files
        }
    spatial = Gaussian(count, tensors["mu_s"], tensors["sigma_s"]) if "mu_s" in tensors else None
    return Gaussian(count, tensors["mu"], tensors["sigma"]), spatial


def write_npz(path: Path, reference: Reference, plan: Plan, extractor: FeatureExtractor) -> None:
    """An ADM-compatible file: mu, sigma, mu_s, sigma_s of all images, arr_0 with those that precision/recall uses."""
    assert plan.images is not None
    count = plan.images.count
    chosen = np.sort(np.random.RandomState(0).permutation(count)[:ROWS])
    pictures = np.concatenate(
        [
            plan.images.batch(part.tolist()).permute(0, 2, 3, 1).numpy()
            for part in np.array_split(chosen, -(-len(chosen) // BATCH))
        ]
    )
    arrays: dict[str, Any] = {
        "arr_0": pictures,
        "mu": reference.pool.mean.numpy(),
        "sigma": reference.pool.covariance.numpy(),
        "count": np.int64(count),
        "features": np.str_(_features_of(extractor)),
    }
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean.numpy(), "sigma_s": reference.spatial.covariance.numpy()}
    with writing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _cache_folder() -> Path:
    base = os.environ.get("MPDIT_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")) + "/mpdit"
    return Path(base) / "references"
