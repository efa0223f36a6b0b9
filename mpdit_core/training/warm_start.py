"""Beginning a run with another model's weights (`--init-from`), as far as the two fit, and saying how far that is.

What goes where, by what a part does and not by its number:

    blocks            in order, counted through all stages, so a dense model's 12 blocks fill stages of 6 and 6
    patch embeddings  from the stage of the same patch size: a dense model's feeds the finest stage's skip
    upsampling, skip  from the stage of the same patch size
    class table       row by row, matched by class name; the null label's row to the null label's row
    all else          by name

A layer is loaded whole or not at all. Position tables are computed from the configuration, so another resolution needs
nothing. The averages (EMA) start from the loaded weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.reporting import Note, Reporter, Warning, silent
from mpdit_core.training.state.trainer import Trainer

CLASS_TABLE = "class_embedding.table"


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """Which classes the model knew. `by` is None where its table does not fit, and the whole table is new."""

    by: Literal["name", "position"] | None
    known: int = 0
    new: tuple[str, ...] = ()  # names of the classes whose rows are new


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a run began with. Layers are named without `.weight` and `.bias`."""

    source: Path
    step: int  # of the model
    loaded: int  # number of weights loaded, out of `total`, the table of classes apart
    total: int
    classes: ClassMatch
    new: tuple[str, ...]  # layers of the new model that start as initialised
    left_behind: tuple[str, ...]  # layers of the old model that have no place


def initialise_from(trainer: Trainer, where: str, spec: LatentSpec, *, report: Reporter = silent) -> WarmStart:
    """Gives `trainer` the weights of the model at `where`, and reports what was loaded and what was not.

    Args:
        where: a run, checkpoint, export or `hf:ORG/NAME`.
        spec: the latents that will be trained on; their class names are matched with the model's.

    Raises:
        UserError: no model there, or one of which no block fits (`does-not-fit`).
    """
    source = open_model(where)
    target = trainer.config.model
    state = {name: tensor.float() for name, tensor in source.weights().items()}
    snapshot = trainer.snapshot()
    renamed, homeless = rename(state, source.config.model, target)
    weights, missing, unfit = merge_layers(snapshot.weights, renamed)
    loaded = {name: tensor.numel() for name, tensor in weights.items() if tensor is not snapshot.weights[name]}
    if not any(".blocks." in name for name in loaded):
        raise _no_block_fits(source, target)
    classes = _merge_classes(weights, state.get(f"{CLASS_TABLE}.weight"), source, target, spec)
    trainer.restore(replace(snapshot, weights=weights, averages=dict.fromkeys(trainer.ema.decays, weights)))
    start = WarmStart(
        source=source.path,
        step=source.step,
        loaded=sum(loaded.values()),
        total=sum(t.numel() for name, t in weights.items() if not name.startswith(CLASS_TABLE)),
        classes=classes,
        new=(*missing, *(layer for layer in unfit if layer in {_layer(name) for name in weights})),
        left_behind=(*homeless, *unfit),
    )
    for text in _told(start, source, target):
        report(Note(text=text))
    for text in _doubts(source, target, spec):
        report(Warning(code="weights-mean-something-else", text=text))
    return start


def _no_block_fits(source: ModelFolder, target: ModelConfig) -> UserError:
    old = source.config.model
    return UserError(
        f"no block of {source.path} fits: its width is {old.width} (MLP ratio {old.mlp_ratio}), the new model's "
        f"{target.width} ({target.mlp_ratio})",
        code="does-not-fit",
        expected="a model of the same width",
        remedy=f"--set model.width={old.width} --set model.num_heads={old.num_heads}, or another model",
    )


def _told(start: WarmStart, source: ModelFolder, target: ModelConfig) -> Iterator[str]:
    """What was loaded and what was not, in lines for people."""
    old = source.config.model
    yield (
        f"begun from {start.source} (step {start.step}): {start.loaded:,} of {start.total:,} weights loaded, the table "
        "of classes apart"
    )
    if start.classes.by is None:
        yield (
            f"class table new: {target.class_tokens or 'no'} class tokens of {target.width} here, "
            f"{old.class_tokens or 'none'} of {old.width} there"
        )
    else:
        how = ", by position: the model does not say their names" if start.classes.by == "position" else ""
        rows = f"; new rows for {shorten(start.classes.new)}" if start.classes.new else ""
        yield f"classes: {start.classes.known} of {target.num_classes} known to the model{how}{rows}"
    if start.new:
        yield f"new, as initialised: {shorten(start.new)}"
    if start.left_behind:
        yield f"left behind in the model: {shorten(start.left_behind)}{_why(old, target)}"


