"""The tables as Markdown: docs/compute.md with explanations, or the tables alone for the models that are named."""

from __future__ import annotations

from collections.abc import Sequence

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.model.compute import KINDS, forward_macs
from mpdit_core.presets import load_preset
from mpdit_core.profiling.plan import PlanOptions, plan
from mpdit_core.profiling.results import ModelCost
from mpdit_core.profiling.tables import breakdown_table, facts, giga, overview, plan_table
from mpdit_core.profiling.targets import Target
from mpdit_core.table import Table

HEAD = """# Compute

`mpdit profile-flops --markdown docs/compute.md` writes this page; a test compares it.

MACs are multiply-accumulates of matrix products (linear layers, attention, the FNO's spectral products); FLOPs are
twice that. Biases, norms, activations, softmax, look-ups and 32-point FFTs are not counted, as is usual in the field.
All numbers come from one closed formula (`mpdit_core/model/compute.py`). In the tests it equals torch's count of the
real model, for every preset and for random configurations, forward and backward.
"""

PUBLISHED_NOTE = """Neither convention gives the dense numbers that other papers print, 118.66 (DiT-XL/2 at 256 px) and
524.6 (at 512 px). The exact counts are 118.62 and 524.52, 0.04 % and 0.02 % lower, and the papers do not say how they
counted. The printed value of “shared modulation” is truncated, not rounded (22.96 → 22.9). The “43.5 % of DiT-XL/2” at
512 px is the ratio of the linear layers alone; with attention it is 41.5 %.
"""

MEMORY_NOTE = """Memory is counted too: weights, gradients, AdamW's moments, one EMA copy, and the tensors that the
eager model keeps for its backward pass (within 1 % of what autograd keeps). The memory of the framework and
unused memory of the allocator are not counted; torch.compile keeps less. Trainings on an H100 (2026-11-26) reserved,
with a benchmark's matrices: `xl-256` at batch 128, counted as 33.0 GiB: 33.4 GiB eager, 27.8 compiled, 38.2 as a CUDA
graph; its dense DiT, 61.6 GiB: 48.5 compiled; `v2-xl-512` at batch 32, 26.6 GiB: 22.6 compiled.
"""

MEASURE_NOTE = """`mpdit profile-flops --preset b-256 --measure --batch-size 8` runs the model on your machine. For the
forward pass and for training, eager and compiled, it prints the median and deciles of the latency, images per second,
achieved FLOP/s and their fraction of the rate of the device's matrix products. For eager passes it also prints the time
of each stage and kind of operation. `--json` prints every value for programs. This page has no measurements, because
they differ between machines; `benchmarks/results/` has measured training steps.
"""


def write(models: Sequence[ModelCost], *, named: bool) -> str:
    """The whole document for all presets; only the tables, where the user `named` models."""
    if named:
        return "\n".join([overview(models).to_markdown(), *(part for model in models for part in _detail(model))])
    example = next((model for model in models if model.preset == "xl-256"), models[0])
    published = Table(
        title="Giga-MACs of one forward pass, as printed",
        columns=["model", "true", "paper convention", "printed"],
        rows=[
            [label, giga(forward_macs(model)), giga(forward_macs(model, convention="paper")), printed]
            for label, model, printed in published_rows()
        ],
    )
    comparison = PlanOptions(epochs=240, dense_epochs=1400, watts=700.0)
    parts = [
        HEAD,
        "## Presets\n",
        overview(models).to_markdown(),
        "## One model in detail\n",
        "\n".join(f"- **{kind}**: {what}" for kind, what in KINDS.items()) + "\n",
        *_detail(example),
        MEMORY_NOTE,
        "## Measured speed\n",
        MEASURE_NOTE,
        "## Published numbers\n",
        published.to_markdown(),
        PUBLISHED_NOTE,
        "## The paper's main comparison as a plan\n",
        '`mpdit profile-flops --preset xl-256 --plan "epochs=240, dense_epochs=1400, watts=700"`\n',
        plan_table([plan(Target("xl-256", load_preset("xl-256")), comparison)]).to_markdown(),
    ]
    return "\n".join(parts)


def _detail(model: ModelCost) -> tuple[str, str]:
    lines = "\n".join(f"- {label}: {value}" for label, value in facts(model).items())
    return breakdown_table(model).to_markdown(), lines + "\n"


def published_rows() -> list[tuple[str, ModelConfig, str]]:
    """Label, model, and "GFLOPs" as printed in the MPDiT paper (arXiv 2603.26357), from ablations and main tables."""

    def named(preset: str) -> ModelConfig:
        return load_preset(preset).model

    def xl(*stages: tuple[int, int]) -> ModelConfig:
        return named("xl-256").model_copy(update={"stages": tuple(Stage(*stage) for stage in stages)})

    return [
        ("DiT-B/2", named("dit-b-256"), "23.0"),
        ("DiT-B/2, shared modulation", named("ablation-b-shared"), "22.9"),
        ("… and 16 class tokens", named("ablation-b-tokens"), "24.3"),
        ("MPDiT-B, k = 4", named("ablation-b-k4"), "13.9"),
        ("MPDiT-B, k = 6", named("b-256"), "16.6"),
        ("MPDiT-B, k = 8", named("ablation-b-k8"), "19.3"),
        ("DiT-XL/2", named("dit-xl-256"), "118.66"),
        ("DiT-XL/2†", xl((2, 28)), "125.5"),
        ("MPDiT-XL, k = 4", xl((4, 24), (2, 4)), "53.2"),
        ("MPDiT-XL, k = 6", named("xl-256"), "59.3"),
        ("MPDiT-XL, k = 8", xl((4, 20), (2, 8)), "65.4"),
        ("DiT-XL/2 at 512 px", named("dit-xl-512"), "524.6"),
    ]
