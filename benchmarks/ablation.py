"""The effect of each switch on quality at equal compute, with error bars: real colour pictures, models for one core.

    npm pack emoji-datasource-google emoji-datasource-twitter
    python benchmarks/colour_pictures.py emoji-datasource-*.tgz --out pictures
    mpdit encode-latents pictures --resolution 32 --autoencoder dct --set autoencoder.channels=24
    python benchmarks/ablation.py latents/pictures-32

Every row is one sweep, as `mpdit train --seeds 3` makes it, for as many steps as cost `--teraflops`; the rows take
turns, seed by seed. Started again, it resumes, and adds what is new: rows, seeds. Writes docs/ablation.md, its picture
and a JSON result from what has finished; each compute has a table, a picture and a result of its own. Needs the plugins
mpdit-dct and mpdit-efficientnet, and matplotlib.

To add a row: a line in `ROWS`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from report import cpu_name, write_result

from mpdit_core import presets
from mpdit_core.config import RunConfig
from mpdit_core.model.compute import count, training_macs
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Event, Note, Step, Warning
from mpdit_core.settings import merge, parse_assignments
from mpdit_core.training import Statistics, TrainOptions, TrainSweepResult, train_sweep
from mpdit_core.training.sweep import statistics

BASE = [
    "model.width=128", "model.num_heads=4", "model.stages=[[4,2],[2,2]]", "model.input_size=8", "model.channels=24",
    "model.class_tokens=4", "model.spectral_init_scale=0.03125", "train.batch_size=32", "train.learning_rate=0.002",
    "train.schedule=constant", "train.warmup_steps=50", "train.ema_decays=[0.99]", "train.precision=float32",
    "preview.every=0",
]  # fmt: skip
"""Over the preset s-32: the first row, and what all others have unless they say otherwise."""


class Row(NamedTuple):
    what: str
    settings: list[str]


DENSE = ["model.stages=[[2,4]]"]
PLAIN = ["model.class_tokens=0", "model.time_embedding=sinusoid"]
PLUS = ["model.mlp=swiglu", "model.norm=rms", "model.positions=both"]
ROWS = {
    "mpdit": Row("2 blocks at patch 4, 2 at patch 2; 4 class tokens, FNO, shared modulation", []),
    "dit": Row("4 blocks at patch 2; class and time added, sinusoid, modulation per block",
               [*DENSE, *PLAIN, "model.modulation=per-block"]),
    "plus": Row("mpdit with RMSNorm, SwiGLU, and RoPE beside the table, as in the presets plus-*", PLUS),
    "muon": Row("mpdit trained with Muon", ["train.optimizer.name=muon"]),
    "wsd": Row("mpdit, learning rate to 0 over the last fifth of the steps", ["train.schedule=wsd"]),
    "dense": Row("mpdit with 4 blocks at patch 2", DENSE),
    "qk norm": Row("mpdit with an RMSNorm of queries and keys", ["model.qk_norm=true"]),
    "rms": Row("mpdit with RMSNorm", ["model.norm=rms"]),
    "swiglu": Row("mpdit with SwiGLU", ["model.mlp=swiglu"]),
    "rope": Row("mpdit with RoPE in place of the position table", ["model.positions=rope"]),
    "both": Row("mpdit with RoPE beside the position table", ["model.positions=both"]),
    "sinusoid": Row("mpdit with the sinusoid time embedding", ["model.time_embedding=sinusoid"]),
    "no tokens": Row("mpdit with the class added to the time", ["model.class_tokens=0"]),
    "direction": Row(
        "mpdit, and one minus the cosine of the velocity's direction", ["objective.velocity-direction.weight=1.0"],
    ),
    "contrastive": Row("mpdit with contrastive flow matching", ["objective.contrastive.weight=0.05"]),
    "min-snr": Row("mpdit with min-SNR weights", ["objective.flow-matching.weighting=min-snr"]),
    "snr": Row("mpdit with SNR weights", ["objective.flow-matching.weighting=snr"]),
    "mode": Row("mpdit with times of the mode density", ["time.density=mode"]),
    "shift": Row("mpdit with times shifted by 2", ["time.shift=2.0"]),
    "alignment": Row("mpdit aligned with EfficientNet-Lite0", ["objective.alignment.weight=0.5"]),
    "iREPA": Row(
        "mpdit aligned by a convolution with standardised features",
        ["objective.alignment.projector=convolution", "objective.alignment.normalise=spatial"],
    ),
    "latents": Row("mpdit that predicts the latents, with the loss of the velocity", ["model.prediction=latents"]),
}  # fmt: skip
FEATURES = f"{Path(__file__).with_name('small_efficientnet.py')}:SmallEfficientNet"

CURVES = ["mpdit", "dit"]  # evaluated after each third of their steps, to draw their distance against compute
COMPUTE = 1.0  # 10^12 operations per run, unless --teraflops says otherwise

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--rows", type=names_in, default=list(ROWS), help="names of rows, separated by commas")
    parser.add_argument(
        "--curves", type=names_in, default=CURVES, help="those that are evaluated after each third of their steps"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teraflops", type=float, default=COMPUTE, help="compute of a run, in 10^12 operations")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all rows")
    parser.add_argument("--num-samples", type=int, default=300, help="images per evaluation")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--add-to", type=Path, metavar="RESULT.json", help="an earlier result, whose other rows stay")
    arguments = parser.parse_args()
    shared = {"teraflops": arguments.teraflops, "num_samples": arguments.num_samples, "base": [*BASE, *arguments.set]}
    earlier = rows_of(arguments.add_to, shared) if arguments.add_to else {}
    rows: dict[str, dict[str, Any]] = {}
    for seeds in range(1, arguments.seeds + 1):
        for name in arguments.rows:
            rows[name] = trained(name, arguments, seeds=seeds)
            print(name, json.dumps({key: rows[name][key] for key in ("distance", "loss")}), flush=True)
    rows = earlier | rows
    finished = [rows[name] for name in ROWS if name in rows]
    of_compute = "" if arguments.teraflops == COMPUTE else f"-{arguments.teraflops:g}-teraflops"
    result = write_result(f"ablation{of_compute}", {**shared, "rows": finished})
    draw(finished, DOCS / "images" / f"ablation{of_compute}.png")
    mark = f"ablation.py --teraflops {arguments.teraflops:g}" if of_compute else "ablation.py"
    fill(DOCS / "ablation.md", f"{table(finished, result)}\n\n{thirds(finished)}", by=mark)


def names_in(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def rows_of(path: Path, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of an earlier result by name. It must have been made with the same settings."""
    result = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key, value in shared.items() if result[key] != value]
    if different:
        raise SystemExit(f"{path} was made with other {', '.join(different)}")
    return {row["name"]: row for row in result["rows"]}


