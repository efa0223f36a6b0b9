"""`encode_latents`: what it writes, returns and reports, that it resumes, and what it refuses."""

from __future__ import annotations

import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import encode, image_folder, photo, refused, save_autoencoder, shard_hashes
from PIL import Image
from safetensors import safe_open

from mpdit_cli.app import main
from mpdit_cli.commands.encode_latents import next_command, summary
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import PUBLISHED_MEAN, find_latents
from mpdit_core.data.shards import channel_sums, same_sums
from mpdit_core.encoding import plan as encoding_plan
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.reporting import Event, Progress, Saved, Skipped, Warning
from mpdit_core.runtime import precision
from mpdit_core.runtime.locks import locked
from mpdit_core.runtime.signals import NAMES
from mpdit_core.size import Size


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def test_folder_of_latents(images: Path, tmp_path: Path):
    events: list[Event] = []
    result = encode(images, tmp_path / "out", report=events.append)
    assert (result.count, result.classes, result.shards, result.encoded_now) == (15, 3, 4, 15)
    assert (result.stores, result.flips, result.latent_shape) == ("uint8", "mirrored", (3, 8, 8))
    assert result.bytes == sum(p.stat().st_size for p in result.latents.glob("shard-*"))
    folder = LatentFolder(result.latents)
    assert folder.spec.class_names == ("ant", "bee", "cat")
    assert [shard.count for shard in folder.manifest.shards] == [4, 4, 4, 3]
    assert {s.file: s.sha256 for s in folder.manifest.shards} == shard_hashes(result.latents)
    assert not (result.latents / "encoding").exists()
    with safe_open(result.latents / "shard-00001.safetensors", "np") as shard:  # the library reads what we write
        pixels, labels = shard.get_tensor("pixels"), shard.get_tensor("labels")
    assert labels.tolist() == [0, 1, 1, 1]
    assert np.array_equal(pixels[2], prepare(Image.open(images / "bee/1.png"), Size.square(8)).transpose(2, 0, 1))
    everything = folder.batch(range(15)).mean.double()
    assert np.allclose(result.measured_mean, everything.mean(dim=(0, 2, 3)), atol=1e-7)
    assert np.allclose(result.measured_std, everything.std(dim=(0, 2, 3), correction=0), atol=1e-7)
    progress = [(event.done, event.total) for event in events if isinstance(event, Progress) and event.task == "encode"]
    assert progress[-1] == (15, 15)
    assert [event.path.name for event in events if isinstance(event, Saved)] == ["contact-sheet.png"]
    assert not [event for event in events if isinstance(event, Warning)]


def test_files_follow_the_umask(images: Path, tmp_path: Path):
    out = encode(images, tmp_path / "out").latents
    (tmp_path / "plain").touch()
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {expected}


def test_mirror_images_are_stored_where_they_are_asked_for(images: Path, tmp_path: Path):
    folder = LatentFolder(encode(images, tmp_path / "out", flip=True).latents)
    tensors = folder.shard(1)
    assert np.array_equal(tensors["pixels_flipped"], tensors["pixels"][..., ::-1])
    mirrored = encode(images, tmp_path / "exact")
    assert mirrored.flips == "mirrored"
    flips = [True] * 15
    assert torch.equal(folder.batch(range(15), flip=flips).mean,
                       LatentFolder(mirrored.latents).batch(range(15), flip=flips).mean)  # fmt: skip
    mean, square = channel_sums([tensors["pixels"], tensors["pixels_flipped"]], folder.manifest.plan)
    shard = folder.manifest.shards[1]
    assert same_sums((mean, square), shard)
    assert not same_sums((mean, tuple(s * (1 + 1e-6) for s in square)), shard)
    assert not same_sums((tuple(m + 1e-4 for m in mean), square), shard)


def test_bytes_do_not_depend_on_batch_size_or_threads(images: Path, tmp_path: Path):
    vae = save_autoencoder(tmp_path / "vae")
    common = {"autoencoder": str(vae), "resolution": 32}
    encode(images, tmp_path / "a", **common)
    encode(images, tmp_path / "b", **common, batch_size=3, workers=3)
    assert shard_hashes(tmp_path / "a") == shard_hashes(tmp_path / "b")
    encode(images, tmp_path / "a", **common, verify=True)
    published = encode(images, tmp_path / "a", **common, normalisation="published")
    assert published.normalisation_mean == PUBLISHED_MEAN
    assert published.encoded_now == 0
    assert published.images_per_second is None
    assert encode(images, tmp_path / "a", **common).normalisation == "published"


