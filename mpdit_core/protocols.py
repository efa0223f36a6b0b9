"""What plugins implement, and what mpdit gives them. Plugins import these names from `mpdit_core.api`.

Symbols: B images per batch, C channels, H × W pixels, h × w latents. `t` runs from 1 (noise) to 0 (data).
`velocity = noise - latents`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from mpdit_core.settings import Options, Result

PLUGIN_API = 2
"""Version of these contracts. A plugin class may state `plugin_api = 2`; one that states another number is refused."""

VelocityFn: TypeAlias = "Callable[[Tensor, float], Tensor]"
"""`velocity_fn(x_t [B, C, h, w], t: float) -> velocity [B, C, h, w]`; t is one time for the whole batch."""

NoiseSource: TypeAlias = "torch.Generator | Sequence[torch.Generator] | Callable[[Tensor], Tensor] | None"
"""Where noise comes from: one generator for the batch; one per image, so that an image does not depend on its batch; a
function that returns noise of a tensor's shape (`check_sampler` computes exact moments with it); or None, the global
generator of torch."""


class Step(NamedTuple):
    """State after one step: `x_t [B, C, h, w]` at time `t`. The last step of a sampler has `t == 0`."""

    t: float
    x_t: Tensor


@runtime_checkable
class Sampler(Protocol):
    """Integrates `dx/dt = velocity` from t = 1 to 0. A dataclass with at least the field `num_steps`."""

    @property
    def num_steps(self) -> int: ...  # number of intervals

    order: ClassVar[int]  # order of convergence of the final x_t, which mpdit_core.testing.check_sampler measures
    stochastic: ClassVar[bool]  # whether it draws noise during the steps

    def steps(self, velocity_fn: VelocityFn, noise: Tensor, generator: NoiseSource = None) -> Iterator[Step]:
        """Yields `num_steps` states (an adaptive sampler: any number); `x_t` has the device and dtype of `noise`.

        Args:
            velocity_fn: the network with labels and guidance bound; each call is one evaluation (NFE).
            noise: x_t at t = 1, [B, C, h, w], float32.
            generator: the source that a stochastic sampler draws from, through `draw_noise`.
        """
        ...


class Item(NamedTuple):
    """One labelled image. `key` names it in messages and manifests (a path, a row number)."""

    key: str
    label: int


@runtime_checkable
class Dataset(Protocol):
    """Labelled images in a fixed order. A dataclass; heavy work is done in the methods, not in `__init__`."""

    def class_names(self) -> list[str]:
        """Names in label order; labels are 0..len-1. An empty list: images without classes, whose labels are all 0."""
        ...

    def items(self) -> Sequence[Item]:
        """All items; the same list in the same order every time."""
        ...

    def image(self, index: int) -> Image.Image:
        """The picture of item `index`, decoded, of any mode and size."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the data change."""
        ...


class Features(NamedTuple):
    """The features of a batch: `pool [B, F]`; where the extractor has them, `spatial [B, S]` and `logits [B, K]`."""

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@runtime_checkable
class FeatureExtractor(Protocol):
    """Turns images into feature vectors whose Fréchet distance is reported (never under the name FID)."""

    name: ClassVar[str]

    def load(self, device: torch.device) -> None:
        """Makes the extractor ready; called once, before anything is sampled. Raises `UserError` if it cannot."""
        ...

    def __call__(self, images: Tensor) -> Features:
        """The features, float32, of `images [B, 3, H, W]` uint8 on the device given to `load`.

        The features of an image do not depend on the batch it is in.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of weights and preprocessing; only statistics with the same hash are compared."""
        ...


@runtime_checkable
class Teacher(FeatureExtractor, Protocol):
    """A feature extractor that also gives a map: `encode-latents --teacher` stores it, `objective.alignment` uses it.

    A class may have `flip_equivariant = True`: the map of a mirror image is the mirrored map, and is not stored twice.
    """

    def feature_map(self, images: Tensor) -> Tensor:
        """Features float32 `[B, F, rows, columns]` of `images [B, 3, H, W]` uint8, on the extractor's own grid.

        The grid covers the whole image. Called after `load`, from several threads; the map of an image does not depend
        on the batch it is in.
        """
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """Converts images to latents and back. A dataclass; the three attributes may be fields, properties or constants.

    A class may have `flip_equivariant = True`: the latents of a mirror image are the mirrored latents, and are not
    stored twice. It may have `resolution`: the only resolution in pixels that it accepts (None: any). If its images are
    not RGB, it has an option `mode` with Pillow's names: L, RGB or RGBA for K = 1, 3 or 4 channels; without it, K = 3.
    """

    @property
    def channels(self) -> int: ...  # C

    @property
    def factor(self) -> int: ...  # pixels per latent pixel along a side: h = H / factor

    @property
    def stores(self) -> Literal["mean+std", "mean", "uint8"]: ...  # what `encode` gives

    def load(self, device: torch.device) -> None:
        """Makes the autoencoder ready; called once, before `encode` and `decode`. Raises `UserError` if it cannot."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """What is stored for `images [B, K, H, W]` uint8; it does not depend on the batch that an image is in.

        `mean+std`: `[B, 2C, h, w]` float32, a posterior's mean, then its standard deviation; `mean`: `[B, C, h, w]`
        float32, the raw latents; `uint8`: `[B, C, h, w]` pixel values x, always on the CPU; they are read back as raw
        latents x / 127.5 - 1. Called from several threads, under autocast if a faster type was measured to agree with
        float32.
        """
        ...

    def decode(self, raw_latents: Tensor) -> Tensor:
        """Images uint8 `[B, K, H, W]` from `raw_latents [B, C, h, w]` float32."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when latents or their decoded images do; called after `load`."""
        ...


