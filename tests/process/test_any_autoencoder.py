"""Any autoencoder works in all five commands, as typed; only its folder or name differs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from autoencoder_families import FAMILIES, save_family
from data_helpers import image_folder

from mpdit_cli.app import main

SMALL = "--set model.width=16 --set model.num_heads=2 --set train.batch_size=4 --steps 1 --device cpu --run run"
KINDS = ("SD 1, SD 2", "FLUX.1", "FLUX.2", "DC-AE f32", "TAESD", "VQ", "RAE", "pixels", "dct")


@pytest.mark.parametrize("kind", KINDS)
def test_five_commands(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Training is the command that encoding proposes, made smaller."""

    def output(line: str) -> list[str]:
        assert main(shlex.split(line)) == 0, capsys.readouterr()
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPDIT_CACHE", str(tmp_path / "cache"))
    image_folder(Path("pictures"), ("cat", "dog"), each=4)
    name = save_family(kind, Path("autoencoder")) if kind in FAMILIES else kind
    encoded = output(f"encode-latents pictures --autoencoder {name} --resolution 64 --device cpu")
    (proposed,) = (line.partition("mpdit ")[2] for line in encoded if "mpdit train" in line)
    output(f"{proposed} {SMALL}")
    output("sample run --num-samples 4 --num-steps 1 --device cpu")
    record = json.loads(output("eval-fid samples/run-1 --features digits --metrics fid --device cpu --json")[-1])
    cost = json.loads(output("profile-flops run --json")[-1])["models"][0]
    assert (record["count"], record["metrics"]["frechet_distance"] > 0) == (4, True)
    assert (cost["resolution"], cost["width"]) == (64, 16)
