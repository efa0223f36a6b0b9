"""The cost of `objective.alignment` in a training step: with stored features, and with the teacher in the loop.

    python benchmarks/alignment.py
    python benchmarks/alignment.py --preset b-256 --batch-size 64 --device cuda

A step is a whole one: forward, backward, gradient norm, AdamW, EMA. Four parts are timed in turns: a step without the
term; a step with it; the term alone (forward and backward, from given tokens); and EfficientNet-Lite0's maps of as many
images, which a program without stored features computes at each step. The steps vary by more than the term costs, so
its cost is the time of the term alone divided by the step without it; the difference of the two steps is printed too.
On a CPU, the processor's time is measured, so that other programs do not count. FLOPs are those of matrix products,
counted by torch. Needs mpdit-efficientnet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from report import seconds_in_turns, write_result
from torch.utils.flop_counter import FlopCounterMode
from train_step import make_batch

from mpdit_core.api import Prediction
from mpdit_core.config import RunConfig
from mpdit_core.flow.loss import build_terms
from mpdit_core.metrics.features import load_extractor
from mpdit_core.presets import load_preset
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import autocast
from mpdit_core.settings import merge, validate
from mpdit_core.training.state.trainer import Trainer

FEATURES = 320  # per token of EfficientNet-Lite0's map
PROJECTORS = ("mlp", "convolution")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="repeatable; default s-32 and b-256")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind, after one untimed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["auto", "float32", "bfloat16"])
    arguments = parser.parse_args()
    rows = []
    for preset in arguments.preset or ["s-32", "b-256"]:
        for projector in PROJECTORS:
            rows.append(measure(preset, projector, arguments))
            print_row(rows[-1])
    print(write_result("alignment", {"command": sys.argv[1:], "rows": rows}))


def measure(preset: str, projector: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds, and FLOPs, of each part of a step."""
    device, size = select_device(arguments.device), arguments.batch_size
    train = {"batch_size": size, "precision": arguments.precision, "compile": "off"}
    config = validate(RunConfig, merge(load_preset(preset).model_dump(), {"train": train}))
    terms = build_terms({"flow-matching": {}, "alignment": {"projector": projector}})
    trainer = Trainer(
        config, total_steps=1000, device=device, world=World(), terms=terms, teacher_features=FEATURES
    )  # fmt: skip
    torch.manual_seed(0)
    made = make_batch(config.model, size, "teacher", teacher_features=FEATURES)
    assert made.teacher is not None
    batch = replace(made, teacher=made.teacher.half()).to(device)  # as features are stored
    teacher = load_extractor("efficientnet", device=device)
    images = torch.randint(0, 256, (size, 3, *config.resolution), dtype=torch.uint8, device=device)

    def step(names: tuple[str, ...]) -> None:
        trainer.model.loss.terms = {name: terms[name] for name in names}
        trainer.step(batch)

    tokens = torch.randn(*made.teacher.shape[:2], config.model.width, device=device, requires_grad=True)
    modules = trainer.model.loss.modules_of["alignment"]
    given: Any = SimpleNamespace(prediction=Prediction(batch.noise, batch.noise, tokens), modules=modules)

    def term_alone() -> None:
        with autocast(device, trainer.model.dtype):
            loss = terms["alignment"].loss(given, batch, lambda *_: None)
        loss.backward()

    parts = {
        "plain": lambda: step(("flow-matching",)),
        "aligned": lambda: step(("flow-matching", "alignment")),
        "term": term_alone,
        "teacher": lambda: teacher.feature_map(images),  # pyright: ignore[reportAttributeAccessIssue]
    }
    flops = {name: count_flops(part) for name, part in parts.items()}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = seconds_in_turns(parts, arguments.steps, device=device, clock=clock)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "preset": preset,
        "projector": projector,
        "batch_size": size,
        "parameters_beside": sum(p.numel() for p in trainer.model.loss.term_modules.parameters()),
        "seconds": seconds,
        "flops": flops,
        "cost_of_the_term": medians["term"] / medians["plain"],
        "difference_of_steps": medians["aligned"] / medians["plain"] - 1,
        "cost_in_flops": flops["aligned"] / flops["plain"] - 1,
        "cost_of_the_teacher_in_the_loop": medians["teacher"] / medians["plain"],
    }  # fmt: skip


def count_flops(part: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        part()
    return counter.get_total_flops()


def print_row(row: dict[str, Any]) -> None:
    term, difference = f"{row['cost_of_the_term']:.1%}", f"{row['difference_of_steps']:.1%}"
    print(
        f"{row['preset']:>6} {row['projector']:>11}: the term takes {term} of the time of a step "
        f"({row['cost_in_flops']:.1%} more FLOPs; two steps differ by {difference}); "
        f"the teacher in the loop would take {row['cost_of_the_teacher_in_the_loop']:.0%}"
    )


if __name__ == "__main__":
    main()
