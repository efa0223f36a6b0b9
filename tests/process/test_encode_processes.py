"""`encode-latents` killed, beside others, and on a full disk: two nodes, a process that dies, a second run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import SMALL, encode, hub_data_set, image_folder, refused, shard_hashes
from launch import fork_group, forked, wait_until
from safetensors.numpy import load_file
from teacher_helpers import TEACHER, feature_hashes

from mpdit_cli.app import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def command(source: Path, out: Path, *more: str) -> list[str]:
    return ["encode-latents", str(source), "--out", str(out), *SMALL, *more]


def records(out: Path) -> int:
    return len(list(out.glob("encoding/shard-*.json")))


def encode_in_child(source: object, out: Path, **more: Any) -> int:
    """Starts `encode` in a forked process, which need not import torch again, and returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            encode(source, out, **more)
            code = 0
        finally:
            os._exit(code)
    return child


def test_killed_twenty_times(tmp_path: Path):
    """SIGKILL at random moments of the same command; the bytes are those of an undisturbed run."""
    source, out = image_folder(tmp_path / "images", each=60), tmp_path / "broken"
    started = time.monotonic()
    encode(source, tmp_path / "whole", workers=1)
    duration = time.monotonic() - started
    whole, dice, kills, resumed = shard_hashes(tmp_path / "whole"), random.Random(0), 0, 0
    while kills < 20:
        child = encode_in_child(source, out, workers=1)
        time.sleep(dice.uniform(0.0, duration / 2))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        kills += status == signal.SIGKILL
        resumed += 0 < records(out) < len(whole)
        if (out / "manifest.json").exists():  # it ended before the kill: begin again
            assert shard_hashes(out) == whole
            shutil.rmtree(out)
    assert resumed >= 3
    encode(source, out, workers=1)
    assert shard_hashes(out) == whole
    assert not list(out.glob(".*"))


def test_a_streamed_data_set_is_resumed_after_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """SIGKILL after finished shards: the same bytes, and finished shards are not encoded again."""
    source, out = hub_data_set(image_folder(tmp_path / "images", each=12), tmp_path, monkeypatch), tmp_path / "out"
    encode(source, tmp_path / "whole")  # stored, which counts it
    whole, kept = shard_hashes(tmp_path / "whole"), {}
    for wanted in (1, 4):
        child = encode_in_child(source, out, streaming=True)
        while records(out) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        here = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.safetensors")}
        assert kept.items() <= here.items()
        kept = {f"{p.stem}.safetensors": here[f"{p.stem}.safetensors"] for p in out.glob("encoding/shard-*.json")}
        assert wanted <= len(kept) < len(whole)
    encode(source, out, streaming=True)
    assert shard_hashes(out) == whole
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.safetensors")}.items()


def test_features_of_a_teacher_after_kills(tmp_path: Path):
    """SIGKILL after finished shards of features, then two processes: the same bytes."""
    source, out = image_folder(tmp_path / "images", each=12), tmp_path / "out"
    given: dict[str, Any] = {"teacher": TEACHER, "teacher_dims": 3, "shard_size": 3}
    encode(source, tmp_path / "whole", **given)
    whole = feature_hashes(tmp_path / "whole")
    for wanted in (1, 3):
        child = encode_in_child(source, out, workers=1, **given)
        while len(list(out.glob("teacher/shard-*.json"))) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert wanted <= len(list(out.glob("teacher/shard-*.json"))) < len(whole)
    fork_group(lambda _rank: encode(source, out, **given))
    assert feature_hashes(out) == whole
    assert shard_hashes(out) == shard_hashes(tmp_path / "whole")
    assert not (out / "teacher").exists()


def test_two_processes(images: Path, tmp_path: Path):
    encode(images, tmp_path / "one")
    with forked(*command(images, tmp_path / "two", "--nproc", "2", "--quiet")) as launcher:
        message = launcher.communicate()[1]
    assert launcher.returncode == 0, message
    assert shard_hashes(tmp_path / "one") == shard_hashes(tmp_path / "two")


def test_a_group_that_another_launcher_started(images: Path, tmp_path: Path):
    """As torchrun starts it, also on several machines: the environment describes the group."""
    encode(images, tmp_path / "one")
    fork_group(lambda _rank: encode(images, tmp_path / "two"))
    assert shard_hashes(tmp_path / "one") == shard_hashes(tmp_path / "two")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_killed_process_is_named(tmp_path: Path):
    source, out = image_folder(tmp_path / "images", each=400), tmp_path / "out"
    line = command(source, out, "--nproc", "2", "--workers", "1", "--quiet")
    with forked(*line) as launcher:
        wait_until(lambda: records(out) or launcher.poll() is not None)
        worker = int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()[-1])
        os.kill(worker, signal.SIGKILL)
        message = launcher.communicate()[1]
    assert launcher.returncode == 128 + signal.SIGKILL, message
    assert f"(pid {worker})" in message
    assert "SIGKILL" in message
    assert "Traceback" not in message
    assert not (out / "manifest.json").exists()
    assert records(out)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root")
def test_full_disk(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk fills up in the middle: finished shards stay, and the same command ends with the same bytes."""
    encode(images, tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with monkeypatch.context() as patch:
            patch.setattr("mpdit_core.runtime.files.free_bytes", lambda path: 2**40)  # as if another program filled it
            with refused("disk-full"):
                encode(images, disk / "out")
        finished = shard_hashes(disk / "out")
        assert finished
        assert finished.items() < shard_hashes(tmp_path / "whole").items()
        assert not list((disk / "out").glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        encode(images, disk / "out")
        assert shard_hashes(disk / "out") == shard_hashes(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_without_plugins(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MPDIT_PLUGINS", "off")
    encode(images, tmp_path / "out")
    with refused("no-such-source", "digits"):
        encode("digits", tmp_path / "other")


def test_reference_statistics(tmp_path: Path, inception_weights: Path, monkeypatch: pytest.MonkeyPatch):
    """The real extractor with random weights: the same statistics as `eval-fid --make-reference` writes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints" / inception_weights.name).symlink_to(inception_weights)
    images = image_folder(tmp_path / "images", each=2)
    (images / "bee/more.png").write_bytes(b"no picture")
    encode(images, tmp_path / "out", on_error="skip", reference_stats=True)
    (images / "bee/more.png").unlink()  # so that it is the same images now
    arguments = ["--make-reference", str(tmp_path / "r.npz"), str(images), "--resolution", "8", "--device", "cpu"]
    assert main(["eval-fid", *arguments]) == 0
    stored = load_file(tmp_path / "out/reference.safetensors")
    with np.load(tmp_path / "r.npz") as made:
        names = {"mu": "pool.mean", "sigma": "pool.covariance", "mu_s": "spatial.mean", "sigma_s": "spatial.covariance"}
        for name, key in names.items():
            largest = np.abs(made[name]).max()  # random weights: features are of size 1e-7
            assert largest > 0
            np.testing.assert_allclose(stored[key] / largest, made[name] / largest, atol=1e-9)
        assert made["count"] == 6
