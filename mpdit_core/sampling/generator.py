"""The engine that everything which samples shares: images from a model, block by block.

    from mpdit_core import Generator
    images = Generator("runs/digits-1").images(classes=["3", "7"], guidance_scale=2.0, num_steps=25)  # PIL images

Image i depends on the model, the seed, i and the sampling options only. Its noise comes from a generator of its own,
and so does the noise that a stochastic sampler draws. Blocks of images are fixed: block b holds
[b·batch_size, (b+1)·batch_size) and belongs to process b % size, so that every block is the same computation wherever
and whenever it is done.

Shapes: B images, C channels, h × w latents, H × W pixels.
"""

from __future__ import annotations

from collections import abc, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mpdit_core.api import Sampler, Step
from mpdit_core.data.autoencoders import Autoencoder, load_autoencoder
from mpdit_core.data.latents import unstandardise
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import Guidance, GuidedVelocity
from mpdit_core.flow.integrate import integrate
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.pictures import tile
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import DTYPES, Name, NetworkType, choose_dtype, dtype_name, should_compile
from mpdit_core.runtime.seeding import generator
from mpdit_core.samplers import load_sampler
from mpdit_core.sampling.decode_precision import choose_decode_precision
from mpdit_core.sampling.labels import Labels, read_classes
from mpdit_core.sampling.options import SamplingOptions
from mpdit_core.settings import validate

