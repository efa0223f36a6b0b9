"""An EMA width works wherever a model is taken: a generator, samples, views, evaluations, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import refused
from ema_helpers import STEPS, joined, run_with_snapshots
from eval_helpers import enter_folder, measured, warnings_of
from eval_helpers import options as eval_options
from launch import run as mpdit
from launch import succeed

from mpdit_core import evaluation, interop
from mpdit_core.evaluation import EvaluationRecord
from mpdit_core.models.ema_snapshots import at_ema_width
from mpdit_core.models.model_folder import open_model
from mpdit_core.sampling import Generator, SampleOptions, SampleSet, SamplingOptions, ViewResult, sample

QUICK: dict[str, Any] = {"num_steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_with_snapshots(tmp_path_factory.mktemp("ema") / "tiny-1").path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


def weights_of(run: Path, width: float | None) -> str:
    """The hash of its weights at a width."""
    return at_ema_width(open_model(run), width).weights_sha256


def sample_options(run: Path, out: Path, **changes: Any) -> SampleOptions:
    return SampleOptions(**QUICK | {"model": str(run), "out": out, "num_samples": 2, "device": "cpu"} | changes)


def test_a_generator_changes_its_width(run):
    generator = Generator(run, SamplingOptions(ema_width=0.07, **QUICK), device="cpu")
    changed: tuple[dict[str, Any], ...] = ({}, {"ema_width": 0.2}, {"ema_width": None}, {})
    first, other, plain, again = (generator.images(**changes)[0].tobytes() for changes in changed)
    assert first == again
    assert len({first, other, plain}) == 3
    assert Generator(run, SamplingOptions(**QUICK), device="cpu").images()[0].tobytes() == plain
    assert generator.changed(seed=1).network is generator.network


def test_samples_of_a_width_are_recorded_and_not_continued_with_another(run, tmp_path):
    sample(sample_options(run, tmp_path / "s", ema_width=0.07))
    record = SampleSet.open(tmp_path / "s")
    assert (record.options.ema_width, record.model.step) == (0.07, STEPS)
    assert record.model.weights_sha256 == weights_of(run, 0.07) != weights_of(run, None)
    with refused("different-samples"):
        sample(sample_options(run, tmp_path / "s", ema_width=0.08))


def test_a_sheet_of_widths_names_their_weights(run, tmp_path):
    result = sample(sample_options(run, tmp_path / "v", sweep=("ema_width=0.05,0.15",)))
    cells = json.loads((tmp_path / "v" / "sweep.json").read_text())["cells"]
    expected = [(text, weights_of(run, float(text))) for text in ("0.05", "0.15")]
    assert [(cell["ema_width"], cell["weights_sha256"]) for cell in cells] == expected
    assert isinstance(result, ViewResult)
    assert result.facts["ema_width"] == "0.05; 0.15"


def test_an_evaluation_records_the_width_and_its_weights(run, here):
    options = {"num_samples": 8, "num_steps": 1, "batch_size": 8}
    record = measured(str(run), "digits", ema_width=0.07, ema_step=STEPS // 2, **options)
    assert record.sampling is not None
    assert record.model is not None
    assert record.sampling.options.ema_width == 0.07
    assert record.step == STEPS // 2
    model = at_ema_width(open_model(run), 0.07, STEPS // 2)
    assert record.model.weights_sha256 == model.weights_sha256
    swept = evaluation.evaluate_sweep(eval_options(str(run), "digits", sweep=("ema_width=0.05,0.15",), **options))
    records = [EvaluationRecord.read(row.record) for row in swept.rows]
    hashes = [each.model and each.model.weights_sha256 for each in records]
    assert hashes == [weights_of(run, width) for width in (0.05, 0.15)]


def test_widths_out_of_reach_are_refused_before_the_first_evaluation(run, here):
    before = set(run.glob("evals/*"))
    with refused("width-out-of-reach"):
        evaluation.evaluate_sweep(eval_options(str(run), "digits", num_samples=8, sweep=("ema_width=0.1,0.001",)))
    assert set(run.glob("evals/*")) == before


def test_an_exported_width_is_a_model_of_its_own(run, tmp_path):
    options = interop.ExportOptions(model=str(run), out=tmp_path / "out", ema_width=0.07)
    result = interop.export_model(options)
    exported = open_model(tmp_path / "out")
    assert result.weights_sha256 == exported.weights_sha256 == weights_of(run, 0.07)
    assert joined(exported.weights()).equal(joined(at_ema_width(open_model(run), 0.07).weights()))
    assert exported.extra["power_ema"]["width"] == 0.07
    with refused("not-a-run"):
        Generator(tmp_path / "out", SamplingOptions(ema_width=0.07), device="cpu")


def test_a_width_is_typed(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("sample", run, "-n", 1, "--num-steps", 1, "--device", "cpu", "--out", "s")
    succeed(*words, "--ema-width", "0.1")
    assert SampleSet.open("s").options.ema_width == 0.1
    outcome = mpdit("sample", run, "--ema-width", "0.001", "--out", "t", "--json")
    assert (outcome.code, outcome.result["code"]) == (2, "width-out-of-reach")
    assert not Path("t").exists()


def test_a_step_without_a_width_is_warned_of(run, tmp_path):
    events = []
    sample(sample_options(run, tmp_path / "s", ema_step=STEPS), report=events.append)
    assert warnings_of(events) == ["option-without-effect"]
