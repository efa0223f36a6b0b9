"""MPDiT for diffusers: `MPDiTPipeline`, with the call and the output of `DiTPipeline`.

    from mpdit_core import MPDiTPipeline
    pipe = MPDiTPipeline.from_pretrained("exported-folder")
    images = pipe(class_labels=[207, 360], num_inference_steps=50, generator=torch.manual_seed(0)).images

`mpdit export MODEL OUT --format diffusers` writes such a folder. With `FlowMatchEulerDiscreteScheduler` (shift 1) the
steps are those of `mpdit sample --sampler euler`: the same noise gives the same images.

`DiffusionPipeline.from_pretrained(folder)` finds the class too, once it is imported (see the last line). Otherwise
`pipeline.py`, which is saved with every folder, imports it: `custom_pipeline=folder, trust_remote_code=True`.

Shapes: B images, C channels, h × w latents, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mpdit_core.config import ModelConfig
from mpdit_core.data.autoencoders import DiffusersAutoencoder, load_autoencoder
from mpdit_core.errors import UserError
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import ModelFolder
from mpdit_core.runtime.precision import autocast
from mpdit_core.size import Size

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PIPELINE_FILE = "pipeline.py"
PIPELINE_CODE = """\
# For DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True).
from mpdit_core import MPDiTPipeline  # noqa: F401 - pip install mpdit
"""


class MPDiTTransformer(ModelMixin, ConfigMixin):
    """The velocity network as a model of diffusers. It takes the arguments of `ModelConfig`, and two more.

    Args:
        latents_mean, latents_std: mean and standard deviation per channel; the VAE decodes `latents · std + mean`.
    """

    _no_split_modules = ["Block"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        width: int,
        num_heads: int,
        stages: Sequence[Sequence[int]],
        input_size: int | str,
        channels: int = 4,
        num_classes: int = 1000,
        class_tokens: int = 16,
        modulation: str = "shared",
        time_embedding: str = "fno",
        skip: bool = True,
        mlp_ratio: int = 4,
        mlp: str = "gelu",
        norm: str = "layer",
        qk_norm: bool = False,
        positions: str = "sincos",
        prediction: str = "velocity",
        latents_mean: Sequence[float] = (0.0,),
        latents_std: Sequence[float] = (1.0,),
    ):
        super().__init__()
        shape = {name: self.config[name] for name in ModelConfig.model_fields if name in self.config}
        self.network = MPDiT(ModelConfig.model_validate(shape))

    @classmethod
    def of(cls, network: MPDiT, *, mean: Sequence[float], std: Sequence[float]) -> MPDiTTransformer:
        """Wraps `network`; its weights are shared, not copied."""
        values = network.config.model_dump(exclude={"spectral_init_scale"})
        values["stages"] = [list(stage) for stage in network.config.stages]
        made = cls(**values, latents_mean=list(mean), latents_std=list(std))
        made.network = network
        return made.eval()

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity [B, C, h, w] for `hidden_states [B, C, h, w]`, `timestep` [] or [B] = 1000·t, `class_labels [B]`."""
        t = timestep.float().reshape(-1) / 1000
        dtype = self.network.head.linear.weight.dtype
        self.network.time_embedding.float()  # `.half()` on the whole pipeline converts it too
        with autocast(hidden_states.device, dtype):
            velocity = self.network(hidden_states, t, class_labels)
        velocity = velocity.to(hidden_states.dtype)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)


class PixelVAE(ModelMixin, ConfigMixin):
    """The identity in place of a VAE, for models of pixels; a grey channel is repeated to three, RGBA stays RGBA."""

    @register_to_config
    def __init__(self, channels: int = 3):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # diffusers reads its type and device

    @apply_forward_hook  # with enable_model_cpu_offload it offloads the transformer, as in AutoencoderKL
    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        images = latents.expand(-1, max(3, latents.shape[1]), -1, -1)
        return DecoderOutput(sample=images) if return_dict else (images,)


