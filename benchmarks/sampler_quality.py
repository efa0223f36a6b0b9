"""Evaluations of the network against quality, for every sampler: `python benchmarks/sampler_quality.py MODEL`.

MODEL is a run on the demo's digits (`mpdit demo` makes one). For each sampler and budget of evaluations, the largest
number of steps within the budget is used, unguided, in float32; all samplers start from the same noise for each seed.
The real digits are divided: as many as there are samples are left out, the others are the reference. The distance is
the Fréchet distance on pixels to the reference. The digits left out are measured against it too, and their distance is
the best to expect. Writes docs/sampler-quality.md, its picture and a JSON result.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from report import write_result

from mpdit_core import plugins
from mpdit_core.demo import real_digits
from mpdit_core.errors import UserError
from mpdit_core.flow.integrate import integrate
from mpdit_core.metrics.scores import frechet_distance
from mpdit_core.metrics.statistics import statistics_of
from mpdit_core.samplers import load_sampler
from mpdit_core.sampling import Generator, SamplingOptions

BUDGETS = (5, 10, 20, 50, 100)
ADAPTIVE = ("dopri5",)  # samplers that choose the number of evaluations themselves
SAME_AS_EULER = ("euler-official", "diffusers-euler")  # equal to euler with as many evaluations; not measured
DOCS = Path(__file__).parent.parent / "docs"
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds; results are means over them")
    parser.add_argument("--sampler", action="append", help="name of a sampler; repeatable; default: all")
    arguments = parser.parse_args()
    measure = Measure(arguments.model, arguments.samples)
    rows = []
    for name in arguments.sampler or [n for n in plugins.names("samplers") if n not in SAME_AS_EULER]:
        for budget in BUDGETS[-1:] if name in ADAPTIVE else BUDGETS:
            steps = None if name in ADAPTIVE else largest_steps(name, budget)
            if name in ADAPTIVE or steps is not None:
                found = [measure(name, steps, seed) for seed in range(arguments.seeds)]
                rows.append({"sampler": name, "budget": budget, "num_steps": steps, **combined(found)})
                print(rows[-1], flush=True)
    about = {"samples": arguments.samples, "seeds": arguments.seeds, **measure.baseline()}
    print(write_result("sampler-quality", {**about, "rows": rows}))
    if arguments.sampler is None:
        draw(rows, about, DOCS / "images" / "sampler-quality.png")
        (DOCS / "sampler-quality.md").write_text(page(rows, about), encoding="utf-8")


class Measure:
    """The model, and the statistics of real digits: `samples` of them are left out, the others are the reference."""

    def __init__(self, model: str, samples: int):
        options = SamplingOptions(precision="float32")
        self.generator, self.samples = Generator(model, options, device=CPU, num_samples=samples), samples
        self.pixels = plugins.build("features", "digits-pixels")
        self.pixels.load(CPU)
        digits = real_digits(len(plugins.build("datasets", "digits").items()), seed=0)
        self.left_out, self.others = digits[:samples], digits[samples:]
        self.reference = self.statistics(self.others)

    def statistics(self, images: torch.Tensor) -> Any:
        return statistics_of(self.pixels(images).pool)

    def __call__(self, name: str, num_steps: int | None, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        try:
            generator = self.generator.changed(sampler=name, num_steps=num_steps, seed=seed)
            batches = list(generator.batches(generator.blocks()))
        except UserError as error:
            return {"failed": error.what}
        images = torch.cat([batch.images for batch in batches if batch.images is not None])
        return {
            "nfe": sum(batch.nfe * len(batch.indices) for batch in batches) / self.samples,
            "distance": frechet_distance(self.reference, self.statistics(images)),
            "seconds": round(time.monotonic() - started, 2),
        }

    def baseline(self) -> dict[str, float]:
        """The distance of the digits left out to the reference: no sampler can be expected to have a smaller one."""
        real = frechet_distance(self.reference, self.statistics(self.left_out))
        return {"reference_images": len(self.others), "distance_of_real": real}


def combined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the seeds, and each seed's distance; a failure if any seed failed."""
    failed = next((f for f in found if "failed" in f), None)
    if failed is not None:
        return failed
    mean = {k: sum(f[k] for f in found) / len(found) for k in ("nfe", "distance", "seconds")}
    return {**mean, "distances": [f["distance"] for f in found]}