def test_whole_batches_as_on_a_gpu(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The way of a GPU, walked by a CPU that calls itself something else: the same images in the same rows."""
    from mpdit_core.data.autoencoders import LoadedAutoencoder

    (images / "bee/3.png").write_bytes(b"no picture")
    one = encode(images, tmp_path / "one", on_error="skip")
    monkeypatch.setattr(LoadedAutoencoder, "encode_device", torch.device("meta"))
    monkeypatch.setattr(LoadedAutoencoder, "encode", lambda self, images: self.plugin.encode(images))
    whole = encode(images, tmp_path / "whole", on_error="skip")
    assert shard_hashes(one.latents) == shard_hashes(whole.latents)
    with refused("faulty-image", "bee/3.png"):
        encode(images, tmp_path / "third")
    assert sorted(shard_hashes(tmp_path / "third")) == ["shard-00000.safetensors", "shard-00001.safetensors"]


def test_changes_are_refused(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    encode(images, out)
    before = shard_hashes(out)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"resolution": 16}, "resolution: 8 → 16"),
        ({"autoencoder": "pixels-gray"}, "autoencoder.id: pixels → pixels-gray"),
        ({"flip": True}, "flip: False → True"),
    ]
    for changed, words in changes:
        with refused("settings-changed", words):
            encode(images, out, **changed)
    photo(99).save(images / "ant/0.png")
    with refused("settings-changed", "source.fingerprint"):
        encode(images, out)
    assert shard_hashes(out) == before


def test_a_source_that_was_moved_is_the_same(images: Path, tmp_path: Path):
    before = encode(images, tmp_path / "out")
    moved = images.rename(tmp_path / "elsewhere")
    again = encode(moved, tmp_path / "out")
    assert (again.encoded_now, again.fingerprint) == (0, before.fingerprint)


def test_faulty_images(images: Path, tmp_path: Path):
    (images / "bee/3.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    with refused("faulty-image", "bee/3.png"):
        encode(images, out)
    assert sorted(shard_hashes(out)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    events: list[Event] = []
    result = encode(images, out, on_error="skip", report=events.append)
    assert (result.count, [item.key for item in result.skipped]) == (14, ["bee/3.png"])
    assert [event.path for event in events if isinstance(event, Skipped)] == ["bee/3.png"]
    assert LatentFolder(out).batch(range(14)).labels.tolist() == [0] * 5 + [1] * 4 + [2] * 5
    encode(images, out, on_error="skip", verify=True)


def test_nothing_but_faulty_images(images: Path, tmp_path: Path):
    for path in images.glob("*/*.png"):
        path.write_bytes(b"no picture")
    with refused("no-images"):
        encode(images, tmp_path / "out", on_error="skip")
    assert not (tmp_path / "out/manifest.json").exists()


def test_refusals(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    with refused("no-such-source"):
        encode(tmp_path / "nowhere", out)
    with refused("no-such-autoencoder"):
        encode(images, out, autoencoder=str(tmp_path / "none"))
    with refused("normalisation-does-not-fit", "3 channels"):
        encode(images, out, normalisation="published")
    with refused("output-in-source"):
        encode(images, images / "latents")
    with refused("no-such-precision"):
        encode(images, out, precision="tf32")
    with refused("option-does-not-apply", "dataset"):
        encode(images, out, dataset_options={"side": 3})
    with monkeypatch.context() as patch:
        patch.setattr("mpdit_core.runtime.files.free_bytes", lambda path: 1000)
        with refused("disk-full"):
            encode(images, out)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with refused("foreign-files", "thesis.tex"):
        encode(images, out)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    monkeypatch.setattr("mpdit_core.runtime.locks.SECONDS", 0.05)
    with locked(tmp_path / "busy"), refused("folder-in-use"):
        encode(images, tmp_path / "busy")
    assert encode(images, tmp_path / "busy").count == 15


def test_the_encoders_precision_is_measured_and_kept(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of an autoencoder that counts as large: bfloat16 where it is faster, and its means are close enough."""
    given = {"autoencoder": str(save_autoencoder(tmp_path / "kl")), "resolution": 16}
    assert encode(images, tmp_path / "small", **given).precision == "float32"  # not measured
    gain = {"least": 0.0}
    agreeing = precision.fastest_that_agrees
    monkeypatch.setattr(encoding_plan, "MIN_PARAMETERS", 1)
    monkeypatch.setattr(encoding_plan, "fastest_that_agrees", lambda *a, **k: agreeing(*a, **k, min_gain=gain["least"]))
    monkeypatch.setattr(encoding_plan, "MAX_DIFFERENCE", 1.0)
    assert encode(images, tmp_path / "fast", **given).precision == "bfloat16"
    gain["least"] = float("inf")
    assert encode(images, tmp_path / "fast", **given).precision == "bfloat16"  # as it was begun
    assert encode(images, tmp_path / "slow", **given).precision == "float32"
    gain["least"] = 0.0
    monkeypatch.setattr(encoding_plan, "MAX_DIFFERENCE", 0.0)
    assert encode(images, tmp_path / "other", **given).precision == "float32"


def test_a_plugin_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nfrom mpdit_core.api import Item\n@dataclass\nclass Mine:\n"
        "    def class_names(self): return ['a']\n    def items(self): return [Item('0', 0)]\n"
        "    def image(self, index): return 1 / 0\n    def fingerprint(self): return ''\n"
    )
    with refused("faulty-image", "ZeroDivisionError"):
        encode("./mine.py:Mine", tmp_path / "out")


