"""Starts a run with the weights of another model (`--init-from`), and reports which of them do not fit.

Parts are matched by what they do, not by their number:

    blocks            in order, counted through all stages, so a dense model's 12 blocks fill stages of 6 and 6
    patch embeddings  from the stage of the same patch size: a dense model's goes to the skip of the finest stage
    upsampling, skip  from the stage of the same patch size
    class table       row by row, matched by class name; the null label's row to the null label's row
    all else          by name

A layer is loaded whole or not at all. Position tables are computed from the configuration, so the resolution may
differ. The averages (EMA) start from the loaded weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.reporting import Note, Reporter, Warning, silent
from mpdit_core.training.state.trainer import Trainer

CLASS_TABLE = "class_embedding.table"


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The weights that a run began with. Layers are named without `.weight` and `.bias`."""

    loaded: int  # number of weights loaded, out of `total`, both without the table of classes
    total: int
    classes: dict[int, int]  # label → the model's label of the same class; the null label too; empty: no table fits
    new: tuple[str, ...]  # layers of the new model that start with random weights
    unused: tuple[str, ...]  # layers of the old model that are not used


def initialise_from(trainer: Trainer, where: str, spec: LatentSpec, *, report: Reporter = silent) -> WarmStart:
    """Gives `trainer` the weights of the model at `where`, and reports what was loaded and what was not.

    Args:
        where: a run, checkpoint, export or `hf:ORG/NAME`.
        spec: the latents to train on; their class names are matched with the model's.

    Raises:
        UserError: there is no model, or none of its blocks fits (`does-not-fit`).
    """
    source, target = open_model(where), trainer.config.model
    old = source.config.model
    given = _by_layer({name: tensor.float() for name, tensor in source.weights().items()})
    state = trainer.state()
    layers = _by_layer({name: state.weights[name] for name in trainer.model.weights()})
    table, fresh_table = given.pop(CLASS_TABLE)["weight"], layers.pop(CLASS_TABLE)["weight"]
    loaded: dict[str, str] = {}
    for layer, tensors in layers.items():
        origin = same_part(layer, old, target)
        if _shapes(given.get(origin, {})) == _shapes(tensors):
            loaded[layer] = origin
    if not any(".blocks." in layer for layer in loaded):
        raise UserError(
            f"no block of {source.path} fits: its width is {old.width} (MLP ratio {old.mlp_ratio}), the new model's "
            f"{target.width} ({target.mlp_ratio})",
            code="does-not-fit",
            expected="a model of the same width",
            remedy=f"--set model.width={old.width} --set model.num_heads={old.num_heads}, or another model",
        )
    weights = state.weights | {
        f"{layer}.{name}": tensor for layer, origin in loaded.items() for name, tensor in given[origin].items()
    }
    classes: dict[int, int] = {}
    if table.shape[1] == fresh_table.shape[1] and bool(target.class_tokens) == bool(old.class_tokens):
        names = source.latents.class_names if source.latents else None
        classes = match_classes(spec.class_names, names, new_count=target.num_classes, old_count=old.num_classes)
    for label, old_label in classes.items():
        fresh_table[label] = table[old_label]  # a tensor in `weights`
    average = {name: weights[name] for name in trainer.model.weights()}
    trainer.restore(replace(state, weights=weights, averages=dict.fromkeys(state.averages, average)))
    start = WarmStart(
        loaded=sum(tensor.numel() for layer in loaded for tensor in layers[layer].values()),
        total=sum(tensor.numel() for tensors in layers.values() for tensor in tensors.values()),
        classes=classes,
        new=tuple(layer for layer in layers if layer not in loaded),
        unused=tuple(layer for layer in given if layer not in loaded.values()),
    )
    for text in _summary(start, source, target, spec):
        report(Note(text=text))
    for text in _doubts(source, target, spec):
        report(Warning(code="weights-mean-something-else", text=text))
    return start


