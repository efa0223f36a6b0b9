"""The configuration of a training run, and the layers that it is built from.

Precedence: preset < configuration file < `--set key=value` < named flags. Every mistake in a key, a type or a
combination is a `UserError` that names the dotted key, before any work.

To add a setting: a field in one of the classes below, made by `setting`. `--config`, `--set`, `--dry-run`, the run's
`config.toml` and every checkpoint then have it.
"""

from __future__ import annotations

import importlib.util
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, field_validator, model_validator

from mpdit_core.settings import Settings, dotted_fields, flatten, merge, setting, spelling_of, validate
from mpdit_core.size import Size

Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "on", "off", "graphs"]
NetworkType = Literal["float32", "bfloat16"]  # what `auto` can choose
ComputeType = Literal["float32", "tf32", "bfloat16"]  # of an autoencoder; tf32: matrix products of float32 in TF32
GuidanceSchedule = Literal["constant", "linear", "cosine"]
GuidanceName = Literal["cfg", "cfg-zero", "apg", "skip-tokens"]
Decay = Annotated[float, Field(ge=0, lt=1)]
MAX_EMA_WIDTH = 0.28  # a little less than 1/√12, the width of a constant profile
EmaWidth = Annotated[float, Field(gt=0, le=MAX_EMA_WIDTH)]
MAX_BATCH = 2**20


def time_embedding_names() -> list[str]:
    """The names of the files in model/time_embeddings/, found without importing their torch code."""
    package = importlib.util.find_spec("mpdit_core.model.time_embeddings")
    assert package is not None
    return sorted(module.name for module in pkgutil.iter_modules(package.submodule_search_locations))


class Stage(NamedTuple):
    """`depth` transformer blocks on patches of `patch_size` × `patch_size` latent pixels."""

    patch_size: int
    depth: int


class ModelConfig(Settings):
    """Shape and switches of the network (one class for DiT, SiT, MPDiT and MPDiT v2)."""

    width: PositiveInt = setting(..., "D, number of features per token")
    num_heads: PositiveInt = setting(..., "number of attention heads; must divide the width")
    stages: tuple[Stage, ...] = setting(
        ..., "(patch size, depth) of each stage, coarse to fine; the output has the last patch size",
        strict=False, min_length=1,
    )  # fmt: skip
    input_size: Size = setting(..., "h × w of the latents, or one number for a square")
    channels: PositiveInt = setting(4, "C, number of channels of the latents")
    num_classes: NonNegativeInt = setting(
        1000, "number of classes, which is also the null label; 0: an unconditional model"
    )
    class_tokens: int = setting(
        16, "M, number of tokens per class label; 0: one class vector, added to the time embedding", ge=0
    )
    modulation: Literal["shared", "per-block"] = setting(
        "shared", "one modulation layer for the whole network, or one per block"
    )
    time_embedding: str = setting("fno", "time embedding: fno, sinusoid, or a file in model/time_embeddings/")
    skip: bool = setting(True, "whether each stage after the first also reads x_t, in its finer patches")
    mlp_ratio: PositiveInt = setting(
        4, "hidden features of a block's MLP, as a multiple of the width; with swiglu, two thirds of that"
    )
    mlp: Literal["gelu", "swiglu"] = setting("gelu", "MLP of a block; swiglu has as many parameters as gelu")
    norm: Literal["layer", "rms"] = setting(
        "layer", "normalisation of the tokens: LayerNorm or RMSNorm, without parameters"
    )
    qk_norm: bool = setting(False, "whether queries and keys have an RMSNorm per head")
    positions: Literal["sincos", "rope", "both"] = setting(
        "sincos", "position encoding: a table added to the tokens, rotary queries and keys, or both"
    )
    prediction: Literal["velocity", "latents"] = setting(
        "velocity", "what the output layer predicts; latents are converted to the velocity that the network returns"
    )
    spectral_init_scale: float = setting(
        1.0, "standard deviation of the initial spectral weights of the fno time embedding (1: as published)", gt=0
    )

    @field_validator("time_embedding")
    @classmethod
    def _known_embedding(cls, name: str) -> str:
        if name not in time_embedding_names():
            raise ValueError(f"expected one of {', '.join(time_embedding_names())}")
        return name

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4, which the 2-D position table needs")
        if self.positions != "sincos" and self.width // self.num_heads % 4:
            raise ValueError(
                f"heads of width {self.width // self.num_heads} are not divisible by 4, which 2-D rotations need"
            )
        for stage in self.stages:
            if stage.patch_size < 1 or stage.depth < 0:
                raise ValueError(f"stage {tuple(stage)}: patch size must be at least 1, depth at least 0")
            if not self.input_size.is_multiple(stage.patch_size):
                raise ValueError(f"input_size {self.input_size} is not divisible by patch size {stage.patch_size}")
        for coarse, fine in zip(self.stages, self.stages[1:], strict=False):
            if coarse.patch_size <= fine.patch_size or coarse.patch_size % fine.patch_size:
                raise ValueError(
                    f"patch sizes must decrease by integer factors; {coarse.patch_size} is followed by "
                    f"{fine.patch_size}"
                )
        return self

    @property
    def null_label(self) -> int:
        return self.num_classes

    @property
    def labels(self) -> range:
        """The labels to sample: those of the classes, or for an unconditional model the null label."""
        return range(max(self.num_classes, 1))

    @property
    def depth(self) -> int:
        return sum(stage.depth for stage in self.stages)

    @property
    def mlp_hidden(self) -> int:
        """Features of a block's hidden layer. The MLP with SwiGLU has three matrices, not two, and so two thirds of the
        features, rounded to a multiple of 8, which fast matrix products need.
        """
        hidden = self.mlp_ratio * self.width
        return hidden if self.mlp == "gelu" else max(8 * round(hidden / 12), 8)

    def dense(self) -> ModelConfig:
        """The DiT to compare with: the same width, depth, MLP, norms and positions, all at the finest patch size."""
        return self.model_copy(
            update={
                "stages": (Stage(self.stages[-1].patch_size, self.depth),),
                "modulation": "per-block",
                "class_tokens": 0,
                "time_embedding": "sinusoid",
            }
        )


