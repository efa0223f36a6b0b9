"""Teachers, which give the features that are stored beside latents, for the objective `alignment`.

A teacher is a feature extractor with a map (`mpdit_core.api.Teacher`), or `latents`: the latents themselves, which need
no second network. To add one: a plugin in the group `mpdit.features` with the method `feature_map`.

Shapes: features [n, N, F] of n images, N tokens of the stored grid, row by row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.data.autoencoders import LoadedAutoencoder, as_rgb
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import EncodingPlan, TeacherPlan, normalisation_of
from mpdit_core.data.shards import ShardContent
from mpdit_core.data.standardising import standardise
from mpdit_core.encoding.options import EncodeOptions
from mpdit_core.encoding.pipeline import Encoded, Encoder, encode_shards
from mpdit_core.encoding.reconstruction import pick_images
from mpdit_core.errors import UserError
from mpdit_core.metrics.features import load_extractor
from mpdit_core.plugins import broken, plugin_errors
from mpdit_core.protocols import Dataset, Teacher
from mpdit_core.runtime.concurrency import usable_cores
from mpdit_core.runtime.precision import computing_in
from mpdit_core.size import Size

LATENTS = "latents"  # the teacher that needs no network
READ_AT_ONCE = 256  # images


def open_teacher(
    options: EncodeOptions, plan: EncodingPlan, source: Dataset | None, autoencoder: LoadedAutoencoder
) -> LoadedTeacher | None:
    """The teacher that `options` ask for, for latents of `plan`; None where they ask for none.

    Raises:
        UserError: options of a teacher without a teacher, or a teacher that needs images where there are none
            (`option-does-not-apply`); a plugin without a map (`no-teacher`); a grid that does not fit the latents
            (`grid-does-not-fit`); more dimensions than features (`invalid-value`).
    """
    name, patch, dims = options.teacher, options.teacher_patch_size, options.teacher_dims
    if name is None:
        given = [name for name in sorted(options.model_fields_set) if "teacher" in name and getattr(options, name)]
        if given:
            raise UserError(
                f"the option {given[0]} needs a teacher",
                code="option-does-not-apply",
                expected="the name of a teacher too",
                remedy="--teacher NAME",
            )
        return None
    channels, *sides = plan.latent_shape
    size = Size(*sides)
    if not size.is_multiple(patch):
        raise UserError(
            f"tokens of {patch} × {patch} latent pixels do not divide latents of {size.height} × {size.width}",
            code="grid-does-not-fit",
            expected="a number that divides both sides: the patch size of the model's last coarse stage",
            remedy="--teacher-patch-size P",
        )
    grid = size // patch
    has_flips = plan.flip or plan.autoencoder.flip_equivariant  # training can ask for mirror images
    if name == LATENTS:
        features = channels * patch**2
        teacher = LatentsTeacher(
            TeacherPlan(name=name, fingerprint=plan.fingerprint(), grid=grid, features=features, flip=has_flips)
        )
    else:
        teacher = _open_extractor(name, options, plan, source, autoencoder, grid=grid, has_flips=has_flips)
    if dims is None:
        return teacher
    if dims >= teacher.plan.features:
        raise UserError(
            f"{dims} dimensions are not fewer than the {teacher.plan.features} features per token of {name}",
            code="invalid-value",
            expected=f"1 to {teacher.plan.features - 1}",
            remedy="without --teacher-dims all features are stored",
        )
    return replace(teacher, plan=teacher.plan.model_copy(update={"features": dims}))


def _open_extractor(
    name: str,
    options: EncodeOptions,
    plan: EncodingPlan,
    source: Dataset | None,
    autoencoder: LoadedAutoencoder,
    *,
    grid: Size,
    has_flips: bool,
) -> ImageTeacher:
    if source is None:
        raise UserError(
            f"the teacher {name} needs images, but only latents of another program are given",
            code="option-does-not-apply",
            expected="a teacher that needs no images",
            remedy=f"--teacher {LATENTS}",
        )
    extractor = load_extractor(name, device=autoencoder.device, options=options.teacher_options)
    if not isinstance(extractor, Teacher):
        raise UserError(
            f"the features {name} give no map, only numbers for a whole image",
            code="no-teacher",
            expected="a plugin with the method feature_map, such as efficientnet or dinov2",
            remedy=f"--teacher {LATENTS} needs no plugin",
        )
    blank = torch.zeros(1, 3, *plan.resolution, dtype=torch.uint8)
    recorded = plugins.record("features", name, extractor)
    return ImageTeacher(
        plan=TeacherPlan(
            name=name,
            package=recorded.package,
            options=recorded.options,
            fingerprint=extractor.fingerprint(),
            grid=grid,
            features=grid_features(extractor, blank, grid, autoencoder.device).shape[-1],
            flip=has_flips and not getattr(extractor, "flip_equivariant", False),
        ),
        extractor=extractor,
        latents_plan=plan,
        source=source,
        autoencoder=autoencoder,
        workers=options.workers or usable_cores(),
    )


@torch.inference_mode()
def grid_features(extractor: Teacher, images: Tensor, grid: Size, device: torch.device) -> Tensor:
    """Features [n, N, F] float32 of images uint8 [n, K, H, W], averaged over the cells of `grid`."""
    images = as_rgb(images.to(device))
    with computing_in("float32", device), plugin_errors(extractor, "in feature_map"):
        found = extractor.feature_map(images)
    if found.ndim != 4 or len(found) != len(images) or found.dtype != torch.float32:
        reason = f"it returns {found.dtype} {list(found.shape)}, not torch.float32 [n, F, rows, columns]"
        raise broken(extractor, "in feature_map", reason)
    return to_tokens(found, grid)


def to_tokens(feature_map: Tensor, grid: Size) -> Tensor:
    """[n, F, rows, columns] → [n, N, F]: means over the cells of `grid`, or interpolated where the grid is finer."""
    if feature_map.shape[-2] >= grid.height and feature_map.shape[-1] >= grid.width:
        cells = F.adaptive_avg_pool2d(feature_map, grid)
    else:
        cells = F.interpolate(feature_map, tuple(grid), mode="bilinear", align_corners=False)
    return cells.flatten(2).mT


@dataclass(frozen=True, kw_only=True)
class ImageTeacher:
    """A feature extractor, which gets the pictures that the autoencoder gets; grey ones in all three colours.

    `plan` describes what is stored, without the projection, which is measured later.
    """

    plan: TeacherPlan
    extractor: Teacher
    latents_plan: EncodingPlan
    source: Dataset
    autoencoder: LoadedAutoencoder
    workers: int

    def sample(self, folder: LatentFolder, count: int, seed: int) -> tuple[list[int], Tensor]:
        """Numbers of `count` random images (of a stream, the first ones), and their features, not projected."""
        picks = pick_images(folder.manifest, self.source, min(count, len(folder)), seed=seed)
        features = []
        for _, _, decode in picks:
            picture = prepare(decode(), self.latents_plan.resolution, self.autoencoder.mode)
            features.append(self._features(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]).cpu())
        return [number for number, _, _ in picks], torch.cat(features)

    def shards(self, folder: LatentFolder, numbers: Sequence[int], projection: Tensor | None) -> Iterator[Encoded]:
        """What is stored for shards, one after the other, multiplied by `projection` [F, dims] if it is given.

        Raises:
            UserError: another image can be used than when the latents were made (`faulty-image`).
        """
        device = self.autoencoder.device
        directions = None if projection is None else projection.to(device)

        @torch.inference_mode()
        def encode(images: Tensor) -> Tensor:
            features = self._features(images)
            return features if directions is None else features @ directions

        encoder = Encoder(device=device, mode=self.autoencoder.mode, plan=self.plan, encode=encode)
        for batch in encode_shards(
            self.source, self.latents_plan, numbers, encoder=encoder, workers=self.workers, skip_faulty=True
        ):
            if batch.content is not None:
                _require_same_images(folder, batch.content)
            yield replace(batch, skipped=[])  # they were reported when the latents were made

    def _features(self, images: Tensor) -> Tensor:
        return grid_features(self.extractor, images, self.plan.grid, self.autoencoder.device)


def _require_same_images(folder: LatentFolder, content: ShardContent) -> None:
    before = [item.key for item in folder.manifest.shards[content.number].skipped]
    changed = [f"{item.key} cannot be used: {item.reason}" for item in content.skipped if item.key not in before]
    now = [item.key for item in content.skipped]
    changed += [f"{key} can be read now" for key in before if key not in now]
    if changed:
        raise UserError(
            changed[0],
            code="faulty-image",
            expected="the images that the latents were made from",
            remedy="restore the source as it was",
        )


@dataclass(frozen=True)
class LatentsTeacher:
    """The autoencoder's own latents: standardised means, cut into the patches of the grid (patch row, column, channel).

    The standardisation is the measured one, whatever training uses.
    """

    plan: TeacherPlan

    def sample(self, folder: LatentFolder, count: int, seed: int) -> tuple[list[int], Tensor]:
        numbers = sorted(random.Random(seed).sample(range(len(folder)), min(count, len(folder))))
        return numbers, self._features(folder, numbers, mirrored=False)

    def shards(self, folder: LatentFolder, numbers: Sequence[int], projection: Tensor | None) -> Iterator[Encoded]:
        firsts = np.cumsum([0, *(shard.count for shard in folder.manifest.shards)]).tolist()
        for number in numbers:
            images = range(firsts[number], firsts[number + 1])
            tensors = {name: np.empty((len(images), *self.plan.stored_shape), "<f2") for name in self.plan.tensor_names}
            for start in range(0, len(images), READ_AT_ONCE):
                part = images[start : start + READ_AT_ONCE]
                for tensor, mirrored in zip(tensors.values(), (False, True), strict=False):
                    features = self._features(folder, part, mirrored=mirrored)
                    stored = features if projection is None else features @ projection
                    tensor[start : start + len(part)] = stored.half().numpy()
            content = ShardContent(number, tensors, labels=np.zeros(len(images), "<i8"), skipped=[])
            shard = folder.manifest.shards[number]
            yield Encoded(shard.stop - shard.start, [], content)

    def _features(self, folder: LatentFolder, numbers: Sequence[int], *, mirrored: bool) -> Tensor:
        manifest, grid = folder.manifest, self.plan.grid
        mean = folder.batch(numbers, flip=[mirrored] * len(numbers)).mean
        latents = standardise(mean, normalisation_of("measured", manifest.measured_mean, manifest.measured_std))
        rows = latents.unflatten(3, (grid.width, -1)).unflatten(2, (grid.height, -1))  # [n, C, rows, p, columns, p]
        return rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


LoadedTeacher = ImageTeacher | LatentsTeacher
