"""docs/compute.md, or the same for some models: the tables as Markdown with what a reader must know beside them."""

from __future__ import annotations

from typing import Any

from mpdit_core.config import ModelConfig, Stage
from mpdit_core.model.compute import KINDS, Convention, forward_macs
from mpdit_core.presets import load_preset
from mpdit_core.profiling.plan import PlanOptions, plan, plan_table
from mpdit_core.profiling.tables import bill, facts, giga, overview, to_markdown
from mpdit_core.profiling.targets import Target
from mpdit_core.reporting import Table

HEAD = """# Compute

This file is written by `mpdit profile-flops --markdown docs/compute.md` and compared with it in the tests.

MACs are multiply-accumulates of matrix products (linear layers, attention, the FNO's spectral products); FLOPs are
twice that. Biases, norms, activations, softmax, look-ups and 32-point FFTs are not counted, as nowhere in the field.
All numbers come from one closed formula (`mpdit_core/model/compute.py`), which the tests hold to torch's count of the
real model, to the last unit: for every preset, and for random configurations, forward and backward.
"""

PUBLISHED_NOTE = """The dense rows that other papers print, 118.66 (DiT-XL/2 at 256 px) and 524.6 (at 512 px), are met
by no convention here: the exact counts are 118.62 and 524.52, 0.04 % and 0.02 % lower, and how theirs were made is not
said. The row “shared modulation” is cut, not rounded (22.96 → 22.9). The “43.5 % of DiT-XL/2” at 512 px is the ratio of
the linear layers alone; with attention it is 41.5 %.
"""

MEMORY_NOTE = """Memory is counted too: weights, gradients, AdamW's moments, one EMA copy, and the tensors that the
eager model keeps for its backward pass (within 1 % of what autograd keeps). The framework and the allocator's slack
come on top, and torch.compile keeps less. No GPU was at hand to compare the totals with a device's own figures.
"""


MEASURE_NOTE = """`mpdit profile-flops --preset b-256 --measure --batch-size 8` runs the model where you are: median and
spread of latency, images a second, achieved FLOP/s and their share of the device's own matrix products, forward and
training, eager and compiled; and the same of each stage and kind of work in the eager passes (a compiled block is one
piece). `--json` gives every figure to a program. Nothing measured is on this page, as it would differ from machine to
machine; `benchmarks/results/` holds timed training steps.
"""


def write(targets: list[Target], records: list[dict[str, Any]], *, convention: Convention, named: bool) -> str:
    """The whole document for all presets; tables of the named models otherwise."""
    parts = [to_markdown(overview(records, convention=convention))]
    if named:
        for target, record in zip(targets, records, strict=True):
            parts += [to_markdown(bill(target, convention=convention)), _facts(target, record)]
        return "\n".join(parts)
    kinds = "\n".join(f"- **{kind}**: {what}" for kind, what in KINDS.items())
    xl = next((t for t in targets if t.run.preset == "xl-256"), targets[0])
    record = records[targets.index(xl)]
    parts = [
        HEAD,
        "## Presets\n",
        parts[0],
        "## One model in detail\n",
        kinds + "\n",
        to_markdown(bill(xl, convention=convention)),
        _facts(xl, record),
        MEMORY_NOTE,
        "## Measured speed\n",
        MEASURE_NOTE,
        "## Published numbers\n",
        to_markdown(published_table()),
        PUBLISHED_NOTE,
        "## The paper's headline as a plan\n",
        '`mpdit profile-flops --preset xl-256 --plan "epochs=240, dense_epochs=1400, watts=700"`\n',
        to_markdown(_headline()),
    ]
    return "\n".join(parts)


def _facts(target: Target, record: dict[str, Any]) -> str:
    return "\n".join(f"- {label}: {value}" for label, value in facts(target, record).items()) + "\n"


def published_rows() -> list[tuple[str, ModelConfig, str]]:
    """Label, model, and the "GFLOPs" as printed: MPDiT paper (arXiv 2603.26357), ablations and main tables."""

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


def published_table() -> Table:
    rows = [
        [label, giga(forward_macs(model)), giga(forward_macs(model, convention="paper")), printed]
        for label, model, printed in published_rows()
    ]
    return Table(
        title="Giga-MACs of one forward pass, as printed",
        columns=["model", "true", "paper convention", "printed"],
        rows=rows,
    )


def _headline() -> Table:
    options = PlanOptions(epochs=240, dense_epochs=1400, watts=700.0)
    return plan_table([plan(Target("xl-256", load_preset("xl-256")), options)], options)
