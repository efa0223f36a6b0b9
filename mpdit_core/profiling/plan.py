"""The cost of a training run: device hours, wall time and energy, for the model and its dense counterpart.

To add hardware: a line in `PEAK_TFLOPS` with its source (dense bfloat16 products summed in float32, no sparsity).
"""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from mpdit_core.errors import UserError
from mpdit_core.model.compute import training_macs
from mpdit_core.profiling.options import parse_keys
from mpdit_core.profiling.results import Plan, TrainingCost
from mpdit_core.profiling.targets import Target
from mpdit_core.settings import Settings, setting

PEAK_TFLOPS = {
    "v100": 125.0,  # NVIDIA V100 data sheet, SXM2; for float16, as it has no bfloat16
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
    "tpu-v4": 275.0,  # Google Cloud TPU documentation, system architecture, per chip; also the next three
    "tpu-v5e": 197.0,
    "tpu-v5p": 459.0,
    "tpu-v6e": 918.0,
}


class PlanOptions(Settings):
    """The keys of `--plan "KEY=VALUE, …"`."""

    epochs: PositiveInt | None = setting(None, "epochs; none: as in the preset")
    dense_epochs: PositiveInt | None = setting(None, "epochs of the dense model; none: the same")
    images: PositiveInt = setting(1_281_167, "number of images in the data set; ImageNet's if not given")
    hardware: str = setting("h100", "name of a device with a known peak rate, or measured")
    peak_tflops: PositiveFloat | None = setting(None, "peak rate of one device, in place of the hardware's")
    devices: PositiveInt = setting(8, "number of devices")
    utilisation: float = setting(0.4, "fraction of the peak rate that training reaches", gt=0, le=1)
    watts: PositiveFloat | None = setting(None, "power of one device in watts, for the energy")


def parse_plan(text: str) -> PlanOptions:
    """`"epochs=240, hardware=h100"` → options.

    Raises:
        UserError: an unknown key (`unknown-key`) or device (`no-such-hardware`), or an invalid value (`invalid-value`).
    """
    options = parse_keys(PlanOptions, text, origin="plan")
    if options.peak_tflops is None and options.hardware not in (*PEAK_TFLOPS, "measured"):
        raise UserError(
            f"the peak rate of the hardware {options.hardware} is not known",
            code="no-such-hardware",
            expected=", ".join([*PEAK_TFLOPS, "measured"]),
            remedy="give the number in its data sheet: peak_tflops=…",
        )
    return options


def plan(target: Target, options: PlanOptions, *, measured_tflops: float | None = None) -> Plan:
    """The cost of training `target` and its dense counterpart.

    Args:
        measured_tflops: rate of this machine's large matrix products, for `hardware=measured`.
    """
    hardware, source = options.hardware, "data sheet"
    peak = options.peak_tflops or measured_tflops or PEAK_TFLOPS[hardware]
    if options.peak_tflops is not None:
        hardware, source = f"{peak:g} TFLOP/s", "given"
    elif measured_tflops is not None:
        hardware, source = "this device", "measured"
    epochs = options.epochs or target.run.train.epochs
    model = _cost(training_macs(target.model), epochs, peak, options)
    dense = _cost(training_macs(target.model.dense()), options.dense_epochs or epochs, peak, options)
    return Plan(
        name=target.name,
        images=options.images,
        hardware=hardware,
        source=source,
        peak_tflops=peak,
        utilisation=options.utilisation,
        devices=options.devices,
        model=model,
        dense=dense,
        ratio_to_dense=model.device_hours / dense.device_hours,
    )


def _cost(macs: int, epochs: int, peak: float, options: PlanOptions) -> TrainingCost:
    flops = 2 * macs * epochs * options.images
    hours = flops / (peak * 1e12 * options.utilisation) / 3600
    return TrainingCost(
        epochs=epochs,
        flops=flops,
        device_hours=hours,
        wall_hours=hours / options.devices,
        kwh=None if options.watts is None else hours * options.watts / 1000,
    )