def trained(name: str, arguments: argparse.Namespace, *, seeds: int) -> dict[str, Any]:
    """The row after `seeds` seeds; those that have finished are not trained again."""
    folder = arguments.work / name.replace(" ", "-")
    settings = parse_assignments([*BASE, *arguments.set, *ROWS[name].settings])
    config = presets.layers(preset="s-32", settings=settings).config()
    evaluations = 3 if name in arguments.curves else 1
    steps = steps_of(config, flops=arguments.teraflops * 1e12, multiple_of=evaluations)
    plan = [
        f"train.checkpoint_every={steps}", f"preview.evaluate_every={steps // evaluations}",
        f"preview.evaluate_samples={arguments.num_samples}", f"preview.evaluate_features={FEATURES}",
        f"train.decay_steps={steps // 5}",
    ]  # fmt: skip
    clock = Clock()
    result = train_sweep(
        TrainOptions(
            preset="s-32", latents=arguments.latents, run=folder, steps=steps, seeds=seeds, device="cpu",
            settings=merge(settings, parse_assignments(plan)), trust=True,
        ),
        report=clock,
    )  # fmt: skip
    return about(name, result) | {"steps": steps, "cpu_seconds": clock.seconds(folder / "cpu-seconds.json", steps)}


class Clock:
    """Prints notes and warnings, and measures the processor time of steps, without evaluations. Other programs change
    it only a little.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note | Warning):
            print(event.text, flush=True)
        elif isinstance(event, Step):
            self.steps.append((event.step, time.process_time()))

    def seconds(self, path: Path, steps: int) -> float:
        """Seconds of `steps` steps, from the median step; kept in `path` for calls that train nothing."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        found = [(t2 - t1) / (step2 - step1) for (step1, t1), (step2, t2) in pairs if step2 > step1]
        noted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        if found:
            noted.append(steps * median(found))
            path.write_text(json.dumps(noted), encoding="utf-8")
        return fmean(noted)


def steps_of(config: RunConfig, *, flops: float, multiple_of: int) -> int:
    """As many steps as cost `flops` floating-point operations, forward and backward."""
    steps = flops / (2 * training_macs(config.model) * config.train.batch_size)
    return multiple_of * round(steps / multiple_of)


