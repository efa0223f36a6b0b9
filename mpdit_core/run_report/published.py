"""Published FIDs by the epochs of training, and which runs and evaluations may be compared with them.

To add one: a line in published.toml.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from mpdit_core.config import FLOW_MATCHING, RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.evaluation import EvaluationRecord
from mpdit_core.presets import load_preset
from mpdit_core.settings import Settings, read_toml, setting, validate

PUBLISHED = Path(__file__).with_suffix(".toml")
IMAGENET, CLASSES = 1_281_167, 1000  # images and classes of its training set
SAMPLES = 50_000  # of a published FID


class PublishedFid(Settings):
    """An FID without guidance on ImageNet, by the protocol of ADM."""

    preset: str = setting(..., "preset with the network")
    epochs: PositiveInt = setting(..., "passes over ImageNet")
    value: PositiveFloat = setting(..., "FID")
    source: str = setting(..., "paper, and place in it")


@cache
def published_fids() -> tuple[PublishedFid, ...]:
    return tuple(validate(PublishedFid, line, origin=str(PUBLISHED)) for line in read_toml(PUBLISHED)["fid"])


def published_for(config: RunConfig, latents: LatentSpec) -> list[PublishedFid]:
    """What was published for the network of a run, in order of epochs; nothing for another network, loss or data.

    Optimisation and times of training may differ, as they do between papers.
    """
    if not (plain_flow_matching(config) and _of_imagenet(latents)):
        return []
    found = [each for each in published_fids() if load_preset(each.preset).model == config.model]
    return sorted(found, key=lambda each: each.epochs)


def plain_flow_matching(config: RunConfig) -> bool:
    """Whether the loss is the mean squared error of the velocity, and nothing else."""
    options = dict(config.objective[FLOW_MATCHING])
    return (
        config.objective.keys() == {FLOW_MATCHING}
        and options.get("weight", 1.0) == 1.0
        and options.get("weighting", "uniform") == "uniform"
    )


def _of_imagenet(latents: LatentSpec) -> bool:
    """Whether these can be latents of ImageNet by an autoencoder of Stable Diffusion."""
    return (
        len(latents.class_names) == CLASSES
        and math.isclose(latents.count, IMAGENET, rel_tol=0.01)
        and (latents.autoencoder.factor, latents.autoencoder.channels) == (8, 4)
    )


def by_adm_protocol(record: EvaluationRecord) -> bool:
    """Whether the record's FID may be compared with a published one without guidance."""
    return (
        record.is_fid
        and isinstance(record.value("fid"), float)
        and record.count == SAMPLES
        and record.reference.kind == "stored statistics"
        and record.sampling is not None
        and record.sampling.options.guidance_scale == 1
    )
