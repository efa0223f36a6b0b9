"""`encode-latents` beside others: two nodes, a process that dies, a second run, no plugins, and the extractor."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_helpers import SMALL, encode, image_folder, shard_hashes
from safetensors.numpy import load_file
from test_eval_fid import WEIGHTS

from mpdit_cli.app import main

ALONE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def command(source: Path, out: Path, *more: str) -> list[str]:
    return ["encode-latents", str(source), "--out", str(out), *SMALL, *more]


def test_two_nodes(images: Path, tmp_path: Path):
    """Two launchers that meet at one address, a process each, as on two machines."""
    assert encode(images, tmp_path / "one") == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend",
        "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job", "--local-addr", "127.0.0.1",
        "-m", "mpdit_cli", *command(images, tmp_path / "two"),
    ]  # fmt: skip
    nodes = [subprocess.Popen(launcher, env=os.environ | ALONE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [node.communicate(timeout=120)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], messages
    assert shard_hashes(tmp_path / "one") == shard_hashes(tmp_path / "two")


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_killed_process_is_named(tmp_path: Path):
    source, out = image_folder(tmp_path / "images", each=400), tmp_path / "out"
    line = [sys.executable, "-m", "mpdit_cli", *command(source, out, "--nproc", "2", "--workers", "1", "--quiet")]
    run = subprocess.Popen(line, env=os.environ | ALONE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("encoding/shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [pid for pid in children(run.pid) if b"encode-latents" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    message = run.communicate(timeout=60)[1]
    assert run.returncode == 128 + signal.SIGKILL, message
    assert f"pid {workers[-1]}) was ended by SIGKILL" in message
    assert "Traceback" not in message
    assert not (out / "manifest.json").exists()
    assert list(out.glob("encoding/shard-*.json"))


def test_a_second_run_is_refused(images: Path, tmp_path: Path, capsys, monkeypatch):
    import fcntl

    monkeypatch.setattr("mpdit_core.encoding.folder.SECONDS_FOR_LOCK", 0.3)
    out = tmp_path / "out"
    (out / "encoding").mkdir(parents=True)
    with open(out / "encoding/lock", "a") as lock:  # as the other run holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert encode(images, out) == 2
        message = capsys.readouterr().err
        assert "another run is writing" in message
        assert "Traceback" not in message
        assert not shard_hashes(out)
    assert encode(images, out) == 0


def test_without_plugins(images: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("MPDIT_PLUGINS", "off")
    assert encode(images, tmp_path / "out") == 0
    capsys.readouterr()
    assert encode("digits", tmp_path / "other") == 2
    message = capsys.readouterr().err
    assert "no data set of this name" in message
    assert "Traceback" not in message


def test_reference_statistics(images: Path, tmp_path: Path, inception_weights: Path, monkeypatch):
    """The real extractor with random weights: the same statistics as `eval-fid --make-reference` writes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    shutil.copy(inception_weights, tmp_path / "torch/hub/checkpoints" / WEIGHTS)
    (images / "bee/more.png").write_bytes(b"no picture")
    assert encode(images, tmp_path / "out", "--on-error", "skip", "--reference-stats") == 0
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
        assert made["count"] == 15
