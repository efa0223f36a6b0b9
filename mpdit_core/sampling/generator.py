"""The engine that all sampling shares: images from a model, block by block.

    from mpdit_core import Generator
    images = Generator("runs/digits-1").images(classes=["3", "7"], guidance_scale=2.0, num_steps=25)  # PIL images

Image i depends on the model, the seed, i and the sampling options only. It has its own noise source, from which a
stochastic sampler draws too. Blocks of images are fixed: block b holds [b·batch_size, (b+1)·batch_size) and belongs to
process b % size, so a block is the same computation in every process and session.

"Generator" means the class below; a `torch.Generator` is called a noise source.

Shapes: n images, C channels, h × w latents, H × W pixels.
"""

from __future__ import annotations

import copy
from collections import abc, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.data.autoencoders import LoadedAutoencoder, load_autoencoder
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.data.standardising import unstandardise
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import Guidance, GuidedVelocity, load_rule
from mpdit_core.flow.guidance.rule import Network
from mpdit_core.flow.integrate import integrate, starting_noise
from mpdit_core.model.cuda_graphs import RecordedNetwork, require_cuda_graphs
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.ema_snapshots import at_ema_width
from mpdit_core.models.model_folder import ModelFolder, open_model
from mpdit_core.pictures import tile
from mpdit_core.protocols import Step, VelocityFn
from mpdit_core.runtime.device import select_device
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import DTYPES, choose_dtype, dtype_name, should_compile
from mpdit_core.samplers import load_sampler
from mpdit_core.sampling.decode_precision import choose_decode_precision
from mpdit_core.sampling.labels import read_classes, require_classes
from mpdit_core.sampling.options import ComputeTypes, SamplingOptions
from mpdit_core.settings import validate

WORTH_COMPILING = 2000  # number of images from which compiling saves time


@dataclass(frozen=True, kw_only=True)
class SampleBlock:
    """One finished block of n images."""

    number: int
    indices: list[int]
    labels: list[int]
    latents: Tensor  # [n, C, h, w] float32 on the CPU, standardised
    images: Tensor  # [n, K, H, W] uint8 on the CPU, K = 3 for RGB; n = 0 if latents are not decoded
    nfe: int  # evaluations that the sampler asked for, per image
    passes: float  # full passes of an image through a network
    saved: float  # passes that a guidance interval and zero velocities saved


class SamplingPlan:
    """A model and sampling options. Everything that they name is found and checked, but no weights are loaded.

    Raises:
        UserError: an invalid option, or a rule of guidance or a guide that does not fit the model.
    """

    def __init__(self, folder: ModelFolder, options: SamplingOptions):
        self.folder, self.options = at_ema_width(folder, options.ema_width, options.ema_step), options
        num_classes = folder.config.model.num_classes
        known = folder.latents.class_names[:num_classes] if folder.latents else ()
        self.class_names = [*known, *map(str, range(len(known), num_classes))] or [""]  # of all labels
        self.sampler = load_sampler(options.sampler, num_steps=options.num_steps, **options.sampler_options)
        self.guidance = Guidance(
            scale=options.guidance_scale,
            interval=options.guidance_interval,
            schedule=options.guidance_schedule,
            rule=load_rule(options.guidance, options.guidance_options),
        )
        self.guidance.rule.require_fit(folder.config.model, guided_by_model=options.guide is not None)
        if options.classes != "all":
            require_classes(num_classes, f"classes {options.classes}")
        if not self.guidance.is_off and options.guide is None:
            what = f"guidance {options.guidance} (scale {options.guidance_scale:g})"
            require_classes(num_classes, what, remedy="leave it out, or give --guide MODEL for autoguidance")
        self.labels = read_classes(options.classes, class_names=self.class_names, seed=options.seed)
        self.guide = _open_guide(options.guide, folder) if options.guide is not None else None

    def for_records(self) -> tuple[SamplingOptions, plugins.PluginRecord]:
        """(options with the defaults of sampler and guidance filled in, sampler), for records."""
        record = plugins.record("samplers", self.options.sampler, self.sampler)
        sampler_options = dict(record.options)
        filled = {
            "num_steps": sampler_options.pop("num_steps"),
            "sampler_options": sampler_options,
            "guidance_options": self.guidance.rule.model_dump(),
        }
        return SamplingOptions(**self.options.sampling_values() | filled), record