def largest_steps(name: str, budget: int) -> int | None:
    """The largest number of steps with at most `budget` evaluations, counted in a run; None if there is none."""
    for num_steps in range(budget + 1, 0, -1):
        calls = 0

        def velocity(x_t: torch.Tensor, _: float) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return torch.zeros_like(x_t)

        try:
            integrate(load_sampler(name, num_steps=num_steps), velocity, torch.ones(1, 1, 4, 4))
        except UserError:
            continue
        if calls <= budget:
            return num_steps
    return None


def page(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table as Markdown: a line for each sampler, a column for each budget; the best of a column in bold."""
    by_cell = {(row["sampler"], row["budget"]): row for row in rows}
    best = {b: min(r["distance"] for r in rows if r["budget"] == b and "distance" in r) for b in BUDGETS}
    of_seeds, of_ratios = spreads(rows)
    lines = [
        "# Samplers: evaluations against quality",
        "",
        f"Fréchet distance on pixels of {about['samples']} unguided samples of the demo's model to "
        f"{about['reference_images']} real digits (float32, CPU; mean of {about['seeds']} seeds); lower is better. "
        f"{about['samples']} other real digits have the distance {about['distance_of_real']:.3f} to the same "
        "reference. Each cell uses the largest number of steps that the budget of evaluations (NFE) allows. Bold: "
        f"within 2 % of the best of its column. The values of two seeds differ by {of_seeds:.0%} (median). All "
        f"samplers start from the same noise, so the ratio of each distance to that of `euler` with {BUDGETS[-1]} "
        f"evaluations differs between seeds by only {of_ratios:.1%}. The bias of so few samples is a large part of "
        "each value, also of the value of real digits; compare how soon each sampler reaches its final value.",
        "",
        "| sampler | " + " | ".join(f"NFE {b}" for b in BUDGETS) + " |",
        "|---|" + "---|" * len(BUDGETS),
    ]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        cells = [_cell(by_cell.get((name, budget)), best[budget], budget) for budget in BUDGETS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += [
        "",
        "![Fréchet distance against the number of evaluations, one curve per sampler](images/sampler-quality.png)",
        "",
        "In parentheses: the number of evaluations, if smaller than the budget. `dopri5` chooses this number itself. A "
        f"dash: the budget allows no step. {' and '.join(f'`{name}`' for name in SAME_AS_EULER)} give the same as "
        "`euler` with as many evaluations. Measured by `python benchmarks/sampler_quality.py MODEL`.",
        "",
    ]
    return "\n".join(lines)


def spreads(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Relative range over the seeds, (largest - smallest) / mean, as medians over all cells: of the distances, and of
    their ratios to Euler's distance with the most evaluations.
    """
    euler = next(r["distances"] for r in rows if (r["sampler"], r["budget"]) == ("euler", BUDGETS[-1]))
    apart: tuple[list[float], list[float]] = ([], [])
    for row in rows:
        if "distances" in row:
            ratios = [a / b for a, b in zip(row["distances"], euler, strict=True)]
            for found, values in zip(apart, (row["distances"], ratios), strict=True):
                found.append((max(values) - min(values)) / statistics.mean(values))
    return statistics.median(apart[0]), statistics.median(apart[1])


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
    axes.annotate(f"{about['samples']} real digits", (5, about["distance_of_real"]), va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network (NFE)", ylabel="Fréchet distance on pixels")
    axes.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
    axes.set_yticks((0.3, 0.4, 0.5, 0.7, 1, 1.5, 2), ["0.3", "0.4", "0.5", "0.7", "1", "1.5", "2"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