@dataclass(frozen=True)
class TrainingBatch:
    """The inputs of the loss for B images: one micro-batch on one device.

    `negative` and `teacher` are None unless a term of the loss names them in `needs`.
    """

    latents: Tensor  # [B, C, h, w]
    noise: Tensor  # [B, C, h, w]
    t: Tensor  # [B]
    labels: Tensor  # [B]; a dropped label is the null label
    negative: Tensor | None = None  # [B, C, h, w], the target velocity of another image, drawn at random
    teacher: Tensor | None = None  # [B, N, F], the teacher's features at the coarse stage's tokens, row by row


class NetworkShape(NamedTuple):
    """The shapes that an objective's modules are built for."""

    latent_shape: tuple[int, int, int]  # C, h, w
    width: int  # D, features of a token
    token_grid: tuple[int, int] | None  # rows and columns of the last coarse stage's tokens; None: there is one stage
    num_classes: int
    teacher_features: int = 0  # F; 0: the latents hold no teacher's features


class Prediction(NamedTuple):
    """One pass of the network over a batch, which all terms of the loss share."""

    x_t: Tensor  # [B, C, h, w]
    velocity: Tensor  # [B, C, h, w], in the type of the computations
    tokens: Tensor | None  # [B, N, D], after the last coarse stage; None for a network of one stage


class TrainedNetwork(Protocol):
    """The network that is trained, as an objective sees it."""

    modules: Any  # what the objective's own `modules` built

    @property
    def prediction(self) -> Prediction:
        """The pass over the batch's own x_t, t and labels; computed when it is first asked for."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The velocity [B, C, h, w] of another pass."""
        ...


LogPart: TypeAlias = "Callable[[str, Tensor], None]"
"""`log(name, number)` writes a tensor of one element, a mean over images, to metrics.jsonl as `TERM/name`."""


@runtime_checkable
class Objective(Protocol):
    """A term of the training loss. A dataclass with at least a field `weight`, the factor of the term in the sum.

    `modules` may be left out by a class that derives from this one.
    """

    weight: float
    needs: ClassVar[tuple[str, ...]]  # which of "negative" and "teacher" a batch must have

    def modules(self, network: NetworkShape) -> nn.Module | None:  # noqa: ARG002
        """A module that is trained with the network. It is resumed with the run, has no EMA and is never exported.

        Only its parameters are trained and saved, not its buffers. Raises `UserError` for a network that does not fit.
        """
        return None

    def loss(self, network: TrainedNetwork, batch: TrainingBatch, log: LogPart) -> Tensor:
        """One number in float32: the mean over the batch's images of a value that depends on one image alone.

        So the loss of a step does not depend on how its images are divided into processes and micro-batches.
        """
        ...


def option(default: Any, description: str, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """A dataclass field that is an option: `order: int = option(2, "order of the solver", minimum=1, maximum=3)`.

    `mpdit plugins show NAME` prints the description. A value of another type or out of bounds is refused before any
    work. For a choice of words, annotate the field with `Literal`.
    """
    return field(default=default, metadata={"description": description, "minimum": minimum, "maximum": maximum})


def draw_noise(like: Tensor, generator: NoiseSource = None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like [B, …]`.

    With a sequence of generators, row i comes from generator i alone. Generators on the CPU give the same numbers for
    every device.

    Raises:
        ValueError: the number of generators is not the number of rows.
    """
    import torch

    if generator is None:
        return torch.randn_like(like)
    if callable(generator):
        return generator(like)
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
    if len(generator) != len(like):
        raise ValueError(f"{len(generator)} generators for a batch of {len(like)}")
    rows = [torch.randn(like.shape[1:], generator=g, dtype=like.dtype, device=g.device) for g in generator]
    return torch.stack(rows).to(like.device)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command `mpdit NAME`: an object that an entry point of the group `mpdit.commands` names.

    `mpdit plugins new command NAME` writes one, and `mpdit_core.testing.check_command` checks it. Its module is
    imported only when the command is called.
    """

    options: type[Options]  # each of its fields is an argument or a flag
    job: Callable[..., Result]  # job(options, *, report)
    help: str  # one sentence, which `mpdit --help` shows
