"""What samples are compared with: ADM's `.npz`, a folder of images, a data set, or the source of a latents folder.

A `Reference` is the Gaussian of all its images, and the pool features of at most 10,000 of them for precision and
recall (ADM's `arr_0` holds as many). It is measured once and kept in the latents folder's `reference.safetensors`, or
in the user's cache, under a key of the format version, the extractor's weights and the data's fingerprint.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpdit_core.api import FeatureExtractor
from mpdit_core.data.manifest import MANIFEST, read_manifest
from mpdit_core.data.sources import open_source
from mpdit_core.errors import UserError
from mpdit_core.evaluation.collecting import Collector, FinishedBlocks
from mpdit_core.evaluation.images import (
    DatasetImages,
    FolderImages,
    ImageSource,
    NpzImages,
    open_images,
)
from mpdit_core.evaluation.record import ReferenceRecord
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.features import extract, features_name
from mpdit_core.metrics.statistics import Gaussian
from mpdit_core.reporting import Note, Reporter, Warning, silent
from mpdit_core.runtime.checked_tensors import read_checked, write_checked
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.files import sha256, writing
from mpdit_core.runtime.locks import locked
from mpdit_core.runtime.npz import map_member, member_names

FORMAT = "3"
"""Version of the stored reference; one of another version is measured again."""

ROWS = 10_000
STORE = "reference.safetensors"
BATCH = 64
SECONDS_TO_WAIT = 6 * 3600.0  # for another process that measures the same reference
LOOKED_AT = 8  # images of a folder or data set whose size is checked
UNKNOWN_COUNT = 2**31  # images behind statistics that do not say: a whole data set


@dataclass(frozen=True)
class Reference:
    """Statistics of the real images. `about` goes into the record of an evaluation."""

    pool: Gaussian
    spatial: Gaussian | None
    rows: Tensor | None  # [≤ 10,000, F] float32
    about: ReferenceRecord


@dataclass(frozen=True)
class Plan:
    """A reference that was found and checked, but not measured yet."""

    images: ImageSource | None  # None: statistics only
    stored: Path | None  # an ADM-style npz with mu and sigma
    cache: Path
    name: str

    @property
    def count(self) -> int | None:
        """Number of images, where it is known without measuring."""
        return self.images.count if self.images else None

    def fingerprint(self) -> str:
        """Changes with the reference's content: its pictures, and its stored statistics."""
        images = self.images.fingerprint if self.images else ""
        return hashlib.sha256(f"{images} {sha256(self.stored) if self.stored else ''}".encode()).hexdigest()


def plan_reference(
    given: str, *, resolution: int | None, extractor: FeatureExtractor, typed: bool = True, trust: bool = False
) -> Plan:
    """Finds the reference and checks everything that can be known without measuring it.

    Args:
        given: an `.npz`, a `.safetensors`, a folder (of images, of class folders, or of latents), or a data set.
        resolution: side of the samples in pixels; folders and data sets are cropped and resized to it.
        extractor: loaded.
        typed: whether the user typed `given`; else it was read from a file.
        trust: whether a name that was read from a file may be code.

    Raises:
        UserError: missing, of another resolution, or with statistics of other features than `extractor`'s.
    """
    path = Path(given).expanduser()
    if path.is_dir() and (path / MANIFEST).is_file():
        return _plan_latents(path, resolution, trust=trust)
    is_folder = path.is_dir() or path.suffix == ".tar"
    if path.suffix in (".npz", ".safetensors") or (path.is_file() and not is_folder):
        return _plan_file(path, resolution, extractor)
    if resolution is None:
        raise UserError(
            f"{given} has no resolution of its own",
            code="no-resolution",
            expected="the side in pixels to crop and resize it to",
            remedy="--resolution N",
        )
    if is_folder and path.exists():
        images: ImageSource = FolderImages(path, resolution)
    else:
        images = DatasetImages(open_source(given, trusted=typed or trust), resolution, given)
    _refuse_enlarging(images, given)
    return Plan(images, None, _cache_folder() / STORE, given)