class TimeConfig(Settings):
    """The distribution that the times of training are drawn from."""

    density: Literal["logit-normal", "uniform", "mode"] = setting("logit-normal", "distribution that t is drawn from")
    mean: float = setting(0.0, "mean before the sigmoid, for logit-normal")
    std: float = setting(1.0, "standard deviation before the sigmoid, for logit-normal", gt=0)
    scale: float = setting(
        1.29, "preference for the middle times, or if below 0 for the ends; for mode", ge=-1, le=2 / (math.pi - 2)
    )
    shift: Annotated[float, Field(gt=0)] | Literal["auto"] | None = setting(
        None, "shift of t towards noise; auto: sqrt(C·h·w / 4096); none: no shift, the same as 1"
    )


class AdamWSettings(Settings):
    """The settings of AdamW other than its learning rate (arXiv 1711.05101)."""

    betas: tuple[Decay, Decay] = setting((0.9, 0.999), "betas of AdamW", strict=False)
    weight_decay: float = setting(0.01, "decoupled weight decay, applied to every weight", ge=0)
    eps: float = setting(1e-8, "epsilon, added to the denominator of AdamW", gt=0)


class AdamWConfig(AdamWSettings):
    """AdamW for every parameter."""

    name: Literal["adamw"] = setting("adamw", "the optimizer: adamw, or muon")


class MuonConfig(AdamWSettings):
    """Muon for the weight matrices of the blocks (attention and MLP), AdamW for all other parameters.

    A step is 0.2 · √(longer side of the matrix) times the orthogonalised momentum. Its root mean square is then that of
    AdamW's steps, so AdamW's learning rate and weight decay fit it too (Moonlight, arXiv 2502.16982, section 2.2). Muon
    was introduced by Keller Jordan (kellerjordan.github.io/posts/muon).
    """

    name: Literal["muon"] = setting("muon", "the optimizer: muon, or adamw")
    momentum: float = setting(0.95, "Nesterov momentum of the matrices", ge=0, lt=1)
    matrix_learning_rate: float | None = setting(
        None, "peak learning rate of the matrices; none: train.learning_rate", gt=0
    )