class Generator(SamplingPlan):
    """A plan with its networks: a model and sampling options, checked and loaded once, then asked for images.

    Args:
        model: a run, a checkpoint, an export, `hf:ORG/NAME`, or one of them opened.
        options: how to sample; `SamplingOptions()` if not given.
        device: `auto`, `cpu`, `cuda`, `mps`, or a torch device.
        num_samples: number of images in all blocks.
        decode: whether to decode the latents to images.

    Raises:
        UserError: an invalid option, a damaged model, a guide of another shape, or an autoencoder that is missing.
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
        folder = model if isinstance(model, ModelFolder) else open_model(model)
        folder.require_flow()
        self.device = device if isinstance(device, torch.device) else select_device(device)
        self.num_samples = num_samples
        self._guides: dict[Path, RecordedNetwork] = {}
        self._plan(folder, options or SamplingOptions())
        self.autoencoder: LoadedAutoencoder | None = None
        if decode:
            spec = self.folder.require_latents(remedy="--format latents, or import it again with --autoencoder")
            self._use_autoencoder(load_autoencoder(spec.autoencoder, device=self.device))
        self._recorded_network = self._load_network(self.folder)

    def _plan(self, folder: ModelFolder, options: SamplingOptions) -> None:
        super().__init__(folder, options)
        self._require_recordable()
        self.dtype = choose_dtype(self.options.precision, self.device, folder.config.model)
        if self.guide and self.guide.path not in self._guides:
            self._guides[self.guide.path] = self._load_network(self.guide)

    @property
    def network(self) -> MPDiT:
        """The network on the device."""
        return self._recorded_network.network

    @property
    def types(self) -> ComputeTypes:
        """The data types of network and decoder. Set them to compute as another process, or as earlier images."""
        return ComputeTypes(dtype_name(self.dtype), self.autoencoder.decode_precision if self.autoencoder else None)

    @types.setter
    def types(self, types: ComputeTypes) -> None:
        self.dtype = DTYPES[types.network]
        if self.autoencoder and types.decoder:
            self.autoencoder.decode_precision = types.decoder

    @property
    def spec(self) -> LatentSpec | None:
        """The model's description of its latents, if it has one."""
        return self.folder.latents

    def images(self, *, num_samples: int | None = None, **changes: Any) -> list[Image.Image]:
        """The images, as Pillow images.

        Args:
            num_samples: number of images; default: one per class if `classes` is a list, else the generator's number.
            changes: fields of `SamplingOptions` that differ from the generator's.

        Raises:
            UserError: an invalid option.
        """
        classes = changes.get("classes")
        if isinstance(classes, Sequence) and not isinstance(classes, str):
            changes["classes"] = tuple(classes)
            num_samples = num_samples or len(classes)
        chosen = self.changed(num_samples=num_samples, **changes)
        return [tile(image) for block in chosen.batches() for image in block.images]

    def changed(self, *, num_samples: int | None = None, **changes: Any) -> Generator:
        """The same loaded model, compiled as it is, with other options.

        The autoencoder is the same object unless `precision` changes, so setting `types` on one generator sets the data
        type of decoding on both.

        Raises:
            UserError: as `Generator` does.
        """
        options = validate(SamplingOptions, self.options.sampling_values() | changes, origin="sampling")
        other = copy.copy(self)  # `_plan` gives it attributes of its own, and leaves those of `self`
        other.num_samples = num_samples or self.num_samples
        other._plan(self.folder, options)
        if other.folder is not self.folder:  # another width of the EMA; without one `at_ema_width` returns its argument
            other._recorded_network = other._load_network(other.folder)
        if self.autoencoder and options.precision != self.options.precision:
            other._use_autoencoder(copy.copy(self.autoencoder))
        return other

    @property
    def num_blocks(self) -> int:
        return -(-self.num_samples // self.options.batch_size)

    def block_indices(self, block: int) -> list[int]:
        """Numbers of the images in `block`."""
        start = block * self.options.batch_size
        return list(range(start, min(start + self.options.batch_size, self.num_samples)))

    def blocks(self, world: World | None = None, *, done: Collection[int] = ()) -> list[int]:
        """The blocks that this process of `world` computes, without those in `done`. A lone process computes all."""
        world = world or World()
        return [block for block in range(world.rank, self.num_blocks, world.size) if block not in done]

    def noise(self, indices: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
        """x at t = 1 of these images, [n, C, h, w] float32, and their noise sources, for a stochastic sampler."""
        noise, sources = starting_noise(self.network.config, self.options.seed, "noise", indices=indices)
        return noise.to(self.device), sources

    def velocity(self, labels: Sequence[int]) -> GuidedVelocity:
        """The velocity function of a batch with these labels, with guidance."""
        return GuidedVelocity(
            self._as_called(self._recorded_network),
            torch.tensor(list(labels), device=self.device),
            null_label=self.network.config.null_label,
            guidance=self.guidance,
            guide=self._as_called(self._guides[self.guide.path]) if self.guide else None,
            dtype=self.dtype,
        )

    @torch.inference_mode()
    def integrate(
        self,
        velocity: VelocityFn,
        noise: Tensor,
        noise_sources: Sequence[torch.Generator],
        *,
        on_step: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """Latents [n, C, h, w] on the device. Raises `UserError` as `flow.integrate`."""
        x_t = noise.clone()  # an inference tensor, as all later x_t: torch.compile then needs no second graph
        return integrate(self.sampler, velocity, x_t, noise_sources, on_step=on_step)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, K, H, W] uint8 on the CPU of standardised latents [n, C, h, w]."""
        assert self.spec is not None
        assert self.autoencoder is not None, "made with decode=False"
        return self.autoencoder.decode(unstandardise(latents.to(self.device), self.spec.normalisation)).cpu()

    def batches(self, blocks: Iterable[int] | None = None) -> abc.Generator[SampleBlock, None, None]:
        """Yields these blocks in order (all blocks if not given). Closing it stops the threads that it starts.

        On a CPU, one thread computes a block, and as many blocks are computed at once as there are threads: this is
        faster than one block on all threads, and the numbers do not depend on the number of threads. On a GPU the
        network computes a block in the caller's thread, while the block before is decoded in another.

        Raises:
            UserError: an image is not finite (`not-finite`), or as `integrate`.
        """
        stop = Event()
        on_cpu = self.device.type == "cpu"
        ahead = torch.get_num_threads() if on_cpu else 1
        pool = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="block")
        waiting: deque[Future[SampleBlock]] = deque()
        try:
            for block in self.blocks() if blocks is None else blocks:
                if on_cpu:
                    waiting.append(pool.submit(self._whole_block, block, stop))
                else:
                    latents, velocity = self._latents(block, stop)  # here, in the caller's thread
                    waiting.append(pool.submit(self._finish, block, latents, velocity))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _whole_block(self, block: int, stop: Event) -> SampleBlock:
        torch.set_num_threads(1)  # for this thread only
        return self._finish(block, *self._latents(block, stop))

    def _latents(self, block: int, stop: Event) -> tuple[Tensor, GuidedVelocity]:
        def cancel_if_stopped(_: Step) -> None:
            if stop.is_set():
                raise CancelledError

        indices = self.block_indices(block)
        velocity = self.velocity([self.labels(i) for i in indices])
        return self.integrate(velocity, *self.noise(indices), on_step=cancel_if_stopped), velocity

    def _finish(self, block: int, latents: Tensor, velocity: GuidedVelocity) -> SampleBlock:
        indices = self.block_indices(block)
        require_finite(latents, indices)
        return SampleBlock(
            number=block,
            indices=indices,
            labels=[self.labels(i) for i in indices],
            latents=latents.cpu(),
            images=self.decode(latents) if self.autoencoder else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
            nfe=velocity.nfe,
            passes=velocity.passes,
            saved=velocity.saved,
        )

    def _as_called(self, network: RecordedNetwork) -> Network:
        """What guidance calls: the recorded network on a GPU, unless the options forbid it; else the plain one."""
        by_default = self.device.type == "cuda" and self.guidance.rule.whole_network
        is_recorded = self.options.compile == "graphs" or (self.options.compile == "auto" and by_default)
        return network if is_recorded else network.network

    def _require_recordable(self) -> None:
        """Raises `UserError` where `compile` is "graphs", and the device or the guidance does not allow it."""
        if self.options.compile != "graphs":
            return
        require_cuda_graphs(self.device, remedy="--compile on")
        if not self.guidance.rule.whole_network:
            raise UserError(
                f"the guidance {self.options.guidance} cannot run as a CUDA graph",
                code="conflicting-options",
                expected="a rule that evaluates the whole network, which is one graph",
                remedy="--compile on",
            )

    def _load_network(self, folder: ModelFolder) -> RecordedNetwork:
        """The network on the device, compiled if the options ask for it or it saves time. Nothing is recorded yet."""
        network = folder.load(self.device)
        if should_compile(self.options.compile, self.device, worth_it=self.num_samples >= WORTH_COMPILING):
            network.compile_blocks()
        return RecordedNetwork(network)

    def _use_autoencoder(self, autoencoder: LoadedAutoencoder) -> None:
        """Decodes with `autoencoder`, in the data type that the options allow."""
        assert self.spec is not None
        autoencoder.decode_precision = choose_decode_precision(self.options.precision, autoencoder, self.spec)
        self.autoencoder = autoencoder


def require_finite(latents: Tensor, indices: Sequence[int]) -> None:
    """Raises `UserError` (`not-finite`) naming the first image that is not finite."""
    if not bool(torch.isfinite(latents).all()):
        bad = indices[int((~torch.isfinite(latents)).flatten(1).any(1).nonzero()[0])]
        raise UserError(
            f"image {bad} has NaN or infinite values",
            code="not-finite",
            expected="finite latents",
            remedy="a model whose training did not diverge, --precision float32, or a smaller --guidance-scale",
        )


def _open_guide(where: str, model: ModelFolder) -> ModelFolder:
    """The guide. Raises `UserError` (`guide-does-not-fit`) where its latents or classes are not those of `model`."""
    guide = open_model(where)
    facts = [
        folder.config.model.model_dump(include={"channels", "input_size", "num_classes"})
        | {"normalisation": folder.latents and folder.latents.normalisation}
        for folder in (guide, model)
    ]
    for what, wanted in facts[1].items():
        if (found := facts[0][what]) != wanted:
            raise UserError(
                f"the guide {where} has {what} {found}",
                code="guide-does-not-fit",
                expected=f"{what} {wanted}, as in the model that is sampled",
                remedy="choose another --guide",
            )
    return guide