def about(name: str, result: TrainSweepResult) -> dict[str, Any]:
    (cell,) = result.cells
    counted = count(RunFolder(cell.runs[0].run).config().model)
    return {
        "name": name,
        "settings": ROWS[name].settings,
        "loss": plain(cell.loss),
        "distance": plain(cell.distance),
        "curves": {str(run.seed): [(each.flops, each.distance) for each in run.evaluations] for run in cell.runs},
        "sampled_in": sampled_in(result),
        "macs": counted.macs,
        "parameters": counted.parameters,
    }


def sampled_in(result: TrainSweepResult) -> str:
    """The types that the evaluations computed in: `auto` is measured per process, and may differ between rows."""
    records = [path for run in result.cells[0].runs for path in sorted(run.run.glob("evals/*.json"))]
    return ", ".join(sorted({json.loads(path.read_text(encoding="utf-8"))["sampling"]["dtype"] for path in records}))


def plain(value: Statistics | None) -> dict[str, Any] | None:
    return value and value.model_dump()


def difference(row: dict[str, Any], first: dict[str, Any], *, at: int = -1) -> Statistics | None:
    """Distance of the row less that of the first, seed by seed. `at`: number of the evaluation."""
    shared = row["curves"].keys() & first["curves"].keys()
    return statistics([row["curves"][seed][at][1] - first["curves"][seed][at][1] for seed in sorted(shared)])


def table(rows: list[dict[str, Any]], result: Path) -> str:
    lines = [
        f"Measured on {cpu_name()}; all numbers are in `benchmarks/results/{result.name}`.",
        "",
        f"| row | what | distance | − {rows[0]['name']}, per seed | loss | MMACs per image | steps | parameters | "
        "CPU time | sampled in |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        distance, loss, less = row["distance"], row["loss"], difference(row, rows[0])
        fewer = f" ({distance['count']} seeds)" if distance["count"] < rows[0]["distance"]["count"] else ""
        lines.append(
            f"| {row['name']}{fewer} | {ROWS[row['name']].what} | {shown(distance, 1)} | "
            f"{shown(plain(less), 1) if row is not rows[0] else ''} | {shown(loss, 4)} | {row['macs'] / 1e6:.1f} | "
            f"{row['steps']} | {row['parameters']:,} | {row['cpu_seconds']:.0f} s | {row['sampled_in']} |"
        )
    return "\n".join(lines)


def thirds(rows: list[dict[str, Any]]) -> str:
    """The rows that were evaluated after each third: their distance, and its difference from that of the first row."""
    curves = [row for row in rows if _is_curve(row)]
    lines = ["| row | after a third of the compute | after two thirds | at the end |", "|---|---|---|---|"]
    for row in curves:
        cells = []
        for at in range(3):
            distance = statistics([curve[at][1] for curve in row["curves"].values()])
            less = "" if row is rows[0] else f" ({shown(plain(difference(row, rows[0], at=at)), 1)})"
            cells.append(shown(plain(distance), 1) + less)
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _is_curve(row: dict[str, Any]) -> bool:
    return all(len(curve) == 3 for curve in row["curves"].values())


def shown(value: dict[str, Any] | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.{digits}f}" + ("" if value["std"] is None else f" ± {value['std']:.{digits}f}")


def fill(page: Path, text: str, *, by: str) -> None:
    """Replaces what stands between the two marks of the page that name the script `by`."""
    mark = f"<!-- made by benchmarks/{by} -->"
    before, _, after = page.read_text(encoding="utf-8").split(mark)
    page.write_text(f"{before}{mark}\n\n{text}\n\n{mark}{after}", encoding="utf-8")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the distance of each row, and of some rows against compute: means and standard deviations over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [row["name"] for row in rows]
    left.errorbar(
        [row["distance"]["mean"] for row in rows], range(len(rows)),
        xerr=[row["distance"]["std"] or 0 for row in rows], fmt="o", capsize=3,
    )  # fmt: skip
    left.set_yticks(range(len(rows)), names)
    left.invert_yaxis()
    left.set_xlabel("Fréchet distance, EfficientNet features")
    for row in rows:
        if _is_curve(row):
            curves = list(row["curves"].values())
            distances = zip(*([distance for _, distance in curve] for curve in curves), strict=True)
            points = [found for found in map(statistics, distances) if found]
            right.errorbar(
                [flops / 1e12 for flops, _ in curves[0]], [point.mean for point in points],
                yerr=[point.std or 0 for point in points], fmt="o-", capsize=3, markersize=4, label=row["name"],
            )  # fmt: skip
    right.set_xlabel("floating-point operations of training, 10¹²")
    right.legend(frameon=False)
    for panel in (left, right):
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