def _by_layer(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer by their last name: `weight`, `bias`."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        layer, _, last = name.rpartition(".")
        layers.setdefault(layer, {})[last] = tensor
    return layers


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def same_part(layer: str, source: ModelConfig, target: ModelConfig) -> str:
    """The layer of `source` with the function that `layer` has in `target`; empty where there is none."""
    match = re.fullmatch(r"stages\.(\d+)\.(?:blocks\.(\d+)\.)?(.+)", layer)
    if match is None:
        return layer
    stage, block, part = int(match[1]), match[2], match[3]
    if block is None:
        sizes = [s.patch_size for s in source.stages]
        size = target.stages[stage].patch_size
        return f"stages.{sizes.index(size)}.{part}" if size in sizes else ""
    number = sum(s.depth for s in target.stages[:stage]) + int(block)
    blocks = [f"stages.{i}.blocks.{j}" for i, s in enumerate(source.stages) for j in range(s.depth)]
    return f"{blocks[number]}.{part}" if number < len(blocks) else ""


def match_classes(new: Sequence[str], old: Sequence[str] | None, *, new_count: int, old_count: int) -> dict[int, int]:
    """New label → old label of the classes that are the same, and of the null label.

    Equal lists of names match by position, others by name (if it occurs twice, its first class). Where the old names
    are not known, equal counts match by position.
    """
    null = {new_count: old_count}
    if old is None or tuple(new) == tuple(old):
        return ({i: i for i in range(new_count)} if new_count == old_count else {}) | null
    first = {name: label for label, name in reversed(list(enumerate(old)))}
    return {label: first[name] for label, name in enumerate(new) if name in first} | null


def _summary(start: WarmStart, source: ModelFolder, target: ModelConfig, spec: LatentSpec) -> Iterator[str]:
    """What was loaded and what was not, in sentences."""
    old = source.config.model
    yield (
        f"initialised from {source.path} (step {source.step}): {start.loaded:,} of {start.total:,} weights loaded, "
        "not counting the class embedding table"
    )
    if not target.num_classes:
        yield "no classes: only the row of the null label of the model's class embedding table is used"
    elif not start.classes:
        yield (
            f"the class embedding table is new: {target.class_tokens or 'no'} class tokens of {target.width} here, "
            f"{old.class_tokens or 'none'} of {old.width} in the model"
        )
    else:
        how = "" if source.latents else ", by position, as the model does not state their names"
        new = [name for label, name in enumerate(spec.class_names) if label not in start.classes]
        rows = f"; new rows for {shorten(new)}" if new else ""
        yield f"classes: {len(start.classes) - 1} of {target.num_classes} known to the model{how}{rows}"
    if start.new:
        yield f"new, as initialised: {shorten(start.new)}"
    if start.unused:
        differing = [
            f"{name.replace('_', ' ')} {getattr(old, name)}, here {getattr(target, name)}"
            for name in ("modulation", "time_embedding", "mlp", "channels", "depth")
            if getattr(old, name) != getattr(target, name)
        ]
        why = f" ({'; '.join(differing)})" if differing else ""
        yield f"weights of the model that are not used: {shorten(start.unused)}{why}"


def _doubts(source: ModelFolder, target: ModelConfig, spec: LatentSpec) -> Iterator[str]:
    """Differences that change the meaning of weights which fit by their shapes."""
    prediction = source.extra.get("prediction", "velocity")
    if prediction != "velocity":
        yield f"the model predicted {prediction}: its output layer must be trained again"
    if source.latents and source.latents.autoencoder.id != spec.autoencoder.id:
        yield f"the model's latents were made by {source.latents.autoencoder.id}, these by {spec.autoencoder.id}"
    elif source.latents and source.latents.normalisation != spec.normalisation:
        yield "the model's latents were standardised with a different mean and standard deviation"
    for key in ("norm", "positions", "prediction", "num_heads"):
        there, here = getattr(source.config.model, key), getattr(target, key)
        if there != here:
            yield f"{key} is {there} in the model, {here} here: the weights fit, but the network differs"


def shorten(names: Iterable[str], shown: int = 6) -> str:
    """The names, with the same layer of several blocks as one (`stages.*.blocks.*.modulation.linear × 12`)."""
    counted = Counter(re.sub(r"stages\.\d+\.blocks\.\d+", "stages.*.blocks.*", name) for name in names)
    words = [name if n == 1 else f"{name} × {n}" for name, n in counted.items()]
    return ", ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")
