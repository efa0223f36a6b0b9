"""The demo, shortened: every step runs. `make demo` measures its full quality, and benchmarks/demo.py records it."""

from __future__ import annotations

import pytest
from PIL import Image

from mpdit_core.demo import DemoOptions, DemoResult, demo, job
from mpdit_core.model.compute import forward_macs
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Event, Note, Progress, Saved, Step


@pytest.fixture(scope="module", autouse=True)
def quick_samples():
    """Five steps of the sampler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "SAMPLING", job.SAMPLING.model_copy(update={"num_steps": 5}))
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> DemoOptions:
    return DemoOptions(out=tmp_path_factory.mktemp("demo"), device="cpu", steps=40, samples=60)


@pytest.fixture(scope="module")
def shortened(options) -> tuple[DemoResult, list[Event]]:
    events: list[Event] = []
    return demo(options, report=events.append), events


def test_every_step_says_which_command_it_is(shortened):
    _, events = shortened
    notes = [event.text for event in events if isinstance(event, Note)]
    for command in ("encode-latents", "train", "sample", "eval-fid", "profile-flops"):
        assert any(f"mpdit {command}" in text for text in notes)
    assert any(isinstance(event, Progress) for event in events)
    assert any(isinstance(event, Step) for event in events)


def test_ends_with_the_picture_and_figures_of_a_short_training(shortened):
    result, events = shortened
    assert Saved(what="grid", path=result.picture) in events
    with Image.open(result.picture) as picture:
        assert picture.width > 10 * 16
    # 40 steps are not enough, and the figures must show it.
    assert result.recognised < 0.97
    assert result.distance > 4 * result.distance_of_real
    assert result.cost.macs == forward_macs(load_preset("digits").model)


def test_a_second_run_continues(options, shortened):
    result, _ = shortened
    again = demo(options)
    assert (again.recognised, again.distance) == (result.recognised, result.distance)
