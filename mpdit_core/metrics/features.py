"""Feature extractors: the Inception network of the published protocol, and others as plugins.

`inception` is torch-fidelity's port of the TensorFlow graph that FID was defined with (2015-12-05); only its distance
may be called FID. To add an extractor: a dataclass that keeps the contract `mpdit_core.api.FeatureExtractor`, named by
an entry point of the group `mpdit.features`, as this one is; its distance is reported as a Fréchet distance.
torch-fidelity and torchvision are imported only when `inception` is used, so a broken one affects nothing else.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mpdit_core import plugins
from mpdit_core.errors import UserError
from mpdit_core.plugins import broken, plugin_errors
from mpdit_core.protocols import FeatureExtractor, Features, option
from mpdit_core.runtime.files import sha256
from mpdit_core.runtime.precision import computing_in

PUBLISHED_SHA256 = "6726825d"
"""The beginning of the SHA-256 of the published weights, which is part of their file name."""

SPATIAL_CHANNELS = 7
IMAGES_AT_ONCE = 64


@dataclass
class Inception:
    """FID's network. Pool [B, 2048], spatial [B, 2023] for sFID, logits [B, 1008] without bias for the Inception Score.

    Resizes to 299 × 299 by TensorFlow 1's rule. Computes in float32 without TF32 and ignores autocast: bfloat16 changes
    the features by up to 0.84.
    """

    name: ClassVar[str] = "inception"
    resize_rule: ClassVar[str] = "bilinear to 299 as TensorFlow 1 (no antialiasing, corners not aligned)"

    weights: str = option("", "a .pth or .safetensors file; empty: torch's cache, else downloaded")
    weights_path: Path | None = field(default=None, init=False)
    weights_sha256: str = field(default="", init=False)

    def load(self, device: torch.device) -> None:
        """Raises `UserError`: missing, damaged or wrong weights, or a torchvision that does not import."""
        module, published = _import_network(), published_weights()
        self.weights_path = Path(self.weights).expanduser() if self.weights else _downloaded(published)
        if not self.weights_path.is_file():
            raise UserError(f"{self.weights_path} does not exist", code="no-such-file", remedy=published.remedy)
        self.weights_sha256 = sha256(self.weights_path)
        state = _read_weights(self.weights_path)
        checked = io.BytesIO()  # torch-fidelity unpickles any file, so it gets only these checked tensors
        torch.save(state, checked)
        checked.seek(0)
        try:
            network = module.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], checked)
        except RuntimeError as error:
            raise UserError(
                f"{self.weights_path} does not hold this Inception network: {_first_lines(error)}",
                code="wrong-weights",
                expected=f"torch-fidelity's {published.path.name}",
                remedy=published.remedy,
            ) from error
        self._network = network.to(device)
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self._spatial = torch.empty(0)

    @property
    def is_published(self) -> bool:
        return self.weights_sha256.startswith(PUBLISHED_SHA256)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"inception-v3-compat {self.resize_rule} {self.weights_sha256}".encode()).hexdigest()

    def __call__(self, images: Tensor) -> Features:
        """`images [B, 3, H, W]` uint8 of any size."""
        with torch.inference_mode(), computing_in("float32", images.device):
            pool, logits = self._network(images)
        return Features(pool=pool, spatial=self._spatial, logits=logits)

    def _keep_spatial(self, _module: torch.nn.Module, _inputs: Any, output: Tensor) -> None:
        # [B, 192, 17, 17] after the ReLU; flattened in TensorFlow's order: height, width, channel
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _import_network() -> ModuleType:
    """torch-fidelity's module, which has the network and the URL of its weights."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except Exception as error:  # a torchvision of another torch raises RuntimeError or AttributeError
        raise UserError(
            f"torch-fidelity does not import: {type(error).__name__}: {_first_lines(error)}",
            code="no-torch-fidelity",
            expected="torch-fidelity, and a torchvision built for the installed torch "
            f"({torch.__version__}); only the features `inception` need them",
            remedy="pip install --upgrade torch-fidelity torchvision (torch and torchvision from the same index)",
        ) from error
    return feature_extractor_inceptionv3


class PublishedWeights(NamedTuple):
    """Where the published Inception weights are kept and come from, and the remedy where they cannot be downloaded."""

    path: Path
    url: str
    remedy: str


