"""Optimizers and schedules: what moves which parameter, how far, and the same bits after an interruption."""

from __future__ import annotations

import pytest
import torch
from data_helpers import refused
from train_helpers import assert_same_run, metrics_of, options, run_to_end, state_of

from mpdit_core import presets
from mpdit_core.config import AdamWConfig, MuonConfig, TrainConfig
from mpdit_core.model.memory import optimizer_values
from mpdit_core.model.transformer import MPDiT
from mpdit_core.settings import parse_assignments
from mpdit_core.training import train
from mpdit_core.training.schedules import learning_rate_factor
from mpdit_core.training.state.optimizers import Optimizer, is_matrix

MUON = "train.optimizer.name=muon"


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("cosine", [0.5, 1, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_schedules(schedule: str, factors: list[float]):
    train = TrainConfig(schedule=schedule, warmup_steps=2, decay_steps=4)  # pyright: ignore[reportArgumentType]
    found = [learning_rate_factor(train, step, total_steps=10) for step in range(10)]
    assert found == pytest.approx(factors, abs=1e-4)


def test_wsd_decays_in_the_last_tenth_and_before_that_the_number_of_steps_does_not_matter():
    train = TrainConfig(schedule="wsd")
    short, long = ([learning_rate_factor(train, step, total_steps=n) for step in range(n)] for n in (100, 200))
    assert short[:91] == long[:91] == [1.0] * 91
    assert 1 > short[91] > short[99] > 0


@pytest.mark.parametrize("preset", ["tiny", "ablation-b-dense"])
def test_muon_moves_the_matrices_of_the_blocks(preset: str):
    config = presets.load_preset(preset).model.model_copy(update={"width": 32, "num_heads": 2})
    parameters = dict(MPDiT(config).named_parameters())
    optimizer = Optimizer(parameters, TrainConfig(optimizer=MuonConfig()))
    moved = {n.rpartition("blocks.")[2].partition(".")[2] for n, p in parameters.items() if is_matrix(n, p)}
    assert moved == {"attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight"}
    adamw, muon = ([p for group in part.param_groups for p in group["params"]] for part in optimizer.parts)
    assert len(muon) == 4 * config.depth
    assert len(adamw) + len(muon) == len(set(adamw) | set(muon)) == len(parameters)


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
@pytest.mark.parametrize("switches", [{}, {"mlp": "swiglu", "qk_norm": True}, {"modulation": "per-block"}])
def test_the_state_is_what_is_estimated_and_checked(config, switches):
    model = presets.load_preset("tiny").model.model_copy(update=switches)
    module = MPDiT(model)
    optimizer = Optimizer(dict(module.named_parameters()), TrainConfig(optimizer=config))
    assert optimizer.state() == {}
    module(torch.randn(2, 1, 16, 16), torch.rand(2), torch.zeros(2, dtype=torch.long)).square().mean().backward()
    optimizer.step(1.0)
    state = optimizer.state()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == optimizer.shapes()
    kept = sum(tensor.numel() for name, tensor in state.items() if not name.startswith("step."))
    assert kept == optimizer_values(model, config.name)


def test_steps_of_muon_are_of_the_size_of_those_of_adamw():
    """Root mean square 0.2 times the learning rate, for any shape (Moonlight, arXiv 2502.16982, section 2.2)."""
    module = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(96, 64), torch.nn.Linear(64, 256)])})
    module = torch.nn.ModuleDict({"stages": torch.nn.ModuleList([module])})
    train = TrainConfig(learning_rate=0.01, optimizer=MuonConfig(weight_decay=0.0))
    optimizer = Optimizer(dict(module.named_parameters()), train)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step(0.5)
    sizes = {n: (p.detach() - before[n]).square().mean().sqrt().item() for n, p in module.named_parameters()}
    assert [sizes[n] for n in sizes if n.endswith("weight")] == pytest.approx([0.2 * 0.005] * 2, rel=0.2)
    assert [sizes[n] for n in sizes if n.endswith("bias")] == pytest.approx([0.005] * 2, rel=0.01)


def test_matrices_may_have_a_learning_rate_of_their_own():
    optimizer = Optimizer(
        dict(MPDiT(presets.load_preset("tiny").model).named_parameters()),
        TrainConfig(learning_rate=0.1, optimizer=MuonConfig(matrix_learning_rate=0.3)),
    )
    optimizer.step(0.5)
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.05, 0.15]


@pytest.mark.parametrize(
    "assignments",
    [
        (MUON, "train.schedule=wsd", "train.decay_steps=4"),
        (MUON, "train.schedule=cosine", "train.warmup_steps=3", "train.accumulation=2"),
        ("train.schedule=wsd", "train.optimizer.betas=[0.8, 0.9]", "train.optimizer.eps=1e-6"),
    ],
)
def test_stopped_and_resumed_is_bit_equal(latents, tmp_path, assignments):
    def stop(event):
        if getattr(event, "step", 0) == 6:
            raise KeyboardInterrupt

    run_to_end(options(latents, tmp_path / "straight", *assignments, steps=10))
    with pytest.raises(KeyboardInterrupt):
        train(options(latents, tmp_path / "run", *assignments, steps=10), report=stop)
    run_to_end(options(latents, tmp_path / "run", *assignments, steps=10))
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_accumulation_equals_one_part_with_muon(latents, tmp_path):
    for parts in (1, 2):
        run_to_end(options(latents, tmp_path / str(parts), MUON, f"train.accumulation={parts}", steps=6))
    one, two = ([m["loss"] for m in metrics_of(tmp_path / name)] for name in "12")
    assert two == pytest.approx(one, rel=1e-3)  # the matrices are orthogonalised in bfloat16


def test_muon_learns(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", MUON, "train.learning_rate=4e-3", "train.batch_size=16", steps=80))
    losses = [m["loss"] for m in metrics_of(tmp_path / "run")]
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])


def test_another_optimizer_is_refused_for_a_resumed_run(latents, tmp_path):
    run_to_end(options(latents, tmp_path / "run", steps=1))
    before = state_of(tmp_path / "run")
    with refused("different-configuration"):
        run_to_end(options(latents, tmp_path / "run", MUON, steps=2))
    assert before.keys() == state_of(tmp_path / "run").keys()


def test_another_optimizer_begins_with_its_own_settings(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "tiny"\n[train.optimizer]\nname = "muon"\nweight_decay = 0.5\nmomentum = 0.9\n')
    same = presets.layers(file=file, settings=parse_assignments([MUON, "train.optimizer.eps=1e-6"]))
    assert same.config().train.optimizer == MuonConfig(weight_decay=0.5, momentum=0.9, eps=1e-6)
    other = presets.layers(file=file, settings=parse_assignments(["train.optimizer.name=adamw"]))
    assert other.config().train.optimizer == AdamWConfig()
    assert other.origin("train.optimizer.weight_decay") == "default"


@pytest.mark.parametrize(
    ("assignment", "code"),
    [
        ("train.optimizer.name=sgd", "invalid-value"),
        ("train.optimizer=muon", "invalid-value"),
        ("train.optimizer.momentum=0.9", "unknown-key"),  # of AdamW
        ("train.optimizer.beta=0.9", "unknown-key"),
        ("train.schedule=linear", "invalid-value"),
        ("train.decay_steps=0", "invalid-value"),
    ],
)
def test_mistakes_are_refused(assignment: str, code: str):
    with refused(code):
        presets.layers(preset="tiny", settings=parse_assignments([assignment])).config()