def _refuse_enlarging(images: FolderImages | DatasetImages, given: str) -> None:
    """Raises `UserError` where the first images are all smaller than the samples: enlarged they are blurred."""
    sides = [min(images.picture(index).size) for index in range(min(LOOKED_AT, images.count))]
    if max(sides) < images.resolution:
        raise _other_resolution(given, max(sides), images.resolution)


def _other_resolution(name: str | Path, there: int, wanted: int) -> UserError:
    return UserError(
        f"the reference {name} has {there} px, the samples have {wanted} px",
        code="other-resolution",
        expected="a reference at the samples' resolution, or larger images to crop and resize",
        remedy="choose another --reference",
    )


def _plan_latents(path: Path, resolution: int | None, *, trust: bool) -> Plan:
    manifest = read_manifest(path)
    source = manifest.plan.source
    if resolution is not None and resolution != manifest.plan.resolution:
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
            expected=source.given,
            remedy="restore them, or choose another --reference",
        ) from error
    skipped = frozenset(item.key for item in manifest.skipped)
    images = DatasetImages(dataset, manifest.plan.resolution, source.given, skipped)
    return Plan(images, None, path / STORE, source.given)


def _plan_file(path: Path, resolution: int | None, extractor: FeatureExtractor) -> Plan:
    if not path.exists():
        raise UserError(
            f"the reference {path} does not exist",
            code="no-such-file",
            expected="an ADM .npz, a folder, a latents folder or a data set",
            remedy="for ImageNet: VIRTUAL_imagenet256_labeled.npz of OpenAI's guided-diffusion evaluations",
        )
    if path.suffix != ".npz":
        images: ImageSource | None = open_images(path)
        stored = None
    else:
        names = set(member_names(path))
        features = str(map_member(path, "features")) if "features" in names else "inception"
        stored = path if {"mu", "sigma"} <= names else None
        images = NpzImages(path) if "arr_0" in names else None
        if stored is None and images is None:
            held = ", ".join(sorted(names)) or "nothing"
            raise UserError(f"{path} holds {held}", code="no-images", expected="arr_0, or mu and sigma")
        if stored is not None and features != features_name(extractor):
            if images is None:
                raise UserError(
                    f"{path} holds statistics of {features} features; these features are {extractor.name}",
                    code="other-features",
                    expected=f"a reference with images, or statistics of {features_name(extractor)}",
                    remedy=f"mpdit eval-fid SOURCE --features {extractor.name} --make-reference OUT.npz",
                )
            stored = None
        if stored is not None:
            _check_stored(path)
    if images is not None and resolution is not None and images.resolution != resolution:
        raise _other_resolution(path, images.resolution, resolution)
    return Plan(images, stored, _cache_folder() / STORE, str(path))


STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))
"""Names of mean and covariance in an ADM-style npz: of pool features, and of spatial ones, where there are any."""


def _check_stored(path: Path) -> None:
    names = member_names(path)
    for mean, covariance in STATISTICS:
        if mean in names:
            found = [map_member(path, name) for name in (mean, covariance)]
            sizes = [list(array.shape) for array in found]
            if len(sizes[0]) != 1 or sizes[1] != sizes[0] * 2 or any(array.dtype.kind != "f" for array in found):
                raise UserError(
                    f"{path}: {mean} and {covariance} are {found[0].dtype} {sizes[0]} and {found[1].dtype} {sizes[1]}",
                    code="damaged-file",
                    expected="[F] and [F, F], of floats",
                )
            if not all(np.isfinite(array).all() for array in found):
                raise UserError(f"{path}: {mean} or {covariance} has values that are not finite", code="damaged-file")


