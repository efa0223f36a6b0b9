"""`mpdit train`: train a model on encoded latents, or resume a run."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import Nproc, options_command
from mpdit_core.runtime.files import size_text
from mpdit_core.settings import to_toml
from mpdit_core.training.options import DryRunResult, TrainOptions, TrainResult


@options_command(TrainOptions)
def command(options: TrainOptions, nproc: Nproc = "auto") -> None:
    """Train a model on encoded latents, or resume a run.

    Example: mpdit train --preset xl-256

    Without a preset, the one that fits the latents is taken.
    """
    from mpdit_core.training import train

    result = console.run(train, options, nproc="1" if options.dry_run else nproc, device=options.device)
    if isinstance(result, DryRunResult):
        origins = {key: f"from {origin}" for key, origin in result.origins.items()}
        console.say(to_toml(result.config, comments=origins, otherwise="default"))
        console.show(result, _dry_run(result))
    else:
        console.show(result, _trained(result))


def _trained(result: TrainResult) -> console.Summary:
    rows = {"steps": f"{result.step:,}", "images seen": f"{result.images_seen:,}"}
    if result.loss is not None:
        rows["loss"] = f"{result.loss:.4f}"
    return console.Summary(title=f"trained {result.run}", rows=rows, next_command=f"mpdit sample {result.run}")


def _dry_run(result: DryRunResult) -> console.Summary:
    checkpointing = result.config.train.activation_checkpointing
    other = "off" if checkpointing else "on"
    cost = "saves the second forward pass" if checkpointing else "costs a third more computing"
    rows = {
        "latents": f"{result.latents}, {result.images:,} images",
        "steps": f"{result.total_steps:,}",
        "device memory": f"{size_text(result.memory_bytes)}, {size_text(result.activation_bytes)} of it activations",
        f"with activation checkpointing {other}": f"{size_text(result.switched_memory_bytes)}; {cost}",
        "disk": f"{size_text(result.disk_bytes)}, {size_text(result.checkpoint_bytes)} per checkpoint",
        "disk free": size_text(result.free_bytes),
    }
    title = f"{result.run} (nothing was written)"
    return console.Summary(title=title, rows=rows, next_command="the same without --dry-run")
