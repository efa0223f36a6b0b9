"""What autoencoders store, that what is stored is read back, and which ones are refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import refused, save_autoencoder

from mpdit_core.api import to_range
from mpdit_core.data.autoencoders import load_autoencoder, loaded, read_stored
from mpdit_core.data.autoencoders.diffusers import DiffusersAutoencoder
from mpdit_core.data.autoencoders.pixels import Pixels, PixelsGray
from mpdit_core.data.manifest import EncodingPlan, SourceSpec
from mpdit_core.data.shards import channel_sums
from mpdit_core.errors import UserError
from mpdit_core.size import Size
from mpdit_core.testing import ConformanceError, check_autoencoder

PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8))


MINE = """
from dataclasses import dataclass
import torch
from mpdit_core.api import option, to_pixels, to_range
@dataclass
class Mine:
    channels = 3
    stores = "mean"
    factor: int = option(2, "side of a block", minimum=1)
    def load(self, device): pass
    def encode(self, images): return torch.nn.functional.avg_pool2d(to_range(images), self.factor)
    def decode(self, raw): return to_pixels(raw.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3))
    def fingerprint(self): return f"mine {self.factor}"
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package `mine` 1.2 with an autoencoder plugin `mine`, as installed."""
    info = tmp_path / "site/mine-1.2.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site/an_autoencoder_of_mine.py").write_text(MINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[mpdit.autoencoders]\nmine = an_autoencoder_of_mine:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "mine"


@pytest.mark.parametrize("kind", [Pixels, PixelsGray])
def test_pixels_keep_the_contract(kind: type):
    check_autoencoder(kind(), psnr=40)


def test_a_network_of_diffusers_keeps_the_contract(tmp_path: Path):
    check_autoencoder(DiffusersAutoencoder(save_autoencoder(tmp_path / "vae")), side=64, psnr=-math.inf)


def test_a_broken_contract_is_found():
    @dataclass
    class OfItsBatch(Pixels):
        def encode(self, images):
            return images - images.min()

    @dataclass
    class Mirrored(Pixels):
        flip_equivariant = True

        def encode(self, images):
            return images.roll(1, dims=-1)

    @dataclass
    class Lossy(Pixels):
        def decode(self, raw_latents):
            return super().decode(raw_latents) // 4

    for kind in (OfItsBatch, Mirrored, Lossy):
        with pytest.raises(ConformanceError):
            check_autoencoder(kind())


def test_a_plugin_is_built_again_from_its_spec(mine: str, monkeypatch: pytest.MonkeyPatch):
    loaded = load_autoencoder(mine, options={"factor": 4})
    spec = loaded.spec
    assert (spec.package, spec.options, spec.sha256, spec.factor) == ("mine", {"factor": 4}, "mine 4", 4)
    again = load_autoencoder(type(spec).model_validate_json(spec.model_dump_json()))
    assert torch.equal(again.decode(loaded.encode(PICTURES)), loaded.decode(loaded.encode(PICTURES)))
    with refused("unknown-key", "sides"):
        load_autoencoder(mine, options={"sides": 4})
    with refused("another-autoencoder"):
        load_autoencoder(spec.model_copy(update={"options": {"factor": 2}}))
    monkeypatch.setenv("MPDIT_PLUGINS", "off")  # as if it were not installed
    with refused("other-package", "mine"):
        load_autoencoder(spec)


def test_code_that_a_file_names_is_not_run(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    spec = load_autoencoder(f"{tmp_path}/mine.py:Mine").spec
    with refused("untrusted-code"):
        load_autoencoder(spec)
    assert load_autoencoder(spec, trust=True).spec == spec


def test_what_a_plugin_returns_is_checked(tmp_path: Path):
    (tmp_path / "halves.py").write_text(MINE.replace(", 3))", ", 3)).half()"))
    (tmp_path / "fails.py").write_text(MINE.replace("return torch", "return 1 / 0 * torch"))
    with refused("broken-plugin", "float16"):
        load_autoencoder(f"{tmp_path}/halves.py:Mine").decode(torch.zeros(1, 3, 8, 8))
    with refused("broken-plugin", "ZeroDivisionError"):
        load_autoencoder(f"{tmp_path}/fails.py:Mine").encode(PICTURES)


def test_latents_are_decoded_in_parts(mine: str, monkeypatch: pytest.MonkeyPatch):
    autoencoder = load_autoencoder(mine)
    raw = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, sizes, decode = autoencoder.decode(raw), [], autoencoder.plugin.decode
    monkeypatch.setattr(loaded, "DECODED_AT_ONCE_ON_CPU", 2 * 16 * 16 + 1)
    monkeypatch.setattr(autoencoder.plugin, "decode", lambda part: (sizes.append(len(part)), decode(part))[1])
    assert torch.equal(autoencoder.decode(raw), whole)
    assert sizes == [2, 2, 1]
    assert autoencoder.decode(raw[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("gray", [False, True])
def test_pixels_are_exact(gray: bool):
    autoencoder = load_autoencoder("pixels-gray" if gray else "pixels")
    images = PICTURES[:, :1] if gray else PICTURES
    stored = autoencoder.encode(images)
    assert stored.dtype == torch.uint8
    mean, std = read_stored(stored, autoencoder.spec.stores)
    assert std is None
    assert torch.equal(autoencoder.decode(mean), images)
    assert torch.equal(stored, images)


def test_a_posterior_is_stored_as_mean_and_standard_deviation(tmp_path: Path):
    autoencoder = load_autoencoder(str(save_autoencoder(tmp_path / "vae")))
    stored = autoencoder.encode(PICTURES)
    assert (autoencoder.spec.stores, autoencoder.spec.factor, autoencoder.spec.channels) == ("mean+std", 8, 4)
    mean, std = read_stored(stored, "mean+std")
    posterior = autoencoder.plugin.network.encode(to_range(PICTURES)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
    assert std is not None
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(std, posterior.std)
    assert read_stored(mean.half(), "mean")[1] is None


@pytest.mark.parametrize("stores", ["mean+std", "mean", "uint8"])
def test_sums_are_those_of_what_is_read(stores):
    spec = load_autoencoder("pixels").spec.model_copy(update={"stores": stores})
    source = SourceSpec(given="", fingerprint="", items=5)
    plan = EncodingPlan(
        source=source,
        resolution=Size.square(16),
        autoencoder=spec,
        flip=False,
        batch_size=1,
        shard_size=5,
        class_names=("a",),
    )
    random = np.random.default_rng(0)
    if stores == "uint8":
        stored = PICTURES.numpy()
    else:
        stored = random.standard_normal((5, *plan.stored_shape)).astype(np.float16)
    mean, std = read_stored(torch.from_numpy(stored), stores)
    square = mean.double() ** 2 + (0 if std is None else std.double() ** 2)
    sums = channel_sums([stored], plan)
    assert np.allclose(sums[0], mean.double().sum(dim=(0, 2, 3)), rtol=0, atol=1e-3)  # float32 of what is read
    assert np.allclose(sums[1], square.sum(dim=(0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("recorded", [False, True])
def test_without_the_hub_the_way_without_a_download_is_named(recorded: bool, tmp_path: Path):
    """Not where latents record which one they need: another one cannot decode them."""
    spec = load_autoencoder(str(save_autoencoder(tmp_path))).spec.model_copy(update={"id": "some/where"})
    with pytest.raises(UserError) as caught:
        load_autoencoder(spec if recorded else "some/where")
    assert (caught.value.code, "some/where" in caught.value.what) == ("hub-unreachable", True)
    assert ("--autoencoder pixels" in str(caught.value.remedy)) == (not recorded)


def test_refused_autoencoders(tmp_path: Path):
    with refused("no-such-autoencoder"):
        load_autoencoder(str(tmp_path / "none"))
    vae = save_autoencoder(tmp_path / "vae")
    spec = load_autoencoder(str(vae)).spec
    with refused("another-autoencoder"):
        load_autoencoder(spec.model_copy(update={"sha256": "0" * 64}))
    with refused("resolution-does-not-fit"):
        load_autoencoder(str(vae)).require_resolution(Size(96, 100))
    with refused("option-does-not-apply", "factor"):
        load_autoencoder(str(vae), options={"factor": 2})
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with refused("unknown-autoencoder", "UNet2DModel"):
        load_autoencoder(str(vae))
    (vae / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))  # weights of another class
    with refused("damaged-file"):
        load_autoencoder(str(vae))