def check_size(plan: Plan, extractor: FeatureExtractor, device: torch.device) -> None:
    """Raises `UserError` where stored statistics have another number of features than `extractor` computes."""
    if plan.stored is None:
        return
    found = extract(extractor, torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device))
    for name, rows in (("mu", found.pool), ("mu_s", found.spatial)):
        size = len(map_member(plan.stored, name)) if name in member_names(plan.stored) else None
        if rows is not None and size is not None and size != rows.shape[1]:
            raise UserError(
                f"{plan.stored}: {name} has {size} features; {extractor.name} computes {rows.shape[1]}",
                code="other-features",
                expected="statistics of the same features",
                remedy="a reference made with these features: mpdit eval-fid SOURCE --make-reference OUT.npz",
            )


def measure_reference(
    plan: Plan,
    extractor: FeatureExtractor,
    *,
    device: torch.device,
    world: World | None = None,
    report: Reporter = silent,
    rows: bool = True,
) -> Reference:
    """The measured reference, from the cache where it is there. All processes of `world` call it.

    Args:
        rows: whether features of single images are needed (precision, recall, KID).

    Raises:
        UserError: an image that cannot be read, or another process measures this reference for hours.
    """
    world = world or World()
    measured: Reference | None = None
    if plan.images is not None and (plan.stored is None or rows):
        measured = _Measuring(plan, plan.images, extractor, device, world, report).run()
    if plan.stored is None:
        assert measured is not None
        return measured
    pool, spatial = _read_npz(plan.stored)
    about = ReferenceRecord(
        kind="stored statistics",
        path=plan.name,
        sha256=sha256(plan.stored),
        count=None if pool.count == UNKNOWN_COUNT else pool.count,
        rows=measured.about.rows if measured else 0,
        extractor=extractor.fingerprint(),
    )
    return Reference(pool, spatial, measured.rows if measured else None, about)


@dataclass(frozen=True)
class _Measuring:
    """A reference measured from its images, or read from where that was done before."""

    plan: Plan
    images: ImageSource
    extractor: FeatureExtractor
    device: torch.device
    world: World
    report: Reporter

    def run(self) -> Reference:
        key = hashlib.sha256(f"{FORMAT} {self.extractor.fingerprint()} {self.images.fingerprint}".encode()).hexdigest()
        shared = _cache_folder() / f"reference-{key[:16]}.safetensors"
        places = [shared] if self.plan.cache.parent == shared.parent else [self.plan.cache, shared]
        found = self._stored(places, key)
        if found is not None:
            return found
        writable = [p for p in places if _may_write_in(p.parent)] if self.world.is_main else []
        path = self.world.broadcast_object(writable[0] if writable else shared)
        partial = path.with_suffix(f".{key[:8]}.partial")
        with _one_at_a_time(partial, self.world, self.report):
            found = self._stored([path], key)  # another command may have measured it while we waited
            if found is None:
                self._measure(path, key, partial)
                found = self._stored([path], key)
        assert found is not None
        return found

    def _stored(self, places: Sequence[Path], key: str) -> Reference | None:
        """The reference of this key in the first of the `places` that has it; the same in every process."""
        found = None
        if self.world.is_main:
            for path in places:
                try:
                    found = found or _read_store(path, key)
                except UserError as error:
                    text = f"{error.what}: the reference is measured again"
                    self.report(Warning(code="damaged-reference", text=text))
        return self.world.broadcast_object(found)

    def _measure(self, path: Path, key: str, partial: Path) -> None:
        count = self.images.count
        if count < 2:
            raise UserError(
                f"the reference {self.plan.name} has {count} image", code="too-few-images", expected="at least 2"
            )
        chosen = chosen_rows(count)
        accumulator = FeatureAccumulator(count, keep=chosen.tolist(), device=self.device)
        collector = Collector(
            blocks=FinishedBlocks(self.images, count),
            extractor=self.extractor,
            accumulator=accumulator,
            folder=partial,
            world=self.world,
            report=self.report,
            task="reference",
            needs_logits=False,
        )
        collector.run()
        if self.world.is_main:
            described = self.images.describe().model_dump()
            about = ReferenceRecord(**described, count=count, rows=len(chosen), extractor=self.extractor.fingerprint())
            found = Reference(accumulator.gaussian(), accumulator.spatial_gaussian(), accumulator.kept_rows(), about)
            _write_store(path, key, found)
            collector.progress.remove()
        self.world.barrier()


