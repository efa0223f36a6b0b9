"""Importing latents that other programs made, without encoding again: `--from-latents DIR`.

Three layouts are known:

    NAME_features/0.npy, NAME_labels/0.npy    one pair of files per image, with one name (DiT, fast-DiT, SiT)
    dataset.json and *.npy                    {"labels": [["00000/img-mean-std-0.npy", 3], …]} (EDM2, REPA)
    *.safetensors or *.npz                    shards with `latents`, `labels`, perhaps `latents_flip` (LightningDiT)

A file holds draws from the posterior, [C, h, w] each, or [2C, h, w]: the mean, then the standard deviation or, where
some of its values are negative, the logarithm of the variance. Shapes: n images, C channels of the autoencoder.

To add a layout: a function in `LAYOUTS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpdit_core.data.manifest import AutoencoderSpec, EncodingPlan
from mpdit_core.data.shards import ShardContent
from mpdit_core.data.sources import MAX_CLASSES, natural_order
from mpdit_core.encoding.pipeline import Encoded
from mpdit_core.errors import UserError
from mpdit_core.runtime.checked_tensors import opened
from mpdit_core.runtime.files import read_json
from mpdit_core.runtime.npz import map_member, member_names
from mpdit_core.size import Size

ALL = slice(0, None)
FIRST_LATENTS = 64  # latents, by whose values the format is detected


@dataclass(frozen=True)
class ForeignLatents:
    """Latents in `files`, `counts[i]` of them in file i, and their labels int64 [n]."""

    folder: Path
    files: list[Path]
    counts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, start: int, stop: int) -> list[Tensor]:
        """Latents `start` to `stop` as they are stored, float32 [n, K, h, w]; then those of mirror images, if any.

        Raises:
            UserError: a file is damaged, or its shape differs from those before it (`damaged-file`).
        """
        ends = np.cumsum(self.counts)
        parts = []
        for number in range(int(np.searchsorted(ends, start, side="right")), len(self.files)):
            first = int(ends[number] - self.counts[number])
            if first >= stop:
                break
            rows = slice(max(start - first, 0), min(stop - first, int(self.counts[number])))
            parts.append(_read(self.files[number], rows))
        try:
            return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        except (RuntimeError, ValueError) as error:
            raise _damaged(self.folder, f"latents of several shapes among {start} to {stop}") from error

    def fingerprint(self) -> str:
        """Hash of names, sizes, times of change and labels, as for a folder of images."""
        digest = hashlib.sha256()
        for path in self.files:
            about = path.stat()
            digest.update(f"{path.relative_to(self.folder)} {about.st_size} {about.st_mtime_ns}\n".encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class LatentFormat:
    """What the latents in the files are: the spec of their autoencoder, and `text`, a description for the user."""

    autoencoder: AutoencoderSpec
    size: Size  # h × w
    has_flips: bool
    is_log_variance: bool
    scale: float  # factor that raw latents were multiplied by
    text: str


def find_foreign_latents(folder: Path) -> ForeignLatents:
    """The latents in `folder`, in one of the known layouts.

    Raises:
        UserError: there are none (`no-latents`), labels are missing (`no-labels`), or a file is damaged.
    """
    folder = folder.expanduser().absolute()
    layouts = LAYOUTS if folder.is_dir() else ()
    found = next((pairs for layout in layouts if (pairs := layout(folder))), [])
    labels = np.concatenate([given for _, given in found]) if found else np.empty(0)
    if not len(labels):
        raise UserError(
            f"{folder} holds no latents in a known layout" if folder.is_dir() else f"{folder} does not exist",
            code="no-latents",
            expected="NAME_features/ beside NAME_labels/, .npy files with dataset.json, or .npz or .safetensors shards "
            "with latents and labels",
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise _damaged(folder, f"labels that are not integers from 0 to {MAX_CLASSES - 1}")
    counts = np.array([len(given) for _, given in found])
    return ForeignLatents(folder, [path for path, _ in found], counts, labels.astype("<i8"))


def detect_format(found: ForeignLatents, spec: AutoencoderSpec, *, scale: float | None) -> LatentFormat:
    """What the latents in the files are, as the first ones show.

    Args:
        scale: factor that raw latents were multiplied by; None: not given.

    Raises:
        UserError: they are not of this autoencoder (`other-shape`), or `scale` is not given (`scale-not-known`).
    """
    first, *flips = found.read(0, min(FIRST_LATENTS, len(found)))
    channels, height, width = first.shape[1:]
    if channels not in (spec.channels, 2 * spec.channels):
        raise UserError(
            f"{found.folder} holds latents {channels} × {height} × {width}",
            code="other-shape",
            expected=f"{spec.channels} channels, or {2 * spec.channels} with standard deviations, of {spec.id}",
            remedy="--autoencoder ID, with the autoencoder that they were made with",
        )
    std = first[:, : spec.channels].std().item()
    if scale is None:
        raise UserError(
            f"{found.folder} does not state how its latents are scaled; their standard deviation is {std:.3g}",
            code="scale-not-known",
            expected="the factor that the raw latents were multiplied by: about 1 / their standard deviation if the "
            "standard deviation is near 1",
            remedy="--latents-scale 0.18215 for DiT's and SiT's files of Stable Diffusion's autoencoder; "
            "--latents-scale 1 for raw latents, such as EDM2's, REPA's and LightningDiT's",
        )
    has_std = channels == 2 * spec.channels
    is_log_variance = has_std and bool((first[:, spec.channels :] < 0).any())
    second = "logarithms of variances" if is_log_variance else "standard deviations"
    what = f"means and {second}" if has_std else "one draw per image"
    return LatentFormat(
        autoencoder=spec.model_copy(update={"stores": "mean+std" if has_std else "mean"}),
        size=Size(height, width),
        has_flips=bool(flips),
        is_log_variance=is_log_variance,
        scale=scale,
        text=f"{len(found):,} latents {spec.channels} × {height} × {width}: {what}, divided by {scale:g} "
        f"(standard deviation {std:.3g} before, {std / scale:.3g} after)",
    )


def import_shards(
    found: ForeignLatents, latent_format: LatentFormat, plan: EncodingPlan, shards: Sequence[int]
) -> Iterator[Encoded]:
    """The content of `shards`, one after the other, as raw latents.

    Raises:
        UserError: a file is damaged, or holds latents of another kind than the first (`damaged-file`).
    """
    scale, kind = latent_format.scale, [plan.stored_shape] * len(plan.tensor_names)
    for number in shards:
        start, stop = plan.shard_range(number)
        read, tensors = found.read(start, stop), {}
        if [tuple(stored.shape[1:]) for stored in read] != kind:
            raise _damaged(found.folder, f"latents {start} to {stop} have another shape than the first, or no flips")
        for name, stored in zip(plan.tensor_names, read, strict=True):
            if latent_format.is_log_variance:  # of raw latents: programs that store it scale only the draw
                mean, log_variance = stored.chunk(2, dim=1)
                stored = torch.cat([mean, (log_variance / 2).exp() * scale], dim=1)
            tensors[name] = (stored / scale).to(torch.float16).numpy()
        yield Encoded(stop - start, [], ShardContent(number, tensors, found.labels[start:stop], []))


LabelledFiles = list[tuple[Path, np.ndarray]]
"""Files in order, each with the labels [n] of its n latents."""


def _pairs(folder: Path) -> LabelledFiles:
    """`NAME_features/0.npy` beside `NAME_labels/0.npy`, paired by name."""
    folders = sorted(folder.glob("*_features"))
    if not folders:
        return []
    features, found = folders[0], []
    labels = features.with_name(features.name.removesuffix("_features") + "_labels")
    for path in sorted(features.glob("*.npy"), key=lambda path: natural_order(path.name)):
        given = labels / path.name
        if not given.is_file():
            raise _no_labels(given)
        found.append((path, _array(given).reshape(-1)))
    return found


def _listed(folder: Path) -> LabelledFiles:
    """`dataset.json` with the label of each `.npy`."""
    table = folder / "dataset.json"
    if not table.is_file():
        return []
    values = read_json(table)
    rows = values.get("labels") if isinstance(values, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and type(row[1]) is int for row in rows
    ):
        raise _no_labels(table)
    root = folder.resolve()
    outside = [name for name, _ in rows if not (folder / name).resolve().is_relative_to(root)]
    if outside:
        raise _damaged(table, f"it names {outside[0]}, which is outside the folder")
    return [(folder / name, np.array([label])) for name, label in rows]


def _shards(folder: Path) -> LabelledFiles:
    """`.safetensors` and `.npz` files with `latents` and `labels`."""
    files = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".npz"))
    found = [(path, _read_named(path, "labels")) for path in sorted(files, key=lambda path: natural_order(str(path)))]
    return [(path, labels.numpy().reshape(-1)) for path, labels in found if labels is not None]


LAYOUTS: tuple[Callable[[Path], LabelledFiles], ...] = (_pairs, _listed, _shards)


def _read(path: Path, rows: slice) -> list[Tensor]:
    """`rows` of the latents in a file, float32 [n, K, h, w]; then of its `latents_flip`, where it has them."""
    if path.suffix == ".npy":
        array = _array(path)
        found = [torch.from_numpy(np.array(np.atleast_1d(array[None] if array.ndim == 3 else array)[rows], np.float32))]
    else:
        named = (_read_named(path, "latents", rows), _read_named(path, "latents_flip", rows))
        found = [tensor.float() for tensor in named if tensor is not None]
    count = rows.stop - rows.start
    if not found or any(tensor.ndim != 4 or len(tensor) != count for tensor in found):
        shapes = [list(tensor.shape) for tensor in found]
        raise _damaged(path, f"it holds {shapes} from latent {rows.start} on, not {count} latents")
    return found


def _read_named(path: Path, name: str, rows: slice = ALL) -> Tensor | None:
    """`rows` of one tensor of a shard; None where it has no tensor of this name. Other tensors are not read."""
    if path.suffix == ".safetensors":
        with opened(path) as file:
            return file.get_slice(name)[rows.start : rows.stop] if name in file.keys() else None  # noqa: SIM118
    return (
        torch.from_numpy(np.array(np.atleast_1d(map_member(path, name))[rows])) if name in member_names(path) else None
    )


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from error


def _no_labels(path: Path) -> UserError:
    return UserError(
        f"{path} gives no labels, or does not exist", code="no-labels", expected="the label of each file of latents"
    )


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}", code="damaged-file", expected="unchanged latents and labels")
