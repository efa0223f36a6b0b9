"""`mpdit report`: one page with everything inside, and nothing in it that a stranger's text could change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_helpers import refused
from ecosystem_helpers import latent_spec
from PIL import Image

from mpdit_cli.app import main
from mpdit_core.evaluation.record import EvaluationRecord, ExtractorRecord, ModelRecord, ReferenceRecord, RulesRecord
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.plugins import PluginRecord
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Event, Saved, Warning
from mpdit_core.run_report import ReportOptions, ReportResult, write_report
from mpdit_core.run_report.charts import MAX_POINTS as MAX_DRAWN
from mpdit_core.run_report.charts import MIN_LOG, Axis, Line, chart, short, thinned
from mpdit_core.run_report.curves import running_mean
from mpdit_core.run_report.run import MAX_FRAMES, MAX_POINTS, read_history


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
    assert page.count("<polyline") == 10  # five curves, the running means of four, and one evaluation
    assert lines_of(page)["a &amp; b, in the run"] == [[4, 2.5], [8, 1.25]]
    assert page.count("data:image/png;base64,") == 2
    assert "0.2500" in page
    assert result.facts["time in steps"] == "0.3 min"  # 64 images at 4 images/s
    assert "batch_size = 8" in page
    assert "<button" not in page  # no legend of one run
    assert not re.search(
        r"(src|href)=(?!['\"]?data:)|url\(|@import|https?://|fetch\(|import\(", page
    )  # nothing is fetched
    assert "<title>a &amp; b</title>" in page


def record(run: RunFolder, step: int, value: float, *, name: str = "fid", bar: float = 0.0) -> EvaluationRecord:
    """An evaluation of the checkpoint at `step`, on disk; with an error bar where `bar` is its half."""
    bars = {"frechet_distance_interval": (value - bar, value + bar)} if bar else {}
    return EvaluationRecord(
        what="runs/a", count=5000, is_fid=False, keys={"fid": "frechet_distance"},
        labels={"frechet_distance": "Fréchet distance"}, device="cpu", versions={}, seconds=1.0,
        extractor=ExtractorRecord(plugin=PluginRecord(kind="features", name="digits"), fingerprint="abc"),
        rules=RulesRecord(distances="float64", neighbours=3, is_chunk=10),
        model=ModelRecord(weights_sha256="abc", step=step), reference=ReferenceRecord(kind="npz", path="b"),
        metrics={"frechet_distance": value, **bars},
    ).write(run.evals / f"{name}-{step}.json")  # fmt: skip


def lines_of(page: str) -> dict[str, list[list[float]]]:
    """The numbers of every line on a page, by its name; later ones of a name win."""
    found = re.findall(r'data-name="([^"]*)" data-values="([^"]*)"', page)
    return {name: json.loads(values) for name, values in found}


def test_evaluations_have_error_bars_and_are_not_drawn_twice(run):
    record(run, 4, 2.5, bar=0.5)  # which metrics.jsonl has, too
    record(run, 1000, 2.0)
    result = write_report(ReportOptions(run=run.path))
    page = result.report.read_text()
    assert result.evaluations == 2
    lines = lines_of(page)
    assert lines["a &amp; b, 5,000 images"] == [[4, 2.5, 2.0, 3.0], [1000, 2.0]]
    assert lines["a &amp; b, in the run"] == [[8, 1.25]]
    assert page.count('class="bar ') == 1
    assert "Fréchet distance <b>2.5 [2, 3]</b>" in page
    assert "extractor.fingerprint" in page


def test_texts_of_strangers_stay_texts(run, monkeypatch):
    evil = "<script>alert('1')</script>"
    record(run, 4, 2.5, name="fid").model_copy(update={"labels": {"frechet_distance": evil}, "what": evil}).write(
        run.evals / "evil.json"
    )
    config = load_preset("tiny").model_copy(update={"preset": evil})
    run.write(config, latent_spec(config))
    page = write_report(ReportOptions(run=run.path)).report.read_text()
    assert page.count("<script") == 1  # the page's own
    assert "alert(" in page
    assert evil not in page


def test_several_runs_are_drawn_over_each_other(run, tmp_path):
    config = load_preset("tiny")
    other = RunFolder(tmp_path / "other" / "a & b")
    other.write(config.model_copy(update={"train": config.train.model_copy(update={"steps": 99})}), latent_spec(config))
    other.append_metrics(*(step(number, loss=1.0) for number in (1, 2, 3)))
    result = write_report(ReportOptions(run=run.path, others=(other.path,), out=tmp_path / "both.html"))
    assert result.facts["steps"] == "8"
    page = result.report.read_text()
    names = [f"{run.path.parent.name}/a &amp; b", "other/a &amp; b"]  # told apart by the folders above
    assert lines_of(page)[names[1]] == [[1, 0.1], [2, 0.1], [3, 0.1]]  # of the last chart of steps
    assert re.findall(r'<button .*?data-run="(\d)"', page) == ["0", "1"]
    assert "<th>train.steps</th><td>8</td><td>99</td>" in page
    assert [page.count(f"<summary>{name}</summary>") for name in names] == [1, 1]


def test_the_command_prints_the_result(run, tmp_path, capsys):
    assert main(["report", str(run.path), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["report"]) == ("result", str(tmp_path / "page.html"))


def test_what_is_no_run_or_has_no_steps_is_refused(run, tmp_path):
    empty = RunFolder(tmp_path / "empty")
    with refused("not-a-run"):
        write_report(ReportOptions(run=empty.path))
    config = load_preset("tiny")
    empty.write(config, latent_spec(config))
    for options in (ReportOptions(run=empty.path), ReportOptions(run=run.path, others=(empty.path,))):
        with refused("no-steps"):
            write_report(options)
    assert not (run.path / "report.html").exists()


def test_history_is_read_in_one_pass():
    without_loss = {key: value for key, value in step(2).items() if key != "loss"}  # it was not finite
    history = read_history(iter([step(1, 3.0), without_loss, {"step": 3, "eval/fid": 7.0}]))
    assert history.series["loss"].points == [(1, 3.0)]
    assert history.series["eval/fid"].points == [(3, 7.0)]
    assert history.last["step"] == 2
    assert history.seconds == 4.0
    assert history.recent_loss() == 3.0


def test_a_million_lines_take_bounded_memory():
    history = read_history(step(number) for number in range(60_000))
    assert all(len(series.points) <= MAX_POINTS for series in history.series.values())
    assert history.series["loss"].points[0] == (0, 1.0)
    assert history.last["step"] == 59_999
    assert history.recent_loss() == 1.0


def test_a_run_whose_loss_was_never_finite_has_a_page(run):
    (run.path / "metrics.jsonl").write_text(json.dumps(step(1) | {"loss": float("nan")}) + "\n")
    assert "not finite" in write_report(ReportOptions(run=run.path)).facts["loss"]


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


def places(svg: str) -> list[tuple[float, float]]:
    found = re.search(r' points="([^"]+)"', svg)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_chart_puts_values_where_its_axes_say():
    points = [(0, 1.0), (5, 100.0), (10, 10.0)]
    steps = Axis.around([0, 10])
    for log, share in [(False, 1 / 11), (True, 1 / 2)]:
        (x0, y0), (x1, y1), (x2, y2) = places(chart([Line(name="a", run=0, points=points)], steps=steps, log=log))
        assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
        assert y1 < y2 < y0  # SVG counts downwards
        assert (y0 - y2) / (y0 - y1) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0.0, 6000.0), [0, 2000, 4000, 6000]),
        (Axis(0.21, 1.3, log=True), [0.5, 1]),
        (Axis(0.19, 1.3, log=True), [0.2, 0.5, 1]),
        (Axis(1e-6, 1e6, log=True), [1e-6, 1e-4, 1e-2, 1, 100, 1e4, 1e6]),
        (Axis(0.98, 1.03, log=True), [0.98, 0.99, 1.0, 1.01, 1.02, 1.03]),
    ],
)
def test_ticks_are_round(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize("values", [[0.0], [3.0], [-2.0, -2.0], [1e-300, 1e18], [-1e18, 1e18], [1.0, 1.0 + 2e-16]])
@pytest.mark.parametrize("log", [False, True])
def test_every_axis_has_room_and_ticks(values, log):
    axis = Axis.around(values, log=log, margin=0.06)
    assert axis.low < axis.high
    assert all(0 <= axis.share(value) <= 1 for value in [*values, *axis.ticks()])
    assert axis.log == (log and min(values) > MIN_LOG)
    assert axis.ticks()


def test_ticks_are_written_short():
    assert [short(value) for value in (0, 0.0005, 2500, 20_000, 1.5e6, -3e9)] == [
        "0", "0.0005", "2500", "20k", "1.5M", "-3G"
    ]  # fmt: skip


def test_long_lines_are_thinned_and_smoothed():
    points = [(float(n), float(n % 2)) for n in range(100_000)]
    drawn = places(chart([Line(name="a", run=0, points=points)], steps=Axis.around([0, 1e5])))
    assert len(drawn) == MAX_DRAWN
    assert set(running_mean([3.0] * 100)) == {3.0}
    assert running_mean([0.0, 1.0] * 500)[500] == pytest.approx(0.5, abs=0.1)
    ramp = [float(n) for n in range(300)]
    assert running_mean(ramp)[150] == 150  # it does not lag


def test_the_first_and_the_last_preview_are_always_shown():
    frames = [Path(f"step-{n}.png") for n in range(100)]
    chosen = thinned(frames, MAX_FRAMES)
    assert (len(chosen), chosen[0], chosen[-1]) == (MAX_FRAMES, frames[0], frames[-1])
    assert thinned(frames[:1], MAX_FRAMES) == frames[:1]
    assert thinned([], MAX_FRAMES) == []
