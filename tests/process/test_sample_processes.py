"""`mpdit sample` in processes that are killed, stopped by a signal, or share the work: the samples are the same."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from launch import fork_group, forked, kill_when, run
from safetensors.torch import load_file
from sample_helpers import images_of, latents_of, run_sample, write_model

MANY = {"num_samples": 62, "batch_size": 4, "num_steps": 20, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def command(model, out, format_):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in MANY.items()]
    return ["sample", str(model.path), *flags, "--device", "cpu", "--format", format_, "--out", str(out)]


def stop_after_three_blocks(arguments, out, signum):
    """The outcome; at least three of the 16 blocks were finished, and not all."""
    with forked(*arguments) as process:
        outcome = kill_when(process, lambda: len(list(out.glob(".progress/*.json"))) >= 3, signum=signum)
    assert 3 <= len(list(out.glob(".progress/*.json"))) < 16
    return outcome


def test_survives_sigkill(model, tmp_path):
    out = tmp_path / "o"
    stop_after_three_blocks(command(model, out, "npz"), out, signal.SIGKILL)
    assert not (out / "samples.npz").exists()
    run_sample(model, out=out, format="npz", **MANY)
    with np.load(out / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"].transpose(0, 3, 1, 2), images_of(model, **MANY))


@pytest.mark.parametrize(("signum", "format_"), [(signal.SIGTERM, "png"), (signal.SIGINT, "latents")])
def test_a_signal_stops_cleanly_and_the_same_command_continues(model, tmp_path, signum, format_):
    out, whole = tmp_path / "o", tmp_path / "whole"
    arguments = command(model, out, format_)
    assert stop_after_three_blocks(arguments, out, signum).code == 128 + signum
    assert not (out / ".lock").exists()
    assert run(*arguments).code == 0
    run_sample(model, out=whole, format=format_, **MANY)
    folder = "images" if format_ == "png" else "latents"
    files = {file.name: file.read_bytes() for file in (out / folder).iterdir()}
    assert files == {file.name: file.read_bytes() for file in (whole / folder).iterdir()}
    assert len(files) == (62 if format_ == "png" else 16)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_two_processes_share_the_blocks(model, tmp_path):
    out = tmp_path / "two"

    def work(rank: int) -> None:
        result = run_sample(model, out=out, format="latents")
        assert (result.images, result.nfe) == (10, 4)

    fork_group(work)
    alone = latents_of(model)
    files = sorted((out / "latents").iterdir())
    assert len(files) == 3
    for file in files:
        part = load_file(file)
        for i, x in zip(part["indices"].tolist(), part["latents"], strict=True):
            assert torch.equal(x, alone[i])