def test_default_autoencoder_from_the_cache(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """`mpdit encode-latents images/`: the default autoencoder, the default place, and what to type next."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert main(["encode-latents", "images/", "--device", "cpu"]) == 2
    assert "stabilityai/sd-vae-ft-ema" in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()
    model = tmp_path / "hub/models--stabilityai--sd-vae-ft-ema"
    save_autoencoder(model / "snapshots" / ("0" * 40))
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0" * 40)
    assert main(["encode-latents", "images/", "--no-flip", "--device", "cpu"]) == 0
    folder = LatentFolder(find_latents(resolution=Size.square(256)))
    assert folder.path == Path("latents/images-256")
    assert folder.spec.autoencoder.revision == "0" * 40
    assert (len(folder), folder.batch([0]).mean.shape) == (15, (1, 4, 32, 32))
    assert (folder.path / "contact-sheet.png").stat().st_size > 1000
    assert "mpdit train --preset s-256\n" in capsys.readouterr().out


def test_summary_names_what_was_skipped_and_what_comes_next(images: Path, tmp_path: Path):
    (images / "bee/3.png").write_bytes(b"no picture")
    result = encode(images, tmp_path / "out", on_error="skip")
    rows = summary(result).rows
    assert "bee/3.png" in rows["skipped"]
    assert rows["images"].startswith("14 of 8 × 8")
    fitted = "--set resolution=8 --set model.input_size=8 --set 'model.stages=[[2,6],[1,6]]'"
    assert next_command(result) == f"mpdit train --preset s-32 --latents {tmp_path / 'out'} {fitted}"
    gray = result.model_copy(update={"resolution": Size.square(16), "latent_shape": (1, 16, 16)})
    assert next_command(gray) == f"mpdit train --preset digits --latents {tmp_path / 'out'}"


def test_the_next_command_after_encoding_beside_damaged_latents(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = encode(images, Path("latents/whole"))
    assert " --latents " not in next_command(result)
    Path("latents/damaged").mkdir()
    Path("latents/damaged/manifest.json").write_text("{")
    assert " --latents " not in next_command(result)  # the damaged one is passed over
    encode(images, Path("latents/second"))
    assert " --latents latents/whole" in next_command(result)


def test_poor_reconstructions_are_warned_of(images: Path, tmp_path: Path):
    events: list[Event] = []
    vae = save_autoencoder(tmp_path / "vae")  # random weights: nothing like the source comes back
    encode(images, tmp_path / "out", autoencoder=str(vae), resolution=32, report=events.append)
    assert [event.code for event in events if isinstance(event, Warning)] == ["poor-reconstruction"]


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(signal, name)])
def test_a_stop_signal_keeps_finished_shards(name: str, tmp_path: Path):
    """All of them alike; the same command then makes the same bytes."""
    images, out = image_folder(tmp_path / "images"), tmp_path / "out"
    encode(images, tmp_path / "whole")
    seen, signum = [], getattr(signal, name)

    def send(event: object) -> None:
        seen.append(event)
        if isinstance(event, Progress) and event.done == 8:
            signal.raise_signal(signum)

    with pytest.raises(Interrupted) as caught:
        encode(images, out, report=send)
    assert caught.value.signum == signum
    assert [event.code for event in seen if isinstance(event, Warning)] == ["stopped"]
    assert shard_hashes(out).items() < shard_hashes(tmp_path / "whole").items()
    assert len(shard_hashes(out)) == 2
    encode(images, out)
    assert shard_hashes(out) == shard_hashes(tmp_path / "whole")


@pytest.mark.parametrize("when", [2, 8, 15])
def test_a_folder_that_is_deleted_meanwhile(when: int, tmp_path: Path):
    def delete(event: object) -> None:
        if isinstance(event, Progress) and event.done >= when:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)

    images = image_folder(tmp_path / "images")
    with pytest.raises(UserError) as caught:
        encode(images, tmp_path / "out", report=delete)
    assert caught.value.code in ("no-such-file", "cannot-write")
    encode(images, tmp_path / "out")
    assert len(shard_hashes(tmp_path / "out")) == 4


def test_a_folder_is_held_until_the_contact_sheet_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mpdit_core.runtime.locks.SECONDS", 0.0)
    images, out, codes = image_folder(tmp_path / "images"), tmp_path / "out", []

    def second(event: object) -> None:
        if isinstance(event, Saved):
            with pytest.raises(UserError) as caught:
                encode(images, out)
            codes.append(caught.value.code)

    encode(images, out, report=second)
    assert codes == ["folder-in-use"]
    assert not list(out.glob(".*"))
