"""Every file that mpdit reads, with bytes and values changed: it opens, or a user error says what is wrong."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import enter_folder, measured
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from latents_fixture import make_latents
from sample_helpers import run_sample, spec, write_model

from mpdit_core.data.latents import LatentFolder
from mpdit_core.errors import UserError
from mpdit_core.evaluation.record import read_records
from mpdit_core.models.model_folder import open_model
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset
from mpdit_core.sampling import SampleSet

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model": ("model/config.json", lambda path: open_model(path.parent).load()),
    "weights": ("model/model.safetensors", lambda path: open_model(path.parent).load()),
    "run": ("run/run.json", lambda path: (RunFolder(path.parent).config(), RunFolder(path.parent).latents())),
    "configuration": ("run/config.toml", lambda path: RunFolder(path.parent).config()),
    "metrics": ("run/metrics.jsonl", lambda path: list(RunFolder(path.parent).metrics())),
    "samples": ("samples/samples.json", lambda path: (SampleSet.open(path.parent), SampleSet.find(path.parent))),
    "manifest": ("latents/squares-16/manifest.json", lambda path: LatentFolder(path.parent).batch([0])),
    "record": ("evals/record.json", lambda path: read_records(path.parent)),
}
VALUES = [
    None, True, -1, 0, 10**12, 2**80, 1e308, float("nan"), float("inf"), "", "../x", "\x1b[31m", "\ud800", [], {}, [[]],
    "file.py:Evil", json.loads("[" * 200 + "]" * 200),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One valid file of each kind."""
    root = tmp_path_factory.mktemp("valid")
    model = write_model(root / "model")
    run = RunFolder(root / "run")
    run.write(load_preset("tiny"), spec())
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 1 / step, "images_seen": 8 * step})
    run_sample(model, out=root / "samples", num_samples=4, num_steps=2)
    make_latents(root, per_class=2)
    for name in ("evals", "evaluation"):
        (root / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        enter_folder(root / "evaluation", patch)
        measured().write(root / "evals" / "record.json")
    return root


@pytest.mark.parametrize("kind", READERS)
def test_valid_files_open(kind: str, folder: Path):
    name, read = READERS[kind]
    assert read(folder / name)


@pytest.mark.parametrize("kind", READERS)
@seed(22)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.randoms(use_true_random=False))
def test_changed_files_open_or_are_refused(kind: str, folder: Path, draw: random.Random):
    name, read = READERS[kind]
    path = folder / name
    whole = path.read_bytes()
    try:
        path.write_bytes(changed_values(whole, draw) if draw.random() < 0.6 else changed_bytes(whole, draw))
        with contextlib.suppress(UserError):
            read(path)
    finally:
        path.write_bytes(whole)


def changed_bytes(whole: bytes, draw: random.Random) -> bytes:
    """Cut, filled, replaced, or with some bytes of its beginning changed."""
    match draw.randrange(6):
        case 0:
            return whole[: draw.randrange(len(whole))]
        case 1:
            return draw.choice([b"", b"\0" * 100, b"\xff\xfe", b"[]", b"null", b"3", b'"x"', b"[" * 9999, b"9" * 5000])
        case 2:
            at = draw.randrange(len(whole))
            return whole[:at] + draw.choice([b"\xff", b"\0", b"\n", b"{", b"9" * 30]) + whole[at:]
        case _:
            altered = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                altered[draw.randrange(min(len(whole), 2000))] = draw.randrange(256)
            return bytes(altered)


def changed_values(whole: bytes, draw: random.Random) -> bytes:
    """JSON with one value replaced, removed or added, anywhere in it; bytes of another file are changed as bytes."""
    try:
        text = whole.decode()
        lines = [json.loads(line) for line in text.splitlines()] if text.count("\n{") else [json.loads(text)]
    except ValueError:
        return changed_bytes(whole, draw)
    node: Any = lines
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return changed_bytes(whole, draw)
        key = draw.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.85:
            node = node[key]
            continue
        if draw.random() < 0.2:
            del node[key]
        else:
            node[key] = draw.choice(VALUES)
        return "\n".join(json.dumps(line) for line in lines).encode()
