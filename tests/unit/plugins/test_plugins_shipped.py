"""Plugins of other packages through the whole command line, and what their results say of them."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest
from launch import run, succeed
from PIL import Image
from plugin_site import install
from sample_helpers import write_model

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
            x = x - velocity_fn(x, 1 - n / self.num_steps) / self.num_steps
            yield Step(1 - (n + 1) / self.num_steps, x)
"""


def arguments(folder: Path, *more: object) -> list[object]:
    """Two samples of a tiny model, into `folder/out`."""
    write_model(folder / "model")
    return ["sample", folder / "model", "-n", "2", "--out", folder / "out", "--device", "cpu", "--json", *more]


def test_sampling_with_a_scheduler_of_diffusers(tmp_path: Path):
    made = succeed(
        *arguments(tmp_path, "--sampler", "dpm", "--num-steps", "6", "--set", "sampler.solver_order=3")
    ).result
    assert made["nfe"] == 6
    assert made["sampler"]["package"] == "mpdit-diffusers"
    assert made["sampler"]["options"] == {"num_steps": 6, "shift": 1.0, "solver_order": 3}


@pytest.mark.parametrize("name", ["./a_file_of_mine.py:Mine", "a_package_of_mine.samplers:Mine"])
def test_sampling_with_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (tmp_path / "a_package_of_mine").mkdir()
    for place in ("a_file_of_mine.py", "a_package_of_mine/samplers.py"):
        (tmp_path / place).write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = succeed(*arguments(tmp_path, "--sampler", name, "--num-steps", "4")).result
    assert made["nfe"] == 4
    assert (made["sampler"]["name"], made["sampler"]["options"]) == (name, {"num_steps": 4})


def test_samples_are_resumed_with_the_same_package_only(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch):
    info = install(site, "mine", MINE + "S = Mine\n", package="a-sampler-of-mine")
    words = arguments(tmp_path, "--sampler", "mine")
    made = succeed(*words).result
    assert (made["sampler"]["package"], made["sampler"]["version"]) == ("a-sampler-of-mine", "1.2")
    before = (tmp_path / "out" / "samples.json").read_bytes()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-sampler-of-mine\nVersion: 1.3\n")
    assert run(*words).code == 2
    monkeypatch.setenv("MPDIT_PLUGINS", "off")  # as if it were not installed
    missing = run(*words)
    assert (missing.code, missing.result["code"]) == (2, "other-package")
    assert (tmp_path / "out" / "samples.json").read_bytes() == before


def test_encoding_tar_shards(tmp_path: Path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as archive:
        for n in range(6):
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), (n * 40, 90, 7)).save(picture, "png")
            for suffix, data in (("png", picture.getvalue()), ("cls", str(n % 3).encode())):
                member = tarfile.TarInfo(f"{n}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    made = succeed(
        "encode-latents", "webdataset", "--resolution", "16", "--autoencoder", "pixels", "--device", "cpu", "--json",
        "--set", f"dataset.shards='{tmp_path}/s-{{0..0}}.tar'", "--out", tmp_path / "latents",
    ).result  # fmt: skip
    assert (made["count"], made["classes"]) == (6, 3)
