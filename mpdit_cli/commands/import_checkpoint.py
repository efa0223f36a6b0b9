"""`mpdit import FILE`: an official MPDiT, DiT or SiT checkpoint as a model of mpdit."""

from __future__ import annotations

from mpdit_cli import console
from mpdit_cli.fields import options_command
from mpdit_core.interop.options import ImportOptions


@options_command(ImportOptions)
def command(options: ImportOptions) -> None:
    """Convert an official MPDiT, MPDiT v2, DiT or SiT checkpoint to a model of mpdit.

    Example: mpdit import DiT-XL-2-256x256.pt
    """
    from mpdit_core.interop import import_checkpoint

    result = console.run(import_checkpoint, options)
    config = result.config
    rows = {
        "kind": f"{result.kind}, weights: {result.weights}",
        "preset": result.preset,
        "stages": ", ".join(f"{depth} blocks at patch {patch}" for patch, depth in config["stages"]),
        "shape": f"width {config['width']}, {config['num_heads']} heads, "
        f"latents {config['channels']} × {config['input_size']} × {config['input_size']}",
        "switches": f"{config['modulation']} modulation, {config['time_embedding']} time embedding, "
        f"{config['class_tokens']} class tokens",
    }
    if result.autoencoder:
        rows["decoded by"] = f"{result.autoencoder}, {result.normalisation} normalisation"
    next_command = f"mpdit sample {result.model}" if result.prediction == "velocity" else ""
    console.show(result, console.Summary(title=f"imported {result.file}", rows=rows, next_command=next_command))
