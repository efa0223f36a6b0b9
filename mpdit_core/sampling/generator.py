"""Images from a model, block by block: the streaming core of `sample`, `eval-fid` and everything else that samples.

Image i depends on the model, the seed, i and the sampler's settings only. Its noise comes from a generator of its own,
and so does the noise a stochastic sampler draws on the way. Blocks of indices are fixed: block b holds
[b·batch_size, (b+1)·batch_size) and belongs to process b % size, so that every block is the same computation wherever
and whenever it is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mpdit_core.api import Sampler
from mpdit_core.config import Settings
from mpdit_core.data.autoencoders import Autoencoder, load_autoencoder
from mpdit_core.data.latents import unstandardise
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import Guidance, GuidedVelocity, ScheduleName
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.runtime.device import is_fast_in_bfloat16
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.seeding import generator
from mpdit_core.samplers import load_sampler
from mpdit_core.sampling.decode_precision import choose_decode_precision
from mpdit_core.sampling.labels import Labels, read_classes

WORTH_COMPILING = 2000  # images


class SampleOptions(Settings):
    """Everything that fixes a set of samples but the model."""

    num_samples: PositiveInt = Field(default=16, description="images, exactly")
    classes: str = Field(default="all", description="all (balanced), random, or ids and names separated by commas")
    sampler: str = Field(default="euler", description="a sampler's name")
    sampler_options: dict[str, Any] = Field(default={}, description="its other options, such as grid")
    num_steps: PositiveInt | None = Field(default=None, description="intervals; none: the sampler's default")
    guidance_scale: float = Field(default=1.0, ge=0, description="1: off")
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), strict=False, description="times t between which guidance acts"
    )
    guidance_schedule: ScheduleName = Field(default="constant", description="how the scale changes with t")
    guide: str | None = Field(default=None, description="a weaker model to guide away from, for autoguidance")
    seed: int = Field(default=0, ge=0, description="fixes noise and random labels")
    batch_size: PositiveInt = Field(default=32, description="images computed at once; also the size of a block")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the network, and of decoding where that is as good; auto: bfloat16 on fast GPUs",
    )
    compile: bool | Literal["auto"] = Field(
        default="auto", description="torch.compile the blocks; auto: on GPUs for many images"
    )


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """One finished block."""

    block: int
    indices: list[int]
    labels: list[int]
    latents: Tensor  # [n, C, h, w] float32 on the CPU, standardised
    images: Tensor | None  # [n, 3, H, W] uint8 on the CPU; None where not decoded
    nfe: int  # evaluations the sampler asked for
    passes: int  # of an image through a network
    saved: int  # passes the guidance interval spared


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A model, loaded and checked, with the settings to sample it by."""

    network: MPDiT
    guide: MPDiT | None
    spec: LatentSpec | None
    autoencoder: Autoencoder | None
    sampler: Sampler
    guidance: Guidance
    labels: Labels
    options: SampleOptions
    device: torch.device
    autocast: torch.dtype | None

    @property
    def num_blocks(self) -> int:
        return -(-self.options.num_samples // self.options.batch_size)

    def block_indices(self, block: int) -> list[int]:
        start = block * self.options.batch_size
        return list(range(start, min(start + self.options.batch_size, self.options.num_samples)))

    def noise(self, indices: list[int]) -> tuple[Tensor, list[torch.Generator]]:
        """x at t = 1 for these images, [n, C, h, w] float32, and the generators their further noise comes from."""
        shape = (self.network.config.channels, self.network.config.input_size, self.network.config.input_size)
        generators = [generator(self.options.seed, "noise", i) for i in indices]
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device), generators

    def velocity(self, labels: list[int]) -> GuidedVelocity:
        return GuidedVelocity(
            self.network,
            torch.tensor(labels, device=self.device),
            null_label=self.network.config.null_label,
            guidance=self.guidance,
            guide=self.guide,
            autocast=self.autocast,
        )

    @torch.inference_mode()
    def latents(self, indices: list[int], stop: Event | None = None) -> tuple[Tensor, GuidedVelocity]:
        """Latents [n, C, h, w] on the device, and the velocity function with its counts."""
        velocity = self.velocity([self.labels(i) for i in indices])
        noise, generators = self.noise(indices)
        x_t = noise
        for step in self.sampler.steps(velocity, noise, generators):
            if stop is not None and stop.is_set():
                raise CancelledError
            x_t = step.x_t
        return x_t, velocity

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W] uint8 on the CPU."""
        assert self.spec is not None
        assert self.autoencoder is not None, "prepared without decoding"
        return self.autoencoder.decode(unstandardise(latents.to(self.device), self.spec.normalisation)).cpu()

    def batches(self, blocks: Collection[int]) -> Iterator[SampleBatch]:
        """These blocks in turn, several at once in threads.

        On a CPU each block is computed by one thread alone, as many blocks at once as there are threads: faster than
        one block on all threads, and its numbers then do not depend on how many threads there are. On a GPU the
        network works on a block while the one before is decoded.
        """
        stop = Event()
        cpu = self.device.type == "cpu"
        ahead = torch.get_num_threads() if cpu else 1
        pool = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="block")
        waiting: deque[Future[SampleBatch]] = deque()
        try:
            for block in blocks:
                if cpu:
                    waiting.append(pool.submit(self._whole_block, block, stop))
                else:
                    waiting.append(pool.submit(self._finish, block, *self.latents(self.block_indices(block), stop)))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _whole_block(self, block: int, stop: Event) -> SampleBatch:
        torch.set_num_threads(1)  # of this thread alone
        return self._finish(block, *self.latents(self.block_indices(block), stop))

    def _finish(self, block: int, latents: Tensor, velocity: GuidedVelocity) -> SampleBatch:
        indices = self.block_indices(block)
        require_finite(latents, indices)
        return SampleBatch(
            block=block,
            indices=indices,
            labels=[self.labels(i) for i in indices],
            images=self.decode(latents) if self.autoencoder is not None else None,
            latents=latents.cpu(),
            nfe=velocity.nfe,
            passes=velocity.passes,
            saved=velocity.saved,
        )


def require_finite(latents: Tensor, indices: list[int]) -> None:
    """Raises `UserError` naming the first image that is not finite."""
    if not bool(torch.isfinite(latents).all()):
        bad = indices[int((~torch.isfinite(latents)).flatten(1).any(1).nonzero()[0])]
        raise UserError(
            f"image {bad} came out as NaN or infinite",
            expected="finite latents",
            remedy="a model that trained without diverging; --precision float32; a smaller guidance scale",
        )


def generate(
    model_folder: ModelFolder,
    options: SampleOptions,
    *,
    device: torch.device,
    world: World,
    decode: bool = True,
    done: Collection[int] = (),
) -> Iterator[SampleBatch]:
    """This process's share of the images, block by block.

    Args:
        decode: whether to make images of the latents.
        done: numbers of blocks to leave out.

    Raises:
        UserError: as `prepare`; or the model's output is not finite.
    """
    generation = prepare(model_folder, options, device=device, decode=decode)
    yield from generation.batches(share(generation, world, done=done))


def share(generation: Generation, world: World, *, done: Collection[int] = ()) -> list[int]:
    """The blocks that this process has to make."""
    return [b for b in range(world.rank, generation.num_blocks, world.size) if b not in done]


def prepare(
    model_folder: ModelFolder, options: SampleOptions, *, device: torch.device, decode: bool = True
) -> Generation:
    """Checks the options and loads what is needed.

    Raises:
        UserError: an option that cannot be, a broken model, a guide of another shape, an autoencoder that is not there.
    """
    model_folder.require_flow()
    sampler, guidance, labels, guide = check(model_folder, options)
    autocast = _autocast(options, device)
    autoencoder = _load_autoencoder(model_folder, device, narrow=autocast is not None) if decode else None
    network = model_folder.load(device)
    if _should_compile(options, device):
        network.compile_blocks()
    return Generation(
        network=network,
        guide=guide.load(device) if guide else None,
        spec=model_folder.latents,
        autoencoder=autoencoder,
        sampler=sampler,
        guidance=guidance,
        labels=labels,
        options=options,
        device=device,
        autocast=autocast,
    )


def check(model_folder: ModelFolder, options: SampleOptions) -> tuple[Sampler, Guidance, Labels, ModelFolder | None]:
    """What the options name, without loading any weights: the last is the guide. Raises `UserError` as `prepare`."""
    config = model_folder.config.model
    sampler = load_sampler(options.sampler, num_steps=options.num_steps, **options.sampler_options)
    guidance = Guidance(
        scale=options.guidance_scale, interval=options.guidance_interval, schedule=options.guidance_schedule
    )
    names = class_names(model_folder.latents, config.num_classes)
    labels = read_classes(options.classes, class_names=names, num_classes=config.num_classes, seed=options.seed)
    return sampler, guidance, labels, _open_guide(options, model_folder)


def changed(generation: Generation, model_folder: ModelFolder, options: SampleOptions) -> Generation:
    """The same loaded model under other options; `compile` stays as it was. Raises `UserError` as `prepare`."""
    sampler, guidance, labels, guide = check(model_folder, options)
    same_guide = options.guide == generation.options.guide
    return replace(
        generation,
        sampler=sampler,
        guidance=guidance,
        labels=labels,
        guide=generation.guide if same_guide else guide.load(generation.device) if guide else None,
        options=options,
        autocast=_autocast(options, generation.device),
    )


def class_names(spec: LatentSpec | None, num_classes: int) -> list[str]:
    """A name for each of the model's classes; its number where the data gave none."""
    known = list(spec.class_names) if spec else []
    return [known[i] if i < len(known) else str(i) for i in range(num_classes)]


