"""What `encode-latents` is asked for, and what it returns. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from mpdit_core.data.manifest import SkippedItem
from mpdit_core.settings import DeviceOptions, Result, setting
from mpdit_core.size import Size


class EncodeOptions(DeviceOptions):
    """What to encode, and how. Where a value is None, the source, the resolution or the autoencoder decides."""

    source: str | None = setting(
        None, "folder of images or class folders, .tar of one, hf:ORG/NAME, or name of a data set",
        argument=True, metavar="SOURCE",
    )  # fmt: skip
    from_latents: Path | None = setting(
        None, "folder of latents made by another program, to import instead of SOURCE",
        metavar="DIR", chosen="none", strict=False,
    )  # fmt: skip
    latents_scale: float | None = setting(
        None,
        "factor that the latents in DIR were multiplied by; 1: raw latents",
        gt=0,
        chosen="none; required with DIR",
    )
    resolution: Size | None = setting(None, "size in pixels that images are cropped and scaled to", chosen="256")
    autoencoder: str | None = setting(
        None, "autoencoder: ORG/NAME:SUBFOLDER@REVISION on the Hub (the last two are optional), a local folder, or a "
        "plugin such as pixels",
        metavar="ID|DIR|NAME", chosen="stabilityai/sd-vae-ft-ema",
    )  # fmt: skip
    mode: Literal["L", "RGB", "RGBA"] | None = setting(
        None, "grey, RGB, or RGB with transparency; only for pixels and for plugins with an option mode", chosen="RGB"
    )
    autoencoder_options: dict[str, Any] = setting(
        {}, "options of an autoencoder plugin", table="autoencoder", typed=False
    )
    split: str | None = setting(
        None, "split of the data set; in a folder, a subfolder", chosen="train, if there is one"
    )
    classes: Path | None = setting(
        None, "file of class names in label order, one per line", metavar="FILE", chosen="of the source", strict=False
    )
    labels: Path | None = setting(
        None, "file that gives each image its class, if there are no class folders",
        metavar="FILE", chosen="class folders, if there are any", strict=False,
    )  # fmt: skip
    allow_empty_classes: bool = setting(
        False, "keep class folders without images as classes, instead of stopping with an error"
    )
    streaming: bool = setting(False, "read from the Hub without storing the data set first")
    dataset_options: dict[str, Any] = setting(
        {},
        "options of a data set plugin; for the Hub, the names of the columns image and label",
        table="dataset",
        typed=False,
    )
    flip: bool | None = setting(
        None, "store the latents of mirror images too", panel="Output",
        chosen="on, unless the autoencoder is flip-equivariant",
    )  # fmt: skip
    normalisation: Literal["measured", "published"] | None = setting(
        None,
        "statistics that standardise the latents: measured on them, or the published ones of Stable Diffusion",
        panel="Output",
        chosen="measured",
    )
    out: Path | None = setting(
        None, "folder of the latents", metavar="DIR", panel="Output", chosen="latents/SOURCE-RESOLUTION", strict=False
    )
    shard_size: PositiveInt | None = setting(
        None, "number of images per file", panel="Output", chosen="as many as fit in 128 MiB, at most 4096"
    )
    on_error: Literal["fail", "skip"] = setting(
        "fail", "what to do with an image that cannot be read: stop, or skip and list it"
    )
    teacher: str | None = setting(
        None, "teacher for objective.alignment, whose features are stored beside the latents: a feature extractor with "
        "a feature map, such as efficientnet or dinov2, or latents (the latents themselves)",
        metavar="NAME", panel="Other work", chosen="none",
    )  # fmt: skip
    teacher_options: dict[str, Any] = setting({}, "options of the teacher's plugin", table="teacher", typed=False)
    teacher_patch_size: PositiveInt = setting(
        4, "side of a teacher's token in latent pixels; must equal the patch size of the model's last coarse stage",
        panel="Other work",
    )  # fmt: skip
    teacher_dims: PositiveInt | None = setting(
        None, "number of dimensions that the teacher's features are projected to (PCA)",
        panel="Other work", chosen="all",
    )  # fmt: skip
    replace_teacher: bool = setting(
        False, "delete teacher features stored with other settings, and compute them again", panel="Other work"
    )
    verify: bool = setting(
        False, "only check finished shards; the next call without this option rewrites damaged ones", panel="Other work"
    )
    reference_stats: bool = setting(
        False, "also compute the reference that eval-fid compares samples with", panel="Other work"
    )
    reconstruction_images: int = setting(
        64, "number of random images to compare with their decoded latents; 0: none", ge=0, panel="Other work"
    )
    reconstruction_fid: bool = setting(
        False, "also measure the FID of up to 50,000 decoded latents (rFID), as eval-fid does", panel="Other work"
    )
    batch_size: PositiveInt | None = setting(
        None, "number of images encoded at once", panel="Running", chosen="depends on the resolution; 32 at 256 pixels"
    )
    workers: PositiveInt | None = setting(
        None, "number of threads per process that decode images", panel="Running", chosen="number of cores"
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = setting(
        "auto",
        "data type that the encoder computes in; auto: the fastest whose latents are within 1e-2 of float32",
        panel="Running",
    )


class EncodeResult(Result):
    """A finished folder of latents."""

    latents: Path = setting(..., "the folder")
    count: int = setting(..., "number of images")
    classes: int = setting(..., "number of classes; 0: images without classes")
    resolution: Size = setting(..., "height and width of the images in pixels")
    latent_shape: tuple[int, int, int] = setting(..., "C, h, w of the latents of an image", strict=False)
    autoencoder: str = setting(..., "Hub id, folder, or name of a plugin")
    precision: str = setting(..., "data type that the encoder computed in")
    stores: Literal["mean+std", "mean", "uint8"] = setting(..., "what is stored for each image")
    flips: Literal["stored", "mirrored", "none"] = setting(
        ..., "mirror images: stored, obtained by mirroring the latents, or none"
    )
    shards: int = setting(..., "number of files")
    bytes: int = setting(..., "size of all files in bytes")
    skipped: tuple[SkippedItem, ...] = setting((), "skipped images, with reasons", strict=False)
    encoded_now: int = setting(..., "number of images encoded by this call")
    seconds: float = setting(..., "time that this call took to encode them, in seconds")
    images_per_second: float | None = setting(None, "rate of this call in images per second")
    measured_mean: tuple[float, ...] = setting(..., "measured mean per channel", strict=False)
    measured_std: tuple[float, ...] = setting(..., "measured standard deviation per channel", strict=False)
    normalisation: Literal["measured", "published", "none"] = setting(..., "statistics that training uses")
    normalisation_mean: tuple[float, ...] = setting(..., "mean that training subtracts, per channel", strict=False)
    normalisation_std: tuple[float, ...] = setting(..., "standard deviation that it divides by", strict=False)
    fingerprint: str = setting(..., "hash of source, options and autoencoder")
    teacher: str | None = setting(None, "teacher whose features are stored beside the latents")
    teacher_shape: tuple[int, int] | None = setting(None, "N, F: tokens, and features of each", strict=False)
    psnr: float | None = setting(None, "peak signal-to-noise ratio of decoded latents in dB; 100: exact")
    ssim: float | None = setting(None, "structural similarity of decoded latents; 1: exact")
    rfid: float | None = setting(None, "FID of decoded latents, where this call measured it")
