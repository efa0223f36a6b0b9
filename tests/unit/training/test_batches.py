"""What the network sees: each sample a function of seed, step and position, drawn as the objective says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mpdit_core.config import RunConfig, TimeConfig
from mpdit_core.data.latents import LatentBatch, LatentFolder
from mpdit_core.data.manifest import Normalisation
from mpdit_core.flow.path import target_velocity
from mpdit_core.flow.times import DENSITIES, draw_times
from mpdit_core.presets import load_preset
from mpdit_core.runtime.distributed import World
from mpdit_core.settings import merge, validate
from mpdit_core.training.batches import Batch, BatchSource


def config(**train: object) -> RunConfig:
    shape = {"input_size": 16, "channels": 1, "num_classes": 4}
    return validate(RunConfig, merge(load_preset("tiny").model_dump(), {"model": shape, "train": train}))


def source(latents: Path, *, rank: int = 0, size: int = 1, needs: set[str] | None = None, **train) -> BatchSource:
    return BatchSource(LatentFolder(latents), config(**train), World(rank, size), needs=frozenset(needs or ()))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(x) for x in zip(*(batch.tensors().values() for batch in batches), strict=True)))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_shares_of_all_processes_are_the_batch_of_one(latents, size):
    whole = source(latents, batch_size=16).batch(5)
    shares = [source(latents, batch_size=16, rank=rank, size=size).batch(5) for rank in range(size)]
    assert same(joined(shares), whole)


def test_a_batch_depends_on_seed_and_step_alone(latents):
    first, second = source(latents, batch_size=16), source(latents, batch_size=16)
    first.batch(0)
    assert same(first.batch(3), second.batch(3))
    assert not torch.equal(first.batch(3).noise, first.batch(4).noise)
    assert not torch.equal(first.batch(3).noise, source(latents, batch_size=16, seed=1).batch(3).noise)


def test_noise_of_all_steps_and_positions_is_independent_and_standard(latents):
    batches = source(latents, batch_size=32)
    noise = torch.stack(
        [batches.batch(step).noise.flatten(1) for step in range(32)]
    ).double()  # [step, position, pixel]
    n = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=4 / n**0.5)
    assert noise.var().item() == pytest.approx(1, abs=4 * (2 / n) ** 0.5)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=4 * (96 / n) ** 0.5)
    rows = noise.flatten(0, 1)
    between = torch.corrcoef(rows)[~torch.eye(len(rows), dtype=torch.bool)]
    assert between.abs().max().item() < 6 / rows.shape[1] ** 0.5
    assert between.std().item() == pytest.approx(rows.shape[1] ** -0.5, rel=0.02)


class StandardPosteriors:
    """64 images with a mean of 0 and a standard deviation of 1 everywhere."""

    has_flips = False

    def __init__(self, latents: Path):
        spec = LatentFolder(latents).spec
        stores = {"autoencoder": spec.autoencoder.model_copy(update={"stores": "mean+std"})}
        plain = Normalisation(name="none", mean=(0.0,), std=(1.0,))
        self.spec = spec.model_copy(update={**stores, "normalisation": plain})

    def __len__(self) -> int:
        return 64

    def batch(self, indices: list[int], *, flip: object, teacher: bool) -> LatentBatch:
        zeros = torch.zeros(len(indices), 1, 16, 16)
        return LatentBatch(zeros, zeros + 1, torch.zeros(len(indices), dtype=torch.int64))


def test_the_draw_of_a_posterior_is_not_the_noise(latents):
    posteriors: Any = StandardPosteriors(latents)
    batch = BatchSource(posteriors, config(batch_size=64)).batch(0)
    assert batch.latents.std().item() == pytest.approx(1, abs=4 * (0.5 / batch.latents.numel()) ** 0.5)
    both = torch.stack([batch.latents.flatten(), batch.noise.flatten()])
    assert abs(torch.corrcoef(both)[0, 1].item()) < 4 / both.shape[1] ** 0.5


def test_labels_are_dropped_as_often_as_asked(latents):
    batches = source(latents, batch_size=32)
    labels = torch.cat([batches.batch(step).labels for step in range(64)])
    share = (labels == batches.null_label).float().mean().item()
    assert share == pytest.approx(batches.label_dropout, abs=0.03)


@pytest.mark.parametrize("density", DENSITIES)
def test_times_follow_their_density(density):
    time = TimeConfig(density=density, mean=-0.3, std=0.7)
    places = (torch.arange(100_000) + 0.5) / 100_000
    t = draw_times(time, places, latent_values=4096)
    assert 0 < t.min() < t.max() < 1
    if density == "mode":
        assert t.double().mean().item() == pytest.approx(0.5, abs=1e-3)
        assert t.double().std().item() < places.std().item()
    elif density == "logit-normal":
        assert torch.logit(t.double()).mean().item() == pytest.approx(-0.3, abs=1e-3)
        assert torch.logit(t.double()).std().item() == pytest.approx(0.7, abs=1e-3)
    else:
        assert torch.equal(t, places)
    ends = draw_times(time, torch.tensor([2.0**-24, 1 - 2.0**-24]), latent_values=4096)
    assert 0 < ends.min() < ends.max() < 1


@pytest.mark.parametrize(("shift", "latent_values", "middle"), [
    (None, 16384, 0.5), (3.0, 4096, 0.75), ("auto", 4096, 0.5), ("auto", 16384, 2 / 3), ("auto", 256 * 768, 0.8738),
])  # fmt: skip
def test_times_are_shifted_towards_noise(shift, latent_values, middle):
    time = TimeConfig(density="uniform", shift=shift)
    assert draw_times(time, torch.tensor([0.5]), latent_values=latent_values).item() == pytest.approx(middle, abs=1e-4)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_negative_is_the_target_of_another_image_of_the_global_batch(latents, size):
    shares = [source(latents, batch_size=16, rank=rank, size=size, needs={"negative"}) for rank in range(size)]
    distances = set()
    for step in (5, 6):
        whole = source(latents, batch_size=16).batch(step)
        targets = target_velocity(whole.latents, whole.noise)
        negative = torch.cat([x for share in shares if (x := share.batch(step).negative) is not None])
        where = [[i for i, target in enumerate(targets) if torch.equal(target, one)] for one in negative]
        assert [len(found) for found in where] == [1] * 16
        distances.add(found := where[0][0])
        assert [i for one in where for i in one] == [(found + i) % 16 for i in range(16)]
    assert 0 not in distances
    assert len(distances) == 2