def published_weights() -> PublishedWeights:
    """Raises `UserError` (`no-torch-fidelity`). Nothing is read or downloaded."""
    url = _import_network().URL_INCEPTION_V3
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    remedy = (
        f"on a machine with internet access download {url} and put it at {path}, or give it with --weights FILE; "
        "or --features PLUGIN for a distance in other features (`mpdit plugins` lists them)"
    )
    return PublishedWeights(path, url, remedy)


def _downloaded(weights: PublishedWeights) -> Path:
    """The path of the published weights, downloaded if they are not there. Raises `UserError` (`no-weights`)."""
    path, url, remedy = weights
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=PUBLISHED_SHA256, progress=False)  # or no file
    except Exception as error:  # offline machines fail in many ways: DNS, proxies, certificates, wrong content
        raise UserError(
            f"the Inception weights are not at {path}, and cannot be downloaded: {_first_lines(error)}",
            code="no-weights",
            expected=f"{path.name} (91 MiB, SHA-256 {PUBLISHED_SHA256}…) from {url}",
            remedy=remedy,
        ) from error
    return path


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a .pth or .safetensors file; no code in it is run. Raises `UserError`."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as weights: {_first_lines(error)}",
            code="damaged-file",
            expected="a state dict saved by torch, or a .safetensors file",
            remedy="it may be truncated: delete it and download it again",
        ) from error
    fault = None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        fault = f"it holds no tensors by name, but {type(state).__name__}"
    elif bad := [name for name, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]:
        fault = f"{bad[0]} contains NaN or infinite values"
    if fault:
        expected = "the published weights, as tensors by name"
        raise UserError(f"{path} cannot be used as weights: {fault}", code="wrong-weights", expected=expected)
    return dict(state)


def load_extractor(
    name: str, *, device: torch.device, weights: Path | None = None, options: Mapping[str, Any] | None = None
) -> FeatureExtractor:
    """The extractor `name` with its options, loaded on `device`.

    Args:
        weights: file of weights, for `inception` only.

    Raises:
        UserError: an unknown or broken plugin, an option that it does not have, or as its `load`.
    """
    options = dict(options or {})
    if weights is not None:
        if name != Inception.name:
            raise UserError(
                f"the features {name} do not take the file of weights {weights}",
                code="invalid-value",
                expected="a file of weights only for the features inception",
                remedy="--set features.KEY=VALUE, for an option of the plugin",
            )
        options["weights"] = str(weights)
    extractor = plugins.build("features", name, options)
    with plugin_errors(extractor, "in load"):
        extractor.load(device)
    return extractor


def features_name(extractor: FeatureExtractor) -> str:
    """The features' name in a reference file: `inception` with the published weights, else name and fingerprint."""
    if isinstance(extractor, Inception) and extractor.is_published:
        return extractor.name
    return f"{extractor.name} {extractor.fingerprint()}"


def extract(extractor: FeatureExtractor, images: Tensor) -> Features:
    """Features of `images [B, 3, H, W]` uint8 in float32, computed for `IMAGES_AT_ONCE` at a time, and checked.

    Raises:
        UserError: a plugin breaks its contract.
    """
    with plugin_errors(extractor, "in __call__"):
        parts = [extractor(part) for part in images.split(IMAGES_AT_ONCE)]
    if not all(isinstance(part, Features) for part in parts):
        raise broken(extractor, "in __call__", f"it returns {type(parts[0]).__name__}, not Features")
    pool, spatial, logits = (
        _join(extractor, kind, [getattr(part, kind) for part in parts], len(images)) for kind in Features._fields
    )
    if pool is None:
        raise broken(extractor, "in __call__", "it returns no pool features [B, F]")
    return Features(pool, spatial, logits)


def _join(extractor: FeatureExtractor, kind: str, parts: list[Tensor | None], count: int) -> Tensor | None:
    tensors = [p for p in parts if p is not None]
    if not tensors:
        return None
    shapes = {(tuple(p.shape[1:]), p.dtype) if isinstance(p, Tensor) else type(p).__name__ for p in tensors}
    fits = all(isinstance(p, Tensor) and p.ndim == 2 and p.is_floating_point() and p.numel() for p in tensors)
    if not fits or len(shapes) != 1 or sum(map(len, tensors)) != count:
        found = f"{kind} is {' and '.join(map(str, shapes))} for {count} images"
        raise broken(extractor, "in __call__", f"{found}, not a floating-point tensor [B, F]")
    rows = torch.cat(tensors)
    if not torch.isfinite(rows).all():
        what = f"features {extractor.name!r}: {kind} contains NaN or infinite values"
        raise UserError(what, code="not-finite")
    return rows.float()


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
