"""What can be configured, with its defaults, and how a run's configuration is put together.

Precedence: preset < configuration file < `--set key=value` < named flags. Every mistake in a key, a type or a
combination is a `UserError` that names the dotted key, before any work.

To add a setting: a field with a default and a `description` in one of the classes below. It is then known to
`--config`, `--set`, `--dry-run`, the run's `config.toml` and every checkpoint.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from mpdit_core.errors import UserError


class Settings(BaseModel):
    """Base of all configuration classes: immutable, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


S = TypeVar("S", bound="Settings")


class Stage(NamedTuple):
    """`depth` transformer blocks on patches of `patch_size` × `patch_size` latent pixels."""

    patch_size: int
    depth: int


class ModelConfig(Settings):
    """Shape and switches of the network (spec: one class for DiT, SiT, MPDiT and MPDiT v2)."""

    width: PositiveInt = Field(description="D, features of a token")
    num_heads: PositiveInt = Field(description="attention heads; must divide the width")
    stages: tuple[Stage, ...] = Field(
        strict=False,
        min_length=1,
        description="(patch size, depth), coarse to fine; the last sets the output patch",
    )
    input_size: PositiveInt = Field(description="H, side of the latents")
    channels: PositiveInt = Field(default=4, description="C, channels of the latents")
    num_classes: PositiveInt = Field(default=1000, description="classes; this number itself is the null label")
    class_tokens: int = Field(
        default=16, ge=0, description="M, tokens a class label becomes; 0: one vector added to the time embedding"
    )
    modulation: Literal["shared", "per-block"] = Field(
        default="shared", description="one modulation layer for the whole network, or one in each block"
    )
    time_embedding: Literal["fno", "sinusoid"] = Field(default="fno", description="how t becomes a vector")
    skip: bool = Field(default=True, description="feed x_t again, in finer patches, to every later stage")
    mlp_ratio: PositiveInt = Field(default=4, description="hidden features of a block's MLP / width")
    spectral_init_scale: float = Field(
        default=1.0, gt=0, description="factor on the spectral weights' standard normal start (1: as published)"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4, which the 2-D position table needs")
        for stage in self.stages:
            if stage.patch_size < 1 or stage.depth < 0:
                raise ValueError(f"stage {tuple(stage)}: patch size must be at least 1, depth at least 0")
            if self.input_size % stage.patch_size:
                raise ValueError(f"input_size {self.input_size} is not divisible by patch size {stage.patch_size}")
        for coarse, fine in zip(self.stages, self.stages[1:], strict=False):
            if coarse.patch_size <= fine.patch_size or coarse.patch_size % fine.patch_size:
                raise ValueError(
                    f"patch sizes must fall from stage to stage by whole factors, {coarse.patch_size} is followed by "
                    f"{fine.patch_size}"
                )
        return self

    @property
    def null_label(self) -> int:
        return self.num_classes

    @property
    def depth(self) -> int:
        return sum(stage.depth for stage in self.stages)

    def dense(self) -> ModelConfig:
        """The DiT of the same width and depth at the finest patch size, to compare with."""
        return self.model_copy(
            update={
                "stages": (Stage(self.stages[-1].patch_size, self.depth),),
                "modulation": "per-block",
                "class_tokens": 0,
                "time_embedding": "sinusoid",
            }
        )


class ObjectiveConfig(Settings):
    """The flow-matching objective."""

    time_density: Literal["logit-normal", "uniform"] = Field(default="logit-normal", description="density of t")
    time_mean: float = Field(default=0.0, description="logit-normal: mean before the sigmoid")
    time_std: float = Field(default=1.0, gt=0, description="logit-normal: standard deviation before the sigmoid")
    label_dropout: float = Field(default=0.1, ge=0, le=1, description="share of labels replaced by the null label")


class TrainConfig(Settings):
    """Optimisation and the running of it."""

    batch_size: PositiveInt = Field(default=1024, description="images a step over all devices and accumulations")
    accumulation: PositiveInt = Field(default=1, description="parts a device's share of the batch is computed in")
    epochs: PositiveInt = Field(default=80, description="passes over the data, unless steps is given")
    steps: PositiveInt | None = Field(default=None, description="optimizer steps; overrides epochs")
    learning_rate: float = Field(default=2e-4, gt=0, description="AdamW's peak learning rate")
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="learning rate after the warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False, description="AdamW's betas")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay")
    grad_clip: float | None = Field(default=None, gt=0, description="largest gradient norm; none: no clipping")
    ema_decays: tuple[float, ...] = Field(
        default=(0.9999,), strict=False, min_length=1, description="decays of the weight averages; the first is sampled"
    )
    ema_warmup: bool = Field(default=True, description="let the average's decay grow with the step: (1+n)/(10+n)")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="autocast type; auto: bfloat16 where the device is fast in it"
    )
    compile: bool | Literal["auto"] = Field(default="auto", description="torch.compile the blocks; auto: on GPUs")
    activation_checkpointing: bool = Field(default=False, description="recompute blocks in the backward pass")
    parallel: Literal["ddp", "fsdp"] = Field(default="ddp", description="how several devices share the work")
    seed: int = Field(default=0, ge=0, description="fixes data order, times, noises, label drops, initial weights")
    log_every: PositiveInt = Field(default=10, description="steps between lines of metrics.jsonl")
    checkpoint_every: PositiveInt = Field(default=10_000, description="steps between checkpoints")
    keep_last: PositiveInt = Field(default=2, description="newest checkpoints kept")
    keep_every: PositiveInt | None = Field(default=None, description="checkpoints at multiples of this are kept too")
    on_nonfinite: Literal["stop", "rollback"] = Field(
        default="stop", description="what a loss or gradient that is not finite, or spikes, leads to"
    )
    spike_factor: float | None = Field(
        default=None, gt=1, description="a loss above this many times its running mean counts as a spike"
    )
    flip: bool = Field(default=True, description="draw the stored mirror image half of the time, where there is one")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), strict=False, description="other places to send the metrics to"
    )


