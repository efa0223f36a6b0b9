"""`mpdit report`: one page with everything inside, and nothing in it that a stranger's text could change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ecosystem_helpers import latent_spec
from PIL import Image

from mpdit_cli.app import main
from mpdit_core.errors import UserError
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Event, Saved, Warning
from mpdit_core.run_report import ReportOptions, ReportResult, write_report
from mpdit_core.run_report import job as report_job
from mpdit_core.run_report.curves import curve, running_mean
from mpdit_core.run_report.history import MOST_POINTS, read_history
from mpdit_core.settings import Result


def step(number: int, loss: float | None = 1.0) -> dict[str, Any]:
    return {"step": number, "loss": loss, "grad_norm": 0.5, "learning_rate": 1e-3, "images_seen": 8 * number,
            "images_per_second": 4.0, "mfu": 0.1}  # fmt: skip


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Eight steps, two previews, two evaluations that were logged."""
    config = load_preset("tiny")
    folder = RunFolder(tmp_path / "a & b")
    folder.write(config, latent_spec(config))
    for number in range(1, 9):
        folder.append_metrics(step(number, loss=2.0 / number))
        if number % 4 == 0:
            folder.append_metrics({"step": number, "eval/frechet_distance": 10.0 / number})
            folder.preview(number).parent.mkdir(exist_ok=True)
            Image.new("L", (600, 40), number).save(folder.preview(number))
    return folder


def test_one_page_with_everything_inside(run):
    events: list[Event] = []
    result = write_report(ReportOptions(run=run.path), report=events.append)
    assert isinstance(result, ReportResult)
    assert [event.path for event in events if isinstance(event, Saved)] == [result.report]
    page = result.report.read_text()
    assert page.count("<polyline") == 7  # five curves, the running mean of the loss, and one evaluation
    assert page.count("data:image/png;base64,") == 2
    assert "0.2500" in page
    assert result.facts["time in steps"] == "0.3 min"  # 64 images at 4 images/s
    assert "batch_size = 8" in page
    assert "frechet distance, measured in the run" in page
    assert not re.search(r"(src|href)=(?!['\"]?data:)", page)  # nothing is fetched
    assert "<title>a &amp; b</title>" in page


class Record(Result):
    """What a page reads of an evaluation record."""

    path: Path
    metrics: dict[str, Any]
    model: dict[str, Any] | None


def test_texts_of_strangers_stay_texts(run, monkeypatch):
    evil = "<script>alert('1')</script>"
    records = [Record(path=Path("fid.json"), metrics={"fid": 2.5}, model={"step": 1000}),
               Record(path=Path(f"{evil}.json"), metrics={evil: 1.0}, model=None)]  # fmt: skip
    monkeypatch.setattr(report_job, "read_records", lambda folder, report: records)
    result = write_report(ReportOptions(run=run.path))
    page = result.report.read_text()
    assert result.evaluations == 2
    assert "step 1,000: fid" in page
    assert "<script" not in page
    assert "&lt;script" in page


def test_the_command_prints_the_result(run, tmp_path, capsys):
    assert main(["report", str(run.path), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["report"]) == ("result", str(tmp_path / "page.html"))


def test_what_is_no_run_or_has_no_steps_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        write_report(ReportOptions(run=tmp_path))
    assert error.value.code == "not-a-run"
    config = load_preset("tiny")
    RunFolder(tmp_path).write(config, latent_spec(config))
    with pytest.raises(UserError) as error:
        write_report(ReportOptions(run=tmp_path))
    assert error.value.code == "no-steps"


def test_history_is_read_in_one_pass():
    history = read_history(iter([step(1, 3.0), step(2, None), step(3, float("nan")), {"step": 3, "eval/fid": 7.0}]))
    assert history.series["loss"].points == [(1, 3.0)]
    assert history.series["eval/fid"].points == [(3, 7.0)]
    assert history.last["step"] == 3
    assert history.seconds == 6.0
    assert history.recent_loss() == 3.0


def test_a_million_lines_take_bounded_memory():
    history = read_history(step(number) | {"foreign": "x"} for number in range(60_000))
    assert all(len(series.points) <= MOST_POINTS for series in history.series.values())
    assert history.series["loss"].points[0] == (0, 1.0)
    assert history.last["step"] == 59_999
    assert history.recent_loss() == 1.0


def test_lines_of_anything_are_passed_over():
    foreign = [
        {"step": 10**400, "loss": 1},
        {"step": -1},
        {"step": 1, "loss": "low"},
        {"step": 2, "loss": [1]},
        {"step": 3, "x": 10**400},
        {"step": 4, "loss": 1.0, "images_seen": "many", "images_per_second": 1},
    ]
    history = read_history([*foreign, step(5)])
    assert history.last["step"] == 5
    assert set(history.series) == {*step(5)} - {"step"}


def test_damaged_previews_and_records_are_left_out_and_said(run):
    previews = run.preview(4).parent
    run.preview(8).write_bytes(run.preview(8).read_bytes()[:60])
    (previews / "step-abc.png").write_text("no picture")
    (previews / "step-0000009.png").mkdir()
    run.evals.mkdir()
    (run.evals / "torn.json").write_text('{"metrics": ')
    (run.evals / "deep.json").write_text("[" * 100_000)
    (run.evals / "folder.json").mkdir()
    events: list[Event] = []
    page = write_report(ReportOptions(run=run.path), report=events.append).report.read_text()
    assert page.count("data:image/png;base64,") == 1
    codes = [event.code for event in events if isinstance(event, Warning)]
    assert sorted(codes) == ["damaged-preview"] * 2 + ["damaged-record"] * 3


def test_curves_put_the_extremes_at_the_edges():
    found = re.search(r'points="([^"]+)"', curve([(0, 1.0), (5, 3.0), (10, 2.0)]))
    assert found
    (x0, y0), (_, y1), (x2, y2) = (map(float, p.split(",")) for p in found[1].split())
    assert x0 < x2
    assert y1 < y2 < y0  # SVG counts downwards
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_long_curves_are_thinned_and_smoothed():
    points = [(n, float(n % 2)) for n in range(100_000)]
    assert len(curve(points, smooth=True)) < 60_000
    assert running_mean([0.0, 1.0] * 500)[-1] == pytest.approx(0.5, abs=0.1)


def test_the_first_and_the_last_preview_are_always_shown():
    frames = [Path(f"step-{n}.png") for n in range(100)]
    chosen = report_job.chosen_frames(frames)
    assert (len(chosen), chosen[0], chosen[-1]) == (report_job.MOST_FRAMES, frames[0], frames[-1])
    assert report_job.chosen_frames(frames[:1]) == frames[:1]
    assert report_job.chosen_frames([]) == []
