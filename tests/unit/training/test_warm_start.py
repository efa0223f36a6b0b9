"""`--init-from`: what is loaded equals the source, what is not equals a fresh start, and both are said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpdit_core.config import RunConfig
from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.errors import UserError
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import save_model
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Warning
from mpdit_core.runtime.distributed import World
from mpdit_core.settings import merge, validate
from mpdit_core.size import Size
from mpdit_core.training.state.trainer import Trainer
from mpdit_core.training.warm_start import initialise_from, match_classes, shorten

COLOURS = ("red", "green", "blue")


def configuration(**model) -> RunConfig:
    return validate(RunConfig, merge(load_preset("tiny").model_dump(), {"model": {"num_classes": 3} | model}))


def latent_spec(names: tuple[str, ...] = COLOURS) -> LatentSpec:
    return LatentSpec(
        resolution=Size.square(16),
        autoencoder=AutoencoderSpec(id="pixels-gray", factor=1, channels=1),
        normalisation=Normalisation(name="none", mean=(0.0,), std=(1.0,)),
        class_names=names,
        source="here",
        count=1,
    )


def save_random(folder: Path, config: RunConfig, names: tuple[str, ...] | None = COLOURS) -> dict[str, torch.Tensor]:
    """A model folder in which no weight is zero; returns the weights."""
    torch.manual_seed(1)
    state = {n: torch.randn_like(p) * 0.1 for n, p in MPDiT(config.model).named_parameters()}
    save_model(folder, state, config=config, latents=latent_spec(names) if names else None, step=7)
    return state


def start(folder: Path, config: RunConfig, names: tuple[str, ...] = COLOURS):
    """(weights after, fresh weights, summary, trainer)"""
    trainer = Trainer(config, total_steps=4, device=torch.device("cpu"), world=World())
    fresh = {name: weight.detach().clone() for name, weight in trainer.model.weights().items()}
    events = []
    summary = initialise_from(trainer, str(folder), latent_spec(names), report=events.append)
    assert any(f"{folder} (step 7)" in event.text for event in events)
    return trainer.model.weights(), fresh, summary, trainer


def test_the_same_configuration_loads_whole_and_the_averages_start_there(tmp_path):
    saved = save_random(tmp_path / "m", configuration())
    weights, _, summary, trainer = start(tmp_path / "m", configuration())
    assert all(torch.equal(weights[n], saved[n]) for n in saved)
    assert all(torch.equal(trainer.ema.state()[n], saved[n]) for n in saved)
    assert trainer.position.step == 0
    assert not trainer.optimizer.state()
    assert summary.loaded == summary.total == sum(t.numel() for n, t in saved.items() if "class_embedding" not in n)
    assert summary.classes == {0: 0, 1: 1, 2: 2, 3: 3}
    assert summary.new == summary.unused == ()


def test_another_class_set_is_matched_by_name(tmp_path):
    table = save_random(tmp_path / "m", configuration())["class_embedding.table.weight"]
    names = ("blue", "violet", "red", "black")
    weights, fresh, summary, _ = start(tmp_path / "m", configuration(num_classes=4), names)
    new = weights["class_embedding.table.weight"]
    assert torch.equal(new[[0, 2, 4]], table[[2, 0, 3]])  # blue, red, null
    assert torch.equal(new[[1, 3]], fresh["class_embedding.table.weight"][[1, 3]])
    assert summary.classes == {0: 2, 2: 0, 4: 3}


def test_without_names_equal_counts_match_by_position(tmp_path):
    table = save_random(tmp_path / "m", configuration(), names=None)["class_embedding.table.weight"]
    weights, _, summary, _ = start(tmp_path / "m", configuration())
    assert torch.equal(weights["class_embedding.table.weight"], table)
    assert summary.classes == {0: 0, 1: 1, 2: 2, 3: 3}
    assert match_classes("abcd", None, new_count=4, old_count=3) == {4: 3}
    assert match_classes("aba", "aba", new_count=3, old_count=3) == {0: 0, 1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize("size", [Size(32, 32), Size(16, 24)])
def test_another_resolution_loads_all_and_equals_the_same_weights_at_that_size(tmp_path, size):
    saved = save_random(tmp_path / "m", configuration())
    larger = configuration(input_size=size)
    weights, _, summary, trainer = start(tmp_path / "m", larger)
    assert all(torch.equal(weights[n], saved[n]) for n in saved)
    expected = MPDiT(larger.model)
    expected.load_state_dict(saved)
    x_t, t, labels = torch.randn(2, 1, *size), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.module.eval()(x_t, t, labels), expected.eval()(x_t, t, labels))
    assert summary.new == ()


def test_other_channels_leave_patches_and_output_new(tmp_path):
    saved = save_random(tmp_path / "m", configuration())
    weights, fresh, summary, _ = start(tmp_path / "m", configuration(channels=4))
    new = {n for n in weights if "patch_embedding" in n or n.startswith("head.linear")}
    assert all(torch.equal(weights[n], fresh[n] if n in new else saved[n]) for n in weights)
    assert set(summary.new) == set(summary.unused) == {n.rpartition(".")[0] for n in new}


def test_dense_fills_the_stages_in_order(tmp_path):
    dense = configuration().model_copy(update={"model": configuration().model.dense()})
    saved = save_random(tmp_path / "m", dense)
    weights, fresh, summary, _ = start(tmp_path / "m", configuration())
    for number in (0, 1):
        for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down"):
            there = saved[f"stages.0.blocks.{number}.{part}.weight"]
            assert torch.equal(weights[f"stages.{number}.blocks.0.{part}.weight"], there)
    assert torch.equal(
        weights["stages.1.patch_embedding.linear.weight"], saved["stages.0.patch_embedding.linear.weight"]
    )
    assert torch.equal(
        weights["stages.0.patch_embedding.linear.weight"], fresh["stages.0.patch_embedding.linear.weight"]
    )
    assert torch.equal(weights["modulation.linear.weight"], fresh["modulation.linear.weight"])
    assert torch.equal(weights["head.linear.weight"], saved["head.linear.weight"])
    assert torch.equal(weights["class_embedding.table.weight"], fresh["class_embedding.table.weight"])
    assert {f"stages.0.blocks.{number}.modulation.linear" for number in (0, 1)} <= set(summary.unused)
    assert shorten(summary.unused).count("stages.*.blocks.*.modulation.linear × 2") == 1
    assert summary.classes == {}


def test_a_deeper_model_keeps_its_last_blocks_new(tmp_path):
    saved = save_random(tmp_path / "m", configuration())
    weights, fresh, summary, _ = start(tmp_path / "m", configuration(stages=[[4, 1], [2, 2]]))
    name = "stages.1.blocks.{}.mlp.up.weight"
    assert torch.equal(weights[name.format(0)], saved[name.format(0)])
    assert torch.equal(weights[name.format(1)], fresh[name.format(1)])
    assert summary.new
    assert all(layer.startswith("stages.1.blocks.1.") for layer in summary.new)


def test_another_width_is_refused_before_anything_changes(tmp_path):
    save_random(tmp_path / "m", configuration())
    trainer = Trainer(configuration(width=48), total_steps=4, device=torch.device("cpu"), world=World())
    fresh = trainer.model.weights()
    with pytest.raises(UserError) as refused:
        initialise_from(trainer, str(tmp_path / "m"), latent_spec())
    assert refused.value.code == "does-not-fit"
    assert "model.width=32" in str(refused.value.remedy)
    assert all(torch.equal(fresh[n], w) for n, w in trainer.model.weights().items())


def test_what_loads_but_means_something_else_is_warned_of(tmp_path):
    save_random(tmp_path / "m", configuration())
    trainer = Trainer(configuration(num_heads=4), total_steps=4, device=torch.device("cpu"), world=World())
    spec = latent_spec().model_copy(update={"normalisation": Normalisation(name="measured", mean=(0.1,), std=(2.0,))})
    events = []
    initialise_from(trainer, str(tmp_path / "m"), spec, report=events.append)
    warned = [event for event in events if isinstance(event, Warning)]
    assert [event.code for event in warned] == ["weights-mean-something-else"] * 2  # standardisation, heads
