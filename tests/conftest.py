"""Fixtures that several rooms use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and the tests share the cores
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def latents(tmp_path_factory) -> Path:
    """32 images of four classes, 16 × 16, one channel."""
    from latents_fixture import make_latents

    return make_latents(tmp_path_factory.mktemp("squares"), teacher="latents")


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """The real Inception network's state dict with random values, in the file format torch-fidelity loads."""
    from inception_helpers import write_random_weights

    return write_random_weights(tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, to install packages of plugins into."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder
