"""The paper's ablation at the size of the demo: what each switch does to the digits at equal steps.

    python benchmarks/ablation.py --steps 1200

Trains the preset `digits` with the switches of each row, measures the Fréchet distance of samples in the features of
the digits' classifier (not FID; compare rows of one table only), and writes the table to docs/ablation.md.
Needs the plugin mpdit-digits.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from report import cpu_name, write_result

from mpdit_core.encoding import EncodeOptions, encode_latents
from mpdit_core.evaluation import EvaluateOptions, evaluate
from mpdit_core.model.compute import count
from mpdit_core.models import RunFolder
from mpdit_core.settings import parse_assignments
from mpdit_core.training import TrainOptions, train

DENSE = ["model.stages=[[2, 4]]"]
SINUSOID, NO_TOKENS = 'model.time_embedding="sinusoid"', "model.class_tokens=0"
ROWS = {
    "dense": [*DENSE, 'model.modulation="per-block"', NO_TOKENS, SINUSOID],
    "shared": [*DENSE, NO_TOKENS, SINUSOID],
    "tokens": [*DENSE, SINUSOID],
    "fno": DENSE,
    "k = 3": ["model.stages=[[4, 1], [2, 3]]"],
    "k = 2": ["model.stages=[[4, 2], [2, 2]]"],
    "k = 1": ["model.stages=[[4, 3], [2, 1]]"],
}
WHAT = {
    "dense": "DiT: modulation in each block, class added to the time",
    "shared": "… one modulation for all blocks",
    "tokens": "… class as 4 tokens",
    "fno": "… FNO time embedding",
    "k = 3": "… 1 block at patch 4, 3 at patch 2",
    "k = 2": "… 2 and 2 (the demo's model)",
    "k = 1": "… 3 and 1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, separated by commas")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "ablation.md")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        latents = Path(folder) / "latents"
        encode_latents(EncodeOptions(source="digits", out=latents, flip=False, device="cpu"))
        for name in arguments.rows.split(","):
            rows.append(row(name, latents, Path(folder) / name.replace(" ", ""), arguments))
            print(rows[-1], flush=True)
    result = write_result("ablation", {"steps": arguments.steps, "num_samples": arguments.num_samples, "rows": rows})
    arguments.out.write_text(document(rows, arguments, result), encoding="utf-8")
    print(arguments.out)


def row(name: str, latents: Path, run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    settings = parse_assignments([*ROWS[name], "preview.every=0", f"train.checkpoint_every={arguments.steps}"])
    train(TrainOptions(
        preset="digits", latents=latents, run=run, steps=arguments.steps, device="cpu", settings=settings
    ))  # fmt: skip
    seconds = time.monotonic() - started
    last = [line["loss"] for line in RunFolder(run).metrics()][-20:]
    record = evaluate(EvaluateOptions(
        what=str(run), num_samples=arguments.num_samples, features="digits", metrics=("fid",), batch_size=100,
        device="cpu",
    ))  # fmt: skip
    counted = count(RunFolder(run).config().model)
    return {
        "name": name,
        "loss": sum(last) / len(last),
        "frechet_distance": record.metrics["frechet_distance"],
        "macs": counted.macs,
        "parameters": counted.parameters,
        "seconds": seconds,
    }


def document(rows: list[dict[str, Any]], arguments: argparse.Namespace, result: Path) -> str:
    lines = [
        "# Ablation at demo size",
        "",
        f"The digits preset (width 64, 4 blocks, 16 × 16 pixels), {arguments.steps} steps of 64 images for every row, "
        f"one seed, on {cpu_name()}. Loss: mean of the last 20 logged steps. Distance: Fréchet distance of "
        f"{arguments.num_samples} unguided samples in the features of the digits' classifier. It is not FID, and "
        "differences of a few per cent between rows are within what another seed would change: at this size the table "
        "shows that every row trains and what it costs, not which is better at ImageNet.",
        "",
        f"Made by `python benchmarks/ablation.py --steps {arguments.steps}`; the numbers are in "
        f"`benchmarks/results/{result.name}`.",
        "",
        "| row | what | loss | distance | MMACs per image | parameters | training time |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {WHAT[r['name']]} | {r['loss']:.4f} | {r['frechet_distance']:.2f} | {r['macs'] / 1e6:.2f} | "
        f"{r['parameters']:,} | {r['seconds']:.0f} s |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
