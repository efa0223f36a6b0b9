"""Models of any EMA width, made of a run's snapshots, against averages that were computed directly."""

from __future__ import annotations

import hashlib
import re
import shutil

import pytest
import torch
from data_helpers import refused
from ema_helpers import EVERY, OTHERS, SCATTER, STEPS, TRACKED, joined, run_with_snapshots

from mpdit_core.errors import UserError
from mpdit_core.models.ema_snapshots import MAX_RESIDUAL, ReconstructedModel, at_ema_width, write_snapshot
from mpdit_core.models.model_folder import open_model, save_model
from mpdit_core.models.power_ema import Profile, inner_products
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.runtime.checked_tensors import read_checked

ROUNDING = 2.0**-11  # of float16, relative


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_with_snapshots(tmp_path_factory.mktemp("ema") / "tiny-1")


@pytest.fixture
def copy(run, tmp_path):
    """The run, to be changed."""
    shutil.copytree(run.path, tmp_path / "tiny-1")
    return RunFolder(tmp_path / "tiny-1")


@pytest.mark.parametrize("width", [*TRACKED, *OTHERS])
def test_the_error_is_that_of_the_profile_and_of_float16(run, width):
    """Weights scatter independently: two averages differ by the scatter times the difference of their profiles."""
    model = at_ema_width(open_model(run.path), width)
    assert isinstance(model, ReconstructedModel)
    exact = joined(run.exact[width])
    (norm,) = inner_products([Profile(width, STEPS)], [Profile(width, STEPS)])[0]
    of_profile = model.combination.residual * SCATTER * (norm * exact.numel()) ** 0.5
    of_float16 = ROUNDING * sum(abs(x) for x in model.combination.coefficients) * exact.norm().item()
    error = (joined(model.weights()) - exact).norm().item()
    assert error <= 1.1 * of_profile + of_float16
    scatter_of_the_average = SCATTER * (norm * exact.numel()) ** 0.5
    assert error < 0.05 * scatter_of_the_average


def test_the_model_is_the_checkpoints_but_for_its_weights(run):
    checkpoint = open_model(run.path)
    model = at_ema_width(checkpoint, 0.07)
    assert (model.step, model.images_seen) == (STEPS, STEPS * checkpoint.config.train.batch_size)
    assert (model.run, model.latents, model.config) == (run.path, checkpoint.latents, checkpoint.config)
    assert torch.equal(joined(dict(model.load().named_parameters())), joined(model.weights()))
    assert model.extra["power_ema"]["width"] == 0.07
    assert at_ema_width(model, 0.07) is model
    assert at_ema_width(model, None) is checkpoint
    assert at_ema_width(model, 0.08).weights_sha256 != model.weights_sha256


def test_an_average_may_end_at_any_step_with_a_snapshot(run):
    checkpoint = open_model(run.path)
    model = at_ema_width(checkpoint, 0.05, STEPS // 2)
    assert model.step == STEPS // 2
    stored, _ = read_checked(RunFolder(run.path).ema_snapshot(STEPS // 2))
    stored = {name: tensor for name, tensor in stored.items() if name.startswith("0.05.")}
    assert joined(model.weights()) == pytest.approx(joined(stored).float(), abs=1e-6)


def test_the_hash_is_that_of_the_written_file(run, tmp_path):
    model = at_ema_width(open_model(run.path), 0.07)
    save_model(tmp_path / "m", model.weights(), config=model.config, latents=None)
    assert hashlib.sha256((tmp_path / "m" / "model.safetensors").read_bytes()).hexdigest() == model.weights_sha256


def test_a_snapshot_takes_two_bytes_per_value_and_width(run):
    model = open_model(run.path)
    count = sum(tensor.numel() for tensor in model.weights().values())
    size = RunFolder(run.path).ema_snapshot(STEPS).stat().st_size
    assert 0 <= size - 2 * len(TRACKED) * count < 20_000  # of names


def test_averages_of_a_step_share_what_is_rounded_off(tmp_path):
    """So that a narrow width, for which they are subtracted from each other, keeps its digits."""
    source = torch.Generator().manual_seed(0)
    first = torch.randn(1000, generator=source)
    second = first + 0.001 * torch.randn(1000, generator=source)
    write_snapshot(tmp_path / "s.safetensors", {0.05: {"a": first}, 0.1: {"a": second}})
    stored = read_checked(tmp_path / "s.safetensors")[0]["0.1-0.05.a"].float()
    assert (stored - (second - first)).norm() < ROUNDING * (second - first).norm()


def test_a_value_outside_of_float16_is_kept(tmp_path):
    state = {"a": torch.tensor([1e6]), "b": torch.tensor([0.5])}
    write_snapshot(tmp_path / "s.safetensors", {0.1: state})
    tensors, _ = read_checked(tmp_path / "s.safetensors")
    assert {name: (t.dtype, t.item()) for name, t in tensors.items()} == {
        "0.1.a": (torch.float32, 1e6),
        "0.1.b": (torch.float16, 0.5),
    }


@pytest.mark.parametrize(
    ("width", "step", "code", "word"),
    [
        (0.001, None, "width-out-of-reach", f"{STEPS // EVERY} snapshots"),
        (0.1, 3, "no-such-snapshot", "step 3"),
        (0.1, 1, "no-ema-snapshots", "step 1"),
    ],
)
def test_what_the_snapshots_do_not_give_is_refused(run, width, step, code, word):
    with refused(code, word):
        at_ema_width(open_model(run.path), width, step)


def test_a_refused_width_comes_with_those_that_can_be_had(run):
    with pytest.raises(UserError) as caught:
        at_ema_width(open_model(run.path), 0.001)
    lowest, highest = map(float, re.findall(r"0\.\d+", str(caught.value.expected)))
    assert lowest < TRACKED[0] < TRACKED[1] < highest
    assert _residual(run, lowest * 1.01) <= MAX_RESIDUAL


def test_runs_without_snapshots_and_exports_are_refused(copy, tmp_path):
    checkpoint = open_model(copy.path)
    save_model(tmp_path / "export", checkpoint.weights(), config=checkpoint.config, latents=None)
    with refused("not-a-run"):
        at_ema_width(open_model(tmp_path / "export"), 0.1)
    copy.remove_ema_snapshots(after=0)
    with refused("no-ema-snapshots"):
        at_ema_width(checkpoint, 0.1)


def test_a_damaged_snapshot_is_refused(copy):
    path = copy.ema_snapshot(STEPS - EVERY)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with refused("damaged-file", path.name):
        at_ema_width(open_model(copy.path), 0.07).weights()


def test_a_snapshot_that_is_gone_is_done_without(copy):
    whole = _residual(copy, 0.07)
    copy.ema_snapshot(STEPS // 2).unlink()
    assert whole < _residual(copy, 0.07) < 0.1


def _residual(run: RunFolder, width: float) -> float:
    model = at_ema_width(open_model(run.path), width)
    assert isinstance(model, ReconstructedModel)
    return model.combination.residual
