"""Images to evaluate from a set of samples that `sample` wrote, without its grid; and from a folder of latents.

The images of a set come in order of their index, whatever folders they are in. So the Inception Score has the same
chunks as in an evaluation of the model itself, and the same seed and options give the same metrics in both cases. The
decoded images of a folder of latents, measured against the images that it was made from, give rFID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mpdit_core.data.autoencoders import as_rgb, load_autoencoder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.data.sources import find_images
from mpdit_core.data.standardising import unstandardise
from mpdit_core.errors import UserError
from mpdit_core.evaluation.images import Batch, ImageSource, are_sorted, image_files, npz_images
from mpdit_core.evaluation.record import ImagesRecord
from mpdit_core.runtime.checked_tensors import opened
from mpdit_core.runtime.files import sha256
from mpdit_core.sampling import WRITERS, SampleSet


def images_of(samples: SampleSet, device: torch.device) -> ImageSource:
    """The images of a complete set of samples.

    Args:
        device: where latents are decoded.

    Raises:
        UserError: the set is not complete, images are missing, or its latents have no known autoencoder.
    """
    path, result = samples.path, samples.path / WRITERS[samples.format].result_name
    if not samples.complete:
        raise UserError(
            f"{path} is not complete",
            code="not-complete",
            expected=f"all {samples.num_samples} images",
            remedy="run the same `mpdit sample` command again; it resumes",
        )
    if samples.format == "npz":
        images = npz_images(result)
    elif samples.format == "png":
        images = _numbered_images(result, samples.num_samples)
    elif samples.latents is not None:
        images = _decoded_latents(result, samples.latents, device)
    else:
        raise UserError(
            f"{path} holds latents, and its record does not state their autoencoder",
            code="no-autoencoder",
            expected="images, or latents of a model that states its autoencoder",
            remedy="mpdit sample --format png or npz, or mpdit eval-fid MODEL",
        )
    if images.count != samples.num_samples:
        raise _incomplete(path, f"{images.count} images", f"{samples.num_samples}, as its record says")
    kind = f"{samples.format} by mpdit sample"
    about = images.about.model_copy(update={"kind": kind, "order": "by index"})
    return replace(images, about=about, sorted_by_class=False)  # by index, classes come in turn


def _numbered_images(path: Path, count: int) -> ImageSource:
    """Images in order of the index in their file names. With one folder per class, paths have another order."""
    files = sorted(find_images(path).images, key=lambda file: _number(file.parts[-1]))
    if [_number(file.parts[-1]) for file in files] != list(range(count)):
        raise _incomplete(path, "other files than its images", f"images 0 to {count - 1}, each once")
    return image_files(path, files)


def _number(name: str) -> int:
    """The number in the name of an image's file; -1 where the name is not a number."""
    stem = name.partition(".")[0]
    return int(stem) if stem.isdecimal() else -1


def _decoded_latents(path: Path, spec: LatentSpec, device: torch.device) -> ImageSource:
    """The latents in the files of a set of samples, decoded when they are read."""
    files = sorted(path.glob("*.safetensors"))
    places: dict[int, tuple[Path, int, int]] = {}  # index → file, row in it, label
    for file in files:
        indices, labels = (tensor.reshape(-1).tolist() for tensor in _read(file, "indices", "labels"))
        for row, (index, label) in enumerate(zip(indices, labels, strict=False)):
            places[index] = (file, row, int(label))
    count = len(places)
    if sorted(places) != list(range(count)):
        raise _incomplete(path, "some of its latents", "all of them, each once")

    def raw_latents(indices: Sequence[int]) -> Tensor:
        wanted = [places[index] for index in indices]
        stored = {file: _read(file, "latents")[0] for file in {file for file, _, _ in wanted}}
        latents = torch.stack([stored[file][row] for file, row, _ in wanted])
        return unstandardise(latents.to(device), spec.normalisation)

    return ImageSource(
        about=ImagesRecord(kind="latents", path=str(path)),
        count=count,
        resolution=spec.resolution,
        batch=_decoding(raw_latents, spec, device),
        hash_content=lambda: _hash(spec, "".join(map(sha256, files))),
        labels=[places[index][2] for index in range(count)],
    )


def _read(file: Path, *names: str) -> list[Tensor]:
    with opened(file) as tensors:
        return [tensors.get_tensor(name) for name in names]


def reconstructed_images(folder: LatentFolder, device: torch.device, *, trust: bool = False) -> ImageSource:
    """The latents of a finished folder (the means of their posteriors), decoded when they are read.

    Args:
        trust: whether the autoencoder that the folder names may be code that is not installed.
    """
    spec = folder.spec
    labels = folder.labels.tolist()
    return ImageSource(
        about=ImagesRecord(kind="decoded latents", path=str(folder.path), order="as in the folder"),
        count=len(folder),
        resolution=spec.resolution,
        batch=_decoding(lambda indices: folder.batch(indices).mean, spec, device, trust=trust),
        hash_content=lambda: _hash(spec, " " + " ".join(shard.sha256 for shard in folder.manifest.shards)),
        labels=labels,
        sorted_by_class=are_sorted(labels),
    )


def _decoding(
    raw_latents: Callable[[Sequence[int]], Tensor], spec: LatentSpec, device: torch.device, *, trust: bool = False
) -> Batch:
    """Decodes `raw_latents` [n, C, h, w] of the images that are asked for. The first call loads the autoencoder."""
    autoencoder = cache(lambda: load_autoencoder(spec.autoencoder, device=device, trust=trust))
    return lambda indices: as_rgb(autoencoder().decode(raw_latents(indices)).cpu())


def _hash(spec: LatentSpec, hashes: str) -> str:
    """A hash that changes with the autoencoder, and with `hashes` of the latents."""
    return hashlib.sha256((spec.autoencoder.model_dump_json() + hashes).encode()).hexdigest()


def _incomplete(path: Path, found: str, expected: str) -> UserError:
    return UserError(
        f"{path} holds {found}",
        code="not-complete",
        expected=expected,
        remedy="sample again into another folder, or evaluate the folder images/ in it alone",
    )