def _optimizer_tag(given: Any) -> str:
    """The union's tag for an optimizer; `settings_error` leaves parts in angle brackets out of the keys it prints."""
    if isinstance(given, Mapping):
        return f"<{cast(Mapping[str, Any], given).get('name', 'adamw')}>"
    return f"<{getattr(given, 'name', None)}>"


OptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("<adamw>")] | Annotated[MuonConfig, Tag("<muon>")], Discriminator(_optimizer_tag)
]
"""To add one: a class of settings above, its tag here, and a function in training/state/optimizers.py."""


FLOW_MATCHING = "flow-matching"  # the term that every loss has; a weight of 0 leaves it out


class TrainConfig(Settings):
    """How the network is trained: optimisation, precision, checkpoints, logs."""

    batch_size: PositiveInt = setting(1024, "images per step, over all devices and gradient accumulation", le=MAX_BATCH)
    accumulation: PositiveInt = setting(
        1, "gradient accumulation: number of micro-batches per device and step", resumable=True
    )
    epochs: PositiveInt = setting(80, "passes over the data, used if steps is not given", resumable=True)
    steps: PositiveInt | None = setting(None, "optimizer steps; replaces epochs", resumable=True)
    optimizer: OptimizerConfig = AdamWConfig()
    learning_rate: float = setting(2e-4, "peak learning rate", gt=0)
    schedule: Literal["constant", "cosine", "wsd"] = setting(
        "constant", "learning rate after the warm-up; wsd: constant, then decreasing to 0 over decay_steps"
    )
    warmup_steps: int = setting(0, "steps of linear warm-up", ge=0)
    decay_steps: PositiveInt | None = setting(
        None, "number of final steps in which wsd decreases the rate; none: a tenth of all steps"
    )
    grad_clip: float | None = setting(None, "gradient norm to clip to; none: no clipping", gt=0)
    ema_decays: tuple[Decay, ...] = setting(
        (0.9999,), "decays of the EMAs of the weights; samples are made with the first", strict=False, min_length=1
    )
    ema_warmup: bool = setting(True, "whether the EMA decay is at most (1+n)/(10+n) after n steps (warm-up)")
    ema_widths: tuple[EmaWidth, ...] = setting(
        (), "widths (sigma_rel, such as 0.05,0.1) of the power-function EMAs to store in snapshots, from which "
        "--ema-width makes any other width", strict=False,
    )  # fmt: skip
    ema_snapshot_every: PositiveInt | None = setting(
        None, "steps between snapshots of the power-function EMAs; none: a 32nd of all steps", resumable=True
    )
    precision: Precision = setting(
        "auto", "data type of the computations; auto: measured when the run begins", resumable=True
    )
    compile: Compile = setting(
        "auto", "torch.compile of the blocks; graphs: also record a step as a CUDA graph; auto: on GPUs", resumable=True
    )
    deterministic: bool = setting(
        True, "whether a GPU computes the same numbers every time, which a CPU always does", resumable=True
    )
    activation_checkpointing: bool = setting(
        False, "whether blocks are recomputed in the backward pass, to save memory", resumable=True
    )
    parallel: Literal["ddp", "fsdp"] = setting("ddp", "parallelism over several devices", resumable=True)
    seed: int = setting(0, "seed of data order, times, noises, label dropout and initial weights", ge=0)
    log_every: PositiveInt = setting(10, "steps between lines of metrics.jsonl", resumable=True)
    checkpoint_every: PositiveInt = setting(10_000, "steps between checkpoints", resumable=True)
    keep_last: PositiveInt = setting(2, "number of newest checkpoints to keep", resumable=True)
    keep_every: PositiveInt | None = setting(
        None, "steps between checkpoints that are never deleted; none: only keep_last are kept", resumable=True
    )
    on_nonfinite: Literal["stop", "rollback"] = setting(
        "stop", "what to do when the loss or the gradient is not finite, or the loss spikes", resumable=True
    )
    spike_factor: float | None = setting(
        None, "multiple of its running mean above which a loss counts as a spike; none: never", gt=1, resumable=True
    )
    label_dropout: float = setting(0.1, "fraction of labels replaced by the null label", ge=0, le=1)
    flip: bool = setting(True, "whether half of the images are mirrored, if the latents hold mirror images")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting(
        (), "experiment trackers that also receive the metrics", strict=False, resumable=True
    )

    @field_validator("ema_widths")
    @classmethod
    def _different(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(widths)) < len(widths):
            raise ValueError("expected widths that differ")
        return widths