class PreviewConfig(Settings):
    """The sample grids made during training, always from the same noise and labels, and periodic evaluation."""

    every: int = Field(default=10_000, ge=0, description="steps between previews; 0: none")
    num_images: PositiveInt = Field(default=16, description="images in a grid, classes in turn")
    num_steps: PositiveInt = Field(default=50, description="Euler steps")
    guidance_scale: float = Field(default=4.0, ge=0, description="1: off")
    evaluate_every: int = Field(default=0, ge=0, description="steps between runs of eval-fid; 0: none")
    evaluate_samples: PositiveInt = Field(default=5_000, description="samples for each of them")
    evaluate_features: str = Field(default="inception", description="their feature extractor")


class RunConfig(Settings):
    """Everything that fixes a training run but its data."""

    preset: str = Field(default="custom", description="where this configuration started from")
    resolution: PositiveInt = Field(description="side of the images in pixels")
    model: ModelConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    preview: PreviewConfig = PreviewConfig()


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["model.width=768", …]` → `{"model": {"width": 768}}`. Values are TOML; a bare word is taken as a string.

    Raises:
        UserError: no `=`, an empty key, or a key that is both a value and a table.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {assignment}", expected="KEY=VALUE", remedy="e.g. --set train.batch_size=256")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        *tables, leaf = key.split(".")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {key}: {table} was given a value before and cannot hold {leaf}")
        node[leaf] = value
    return tree


def read_toml(path: Path) -> dict[str, Any]:
    """Raises `UserError` when the file is missing or not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", expected="a TOML configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}", expected="tables [model], [objective], [train], …") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def validate(kind: type[S], values: Mapping[str, Any], *, origin: str = "") -> S:
    """`values` as a `kind`. Raises `UserError` with one line per mistake, each naming its dotted key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise settings_error(error, origin=origin, known=dotted_keys(kind)) from None


def settings_error(error: ValidationError, *, origin: str = "", known: Iterable[str] = ()) -> UserError:
    """A pydantic error in words for people: key, given, possible."""
    lines, known = [], list(known)
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(_siblings(key, known))}"
            lines.append(f"unknown key {key} ({hint})")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            given = problem["input"]
            shown = "" if isinstance(given, dict) else f" = {json.dumps(given, default=str)}"
            lines.append(f"{key}{shown}: {text[:1].lower()}{text[1:]}")
    return UserError(
        (f"{origin}: " if origin else "configuration refused: ") + "; ".join(lines),
        remedy="`mpdit train --preset NAME --dry-run` prints every key with its value",
    )


def dotted_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in kind.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += dotted_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _siblings(key: str, known: list[str]) -> list[str]:
    table = key.rpartition(".")[0]
    return [k for k in known if k.rpartition(".")[0] == table] or known


def to_toml(settings: Settings) -> str:
    """The configuration as commented TOML that `read_toml` reads back (None is written as a comment)."""
    plain: list[str] = []
    tables: list[str] = []
    _write_table(settings, "", plain, tables)
    return "\n".join([*plain, *tables]) + "\n"


def _write_table(settings: Settings, prefix: str, lines: list[str], tables: list[str]) -> None:
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            inner: list[str] = ["", f"[{prefix}{name}]"]
            _write_table(value, f"{prefix}{name}.", inner, tables)
            tables += inner
        elif value is None:
            lines.append(f"# {name} =  # {info.description}")
        else:
            lines.append(f"{name} = {json.dumps(value)}  # {info.description}")


def differences(old: Settings, new: Settings) -> list[str]:
    """`["train.batch_size: 256 → 512", …]`, for messages."""
    flat_old, flat_new = _flat(old.model_dump()), _flat(new.model_dump())
    return [
        f"{key}: {flat_old.get(key)} → {flat_new.get(key)}"
        for key in sorted(flat_old | flat_new)
        if flat_old.get(key) != flat_new.get(key)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