@contextmanager
def _one_at_a_time(partial: Path, world: World, report: Reporter) -> Iterator[None]:
    """Holds `partial`; where another command measures the same reference, waits for it first."""
    if not world.is_main:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(partial))
        except UserError as error:
            if error.code != "folder-in-use":
                raise
            report(Note(text="another command is measuring this reference: waiting for it"))
            stack.enter_context(locked(partial, seconds=SECONDS_TO_WAIT))
        yield
    with suppress(OSError):
        partial.rmdir()


def chosen_rows(count: int) -> np.ndarray:
    """Indices of the images whose features are kept: 10,000 drawn at random, always the same; all of fewer."""
    return np.sort(np.random.RandomState(0).permutation(count)[:ROWS])


def _write_store(path: Path, key: str, reference: Reference) -> None:
    tensors = {"pool.mean": reference.pool.mean, "pool.covariance": reference.pool.covariance}
    if reference.spatial is not None:
        tensors |= {"spatial.mean": reference.spatial.mean, "spatial.covariance": reference.spatial.covariance}
    if reference.rows is not None:
        tensors["rows"] = reference.rows
    about = reference.about.model_dump_json()
    metadata = {"key": key, "count": str(reference.pool.count), "about": about}
    write_checked(path, tensors, metadata)


def _read_store(path: Path, key: str) -> Reference | None:
    """The stored reference; None where there is none of this key. Raises `UserError` where it is damaged."""
    if not path.exists():
        return None
    tensors, about = read_checked(path)
    if about.get("key") != key:
        return None
    count = int(about["count"])
    pool, spatial = (
        Gaussian(count, tensors[f"{name}.mean"], tensors[f"{name}.covariance"]) if f"{name}.mean" in tensors else None
        for name in ("pool", "spatial")
    )
    assert pool is not None
    return Reference(pool, spatial, tensors.get("rows"), ReferenceRecord.model_validate_json(about["about"]))


def _may_write_in(folder: Path) -> bool:
    """Whether files can be made in `folder`, which exists or can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _read_npz(path: Path) -> tuple[Gaussian, Gaussian | None]:
    names = member_names(path)
    count = int(map_member(path, "count")) if "count" in names else UNKNOWN_COUNT
    tensors = {
        name: torch.from_numpy(np.array(map_member(path, name), dtype=np.float64))
        for pair in STATISTICS
        for name in pair
        if name in names
    }
    spatial = Gaussian(count, tensors["mu_s"], tensors["sigma_s"]) if "mu_s" in tensors else None
    return Gaussian(count, tensors["mu"], tensors["sigma"]), spatial


def write_npz(path: Path, reference: Reference, plan: Plan, extractor: FeatureExtractor) -> None:
    """An ADM-compatible file: mu, sigma, mu_s, sigma_s of all images, arr_0 with those that precision/recall uses."""
    assert plan.images is not None
    count = plan.images.count
    chosen = chosen_rows(count)
    images = np.concatenate(
        [
            plan.images.batch(part.tolist()).permute(0, 2, 3, 1).numpy()
            for part in np.array_split(chosen, -(-len(chosen) // BATCH))
        ]
    )
    arrays: dict[str, Any] = {
        "arr_0": images,
        "mu": reference.pool.mean.numpy(),
        "sigma": reference.pool.covariance.numpy(),
        "count": np.int64(count),
        "features": np.str_(features_name(extractor)),
    }
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean.numpy(), "sigma_s": reference.spatial.covariance.numpy()}
    with writing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _cache_folder() -> Path:
    base = os.environ.get("MPDIT_CACHE") or os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")) + "/mpdit"
    return Path(base) / "references"
