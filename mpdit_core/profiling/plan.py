"""What a training run will take: device-hours, wall time and energy, for the model and its dense counterpart.

To add hardware: a line in `PEAK_TFLOPS` with its source (dense bfloat16 products summed in float32, no sparsity).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from mpdit_core.errors import UserError
from mpdit_core.model.compute import training_macs
from mpdit_core.profiling.targets import Target
from mpdit_core.reporting import Table
from mpdit_core.settings import Settings, parse_assignments, validate

PEAK_TFLOPS = {
    "v100": 125.0,  # NVIDIA V100 data sheet, SXM2; of float16, as it has no bfloat16
    "a100": 312.0,  # NVIDIA A100 data sheet
    "h100": 989.4,  # NVIDIA H100 architecture white paper, SXM5 (the data sheet prints 1,979 with sparsity)
    "h100-pcie": 756.0,  # NVIDIA H100 architecture white paper, PCIe (data sheet: 1,513 with sparsity)
    "h200": 989.4,  # NVIDIA H200 data sheet, SXM (1,979 with sparsity)
    "b200": 2250.0,  # NVIDIA DGX B200 data sheet, an eighth of it (4,500 with sparsity)
    "a10g": 70.0,  # NVIDIA A10G data sheet
    "l40s": 362.05,  # NVIDIA L40S data sheet
    "rtx3090": 71.0,  # NVIDIA GA102 architecture white paper, summed in float32
    "rtx4090": 165.2,  # NVIDIA Ada architecture white paper, summed in float32
    "rtx5090": 209.5,  # NVIDIA RTX Blackwell architecture white paper, summed in float32
    "mi300x": 1307.4,  # AMD Instinct MI300X data sheet
    "tpu-v4": 275.0,  # Google Cloud TPU documentation, system architecture, a chip; so are the next three
    "tpu-v5e": 197.0,
    "tpu-v5p": 459.0,
    "tpu-v6e": 918.0,
}


class PlanOptions(Settings):
    """What `--plan "KEY=VALUE, …"` may hold."""

    epochs: PositiveInt | None = Field(default=None, description="passes over the data; default: the preset's")
    dense_epochs: PositiveInt | None = Field(default=None, description="of the dense model; default: the same")
    images: PositiveInt = Field(default=1_281_167, description="in the data set (default: ImageNet's)")
    hardware: str = Field(default="h100", description="a name of the table, or measured")
    peak_tflops: PositiveFloat | None = Field(default=None, description="peak of a device in place of the table's")
    devices: PositiveInt = Field(default=8, description="working together")
    utilisation: float = Field(default=0.4, gt=0, le=1, description="share of the peak that training reaches")
    watts: PositiveFloat | None = Field(default=None, description="power a device draws, for the energy")


def parse_plan(text: str) -> PlanOptions:
    """`"epochs=240, hardware=h100"` → options. Raises `UserError` for unknown keys, values or hardware."""
    options = validate(PlanOptions, _tree(text), origin="--plan")
    if options.peak_tflops is None and options.hardware not in (*PEAK_TFLOPS, "measured"):
        raise UserError(
            f"--plan hardware={options.hardware}: no such device in the table",
            expected=", ".join([*PEAK_TFLOPS, "measured"]),
            remedy="or give its data sheet's figure: peak_tflops=…",
        )
    return options


def _tree(text: str) -> dict[str, Any]:
    return parse_assignments(part for part in text.replace(",", " ").split() if part not in ("default", "defaults"))


def plan(target: Target, options: PlanOptions, *, measured_tflops: float | None = None) -> dict[str, Any]:
    """Work and time of training `target` and its dense counterpart, as plain numbers."""
    peak = options.peak_tflops or measured_tflops or PEAK_TFLOPS[options.hardware]
    epochs = options.epochs or target.run.train.epochs
    model = _cost(training_macs(target.model), epochs, peak, options)
    dense_epochs = options.dense_epochs or epochs
    dense = _cost(training_macs(target.model.dense()), dense_epochs, peak, options)
    return {
        "name": target.name,
        "images": options.images,
        "hardware": options.hardware if options.peak_tflops is None else f"{peak:g} TFLOP/s",
        "peak_tflops": peak,
        "utilisation": options.utilisation,
        "devices": options.devices,
        "model": model,
        "dense": dense,
        "ratio_to_dense": model["device_hours"] / dense["device_hours"],
    }


def _cost(macs: int, epochs: int, peak: float, options: PlanOptions) -> dict[str, Any]:
    flops = 2 * macs * epochs * options.images
    hours = flops / (peak * 1e12 * options.utilisation) / 3600
    return {
        "epochs": epochs,
        "flops": flops,
        "device_hours": hours,
        "wall_hours": hours / options.devices,
        "kwh": None if options.watts is None else hours * options.watts / 1000,
    }


def plan_table(plans: list[dict[str, Any]], options: PlanOptions) -> Table:
    rows = []
    for each in plans:
        rows.append([each["name"], *_cells(each["model"]), f"{each['ratio_to_dense']:.1%}"])
        rows.append(["  its dense DiT", *_cells(each["dense"]), "100.0%"])
    first = plans[0]
    used = [name for name in ("kWh",) if options.watts]
    device, source = first["hardware"], "dense bfloat16, data sheet"
    if options.peak_tflops is not None:
        source = "as given"
    elif options.hardware == "measured":
        device, source = "this device", "large matrix products, measured"
    return Table(
        title=f"Training on {options.images:,} images, {first['devices']} × {device}",
        columns=["model", "epochs", "EFLOPs", "device h", "wall time", *used, "of dense"],
        rows=rows if used else [[*row[:5], row[6]] for row in rows],
        note=f"peak {first['peak_tflops']:.4g} TFLOP/s a device ({source}) × utilisation {options.utilisation:g}; "
        "forward and backward pass of every image, no evaluation, no data loading, perfect scaling. "
        "EFLOPs: 1e18 operations, 2 a MAC.",
    )


def _cells(cost: dict[str, Any]) -> list[str]:
    days = cost["wall_hours"] / 24
    wall = f"{days:.1f} d" if days >= 2 else f"{cost['wall_hours']:.1f} h"
    kwh = "" if cost["kwh"] is None else f"{cost['kwh']:,.0f}"
    return [str(cost["epochs"]), f"{cost['flops'] / 1e18:,.0f}", f"{cost['device_hours']:,.0f}", wall, kwh]
