"""Quality in bfloat16 against float32: the same runs in both types, with several seeds.

    python benchmarks/precision.py --latents latents/pictures-32

Two models: the demo's digits, and a model of width 192 on the colour pictures that benchmarks/ablation.py describes.
Each is `mpdit train --sweep train.precision=float32,bfloat16 --seeds 3`. If it is started again, it resumes. It writes
a table to docs/training.md and a JSON result. Needs the plugins mpdit-digits, mpdit-dct and mpdit-efficientnet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ablation import BASE, FEATURES, fill, plain, shown
from report import cpu_name, write_result

from mpdit_core.encoding import EncodeOptions, encode_latents
from mpdit_core.reporting import Note, Warning
from mpdit_core.settings import parse_assignments
from mpdit_core.training import Cell, TrainOptions, train_sweep
from mpdit_core.training.sweep import statistics

PICTURES = [*BASE, "model.width=192", "model.num_heads=6", f"preview.evaluate_features={FEATURES}"]
DIGITS = ["preview.every=0", "preview.evaluate_features=digits"]
TYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, required=True, help="folder of latents of the colour pictures")
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 300), help="steps for digits and for pictures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-samples", type=int, default=300, help="images per evaluation")
    parser.add_argument("--work", type=Path, default=Path("runs/precision"), help="folder of the runs")
    arguments = parser.parse_args()
    digits = arguments.work / "latents"
    encode_latents(EncodeOptions(source="digits", out=digits, flip=False, device="cpu"))
    models = {
        "digits, width 64": ("digits", digits, DIGITS, arguments.steps[0]),
        "pictures, width 192": ("s-32", arguments.latents, PICTURES, arguments.steps[1]),
    }
    rows = []
    for name, (preset, latents, settings, steps) in models.items():
        plan = [
            f"preview.evaluate_every={steps}", f"preview.evaluate_samples={arguments.num_samples}",
            f"train.checkpoint_every={steps}",
        ]  # fmt: skip
        result = train_sweep(
            TrainOptions(
                preset=preset, latents=latents, run=arguments.work / preset, steps=steps, seeds=arguments.seeds,
                sweep=(f"train.precision={','.join(TYPES)}",), settings=parse_assignments([*settings, *plan]),
                device="cpu", trust=True,
            ),
            report=lambda event: print(event.text, flush=True) if isinstance(event, Note | Warning) else None,
        )  # fmt: skip
        rows += compared(name, steps, *result.cells)
        print(rows[-1], flush=True)
    shared = {"num_samples": arguments.num_samples, "seeds": arguments.seeds}
    path = write_result("precision", {**shared, "rows": rows})
    fill(Path(__file__).parents[1] / "docs" / "training.md", table(rows, path), by="precision.py")


def compared(name: str, steps: int, float32: Cell, bfloat16: Cell) -> list[dict[str, Any]]:
    """One row per type, and one with the difference bfloat16 - float32 per seed."""
    pairs = list(zip(bfloat16.runs, float32.runs, strict=True))
    loss = statistics([b.loss - a.loss for b, a in pairs if a.loss and b.loss])
    distance = statistics([b.evaluations[-1].distance - a.evaluations[-1].distance for b, a in pairs])
    rows = [(cell.values["train.precision"], cell.loss, cell.distance) for cell in (float32, bfloat16)]
    rows.append(("difference per seed", loss, distance))
    return [
        {"model": name, "steps": steps, "type": kind, "loss": plain(loss), "distance": plain(distance)}
        for kind, loss, distance in rows
    ]


def table(rows: list[dict[str, Any]], result: Path) -> str:
    lines = [
        f"Measured on {cpu_name()}; all numbers are in `benchmarks/results/{result.name}`.",
        "",
        "| model | steps | type | loss | distance |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['steps']} | {row['type']} | {shown(row['loss'], 5)} | {shown(row['distance'], 2)} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
