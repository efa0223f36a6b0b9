"""All that a plugin imports of mpdit, beside `mpdit_core.testing` for its tests: contracts and helpers.

A plugin is a dataclass named by an entry point of its package. Its fields are its options, which
`--set sampler.field=value` sets and every result records:

    [project.entry-points."mpdit.samplers"]     # or mpdit.datasets, .features, .autoencoders, .objectives, .commands
    mine = "my_package:MySampler"

A command alone is no dataclass but an object, a `Command`; it also imports `mpdit_core.settings` and
`mpdit_core.reporting`.

Symbols: B images per batch, C channels, H × W pixels, h × w latents. `t` runs from 1 (noise) to 0 (data).
`velocity = noise - latents`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.errors import UserError
from mpdit_core.lazy import lazy_names
from mpdit_core.protocols import (
    PLUGIN_API,
    Autoencoder,
    Command,
    Dataset,
    FeatureExtractor,
    Features,
    Item,
    LogPart,
    NetworkShape,
    NoiseSource,
    Objective,
    Prediction,
    Sampler,
    Step,
    Teacher,
    TrainedNetwork,
    TrainingBatch,
    VelocityFn,
    draw_noise,
    option,
)

if TYPE_CHECKING:  # helpers, imported when they are first used
    # For data sets: how mpdit's own sources read files, unusual and damaged ones included.
    # For autoencoders: pixels to [-1, 1] and back.
    from mpdit_core.data.autoencoders.pixel_range import to_pixels, to_range
    from mpdit_core.data.images import open_image
    from mpdit_core.data.sources.archives import read_archive
    from mpdit_core.data.sources.class_lists import read_class_names
    from mpdit_core.data.sources.files import read_regular

__all__ = [
    "PLUGIN_API", "Autoencoder", "Command", "Dataset", "FeatureExtractor", "Features", "Item", "LogPart",
    "NetworkShape", "NoiseSource", "Objective", "Prediction", "Sampler", "Step", "Teacher", "TrainedNetwork",
    "TrainingBatch", "UserError", "VelocityFn", "draw_noise", "open_image", "option", "read_archive",
    "read_class_names", "read_regular", "to_pixels", "to_range",
]  # fmt: skip

_, __getattr__ = lazy_names(__name__, __file__)
