"""What `profile-flops` returns. Torch-free. MACs are for one forward pass of one image unless a name says otherwise."""

from __future__ import annotations

from mpdit_core.settings import Result, setting
from mpdit_core.size import Size


class Added(Result):
    """The cost that the terms of the loss other than flow matching add to training."""

    parameters: int = setting(0, "parameters of the terms' own modules")
    macs: int = setting(0, "additional MACs of the forward and backward pass of one image")


class ModelCost(Result):
    """All counts of one model, exact."""

    name: str = setting(..., "the model as it was asked for")
    preset: str = setting(..., "the preset that it is based on")
    resolution: Size = setting(..., "height and width of the images in pixels")
    width: int = setting(..., "features per token")
    num_heads: int = setting(..., "attention heads")
    stages: tuple[tuple[int, int], ...] = setting(..., "patch size and depth of each stage", strict=False)
    tokens: tuple[int, ...] = setting(..., "tokens that the attention sees, per stage", strict=False)
    parameters: int = setting(..., "trainable parameters")
    parameters_with_positions: int = setting(..., "number of parameters with position tables, as the paper counts")
    convention: str = setting(..., "convention of `macs` and of all comparisons with dense models")
    macs: int = setting(..., "MACs in the chosen convention")
    flops: int = setting(..., "twice that")
    macs_true: int = setting(..., "MACs, true convention")
    macs_paper: int = setting(..., "MACs, paper convention")
    linear_macs: int = setting(..., "MACs without attention")
    training_macs: int = setting(..., "MACs of the forward and backward pass of one image")
    objective: Added = setting(Added(), "cost that the terms of the loss add to training")
    training_step_macs: int = setting(..., "MACs of a training step, including the objective's")
    batch_size: int = setting(..., "images per training step, and rows at inference")
    guided_sampling_macs: int = setting(..., "MACs of one guided sample with 250 steps")
    is_dense: bool = setting(..., "whether the model is its own dense counterpart")
    dense_macs: int = setting(..., "MACs of the DiT of the same width, depth and finest patch")
    ratio_to_dense: float = setting(..., "macs / dense_macs")
    linear_ratio_to_dense: float = setting(..., "macs / dense_macs of the linear layers alone")
    macs_by_kind: dict[str, int] = setting(..., "MACs by kind of work")
    parameters_by_kind: dict[str, int] = setting(..., "parameters by kind of work")
    macs_by_stage: tuple[dict[str, int], ...] = setting(
        ..., "MACs, parameters, and MACs by kind of work of each stage", strict=False
    )
    training_bytes: dict[str, int] = setting(..., "memory of a training step, by precision")
    inference_bytes: dict[str, int] = setting(..., "memory at inference, by precision")


class TrainingCost(Result):
    """Work, time and energy of one training run."""

    epochs: int = setting(..., "passes over the data")
    flops: int = setting(..., "floating-point operations, forward and backward")
    device_hours: float = setting(..., "hours on one device")
    wall_hours: float = setting(..., "hours on all devices")
    kwh: float | None = setting(None, "energy; none: the power is not given")


class Plan(Result):
    """The cost of training a model, and its dense counterpart."""

    name: str = setting(..., "the model as it was asked for")
    images: int = setting(..., "images in the data set")
    hardware: str = setting(..., "the device")
    source: str = setting(..., "source of its peak rate: data sheet, given or measured")
    peak_tflops: float = setting(..., "peak rate of one device, TFLOP/s")
    utilisation: float = setting(..., "fraction of the peak rate that training reaches")
    devices: int = setting(..., "number of devices")
    model: TrainingCost = setting(..., "cost for the model")
    dense: TrainingCost = setting(..., "cost for its dense counterpart")
    ratio_to_dense: float = setting(..., "device hours of the model / of the dense counterpart")


class Shape(Result):
    """A model found within a budget."""

    width: int = setting(..., "features per token")
    num_heads: int = setting(..., "attention heads")
    stages: tuple[tuple[int, int], ...] = setting(..., "patch size and depth of each stage", strict=False)
    parameters: int = setting(..., "trainable parameters")
    parameters_kept: float = setting(..., "parameters / those of the base")
    macs: int = setting(..., "MACs, true convention")
    set: str = setting(..., "the flags that turn the base into this model")


class SearchResult(Result):
    """The models of a search."""

    base: str = setting(..., "the model whose resolution and switches they share")
    resolution: Size = setting(..., "height and width of the images in pixels")
    target_macs: float = setting(..., "the budget")
    shapes: tuple[Shape, ...] = setting(..., "the models, most parameters first", strict=False)


class Timing(Result):
    """Seconds of a pass or a part, over repeats."""

    median_seconds: float = setting(..., "median")
    p10_seconds: float = setting(..., "10th percentile")
    p90_seconds: float = setting(..., "90th percentile")


class PassTime(Timing):
    """The time of one kind of pass."""

    mode: str = setting(..., "eager or compiled")
    work: str = setting(..., "forward, or training: forward, loss and backward")
    repeats: int = setting(..., "number of passes timed")
    images_per_second: float = setting(..., "rate at the median latency")
    flops_per_second: float = setting(..., "rate at the median latency, by the true count")
    share_of_matmul: float = setting(..., "flops_per_second / rate of large matrix products")
    peak_bytes: int | None = setting(None, "peak memory of a GPU")


class PartTime(Timing):
    """The time of one part of an eager pass."""

    stage: str = setting(..., "stage 0, stage 1, …; or outside")
    kind: str = setting(..., "kind of work, or rest")
    flops: int = setting(..., "floating-point operations in it for the batch, by the true count")


class Measurement(Result):
    """A model timed on this machine. Its weights are random, because the time does not depend on them."""

    name: str = setting(..., "the model as it was asked for")
    device: str = setting(..., "the device")
    precision: str = setting(..., "data type of the matrix products")
    batch_size: int = setting(..., "images per pass")
    matmul_tflops: float = setting(..., "rate of large matrix products on this device, TFLOP/s")
    passes: tuple[PassTime, ...] = setting(..., "whole passes", strict=False)
    parts: dict[str, tuple[PartTime, ...]] = setting(..., "the parts of an eager pass, by kind of pass")


class ProfileResult(Result):
    """All numbers that were asked for."""

    convention: str = setting(..., "how MACs are counted")
    models: tuple[ModelCost, ...] = setting((), "the models counted", strict=False)
    plans: tuple[Plan, ...] = setting((), "cost of training, per model", strict=False)
    search: SearchResult | None = setting(None, "models within a budget")
    measured: tuple[Measurement, ...] = setting((), "times on this machine, per model", strict=False)