def rename(
    state: Mapping[str, Tensor], source: ModelConfig, target: ModelConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a model of `source` under their names in `target`, and the layers that have no place there.

    The class table is not among them.
    """
    places = _block_places(target)
    stage_of = {stage.patch_size: index for index, stage in enumerate(target.stages)}
    starts = [sum(s.depth for s in source.stages[:i]) for i in range(len(source.stages))]
    renamed: dict[str, Tensor] = {}
    homeless: dict[str, None] = {}
    for name, tensor in state.items():
        if name.startswith(CLASS_TABLE):
            continue
        new: str | None = name
        if match := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
            number = starts[int(match[1])] + int(match[2])
            new = f"{places[number]}.{match[3]}" if number < len(places) else None
        elif match := re.fullmatch(r"stages\.(\d+)\.(.+)", name):
            stage = stage_of.get(source.stages[int(match[1])].patch_size)
            new = None if stage is None else f"stages.{stage}.{match[2]}"
        if new is None:
            homeless[_layer(name)] = None
        else:
            renamed[new] = tensor
    return renamed, list(homeless)


def merge_layers(
    fresh: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """`fresh` with every layer replaced whose tensors are all given in the right shapes.

    Returns:
        the weights; layers that nothing was given for; layers whose shapes differ (or that exist only in `given`).
    """
    layers: dict[str, list[str]] = {}
    for name in fresh:
        layers.setdefault(_layer(name), []).append(name)
    weights, missing, unfit = dict(fresh), [], []
    for layer, names in layers.items():
        if layer == CLASS_TABLE:
            continue
        if not any(name in given for name in names):
            missing.append(layer)
        elif all(name in given and given[name].shape == fresh[name].shape for name in names):
            weights |= {name: given[name] for name in names}
        else:
            unfit.append(layer)
    unfit += sorted({_layer(name) for name in given if name not in fresh})
    return weights, missing, unfit


def match_classes(
    new: Sequence[str], old: Sequence[str] | None, *, new_count: int, old_count: int
) -> list[tuple[int, int]]:
    """(new label, old label) of the classes that are the same, the null label last.

    Equal lists match position by position, others by name (where a name occurs twice, by its first). Without the old
    names equal counts match by position.
    """
    null = [(new_count, old_count)]
    if old is None or tuple(new) == tuple(old):
        return ([(i, i) for i in range(new_count)] if new_count == old_count else []) + null
    first = {name: label for label, name in reversed(list(enumerate(old)))}
    return [(label, first[name]) for label, name in enumerate(new) if name in first] + null


def _merge_classes(
    weights: dict[str, Tensor], table: Tensor | None, source: ModelFolder, target: ModelConfig, spec: LatentSpec
) -> ClassMatch:
    """Puts the rows of classes that are the same into `weights`."""
    name = f"{CLASS_TABLE}.weight"
    fresh, old = weights[name], source.config.model
    same_kind = bool(target.class_tokens) == bool(old.class_tokens)
    if table is None or table.shape[1] != fresh.shape[1] or not same_kind:
        return ClassMatch(by=None, new=spec.class_names)
    names = source.latents.class_names if source.latents else None
    pairs = match_classes(spec.class_names, names, new_count=target.num_classes, old_count=old.num_classes)
    weights[name] = fresh.clone()
    for row, old_row in pairs:
        weights[name][row] = table[old_row]
    matched = {row for row, _ in pairs}
    new = tuple(spec.class_names[row] for row in range(target.num_classes) if row not in matched)
    return ClassMatch(by="position" if names is None else "name", known=len(pairs) - 1, new=new)


def _doubts(source: ModelFolder, target: ModelConfig, spec: LatentSpec) -> Iterator[str]:
    """Differences with which all loads, but the weights mean something else."""
    prediction = source.extra.get("prediction", "velocity")
    if prediction != "velocity":
        yield f"the model predicted {prediction}; its output layer has to learn anew"
    if source.latents and source.latents.autoencoder.id != spec.autoencoder.id:
        yield f"the model's latents are of {source.latents.autoencoder.id}, these of {spec.autoencoder.id}"
    elif source.latents and source.latents.normalisation != spec.normalisation:
        yield "the model's latents were standardised with other numbers than these"
    for key in ("norm", "positions"):
        there, here = getattr(source.config.model, key), getattr(target, key)
        if there != here:
            yield f"{key} {there} there, {here} here: the weights fit, but mean something else"
    if source.config.model.num_heads != target.num_heads:
        yield (
            f"{source.config.model.num_heads} attention heads there, {target.num_heads} here: the weights fit, but mix "
            "differently"
        )


def _why(source: ModelConfig, target: ModelConfig) -> str:
    reasons = []
    if source.modulation != target.modulation:
        reasons.append(f"{source.modulation} modulation has no place in a model with {target.modulation} modulation")
    if source.time_embedding != target.time_embedding:
        reasons.append(f"its time embedding is {source.time_embedding}, here {target.time_embedding}")
    if source.mlp != target.mlp:
        reasons.append(f"its MLP is {source.mlp}, here {target.mlp}")
    if source.channels != target.channels:
        reasons.append(f"its latents have {source.channels} channels, these {target.channels}")
    if source.depth > target.depth:
        reasons.append(f"it has {source.depth} blocks, here are {target.depth}")
    return f" ({'; '.join(reasons)})" if reasons else ""


def _block_places(config: ModelConfig) -> list[str]:
    return [f"stages.{i}.blocks.{j}" for i, stage in enumerate(config.stages) for j in range(stage.depth)]


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def shorten(names: Iterable[str], shown: int = 6) -> str:
    """The names; those of the same layer in several blocks as one (`stages.*.blocks.*.modulation.linear × 12`)."""
    counted: dict[str, int] = {}
    for name in names:
        alike = re.sub(r"stages\.\d+\.blocks\.\d+", "stages.*.blocks.*", name)
        counted[alike] = counted.get(alike, 0) + 1
    words = [name if n == 1 else f"{name} × {n}" for name, n in counted.items()]
    return ", ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")
