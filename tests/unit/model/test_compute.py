"""The closed formula against a count of the running model, and against every published number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.model.compute import KINDS, Kind, count, forward_macs, operations, parameter_count, training_macs
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.size import Size

# module name in the model -> kind of work; `expand` and `refine` live in `upsample`
PLACES: dict[str, Kind] = {
    "attention.qkv": "projections", "attention.out": "projections", "mlp.up": "mlp", "mlp.down": "mlp",
    "upsample": "upsampling", "patch_embedding": "patches", "skip": "patches", "modulation": "conditioning",
    "time_embedding": "time", "head.linear": "output",
}  # fmt: skip


def counted(config: ModelConfig, *, batch_size: int = 1, backward: bool = False) -> tuple[int, dict[str, int], int]:
    """MACs of a pass of the real model on tensors without data: in all, of each module; and its parameters.

    Fake tensors are meta tensors that know their device (autocast does not know the device "meta"). Attention goes
    through its plain form, whose products torch counts the same in every version; the fused kernels compute the same.
    """
    with FakeTensorMode():
        model = MPDiT(config)
        x_t = torch.empty(batch_size, config.channels, *config.input_size)
        t, labels = torch.empty(batch_size), torch.zeros(batch_size, dtype=torch.long)
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter, torch.set_grad_enabled(backward):
            velocity = model(x_t, t, labels)
            if backward:
                velocity.square().mean().backward()
        assert velocity.shape == x_t.shape
    modules = {name.removeprefix("MPDiT."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    assert counter.get_total_flops() % (2 * batch_size) == 0
    per_image = {name: flops // (2 * batch_size) for name, flops in modules.items()}
    return (
        counter.get_total_flops() // (2 * batch_size),
        per_image,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    ratios = draw(st.lists(st.integers(2, 3), max_size=2))
    patch, patches = draw(st.integers(1, 2)), []
    for ratio in [1, *ratios]:
        patch *= ratio
        patches.insert(0, patch)
    heads = draw(st.sampled_from([1, 2, 4]))
    return ModelConfig(
        width=heads * 4 * draw(st.integers(1, 4)),
        num_heads=heads,
        stages=tuple(Stage(p, draw(st.integers(0, 2))) for p in patches),
        input_size=Size(*(patches[0] * draw(st.integers(1, 3)) for _ in "hw")),
        channels=draw(st.integers(1, 5)),
        num_classes=draw(st.integers(1, 7)),
        class_tokens=draw(st.integers(0, 3)),
        modulation=draw(st.sampled_from(["shared", "per-block"])),
        time_embedding=draw(st.sampled_from(["fno", "sinusoid"])),
        skip=draw(st.booleans()),
        mlp_ratio=draw(st.integers(1, 4)),
        mlp=draw(st.sampled_from(["gelu", "swiglu"])),
        norm=draw(st.sampled_from(["layer", "rms"])),
        qk_norm=draw(st.booleans()),
        positions=draw(st.sampled_from(["sincos", "rope", "both"])),
    )


@settings(max_examples=15, deadline=None)
@given(configs(), st.integers(1, 3))
def test_formula_is_the_count_of_any_model(config: ModelConfig, batch_size: int):
    total, modules, parameters = counted(config, batch_size=batch_size)
    formula = count(config)
    assert formula.macs == forward_macs(config) == total
    assert formula.parameters == parameter_count(config) == parameters
    assert [stage.macs for stage in formula.stages] == [
        modules.get(f"stages.{i}", 0) for i in range(len(config.stages))
    ]
    assert sum(formula.by_kind.values()) == total
    assert sum(formula.parameters_by_kind.values()) == parameters


@settings(max_examples=8, deadline=None)
@given(configs())
def test_formula_is_the_count_of_any_training_step(config: ModelConfig):
    total, _, _ = counted(config, backward=True)
    assert training_macs(config) == count(config).training_macs == total


@pytest.mark.parametrize("name", preset_names())
def test_formula_is_the_count_of_every_preset_by_kind(name: str):
    config = load_preset(name).model
    total, modules, parameters = counted(config)
    formula = count(config)
    assert (formula.macs, formula.parameters) == (total, parameters)
    seen: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for place, kind in PLACES.items():
        # the outermost modules of that name only: `upsample`, not `upsample.expand` again
        seen[kind] += sum(macs for path, macs in modules.items() if path == place or path.endswith(f".{place}"))
    attention = sum(macs for path, macs in modules.items() if path.endswith(".attention"))
    seen["attention"] = attention - seen["projections"]
    assert formula.by_kind == seen


# name, pixels: official count of parameters (with position tables), trainable ones (spec 01)
PARAMETERS = {
    ("b-256", 256): (104_852_912, 104_607_152),
    ("l-256", 256): (331_770_032, 331_442_352),
    ("xl-256", 256): (481_207_856, 480_839_216),
    ("v2-b-512", 512): (109_380_272, 108_348_080),
    ("v2-l-512", 512): (339_379_376, 338_003_120),
    ("v2-xl-512", 512): (490_653_104, 489_104_816),
}


@pytest.mark.parametrize(("name", "pixels"), PARAMETERS)
def test_published_parameter_counts_are_exact(name: str, pixels: int):
    config = load_preset(name).model
    assert config.input_size == Size.square(pixels // 8)
    assert (parameter_count(config, with_positions=True), parameter_count(config)) == PARAMETERS[name, pixels]


def xl(stages: list[tuple[int, int]], side: int = 32) -> ModelConfig:
    return load_preset("xl-256").model.model_copy(
        update={"stages": tuple(Stage(*stage) for stage in stages), "input_size": Size.square(side)}
    )


# model: true GMACs, published "GFLOPs", as printed (spec 01)
ROWS = [
    ("DiT-B/2", load_preset("dit-b-256").model, "23.00", "23.0"),
    ("DiT-B/2, 16 class tokens", load_preset("ablation-b-tokens").model, "24.48", "24.3"),
    ("MPDiT-B k=4", load_preset("ablation-b-k4").model, "13.24", "13.9"),
    ("MPDiT-B k=6", load_preset("b-256").model, "16.16", "16.6"),
    ("MPDiT-B k=8", load_preset("ablation-b-k8").model, "19.09", "19.3"),
    ("DiT-XL/2†", xl([(2, 28)]), "126.08", "125.5"),
    ("MPDiT-XL k=4", xl([(4, 24), (2, 4)]), "50.00", "53.2"),
    ("MPDiT-XL k=6", load_preset("xl-256").model, "56.43", "59.3"),
    ("MPDiT-XL k=8", xl([(4, 20), (2, 8)]), "62.85", "65.4"),
]


@pytest.mark.parametrize(("name", "config", "true", "published"), ROWS)
def test_published_compute_to_the_printed_digit(name: str, config: ModelConfig, true: str, published: str):
    # The true column is this project's own: 62.8551 (k = 8) stands there as 62.85, so within one of the last digit.
    assert abs(forward_macs(config) / 1e9 - float(true)) < 0.0052
    digits = len(published.partition(".")[2])
    assert f"{forward_macs(config, convention='paper') / 1e9:.{digits}f}" == published


def test_the_three_dense_rows_whose_print_differs():
    """Printed by other papers (DiT, SiT) or cut instead of rounded: 0.04 %, and explained, but not this convention."""
    shared = count(load_preset("ablation-b-shared").model, convention="paper").macs / 1e9
    assert math.floor(shared * 10) / 10 == 22.9
    assert f"{shared:.2f}" == "22.96"
    dense = load_preset("dit-xl-256").model
    assert f"{forward_macs(dense) / 1e9:.2f}" == "118.62"
    assert forward_macs(dense) / 118.66e9 == pytest.approx(1, abs=4e-4)
    large = load_preset("dit-xl-512").model
    assert f"{forward_macs(large) / 1e9:.1f}" == "524.5"
    assert forward_macs(large) / 524.6e9 == pytest.approx(1, abs=2e-4)


def test_published_ratios():
    """Spec 01: really 47.6 % at 256 px where the papers have 49.9 %; the 43.5 % at 512 px are linear layers alone."""
    at_256, dense_256 = load_preset("xl-256").model, load_preset("dit-xl-256").model
    assert f"{forward_macs(at_256) / forward_macs(dense_256):.1%}" == "47.6%"
    assert math.floor(1000 * round(forward_macs(at_256, convention="paper") / 1e9, 1) / 118.66) == 499
    at_512, dense_512 = count(load_preset("xl-512").model), count(load_preset("dit-xl-512").model)
    assert f"{at_512.linear_macs / dense_512.linear_macs:.1%}" == "43.5%"
    assert f"{at_512.macs / 1e9:.1f}" == "217.5"
    assert f"{count(load_preset('v2-xl-512').model).macs / 1e9:.1f}" == "173.6"


def test_the_preset_s_dense_model_is_the_dense_preset():
    for name, dense in [("b-256", "dit-b-256"), ("l-256", "dit-l-256"), ("xl-512", "dit-xl-512")]:
        assert load_preset(name).model.dense() == load_preset(dense).model


def test_the_paper_s_convention_changes_attention_alone():
    config = load_preset("v2-b-512").model
    true, paper = count(config), count(config, convention="paper")
    assert paper.linear_macs == true.linear_macs
    assert paper.by_kind["attention"] == 12 * 2 * 256**2 * 768
    assert true.by_kind["attention"] == 2 * 768 * (6 * 80**2 + 4 * 272**2 + 2 * 1040**2)
    assert [stage.tokens for stage in true.stages] == [80, 272, 1040]


def test_every_operation_is_named_once_per_stage():
    found = list(operations(load_preset("v2-b-512").model))
    places = [(op.stage, op.name) for op in found]
    assert len(set(places)) == len(places)
    assert all(op.macs >= 0 and op.parameters >= 0 for op in found)