WORTH_COMPILING = 2000  # images


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """One finished block of n images."""

    block: int
    indices: list[int]
    labels: list[int]
    latents: Tensor  # [n, C, h, w] float32 on the CPU, standardised
    images: Tensor | None  # [n, 3, H, W] uint8 on the CPU; None where not decoded
    nfe: int  # evaluations that the sampler asked for, per image
    passes: int  # passes of an image through a network
    saved: int  # passes that the guidance interval spared


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Sampling options with everything they name found and checked, but no weights loaded."""

    options: SamplingOptions
    sampler: Sampler
    guidance: Guidance
    labels: Labels
    guide: ModelFolder | None


class Types(NamedTuple):
    """What a generator computes in."""

    network: NetworkType
    decoder: Name | None  # None: it does not decode


class Generator:
    """A model with sampling options: checked and loaded once, then asked for images.

    Args:
        model: a run, a checkpoint, an export, `hf:ORG/NAME`, or one of them opened.
        options: how to sample; `SamplingOptions()` if not given.
        device: `auto`, `cpu`, `cuda`, `mps`, or a torch device.
        num_samples: number of images; `blocks` covers them.
        decode: whether to make images of the latents.

    Raises:
        UserError: an option that cannot be, a damaged model, a guide of another shape, an autoencoder that is missing.
    """

    def __init__(
        self,
        model: str | Path | ModelFolder,
        options: SamplingOptions | None = None,
        *,
        device: str | torch.device = "auto",
        num_samples: int = 1,
        decode: bool = True,
    ):
        self.folder = model if isinstance(model, ModelFolder) else open_model(model)
        self.folder.require_flow()
        self.device = device if isinstance(device, torch.device) else select_device(device)
        self.num_samples, self.decodes = num_samples, decode
        self._guide_networks: dict[str, MPDiT] = {}
        _check_graphs(options, self.device)
        self._settle(settle(self.folder, options or SamplingOptions()))
        self.autoencoder: Autoencoder | None = self._load_autoencoder() if decode else None
        self.network: MPDiT = self._load_network(self.folder)

    def _settle(self, settled: Settled) -> None:
        self.options, self.sampler, self.guidance = settled.options, settled.sampler, settled.guidance
        self.labels, self.guide = settled.labels, settled.guide
        self.dtype = choose_dtype(settled.options.precision, self.device, self.folder.config.model)
        self.guide_network = self._load_guide()

    @property
    def types(self) -> Types:
        """What network and decoder compute in. They may be set: to those of another process, or of earlier images."""
        return Types(dtype_name(self.dtype), self.autoencoder.decode_precision if self.autoencoder else None)

    @types.setter
    def types(self, types: Types) -> None:
        self.dtype = DTYPES[types.network]
        if self.autoencoder and types.decoder:
            self.autoencoder.decode_precision = types.decoder

    @property
    def spec(self) -> LatentSpec | None:
        """What the model's latents are, where it says so."""
        return self.folder.latents

    @cached_property
    def class_names(self) -> list[str]:
        """A name for each class of the model; its number where the data gave none."""
        return class_names(self.spec, self.network.config.num_classes)

    def images(self, *, num_samples: int | None = None, **changes: Any) -> list[Image.Image]:
        """Images as PIL pictures.

        Args:
            num_samples: how many; one per class where `classes` is a list, else the generator's number.
            changes: fields of `SamplingOptions` that differ from the generator's.

        Raises:
            UserError: an option that cannot be.
        """
        classes = changes.get("classes")
        if isinstance(classes, Sequence) and not isinstance(classes, str):
            changes["classes"] = tuple(classes)
            num_samples = num_samples or len(classes)
        chosen = self.changed(num_samples=num_samples, **changes)
        batches = chosen.batches(chosen.blocks())
        return [tile(image) for batch in batches if batch.images is not None for image in batch.images]

    def changed(self, *, num_samples: int | None = None, **changes: Any) -> Generator:
        """The same loaded model under other options; `compile` stays as it was. Raises `UserError`."""
        options = validate(SamplingOptions, sampling_values(self.options) | changes, origin="sampling")
        other = object.__new__(Generator)
        other.__dict__ |= self.__dict__
        other.num_samples = num_samples or self.num_samples
        other._settle(settle(self.folder, options))
        return other

    @property
    def num_blocks(self) -> int:
        return -(-self.num_samples // self.options.batch_size)

    def block_indices(self, block: int) -> list[int]:
        """Numbers of the images in `block`."""
        start = block * self.options.batch_size
        return list(range(start, min(start + self.options.batch_size, self.num_samples)))

    def blocks(self, world: World | None = None, *, done: Collection[int] = ()) -> list[int]:
        """The blocks that this process has to make, `done` ones left out."""
        world = world or World()
        return [block for block in range(world.rank, self.num_blocks, world.size) if block not in done]

    def noise(self, indices: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
        """x at t = 1 of these images, [n, C, h, w] float32, and the generators that their further noise comes from."""
        config = self.network.config
        shape = (config.channels, config.input_size, config.input_size)
        generators = [generator(self.options.seed, "noise", i) for i in indices]
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device), generators

    def velocity(self, labels: Sequence[int]) -> GuidedVelocity:
        """The velocity function of a batch with these labels: network and guidance bound."""
        return GuidedVelocity(
            self.network,
            torch.tensor(list(labels), device=self.device),
            null_label=self.network.config.null_label,
            guidance=self.guidance,
            guide=self.guide_network,
            dtype=self.dtype,
        )

    @torch.inference_mode()
    def integrate(
        self,
        velocity: GuidedVelocity,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        *,
        on_step: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """Latents [n, C, h, w] on the device. Raises `UserError` as `flow.integrate`."""
        first = noise.clone()  # made in inference mode as all later x_t: torch.compile makes no graph for it alone
        return integrate(self.sampler, velocity, first, generators, on_step=on_step)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W] uint8 on the CPU of standardised latents [n, C, h, w]."""
        assert self.spec is not None
        assert self.autoencoder is not None, "made with decode=False"
        return self.autoencoder.decode(unstandardise(latents.to(self.device), self.spec.normalisation)).cpu()

    def batches(self, blocks: Collection[int]) -> abc.Generator[SampleBatch, None, None]:
        """These blocks in turn, several at once in threads.

        On a CPU each block is computed by one thread alone, as many blocks at once as there are threads: faster than
        one block on all threads, and its numbers then do not depend on how many threads there are. On a GPU the
        network works on a block while the one before is decoded.

        Raises:
            UserError: an image is not finite (`not-finite`), or as `integrate`.
        """
        stop = Event()
        on_cpu = self.device.type == "cpu"
        ahead = torch.get_num_threads() if on_cpu else 1
        pool = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="block")
        waiting: deque[Future[SampleBatch]] = deque()
        try:
            for block in blocks:
                if on_cpu:
                    waiting.append(pool.submit(self._whole_block, block, stop))
                else:
                    waiting.append(pool.submit(self._finish, block, *self._latents(block, stop)))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _whole_block(self, block: int, stop: Event) -> SampleBatch:
        torch.set_num_threads(1)  # of this thread alone
        return self._finish(block, *self._latents(block, stop))

    def _latents(self, block: int, stop: Event) -> tuple[Tensor, GuidedVelocity]:
        def check(_: Step) -> None:
            if stop.is_set():
                raise CancelledError

        indices = self.block_indices(block)
        velocity = self.velocity([self.labels(i) for i in indices])
        return self.integrate(velocity, *self.noise(indices), on_step=check), velocity

    def _finish(self, block: int, latents: Tensor, velocity: GuidedVelocity) -> SampleBatch:
        indices = self.block_indices(block)
        require_finite(latents, indices)
        return SampleBatch(
            block=block,
            indices=indices,
            labels=[self.labels(i) for i in indices],
            images=self.decode(latents) if self.decodes else None,
            latents=latents.cpu(),
            nfe=velocity.nfe,
            passes=velocity.passes,
            saved=velocity.saved,
        )

    def _load_network(self, folder: ModelFolder) -> MPDiT:
        """A network on the device, compiled where that is asked for or worth it."""
        network = folder.load(self.device)
        if self.options.compile == "graphs":
            network.compile_whole()
        elif should_compile(self.options.compile, self.device, worth_it=self.num_samples >= WORTH_COMPILING):
            network.compile_blocks()
        return network

    def _load_guide(self) -> MPDiT | None:
        if self.guide is None:
            return None
        key = str(self.guide.path)
        if key not in self._guide_networks:
            self._guide_networks[key] = self._load_network(self.guide)
        return self._guide_networks[key]

    def _load_autoencoder(self) -> Autoencoder:
        """In bfloat16, where that is faster or asked for and the pixels stay the same."""
        if self.spec is None:
            raise UserError(
                f"{self.folder.path} does not say which autoencoder its latents belong to",
                code="no-autoencoder",
                expected="a model that was trained or imported with a description of its latents",
                remedy="--format latents, or import it again with --autoencoder",
            )
        autoencoder = load_autoencoder(self.spec.autoencoder, device=self.device)
        autoencoder.decode_precision = choose_decode_precision(self.options.precision, autoencoder, self.spec)
        return autoencoder


def _check_graphs(options: SamplingOptions | None, device: torch.device) -> None:
    if options and options.compile == "graphs" and device.type != "cuda":
        raise UserError(
            f"CUDA graphs on {device.type}", code="no-cuda-graphs", expected="a CUDA device", remedy="--compile on"
        )


def settle(folder: ModelFolder, options: SamplingOptions) -> Settled:
    """Finds and checks what the options name, without loading any weights. Raises `UserError` as `Generator`."""
    config = folder.config.model
    names = class_names(folder.latents, config.num_classes)
    return Settled(
        options=options,
        sampler=load_sampler(options.sampler, num_steps=options.num_steps, **options.sampler_options),
        guidance=Guidance(
            scale=options.guidance_scale, interval=options.guidance_interval, schedule=options.guidance_schedule
        ),
        labels=read_classes(options.classes, class_names=names, num_classes=config.num_classes, seed=options.seed),
        guide=_open_guide(options.guide, folder),
    )


def sampling_values(options: SamplingOptions) -> dict[str, Any]:
    """The fields of `SamplingOptions` alone, of options that may have more."""
    return {name: getattr(options, name) for name in SamplingOptions.model_fields}


def class_names(spec: LatentSpec | None, num_classes: int) -> list[str]:
    """A name for each of the model's classes; its number where the data gave none."""
    known = list(spec.class_names) if spec else []
    return [known[i] if i < len(known) else str(i) for i in range(num_classes)]


def require_finite(latents: Tensor, indices: Sequence[int]) -> None:
    """Raises `UserError` (`not-finite`) naming the first image that is not finite."""
    if not bool(torch.isfinite(latents).all()):
        bad = indices[int((~torch.isfinite(latents)).flatten(1).any(1).nonzero()[0])]
        raise UserError(
            f"image {bad} came out as NaN or infinite",
            code="not-finite",
            expected="finite latents",
            remedy="a model that trained without diverging; --precision float32; a smaller guidance scale",
        )


def _open_guide(where: str | None, model: ModelFolder) -> ModelFolder | None:
    if where is None:
        return None
    guide = open_model(where)
    mine, theirs = model.config.model, guide.config.model
    for what in ("channels", "input_size", "num_classes"):
        if getattr(mine, what) != getattr(theirs, what):
            raise UserError(
                f"the guide {where} has {what} {getattr(theirs, what)}",
                code="guide-does-not-fit",
                expected=f"{what} {getattr(mine, what)}, as the model that is sampled",
            )
    normalised = [folder.latents.normalisation if folder.latents else None for folder in (model, guide)]
    if normalised[0] != normalised[1]:
        raise UserError(
            f"the guide {where} was trained on latents of another normalisation",
            code="guide-does-not-fit",
            expected="a guide trained on the same latents",
        )
    return guide
