"""`mpdit encode-latents` from the command line: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import SMALL, encode, image_folder, photo, save_autoencoder, shard_hashes
from PIL import Image
from safetensors import safe_open

from mpdit_cli.app import main
from mpdit_core.data.images import prepare
from mpdit_core.data.latents import EpochOrder, LatentFolder, draw_latents, find_latents, unstandardise
from mpdit_core.data.manifest import PUBLISHED_MEAN


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    message = capsys.readouterr().err
    assert code == 2, message
    assert message.count("error:") == 1
    assert "Traceback" not in message
    for word in words:
        assert word in message, message


def test_folder_of_latents(images: Path, tmp_path: Path):
    assert encode(images, tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["count"] == 15
    assert manifest["plan"]["class_names"] == ["ant", "bee", "cat"]
    assert [shard["count"] for shard in manifest["shards"]] == [4, 4, 4, 3]
    assert {s["file"]: s["sha256"] for s in manifest["shards"]} == shard_hashes(tmp_path / "out")
    assert not (tmp_path / "out/encoding").exists()
    with safe_open(tmp_path / "out/shard-00001.safetensors", "np") as shard:  # the library reads what we write
        moments, labels = shard.get_tensor("moments"), shard.get_tensor("labels")
    assert labels.tolist() == [0, 1, 1, 1]
    expected = prepare(Image.open(images / "bee/1.png"), 8).transpose(2, 0, 1) / 127.5 - 1
    assert moments.dtype == np.float16
    assert np.array_equal(moments[2, :3], expected.astype(np.float32).astype(np.float16))
    assert not moments[2, 3:].any()
    folder = LatentFolder(tmp_path / "out")
    everything = folder.batch(range(15))[0][:, :3].double()
    assert np.allclose(folder.manifest.measured_mean, everything.mean(dim=(0, 2, 3)), atol=1e-12)
    assert np.allclose(folder.manifest.measured_std, everything.std(dim=(0, 2, 3), correction=0), atol=1e-12)


def test_reading(images: Path, tmp_path: Path):
    encode(images, tmp_path / "out")
    folder = LatentFolder(tmp_path / "out")
    moments, labels = folder.batch([14, 0, 7, 0])
    assert (moments.shape, moments.dtype) == ((4, 6, 8, 8), torch.float32)
    assert labels.tolist() == [2, 0, 1, 0]
    assert torch.equal(moments[1], moments[3])
    mirrored, _ = folder.batch([14, 0], flip=[True, False])
    assert torch.equal(mirrored[0], moments[0].flip(-1))
    assert torch.equal(mirrored[1], moments[1])
    noise = torch.randn(4, 3, 8, 8)
    latents = draw_latents(moments, noise, folder.spec.normalisation)
    assert torch.allclose(unstandardise(latents, folder.spec.normalisation), moments[:, :3], atol=1e-6)
    with pytest.raises(IndexError):
        folder.batch([15])


def test_order_is_seekable():
    order = EpochOrder(10, seed=3)
    stream = order.indices(0, 40)
    assert sorted(stream[10:20].tolist()) == list(range(10))
    assert np.array_equal(EpochOrder(10, seed=3).indices(17, 33), stream[17:33])
    assert not np.array_equal(stream[:10], stream[10:20])
    assert not np.array_equal(EpochOrder(10, seed=4).indices(0, 10), stream[:10])
    assert stream[:10].tolist() == ORDER  # the same on every machine and version


ORDER = [8, 9, 1, 3, 2, 6, 0, 4, 7, 5]


def test_draws_have_the_measured_statistics(images: Path, tmp_path: Path):
    vae = save_autoencoder(tmp_path / "vae")
    common = [str(images), "--autoencoder", str(vae), "--resolution", "32", "--device", "cpu", "--shard-size", "4"]
    assert main(["encode-latents", *common, "--batch-size", "2", "--out", str(tmp_path / "a")]) == 0
    assert main(["encode-latents", *common, "--batch-size", "3", "--out", str(tmp_path / "b")]) == 0
    assert shard_hashes(tmp_path / "a") == shard_hashes(tmp_path / "b"), "on a CPU not even the batch size matters"
    folder = LatentFolder(tmp_path / "a")
    norm = folder.manifest.normalisation
    moments = folder.batch(range(15))[0]
    flipped = folder.batch(range(15), flip=[True] * 15)[0]
    assert not torch.equal(moments, flipped)
    both = torch.cat([moments, flipped]).repeat(200, 1, 1, 1)
    latents = draw_latents(both, torch.randn(len(both), 4, 4, 4), norm)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.02
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.02
    assert main(["encode-latents", *common, "--batch-size", "2", "--out", str(tmp_path / "a"), "--verify"]) == 0
    assert main(["encode-latents", *common, "--batch-size", "2", "--out", str(tmp_path / "a"),
                 "--normalisation", "published"]) == 0  # fmt: skip
    assert LatentFolder(tmp_path / "a").spec.normalisation.mean == PUBLISHED_MEAN


def test_default_autoencoder_from_the_cache(images: Path, tmp_path: Path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    refused(capsys, main(["encode-latents", "images/"]), "stabilityai/sd-vae-ft-ema", "HF_HOME")
    assert not (tmp_path / "latents").exists()
    model = tmp_path / "hub/models--stabilityai--sd-vae-ft-ema"
    save_autoencoder(model / "snapshots" / ("0" * 40))
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0" * 40)
    assert main(["encode-latents", "images/", "--no-flip"]) == 0
    folder = LatentFolder(find_latents(resolution=256))
    assert folder.path == Path("latents/images-256")
    assert folder.spec.autoencoder.revision == "0" * 40
    assert (len(folder), folder.batch([0])[0].shape) == (15, (1, 8, 32, 32))
    assert (tmp_path / "latents/images-256/contact-sheet.png").stat().st_size > 1000
    assert "mpdit train --preset xl-256" in capsys.readouterr().out


def test_killed_twenty_times(tmp_path: Path):
    """SIGKILL at random moments of one and the same command; the bytes are those of an undisturbed run."""
    source, out = image_folder(tmp_path / "images", each=60), tmp_path / "broken"
    started = time.monotonic()
    assert encode(source, tmp_path / "whole", "--workers", "1") == 0
    duration = time.monotonic() - started
    whole, dice, kills, resumed = shard_hashes(tmp_path / "whole"), random.Random(0), 0, 0
    while kills < 20:
        child = os.fork()  # torch is imported already: a start costs nothing
        if child == 0:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            os._exit(encode(source, out, "--workers", "1"))
        time.sleep(dice.uniform(0.0, duration / 2))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        kills += status == signal.SIGKILL
        resumed += 0 < len(list(out.glob("encoding/shard-*.json"))) < len(whole)
        if (out / "manifest.json").exists():  # it was quicker: begin anew
            assert shard_hashes(out) == whole
            shutil.rmtree(out)
    assert resumed >= 3
    assert encode(source, out, "--workers", "1") == 0
    assert shard_hashes(out) == whole
    assert not list(out.glob(".*"))


def test_two_processes(images: Path, tmp_path: Path):
    assert encode(images, tmp_path / "one") == 0
    arguments = ["encode-latents", str(images), "--out", str(tmp_path / "two"), *SMALL, "--nproc", "2", "--quiet"]
    subprocess.run([sys.executable, "-m", "mpdit_cli", *arguments], check=True, capture_output=True)
    assert shard_hashes(tmp_path / "one") == shard_hashes(tmp_path / "two")


def test_changes_are_refused(images: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    encode(images, out)
    before = shard_hashes(out)
    refused(capsys, encode(images, out, "--resolution", "16"), "resolution: 8 → 16")
    refused(capsys, encode(images, out, "--autoencoder", "pixels-gray"), "autoencoder.id: pixels → pixels-gray")
    refused(capsys, encode(images, out, "--flip"), "flip: False → True")
    photo(99).save(images / "ant/0.png")
    refused(capsys, encode(images, out), "source.fingerprint", "changed")
    assert shard_hashes(out) == before


def test_faulty_images(images: Path, tmp_path: Path, capsys):
    (images / "bee/3.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    refused(capsys, encode(images, out), "bee/3.png", "--on-error skip")
    assert sorted(shard_hashes(out)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert encode(images, out, "--on-error", "skip") == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["count"] == 14
    assert manifest["shards"][2]["skipped"][0]["key"] == "bee/3.png"
    assert "skipped" in capsys.readouterr().out
    assert LatentFolder(out).batch(range(14))[1].tolist() == [0] * 5 + [1] * 4 + [2] * 5
    assert encode(images, out, "--on-error", "skip", "--verify") == 0


def test_verify_rebuilds_the_bad_shard_only(images: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    encode(images, out)
    whole = shard_hashes(out)
    data = bytearray((out / "shard-00002.safetensors").read_bytes())
    data[-5] ^= 1
    (out / "shard-00002.safetensors").write_bytes(data)
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    refused(capsys, encode(images, out, "--verify"), "shard-00002.safetensors", "SHA-256", "1 of 4")
    with pytest.raises(ValueError, match="is missing"):
        LatentFolder(out)
    assert encode(images, out) == 0
    assert shard_hashes(out) == whole
    rebuilt = [p.name for p in out.glob("shard-*") if p.stat().st_mtime_ns != times[p.name]]
    assert rebuilt == ["shard-00002.safetensors"]
    assert encode(images, out, "--verify") == 0


def test_verify_encodes_again(images: Path, tmp_path: Path, capsys):
    """A picture that was swapped, with name, size and time kept: only its moments tell."""
    for n in range(5):
        Image.new("RGB", (8, 8), (n, n, n)).save(images / f"ant/{n}.png")
    for n in range(10):
        photo(n, (8, 8)).save(images / f"bee/{n}.bmp")
    out = tmp_path / "out"
    encode(images, out)
    for n in range(10):
        status = (images / f"bee/{n}.bmp").stat()
        photo(50 + n, (8, 8)).save(images / f"bee/{n}.bmp")
        os.utime(images / f"bee/{n}.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    refused(capsys, encode(images, out, "--verify"), "standard deviations", "bee/")


def test_refusals(images: Path, tmp_path: Path, capsys, monkeypatch):
    out = tmp_path / "out"
    refused(capsys, encode(tmp_path / "nowhere", out), "no such folder", "nowhere")
    (tmp_path / "empty").mkdir()
    refused(capsys, encode(tmp_path / "empty", out), "holds no images")
    refused(capsys, encode(images, out, "--autoencoder", str(tmp_path / "none")), "no such folder")
    refused(capsys, encode(images, out, "--split", "val"), "--split val", "ant, bee, cat")
    refused(capsys, encode(images, out, "--normalisation", "published"), "3 channels")
    refused(capsys, encode(images, out, "--set", "model.width=3"), "dataset.KEY")
    refused(capsys, encode(images, images / "latents"), "within the source")
    refused(capsys, encode(images, out, "--nproc", "many"), "--nproc many")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    refused(capsys, encode(images, out, "--reference-stats"), "weights-inception")
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    refused(capsys, encode(images, out), "thesis.tex")
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    photo(1).save(images / "stray.png")
    refused(capsys, encode(images, tmp_path / "new"), "stray.png", "--labels")
    (images / "stray.png").unlink()
    monkeypatch.setattr("mpdit_core.runtime.files.free_bytes", lambda path: 1000)
    refused(capsys, encode(images, tmp_path / "new"), "GiB are free")
    with pytest.raises(ValueError, match="no latents of 8 px"):
        find_latents(tmp_path / "latents", resolution=8)


def test_archives_and_layouts(images: Path, tmp_path: Path, capsys):
    encode(images, tmp_path / "plain")
    expected = shard_hashes(tmp_path / "plain")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(images, arcname="images")
    nested = tmp_path / "nested"
    nested.mkdir()
    for name in ("ant", "bee", "cat"):  # as ImageNet's archive: an archive a class
        with tarfile.open(nested / f"{name}.tar", "w") as archive:
            for path in sorted((images / name).iterdir()):
                archive.add(path, arcname=path.name)
    with tarfile.open(tmp_path / "of_tars.tar", "w") as archive:
        archive.add(nested, arcname=".")
    deep = tmp_path / "deep/ILSVRC/Data/train"
    shutil.copytree(images, deep)
    shutil.copytree(images / "ant", tmp_path / "deep/ILSVRC/Data/val/ant")
    (deep / "bee/more").mkdir()
    (deep / "bee/3.png").rename(deep / "bee/more/3.png")
    (deep / "bee/4.png").rename(deep / "bee/more/4.png")
    for n, source in enumerate([tmp_path / "all.tar", nested, tmp_path / "of_tars.tar", tmp_path / "deep"]):
        assert encode(source, tmp_path / f"out{n}") == 0
        assert shard_hashes(tmp_path / f"out{n}") == expected, source
    (tmp_path / "x.tar.gz").write_bytes(b"")
    refused(capsys, encode(tmp_path / "x.tar.gz", tmp_path / "gz"), "compressed")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "all.tar").read_bytes()[:700])
    refused(capsys, encode(tmp_path / "cut.tar", tmp_path / "cut"), "cut.tar")


def test_flat_validation_and_class_order(images: Path, tmp_path: Path, capsys):
    flat = tmp_path / "val"
    flat.mkdir()
    for n in range(6):
        photo(n).save(flat / f"val_{n:02d}.png")
    refused(capsys, encode(flat, tmp_path / "a"), "--labels")
    (flat / "val.txt").write_text("".join(f"val_{n:02d}.png {n % 3}\n" for n in range(6)))
    assert encode(flat, tmp_path / "a") == 0
    assert LatentFolder(tmp_path / "a").labels.tolist() == [0, 1, 2, 0, 1, 2]
    kaggle = tmp_path / "LOC_val_solution.csv"
    rows = "".join(f"val_{n:02d},{['n02', 'n01'][n % 2]} 85 1 499 272\n" for n in range(6))
    kaggle.write_text("ImageId,PredictionString\n" + rows)
    assert encode(flat, tmp_path / "b", "--labels", str(kaggle)) == 0
    assert LatentFolder(tmp_path / "b").spec.class_names == ("n01", "n02")
    assert LatentFolder(tmp_path / "b").labels.tolist() == [1, 0] * 3
    order = tmp_path / "classes.txt"
    order.write_text("dog, the friend\ncat, the master\nbee\nant\n")
    assert encode(images, tmp_path / "c", "--classes", str(order)) == 0
    assert LatentFolder(tmp_path / "c").labels.tolist() == [3] * 5 + [2] * 5 + [1] * 5
    order.write_text("cat\nant\n")
    refused(capsys, encode(images, tmp_path / "d", "--classes", str(order)), "lacks 1 of the 3", "bee")


def test_hub_data_sets(images: Path, tmp_path: Path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    paths = sorted(images.glob("*/*.png"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    table = {"image": [str(p) for p in paths], "label": [p.parent.name for p in paths]}
    data = datasets.Dataset.from_dict(table, features=features)
    (tmp_path / "hub").mkdir()
    data.to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
    encode(images, tmp_path / "plain")
    expected = shard_hashes(tmp_path / "plain")
    assert encode(f"hf:{tmp_path}/hub", tmp_path / "stored") == 0
    assert shard_hashes(tmp_path / "stored") == expected
    assert encode(f"hf:{tmp_path}/hub", tmp_path / "streamed", "--streaming") == 0
    assert shard_hashes(tmp_path / "streamed") == expected
    assert LatentFolder(tmp_path / "stored").spec.class_names == ("ant", "bee", "cat")


def test_a_streamed_data_set_goes_on_after_kills(tmp_path: Path, monkeypatch):
    """SIGKILL after a finished shard, again and again: the same bytes, and finished shards are not encoded again."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = image_folder(tmp_path / "images", each=12)
    paths = sorted(images.glob("*/*.png"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    table = {"image": [str(p) for p in paths], "label": [p.parent.name for p in paths]}
    (tmp_path / "hub").mkdir()
    data = datasets.Dataset.from_dict(table, features=features)
    data.to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
    source, out = f"hf:{tmp_path}/hub", tmp_path / "out"
    assert encode(source, tmp_path / "whole") == 0  # stored, which counts it
    whole, kept = shard_hashes(tmp_path / "whole"), {}
    for wanted in (1, 4):
        child = os.fork()
        if child == 0:
            os._exit(encode(source, out, "--streaming", "--quiet"))
        while len(list(out.glob("encoding/shard-*.json"))) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        here = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.safetensors")}
        assert kept.items() <= here.items()
        kept = {f"{p.stem}.safetensors": here[f"{p.stem}.safetensors"] for p in out.glob("encoding/shard-*.json")}
        assert wanted <= len(kept) < len(whole)
    assert encode(source, out, "--streaming") == 0
    assert shard_hashes(out) == whole
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.safetensors")}.items()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root")
def test_full_disk(images: Path, tmp_path: Path, capsys, monkeypatch):
    """The disk fills up in the middle: exit 2, finished shards stay, and the same command ends with the same bytes."""
    assert encode(images, tmp_path / "whole") == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with monkeypatch.context() as patch:
            patch.setattr("mpdit_core.runtime.files.free_bytes", lambda path: 2**40)  # as when another program fills it
            refused(capsys, encode(images, disk / "out"), "no space left", "same command again")
        finished = shard_hashes(disk / "out")
        assert finished
        assert finished.items() < shard_hashes(tmp_path / "whole").items()
        assert not list((disk / "out").glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert encode(images, disk / "out") == 0
        assert shard_hashes(disk / "out") == shard_hashes(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_pixels_picture_by_picture(images: Path, tmp_path: Path):
    """The quick way of `pixels` gives the bytes and statistics of the plain one; another order of sums is no fault."""
    from mpdit_core.data.autoencoders import PixelAutoencoder
    from mpdit_core.data.shards import channel_sums, same_sums

    for gray in (False, True):
        autoencoder = PixelAutoencoder(gray=gray, device=torch.device("cpu"))
        pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
        plain = autoencoder.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2)).half().numpy()
        quick = np.zeros_like(plain)
        counts = [autoencoder.encode_picture(p, q) for p, q in zip(pictures, quick, strict=True)]
        assert plain.tobytes() == quick.tobytes()
        assert np.sum(counts) == pictures[..., 0].size * (1 if gray else 3)
    assert encode(images, tmp_path / "out", "--flip") == 0
    folder = LatentFolder(tmp_path / "out")
    tensors = folder.shard(1)
    shard = folder.manifest.shards[1]
    mean, square = channel_sums([tensors["moments"], tensors["moments_flipped"]])
    assert same_sums((mean, square), shard)
    assert not same_sums((mean, tuple(s * (1 + 1e-6) for s in square)), shard)
    assert not same_sums((tuple(m + 1e-4 for m in mean), square), shard)


def test_zeros_take_no_room(tmp_path: Path):
    """Blocks of zeros are holes in the file; the size, the hash and what is read are those of a plain file."""
    from mpdit_core.data.latents import map_safetensors
    from mpdit_core.data.shards import write_safetensors

    array = np.zeros((40, 2, 128, 128), np.float16)
    array[:, 0] = np.random.default_rng(0).standard_normal((40, 128, 128))
    size, digest = write_safetensors(tmp_path / "shard", {"labels": np.arange(40, dtype="<i8"), "moments": array})
    data = (tmp_path / "shard").read_bytes()
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert np.array_equal(map_safetensors(tmp_path / "shard")["moments"], array)


def test_nothing_but_faulty_images(images: Path, tmp_path: Path, capsys):
    for path in images.glob("*/*.png"):
        path.write_bytes(b"no picture")
    refused(capsys, encode(images, tmp_path / "out", "--on-error", "skip"), "every image was skipped")
    assert not (tmp_path / "out/manifest.json").exists()
