"""Makes docs/measurements.md from the files in results/: `python benchmarks/measurements.py > docs/measurements.md`.

To add a benchmark: a row in `BENCHMARKS`. A test compares the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from statistics import median
from typing import Any

from report import RESULTS

Data = dict[str, Any]

HEADER = """# Measurements

All benchmarks and their results, newest first. `python benchmarks/measurements.py` makes this page from the files in
`benchmarks/results/`, which contain more; the dates link to them. The commands run in a checkout of the repository.
Results of other machines are welcome ([CONTRIBUTING](../CONTRIBUTING.md)). The compute of models is counted, not
measured: [Compute](compute.md).
"""


@dataclass(frozen=True)
class Benchmark:
    """`name` matches the field `benchmark` of results; `figure` summarises one result in a few words."""

    name: str
    what: str
    command: str
    figure: Callable[[Data], str]


def by_row(line: Callable[[Data], str]) -> Callable[[Data], str]:
    """Summarises a result by the `line` of each of its rows."""
    return lambda data: "<br>".join(map(line, data["rows"]))


@by_row
def train_step(row: Data) -> str:
    return f"{row['model']} {row.get('dtype', 'float32')} {row['mode']}: {row['images_per_second']:.2f} images/s"


def sample(data: Data) -> str:
    best = data["best"]
    plain = f", {data['times_plain']:.2f} × eager float32" if "times_plain" in data else ""
    return f"{best['images_per_second']:.2f} images/s in {best.get('precision', 'float32')}{plain}"


@by_row
def sample_memory(row: Data) -> str:
    return f"{row['format']}, {row['images']:,} images: {row['peak_mib']:.0f} MiB"


def sampler_quality(data: Data) -> str:
    (best, nfe) = min((row["distance"], row["nfe"]) for row in data["rows"])
    return f"best distance {best:.3f} with {nfe:.0f} evaluations; real images {data['distance_of_real']:.3f}"


@by_row
def ablation(row: Data) -> str:
    distance = row["distance"]
    return f"{row['name']} in {row['sampled_in']}: distance {distance['mean']:.0f} ± {distance['std']:.0f}"


@by_row
def precision(row: Data) -> str:
    return (
        f"{row['model']}, {row['type']}: loss {row['loss']['mean']:.4f} ± {row['loss']['std']:.4f}, "
        f"distance {row['distance']['mean']:.2f} ± {row['distance']['std']:.2f}"
    )


@by_row
def alignment(row: Data) -> str:
    seconds = {part: median(values) for part, values in row["seconds"].items()}
    return (
        f"{row['preset']}, {row['projector']}: the term takes {seconds['term'] / seconds['plain']:.1%} of a step's "
        f"time, a teacher that runs in each step {seconds['teacher'] / seconds['plain']:.1%}"
    )


def encode(data: Data) -> str:
    return f"{data['images_per_second']:.2f} images/s, {data['ratio']:.2f} of the rate of decoding or encoding alone"


def encode_precision(data: Data) -> str:
    return "<br>".join(
        f"{name}: {data[name]['bfloat16']:.2f} images/s, {data[name]['ratio']:.2f} × float32"
        for name in ("encode", "decode")
    )


def latents_read(data: Data) -> str:
    first, warm = data["first_batch_seconds"], data["warm_samples_per_second"]
    return (
        f"first batch {first['shards']:.3f} s, with .npy files {first['files']:.3f} s<br>"
        f"{warm['shards']:,.0f} samples/s, with .npy files {warm['files']:,.0f}"
    )


@by_row
def batches(row: Data) -> str:
    return (
        f"{row['stores']} {' × '.join(map(str, row['latents']))}: {row['images_per_second']:,.0f} images/s, "
        f"{row['ratio']:.2f} × one generator per sample"
    )


@by_row
def attention(row: Data) -> str:
    return f"{row['tokens']} tokens: {row['ratio']:.2f} × torch's own kernels"


@by_row
def startup(row: Data) -> str:
    return f"{row['command']}: {row['seconds']:.2f} s"


def solve(data: Data) -> str:
    return f"{data['seconds_symmetric']:.2f} s, {data['times_faster']:.1f} × faster than sqrtm"


def neighbours(data: Data) -> str:
    return f"{data['seconds']:.0f} s, {data['peak_gib']:.1f} GiB at the peak"


def passing(data: Data) -> str:
    own, all_of_it = data["share_of_pass_outside"], data["share_of_50000_outside"]
    return f"{own:.1%} of the time outside sampler and extractor; {all_of_it:.1%} computed for 50,000 images"


def sums(data: Data) -> str:
    return f"{data['seconds_per_chunk']:.2f} s to add a chunk, {data['seconds_saving']:.2f} s to save the sums"


@by_row
def scale(row: Data) -> str:
    return f"{row['what']}: {row['seconds']:.2f} s, {row['ratio']:.1f} × a tenth"


def demo(data: Data) -> str:
    ratio = data["distance"] / data["distance_of_real"]
    return f"{data['recognised']:.1%} recognised, distance {ratio:.2f} × that of real digits, {data['seconds']:.0f} s"


def gpu(data: Data) -> str:
    lines = []
    for name, piece in data["pieces"].items():
        figures = [f"{piece['images_per_second']:,.0f} images/s"] if "images_per_second" in piece else []
        figures += [f"{key[:-4]} {value:.2f} ms" for key, value in piece.items() if key.endswith(", ms")]
        if figures:
            note = f" ({piece['note']})" if "note" in piece else ""
            lines.append(f"{name}: {', '.join(figures)}{note}")
    return "<br>".join(lines)


BENCHMARKS = (
    Benchmark("gpu", "A GPU: correctness, speed and memory", "gpu.py --minutes 9", gpu),
    Benchmark(
        "train-step-*", "Training steps", "train_step.py --preset b-256 --batch-size 16 --compile both", train_step
    ),
    Benchmark("attention", "Attention in bfloat16 on a CPU, both passes", "attention.py", attention),
    Benchmark("batches", "Random numbers of training", "batches.py", batches),
    Benchmark("latents-read", "Reading latents", "latents_read.py --count 50000", latents_read),
    Benchmark("encode-precision", "Autoencoders in bfloat16", "encode.py --precision", encode_precision),
    Benchmark("encode-*", "Writing latents", "encode.py", encode),
    Benchmark("sample-memory", "Memory of sampling", "sample.py --memory -n 50000 --num-steps 1", sample_memory),
    Benchmark("sample-*", "Speed of sampling", "sample.py --preset b-256 -n 8 --num-steps 5", sample),
    Benchmark(
        "sampler-quality", "Samplers, evaluations against quality", "sampler_quality.py demo/digits", sampler_quality
    ),
    Benchmark("ablation", "Ablation on colour pictures", "ablation.py latents/pictures-32", ablation),
    Benchmark(
        "ablation-10-teraflops",
        "Ablation, ten times longer",
        "ablation.py latents/pictures-32 --teraflops 10",
        ablation,
    ),
    Benchmark("precision", "Quality in float32 and bfloat16", "precision.py --latents latents/pictures-32", precision),
    Benchmark("alignment", "Alignment with a teacher", "alignment.py --batch-size 4 --steps 5", alignment),
    Benchmark("demo", "Quality of the demo", "demo.py", demo),
    Benchmark("evaluate", "The Fréchet distance of 2,048 features", "evaluate.py solve", solve),
    Benchmark("evaluate-neighbours", "Precision and recall", "evaluate.py neighbours", neighbours),
    Benchmark("evaluate-pass", "A whole evaluation", "evaluate.py pass", passing),
    Benchmark("evaluate-sums", "Sums of an evaluation", "evaluate.py sums", sums),
    Benchmark("startup", "Start of commands", "startup.py", startup),
    Benchmark("scale", "Start of commands with a million files", "scale.py", scale),
)


def page() -> str:
    found: dict[Benchmark, list[Data]] = {benchmark: [] for benchmark in BENCHMARKS}
    for path in sorted(RESULTS.glob("*.json"), reverse=True):
        data = json.loads(path.read_text(encoding="utf-8")) | {"file": path.name}
        found[next(benchmark for benchmark in BENCHMARKS if fnmatch(data["benchmark"], benchmark.name))].append(data)
    return "\n".join([HEADER, *(line for pair in found.items() for line in section(*pair))])


def section(benchmark: Benchmark, results: list[Data]) -> Iterator[str]:
    yield from (f"## {benchmark.what}", "", f"    python benchmarks/{benchmark.command}", "")
    if not results:
        yield from ("No result yet.", "")
        return
    yield from ("| date | hardware | benchmark | found |", "|---|---|---|---|")
    for data in results:
        hardware = f"{data['hardware']}, {data['threads']} of {data['cores']} cores, torch {data['torch']}"
        date = f"[{data['date'][:10]}](../benchmarks/results/{data['file']})"
        yield f"| {date} | {hardware} | {data['benchmark']} | {benchmark.figure(data)} |"
    yield ""


if __name__ == "__main__":
    print(page(), end="")