class MPDiTPipeline(DiffusionPipeline):
    """Class-conditional images from an MPDiT flow.

    Args:
        transformer: `MPDiTTransformer`.
        vae: `AutoencoderKL`, or `PixelVAE`.
        scheduler: `FlowMatchEulerDiscreteScheduler` or another flow-matching one.
        id2label: name of each class, or several names separated by commas, as in `DiTPipeline`.

    Errors are `UserError`s, which are `ValueError`s with a `code`.
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - name and type are set by diffusers

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, id2label: dict[Any, str] | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self._ids: dict[str, list[int]] = {}
        for key, names in (id2label or {}).items():
            for name in names.split(","):
                self._ids.setdefault(name.strip(), []).append(int(key))
        self._interrupt = False
        self._num_timesteps = 0

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, with `pipeline.py` added, by which diffusers itself can load the folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PIPELINE_FILE).write_text(PIPELINE_CODE, encoding="utf-8")
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def labels(self) -> dict[str, int]:
        """Class id by name, in alphabetical order, for the names that only one class has."""
        return {name: ids[0] for name, ids in sorted(self._ids.items()) if len(ids) == 1}

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Class ids for class names.

        Raises:
            UserError: no class has this name (`no-such-class`), or several have (`ambiguous-class`).
        """
        found = []
        for name in [label] if isinstance(label, str) else label:
            ids = self._ids.get(name, [])
            if not ids:
                expected = ", ".join(sorted(self._ids))
                raise UserError(f"no class has the name {name!r}", code="no-such-class", expected=expected)
            if len(ids) > 1:
                expected = f"one of the ids {', '.join(map(str, ids))}, given as class_labels"
                raise UserError(f"{len(ids)} classes have the name {name!r}", code="ambiguous-class", expected=expected)
            found += ids
        return found

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """One image for each of `class_labels`; arguments and result are those of `DiTPipeline`.

        Args:
            class_labels: a class per image; 0 for an unconditional model.
            guidance_scale: 1 or less is off. None: 4, or off for an unconditional model.
            output_type: `pil`, `np`, `pt`, or `latent` for the standardised latents.
            latents: noise to start from, [B, C, h, w], in place of drawn noise.
            callback_on_step_end: called as `(pipeline, step, timestep, {"latents": …})`; it may return changed
                latents, and set `pipeline._interrupt` to stop.
            callback_on_step_end_tensor_inputs: names of the tensors in its last argument; only `latents` is allowed.

        Raises:
            UserError: an argument has an impossible value (`invalid-value`), or guidance is asked of an unconditional
                model (`no-classes`).
        """
        config, device = self.transformer.config, self._execution_device
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        shape = (len(class_labels), config["channels"], *Size.parse(config["input_size"]))
        _require(
            set(callback_on_step_end_tensor_inputs) <= set(self._callback_tensor_inputs),
            f"callback_on_step_end_tensor_inputs {list(callback_on_step_end_tensor_inputs)}",
            "latents",
        )
        _require(
            len(class_labels) > 0 and all(0 <= label <= config["num_classes"] for label in class_labels),
            f"class_labels {list(class_labels)}",
            f"ids from 0 to {config['num_classes']}",
        )
        _require(output_type in OUTPUT_TYPES, f"output_type {output_type!r}", ", ".join(OUTPUT_TYPES))
        if isinstance(generator, list):
            _require(len(generator) == shape[0], f"{len(generator)} generators", f"{shape[0]}, one per class label")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        _require(tuple(latents.shape) == shape, f"latents of shape {tuple(latents.shape)}", str(shape))
        x_t = latents.to(device, torch.float32)  # the network may be in half precision, the integration is not
        labels = torch.tensor(list(class_labels), device=device)
        if guidance_scale is None:
            guidance_scale = 4.0 if config["num_classes"] else 1.0
        guided = guidance_scale > 1
        if guided and not config["num_classes"]:
            what = f"guidance_scale {guidance_scale:g} needs classes, but the model has none"
            raise UserError(what, code="no-classes", expected="1 (off)")
        both = torch.cat([labels, torch.full_like(labels, config["num_classes"])]) if guided else labels

        self._interrupt = False
        self._set_timesteps(num_inference_steps, device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress:  # pyright: ignore[reportCallIssue]
            for i, timestep in enumerate(timesteps):
                if self._interrupt:
                    continue
                given = torch.cat([x_t, x_t]) if guided else x_t
                times = timestep.expand(len(given)).to(device)
                velocity = self.transformer(given, timestep=times, class_labels=both).sample
                if guided:
                    strong, weak = velocity.float().chunk(2)
                    velocity = weak + guidance_scale * (strong - weak)
                x_t = self.scheduler.step(velocity.float(), timestep, x_t, return_dict=False)[0]
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(
                        self, i, timestep, dict.fromkeys(callback_on_step_end_tensor_inputs, x_t)
                    )
                    x_t = changed.pop("latents", x_t) if changed else x_t
                progress.update()

        images = self._output(x_t, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _set_timesteps(self, steps: int, device: torch.device) -> None:
        """Equal steps from t = 1 to 0; by default, a scheduler stops at t = 0.001."""
        try:
            self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), device=device)
        except TypeError:  # a scheduler that does not take sigmas
            self.scheduler.set_timesteps(steps, device=device)

    def _output(self, x_t: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return x_t
        config = self.transformer.config
        mean, std = (
            torch.tensor(config[key], device=x_t.device).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std")
        )
        images = self.vae.decode((x_t * std + mean).to(self.vae.dtype)).sample.float()
        return VaeImageProcessor().postprocess(images, output_type)


def make_pipeline(model: ModelFolder, *, half: bool = False) -> MPDiTPipeline:
    """The model with its VAE (downloaded if it is not local) and an Euler scheduler.

    Raises:
        UserError: the model does not describe its latents (`no-autoencoder`), or its autoencoder cannot be loaded, or
            is a plugin other than `pixels` (`unknown-autoencoder`).
    """
    latents = model.require_latents()
    autoencoder = load_autoencoder(latents.autoencoder)
    vae: Any = PixelVAE(channels=latents.autoencoder.channels)
    if isinstance(autoencoder.plugin, DiffusersAutoencoder):
        vae = autoencoder.plugin.network
    elif autoencoder.spec.stores != "uint8":
        raise UserError(
            f"the autoencoder {latents.autoencoder.id} is a plugin, which diffusers cannot load",
            code="unknown-autoencoder",
            expected="pixels, or an autoencoder of diffusers",
            remedy="--format mpdit",
        )
    normalisation = latents.normalisation
    transformer = MPDiTTransformer.of(model.load(), mean=normalisation.mean, std=normalisation.std)
    names = dict(enumerate(latents.class_names))
    pipeline = MPDiTPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(shift=1.0), id2label=names)
    return pipeline.to(torch.float16) if half else pipeline


def _require(condition: bool, what: str, expected: str) -> None:
    if not condition:
        raise UserError(what, code="invalid-value", expected=expected)


# `DiffusionPipeline.from_pretrained` looks up the class of a folder by its name in this package, and nowhere else.
diffusers.MPDiTPipeline = MPDiTPipeline  # pyright: ignore[reportAttributeAccessIssue]
