"""Plugins of other packages through the whole command line, and what their results say of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core.files import read_json

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


def test_sampling_with_a_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    made = sampled(tmp_path, "--sampler", f"{tmp_path}/mine.py:Mine")
    assert made["result"]["nfe"] == 3
    assert len(made["identity"]["sampler"]["sha256"]) == 64


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