def _open_guide(options: SampleOptions, model: ModelFolder) -> ModelFolder | None:
    if options.guide is None:
        return None
    guide = open_model(options.guide)
    mine, theirs = model.config.model, guide.config.model
    for what in ("channels", "input_size", "num_classes"):
        if getattr(mine, what) != getattr(theirs, what):
            raise UserError(
                f"the guide {options.guide} has {what} {getattr(theirs, what)}",
                expected=f"{what} {getattr(mine, what)}, as the model that is sampled",
            )
    normalised = [folder.latents.normalisation if folder.latents else None for folder in (model, guide)]
    if normalised[0] != normalised[1]:
        raise UserError(
            f"the guide {options.guide} was trained on latents of another normalisation",
            expected="a guide trained on the same latents",
        )
    return guide


def _load_autoencoder(model: ModelFolder, device: torch.device, *, narrow: bool) -> Autoencoder:
    """`narrow`: decode in bfloat16, too, where that gives the same pixels."""
    if model.latents is None:
        raise UserError(
            f"{model.path} does not say which autoencoder its latents belong to",
            expected="a model that was trained or imported with its latents' description",
            remedy="--format latents, or import it again with --autoencoder",
        )
    autoencoder = load_autoencoder(model.latents.autoencoder, device=device)
    if narrow:
        autoencoder.decode_precision = choose_decode_precision(autoencoder, model.latents)
    return autoencoder


def _autocast(options: SampleOptions, device: torch.device) -> torch.dtype | None:
    if options.precision == "bfloat16" or (options.precision == "auto" and is_fast_in_bfloat16(device)):
        return torch.bfloat16
    return None


def _should_compile(options: SampleOptions, device: torch.device) -> bool:
    if options.compile == "auto":
        return device.type == "cuda" and options.num_samples >= WORTH_COMPILING
    return options.compile
