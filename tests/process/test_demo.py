"""The demo, shortened: every step runs and its figures move the right way. Its full quality is measured by
`make demo` and tracked by benchmarks/demo.py."""

from __future__ import annotations

import pytest
from PIL import Image

from mpdit_core.demo import demo
from mpdit_core.reporting import Note, Result


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, list(demo(out=out, device_name="cpu", steps=40, samples=60))


def test_all_steps_run_and_name_the_real_command(shortened):
    _, events = shortened
    said = [event.text for event in events if isinstance(event, Note)]
    for command in ("encode-latents", "train", "sample", "eval-fid", "profile-flops"):
        assert any(f"for real: mpdit {command}" in text for text in said)


def test_ends_with_the_picture_and_honest_figures(shortened):
    out, events = shortened
    result = events[-1]
    assert isinstance(result, Result)
    with Image.open(out / "digits.png") as picture:
        assert picture.width > 10 * 16
    # 40 steps are not enough, and the figures say so: noise is seen as any digit, and lies far from real ones.
    assert 0.05 < result.data["recognised"] < 0.97
    assert result.data["distance"] > 4 * result.data["distance_of_real"]


def test_a_second_run_goes_on(shortened):
    out, _ = shortened
    result = list(demo(out=out, device_name="cpu", steps=40, samples=60))[-1]
    assert result.data["recognised"] == shortened[1][-1].data["recognised"]
