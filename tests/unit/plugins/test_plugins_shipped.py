"""Plugins of other packages through the whole command line, and what their results say of them."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core.runtime.files import read_json

MINE = """
from dataclasses import dataclass
from mpdit_core.api import Step
@dataclass
class Mine:
    order = 1
    stochastic = False
    num_steps: int = 3
    def steps(self, velocity_fn, noise, generator=None):
        x = noise
        for n in range(self.num_steps):
            x = x - velocity_fn(x, noise.new_full((1,), 1 - n / self.num_steps)) / self.num_steps
            yield Step(1 - (n + 1) / self.num_steps, x)
"""


def sampled(folder: Path, *arguments: str) -> dict:
    write_model(folder / "model")
    out = folder / "out"
    common = ["sample", str(folder / "model"), "-n", "2", "--out", str(out), "--device", "cpu", "--quiet"]
    assert main([*common, *arguments]) == 0
    assert len(list((out / "images").glob("*.png"))) == 2
    return read_json(out / "samples.json")


def test_sampling_with_a_scheduler_of_diffusers(tmp_path: Path):
    made = sampled(tmp_path, "--sampler", "dpm", "--num-steps", "6", "--set", "sampler.solver_order=3")
    assert made["result"]["nfe"] == 6
    assert made["identity"]["sampler"]["package"] == "mpdit-diffusers"
    assert made["identity"]["sampler"]["options"] == {"num_steps": 6, "shift": 1.0, "solver_order": 3}


@pytest.mark.parametrize("name", ["./a_file_of_mine.py:Mine", "a_package_of_mine.samplers:Mine"])
def test_sampling_with_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (tmp_path / "a_package_of_mine").mkdir()
    for place in ("a_file_of_mine.py", "a_package_of_mine/samplers.py"):
        (tmp_path / place).write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = sampled(tmp_path, "--sampler", name, "--num-steps", "4")
    assert made["result"]["nfe"] == 4
    recorded = made["identity"]["sampler"]
    assert (recorded["name"], recorded["options"]) == (name, {"num_steps": 4})
    assert recorded["sha256"] == hashlib.sha256(MINE.encode()).hexdigest()


def test_encoding_tar_shards(tmp_path: Path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as archive:
        for n in range(6):
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), (n * 40, 90, 7)).save(picture, "png")
            for suffix, data in (("png", picture.getvalue()), ("cls", str(n % 3).encode())):
                member = tarfile.TarInfo(f"{n}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    common = ["encode-latents", "webdataset", "--resolution", "16", "--autoencoder", "pixels", "--quiet"]
    shards = ["--set", f"dataset.shards='{tmp_path}/s-{{0..0}}.tar'"]
    assert main([*common, *shards, "--out", str(tmp_path / "latents"), "--device", "cpu"]) == 0
    manifest = read_json(tmp_path / "latents" / "manifest.json")
    assert manifest["count"] == 6