class PreviewConfig(Settings):
    """The sample grids and evaluations made during training; the grids always from the same noise and labels."""

    every: int = setting(10_000, "steps between previews; 0: none", ge=0, resumable=True)
    num_images: PositiveInt = setting(16, "images per preview, classes in turn", le=4096, resumable=True)
    num_steps: PositiveInt = setting(50, "Euler steps of a preview", le=100_000, resumable=True)
    guidance_scale: float = setting(4.0, "guidance scale of previews; 1: off", ge=0, resumable=True)
    evaluate_every: int = setting(0, "steps between evaluations; 0: none", ge=0, resumable=True)
    evaluate_samples: PositiveInt = setting(5_000, "samples per evaluation", resumable=True)
    evaluate_features: str = setting("inception", "feature extractor of evaluations", resumable=True)


class RunConfig(Settings):
    """Everything that determines a training run, except its data."""

    preset: str = setting("custom", "preset that this configuration started from")
    resolution: Size = setting(..., "height × width of the images in pixels, or one number for a square")
    model: ModelConfig
    objective: dict[str, dict[str, Any]] = setting(
        {}, "terms of the loss: plugins of the kind `objectives`, and their options"
    )
    time: TimeConfig = TimeConfig()
    train: TrainConfig = TrainConfig()
    preview: PreviewConfig = PreviewConfig()

    @field_validator("objective")
    @classmethod
    def _with_flow_matching(cls, terms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {FLOW_MATCHING: {}} | terms


RESUMABLE = frozenset(key for key, info in dotted_fields(RunConfig) if spelling_of(info).resumable)
"""Dotted keys that may change when a run is resumed, because the updates already made do not depend on them."""


@dataclass(frozen=True)
class Layers:
    """The values of a run's configuration, merged from layers, and the layer that each value came from.

    `origins` maps a dotted key to the name of the highest layer that gave it: `preset xl-256`, a file, `--set`, a flag,
    `latents`, the run that is resumed. A key that no layer gave has its default. `fixed` are the keys that the user
    gave, which are not adapted to the latents.
    """

    tree: dict[str, Any] = field(default_factory=dict[str, Any])
    origins: dict[str, str] = field(default_factory=dict[str, str])
    fixed: frozenset[str] = frozenset()

    def over(self, values: Mapping[str, Any], origin: str, *, fixed: bool = False) -> Layers:
        """These layers with `values`, a tree, on top.

        Epochs in it replace the steps of lower layers, and another optimizer replaces all settings of the lower one.

        Args:
            fixed: whether the user gave these values.
        """
        keys, lower = flatten(values), self
        if "train.epochs" in keys and "train.steps" not in keys:
            lower = lower._without("steps")
        optimizer = "train.optimizer.name"
        if optimizer in keys and keys[optimizer] != flatten(lower.tree).get(optimizer):
            lower = lower._without("optimizer")
        return Layers(
            merge(lower.tree, values),
            lower.origins | dict.fromkeys(keys, origin),
            lower.fixed | keys.keys() if fixed else lower.fixed - keys.keys(),
        )

    def _without(self, name: str) -> Layers:
        """These layers without the value or the table `train.NAME`."""
        train = self.tree.get("train")
        if not isinstance(train, Mapping):
            return self
        others = {key: value for key, value in cast(Mapping[str, Any], train).items() if key != name}
        gone = {key for key in self.origins if f"{key}.".startswith(f"train.{name}.")}
        origins = {key: self.origins[key] for key in self.origins.keys() - gone}
        return Layers(self.tree | {"train": others}, origins, self.fixed - gone)

    def origin(self, key: str) -> str:
        """The layer that gave the dotted `key`; `default` if none did."""
        return self.origins.get(key, "default")

    def config(self) -> RunConfig:
        """The configuration. Raises `UserError` for impossible values."""
        return validate(RunConfig, self.tree)
