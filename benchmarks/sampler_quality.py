"""Evaluations of the network against quality, for every sampler: `python benchmarks/sampler_quality.py MODEL`.

MODEL is a run on the demo's digits (`mpdit demo` makes one). For each sampler and budget of evaluations the largest
number of steps that fits is taken, unguided, in float32; every sampler starts from the same noise. The distance is
Fréchet's, on pixels, to all real digits. Writes docs/sampler-quality.md, its picture and a JSON result.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from report import write_result

from mpdit_core import plugins
from mpdit_core.checkpoint import open_model
from mpdit_core.distributed import World
from mpdit_core.errors import UserError
from mpdit_core.jobs.demo import real_digits
from mpdit_core.jobs.generate import SampleOptions, generate
from mpdit_core.metrics.scores import frechet_distance
from mpdit_core.metrics.statistics import statistics_of
from mpdit_core.samplers import load_sampler

BUDGETS = (5, 10, 20, 50, 100)
ADAPTIVE = ("dopri5",)  # choose their evaluations themselves
DOCS = Path(__file__).parent.parent / "docs"
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", action="append", help="repeatable; all by default")
    arguments = parser.parse_args()
    measure = Measure(arguments.model, arguments.samples, arguments.seed)
    rows = []
    for name in arguments.sampler or plugins.names("samplers"):
        for budget in BUDGETS[-1:] if name in ADAPTIVE else BUDGETS:
            steps = None if name in ADAPTIVE else largest_steps(name, budget)
            if name in ADAPTIVE or steps is not None:
                rows.append({"sampler": name, "budget": budget, **measure(name, steps)})
                print(rows[-1], flush=True)
    about = {"samples": arguments.samples, "seed": arguments.seed, **measure.baseline()}
    print(write_result("sampler-quality", {**about, "rows": rows}))
    if arguments.sampler is None:
        draw(rows, about, DOCS / "images" / "sampler-quality.png")
        (DOCS / "sampler-quality.md").write_text(page(rows, about), encoding="utf-8")


class Measure:
    """The model and the real digits, measured once."""

    def __init__(self, model: str, samples: int, seed: int):
        self.model, self.samples, self.seed = open_model(model), samples, seed
        self.pixels = plugins.build("features", "digits-pixels")
        self.pixels.load(CPU)
        self.digits = real_digits(len(plugins.build("datasets", "digits").items()), seed=seed)
        self.real = self.statistics(self.digits)

    def statistics(self, images: torch.Tensor) -> Any:
        return statistics_of(self.pixels(images).pool)

    def __call__(self, name: str, num_steps: int | None) -> dict[str, Any]:
        options = SampleOptions(
            num_samples=self.samples, sampler=name, num_steps=num_steps, seed=self.seed, precision="float32"
        )
        started = time.monotonic()
        try:
            batches = list(generate(self.model, options, device=CPU, world=World()))
        except UserError as error:
            return {"num_steps": num_steps, "failed": error.what}
        images = torch.cat([batch.images for batch in batches if batch.images is not None])
        return {
            "num_steps": num_steps,
            "nfe": sum(batch.nfe * len(batch.indices) for batch in batches) / self.samples,
            "distance": frechet_distance(self.real, self.statistics(images)),
            "seconds": round(time.monotonic() - started, 2),
        }

    def baseline(self) -> dict[str, float]:
        """The distance of as many real digits to all other real ones: what no sampler can be expected to beat."""
        part, rest = self.digits[: self.samples], self.digits[self.samples :]
        return {"distance_of_real": frechet_distance(self.statistics(rest), self.statistics(part))}


def largest_steps(name: str, budget: int) -> int | None:
    """The most steps that cost at most `budget` evaluations; counted, not assumed. None: not even one fits."""
    for num_steps in range(budget + 1, 0, -1):
        calls = 0

        def velocity(x_t: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return torch.zeros_like(x_t)

        try:
            for _ in load_sampler(name, num_steps=num_steps).steps(velocity, torch.ones(1, 1, 4, 4)):
                pass
        except UserError:
            continue
        if calls <= budget:
            return num_steps
    return None


def page(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table as Markdown: a line for each sampler, a column for each budget; the best of a column in bold."""
    names = list(dict.fromkeys(row["sampler"] for row in rows))
    best = {b: min(r["distance"] for r in rows if r["budget"] == b and "distance" in r) for b in BUDGETS}
    lines = [
        "# Samplers: evaluations against quality",
        "",
        f"Fréchet distance on pixels to all real digits, of {about['samples']} unguided samples of the demo's model "
        f"(seed {about['seed']}, float32, CPU); lower is better. As many real digits are at "
        f"{about['distance_of_real']:.3f} from the others. A cell is the most steps that fit the budget of evaluations "
        "(NFE). Bold: within 2 % of the best of its column. One seed: "
        "differences of a few percent mean little. Most of each number is the bias of so few samples, which real "
        "digits have too; what shows is how soon a sampler comes down to that level.",
        "",
        "| sampler | " + " | ".join(f"NFE {b}" for b in BUDGETS) + " |",
        "|---|" + "---|" * len(BUDGETS),
    ]
    for name in names:
        cells = []
        for budget in BUDGETS:
            row = next((r for r in rows if (r["sampler"], r["budget"]) == (name, budget)), None)
            cells.append(_cell(row, best[budget], budget))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += [
        "",
        "![distance against evaluations](images/sampler-quality.png)",
        "",
        "In parentheses: the evaluations used, where fewer than the budget. `dopri5` chooses them itself. A dash: not "
        "even one step fits. Measured by `python benchmarks/sampler_quality.py MODEL`.",
        "",
    ]
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, best: float, budget: int) -> str:
    if row is None:
        return "–"
    if "failed" in row:
        return "diverged"
    text = f"{row['distance']:.3f}"
    if row["distance"] <= 1.02 * best:
        text = f"**{text}**"
    return text if row["nfe"] == budget else f"{text} ({row['nfe']:g})"


def draw(rows: list[dict[str, Any]], about: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    styles = ("o-", "s--", "^-.", "D:")
    for number, name in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
        points = [(r["nfe"], r["distance"]) for r in rows if r["sampler"] == name and "distance" in r]
        axes.plot(
            *zip(*points, strict=True), styles[number // 5 % 4], color=f"C{number % 10}", label=name, markersize=4
        )
    axes.axhline(about["distance_of_real"], color="black", linewidth=0.8)
    axes.annotate("real digits", (5, about["distance_of_real"]), va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network (NFE)", ylabel="Fréchet distance on pixels")
    axes.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
    axes.set_yticks((0.5, 0.7, 1, 1.5, 2), ["0.5", "0.7", "1", "1.5", "2"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
