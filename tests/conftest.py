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

    return make_latents(tmp_path_factory.mktemp("squares"))
