"""The model that the tests of sampling share. They read it only."""

from __future__ import annotations

import pytest
from sample_helpers import write_model


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")
