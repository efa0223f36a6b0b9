"""`mpdit eval-fid`: FID, sFID, Inception Score, precision and recall, with their protocol attached."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from mpdit_cli import console, options
from mpdit_core.errors import Interrupted, UserError

PLACE = "A run, a checkpoint, an export or hf:ORG/NAME; or a folder, .npz or .safetensors of finished samples."
Text = Optional[str]  # noqa: UP045 - typer reads these at run time
Number = Optional[int]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045
Pair = Optional[tuple[Path, Path]]  # noqa: UP045


def command(
    what: Annotated[Text, typer.Argument(help=PLACE, show_default=False)] = None,
    reference: Annotated[Text, typer.Option(help="An ADM .npz, a folder, latents or a data set.")] = None,
    num_samples: Annotated[Number, typer.Option(min=1, help="Exactly. Default: 50000, or all finished ones.")] = None,
    features: Annotated[str, typer.Option(help="inception, or a features plugin (never called FID).")] = "inception",
    weights: Annotated[options.OptionalPath, typer.Option(help="File with the Inception weights.")] = None,
    metrics: Annotated[str, typer.Option(help="fid,sfid,is,precision,recall,kid")] = "fid,sfid,is,precision,recall",
    half_distances: Annotated[bool, typer.Option("--half-distances", help="Float16 distances, as ADM's.")] = False,
    bootstrap: Annotated[int, typer.Option(min=0, help="Replicates for a 95 % interval of the distance.")] = 0,
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Write the sampled images too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Measure again what was measured before.")] = False,
    sampler: Annotated[str, typer.Option(help="A sampler's name.")] = "euler",
    num_steps: Annotated[Number, typer.Option(min=1, help="Intervals.")] = None,
    guidance_scale: Annotated[float, typer.Option(min=0, help="1: off.")] = 1.0,
    guidance_interval: Annotated[str, typer.Option(metavar="LO,HI", help="Times where guidance acts.")] = "0,1",
    classes: Annotated[str, typer.Option(help="all (balanced), random, or ids and names.")] = "all",
    seed: options.Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images sampled at once.")] = 32,
    settings: options.Set = None,
    sweep: Annotated[
        Texts,
        typer.Option(metavar="KEY=V1,V2,…", help="Measure every combination, as guidance_scale=1,1.5,2. Repeatable."),
    ] = None,
    out: Annotated[options.OptionalPath, typer.Option(help="Folder of the record. Default: the run's evals/.")] = None,
    make_reference: Annotated[
        options.OptionalPath, typer.Option(metavar="OUT.npz", help="Write an ADM-style reference of WHAT instead.")
    ] = None,
    resolution: Annotated[Number, typer.Option(min=1, help="Of --make-reference from a folder or data set.")] = None,
    compare: Annotated[Pair, typer.Option(metavar="A.json B.json", help="Two records side by side.")] = None,
    nproc: options.Nproc = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model or finished samples against real images, by the protocol published numbers are made with."""
    if compare is not None:
        from mpdit_core.evaluation.compare import compare_records

        console.run_job(compare_records(*compare))
        return
    if what is None:
        raise UserError("nothing to evaluate", expected=PLACE, remedy="e.g. mpdit eval-fid runs/xl-256-1")

    from mpdit_core.evaluation.job import EvaluateOptions, SampleOptions, evaluate
    from mpdit_core.evaluation.job import make_reference as make
    from mpdit_core.evaluation.sweep import evaluate_sweep
    from mpdit_core.sampling.command_options import read_interval
    from mpdit_core.settings import parse_assignments, validate

    tree = parse_assignments(settings or [])
    unknown = sorted(set(tree) - {"sampler", "features"})
    if unknown:
        raise UserError(f"--set {unknown[0]}: no such table", expected="sampler.KEY or features.KEY")
    chosen = validate(
        EvaluateOptions,
        {
            "reference": reference, "num_samples": num_samples, "features": features,
            "feature_options": tree.get("features", {}), "weights": str(weights) if weights else None,
            "metrics": tuple(m.strip() for m in metrics.split(",") if m.strip()), "half_distances": half_distances,
            "bootstrap": bootstrap, "keep_samples": keep_samples, "force": force,
        },
    )  # fmt: skip
    interval = read_interval(guidance_interval)
    sampling = validate(
        SampleOptions,
        {
            "classes": classes, "sampler": sampler, "sampler_options": tree.get("sampler", {}), "num_steps": num_steps,
            "guidance_scale": guidance_scale, "guidance_interval": interval, "seed": seed, "batch_size": batch_size,
        },
    )  # fmt: skip
    if make_reference is not None:
        job = partial(make, make_reference, what, chosen, resolution=resolution, device=device)
    elif sweep:
        job = partial(evaluate_sweep, what, chosen, sampling, sweep, out=out, device=device)
    else:
        job = partial(evaluate, what, chosen, sampling, out=out, device=device)
    try:
        console.launch_or_run(nproc, device, job)
    except (KeyboardInterrupt, Interrupted):
        console.say(f"stopped; what was measured is kept. To go on: mpdit {shlex.join(sys.argv[1:])}")
        raise
