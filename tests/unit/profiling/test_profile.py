"""`mpdit profile-flops` as its users call it."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
import torch
from sample_helpers import write_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpdit_cli.app import main
from mpdit_core.config import ModelConfig, Stage
from mpdit_core.model.compute import forward_macs, training_macs
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.profiling import figure, tables
from mpdit_core.profiling.document import published_rows
from mpdit_core.profiling.job import DRAWN_BY_DEFAULT
from mpdit_core.profiling.plan import parse_plan, plan, plan_table
from mpdit_core.profiling.tables import bar
from mpdit_core.profiling.targets import Target, at_resolution, find_targets
from mpdit_core.reporting import Table

DOCS = Path(__file__).parents[3] / "docs" / "compute.md"


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["profile-flops", "--json", *arguments]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "result"
    return last


def test_without_arguments_every_preset_is_counted(capsys: pytest.CaptureFixture[str]):
    models = result(capsys)["models"]
    assert [m["name"] for m in models] == preset_names()
    xl = next(m for m in models if m["name"] == "xl-256")
    assert xl["macs"] == xl["macs_true"] == 56_428_352_512
    assert xl["parameters"] == 480_839_216
    assert xl["guided_sampling_macs"] == 500 * xl["macs"]
    assert f"{xl['ratio_to_dense']:.1%}" == "47.6%"


def test_the_mission_s_command_and_a_large_resolution(capsys: pytest.CaptureFixture[str]):
    models = {m["name"]: m for m in result(capsys, "--res", "512")["models"]}
    assert {m["resolution"] for m in models.values()} == {512}
    assert "xl-512" in models
    assert "xl-256 @512" not in models  # the same network
    assert "b-256 @512" in models
    large = result(capsys, "--res", "2048", "--preset", "v2-b-512")["models"][0]
    assert large["tokens"] == [32**2 + 16, 64**2 + 16, 128**2 + 16]


@pytest.mark.parametrize(
    ("alias", "preset", "resolution"),
    [("DiT-XL/2", "dit-xl-256", 256), ("sit-b/2", "dit-b-256", 256), ("MPDiT-XL/4x", "xl-256", 256),
     ("MPDiT-XL/8x", "v2-xl-512", 512), ("DiT-XL/2", "dit-xl-512", 512)],
)  # fmt: skip
def test_names_of_the_field_are_aliases(alias: str, preset: str, resolution: int):
    targets, _ = find_targets(presets=[alias], model=None, assignments=[], resolution=resolution)
    assert targets[0].model == load_preset(preset).model


def test_the_convention_changes_the_counts_that_are_compared(capsys: pytest.CaptureFixture[str]):
    model = result(capsys, "--preset", "xl-256", "--convention", "paper")["models"][0]
    assert (model["macs"], model["macs_true"]) == (model["macs_paper"], 56_428_352_512)
    assert f"{model['macs'] / 1e9:.1f}" == "59.3"
    assert f"{model['ratio_to_dense']:.1%}" == "50.0%"


def test_set_changes_the_model(capsys: pytest.CaptureFixture[str]):
    model = result(capsys, "--preset", "xl-256", "--set", "model.stages=[[4,20],[2,8]]")["models"][0]
    assert f"{model['macs_paper'] / 1e9:.1f}" == "65.4"


def test_every_printed_line_of_a_search_fits_and_is_ready_to_use(capsys: pytest.CaptureFixture[str]):
    found = result(capsys, "--search", "target_macs=30e9, show=4")["search"]
    assert len(found) == 4
    assert [row["parameters"] for row in found] == sorted((row["parameters"] for row in found), reverse=True)
    for row in found:
        again = result(capsys, "--preset", "xl-256", *shlex.split(row["set"]))["models"][0]
        assert again["macs"] == row["macs"] <= 30e9
        assert again["parameters"] == row["parameters"]


def test_a_plan_by_hand():
    target = Target("xl-256", load_preset("xl-256"))
    options = parse_plan("epochs=240, dense_epochs=1400, images=1000000, hardware=a100, devices=4, watts=400.0")
    planned = plan(target, options)
    hours = 2 * training_macs(target.model) * 240 * 1e6 / (312e12 * 0.4) / 3600
    assert planned["model"]["device_hours"] == pytest.approx(hours)
    assert planned["model"]["wall_hours"] == pytest.approx(hours / 4)
    assert planned["model"]["kwh"] == pytest.approx(hours * 0.4)
    assert planned["ratio_to_dense"] == pytest.approx(0.4757 * 240 / 1400, rel=1e-3)


def test_files_hold_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = [tmp_path / name for name in ("a.csv", "b.md", "c.png")]
    flags = [
        part for flag, file in zip(("--csv", "--markdown", "--plot"), files, strict=True) for part in (flag, str(file))
    ]
    assert main(["profile-flops", "--preset", "b-256", *flags]) == 0
    row = next(csv.DictReader(files[0].read_text().splitlines()))
    assert row["macs_true"] == "16164889600"
    assert "| b-256 | 104.61 | 80/272 | 16.16 | 16.63 |" in files[1].read_text()
    assert files[2].read_bytes()[:4] == b"\x89PNG"


def test_docs_are_what_the_command_writes(tmp_path: Path):
    assert main(["profile-flops", "--quiet", "--markdown", str(tmp_path / "compute.md")]) == 0
    assert (tmp_path / "compute.md").read_text() == DOCS.read_text()


def test_published_rows_are_reproduced():
    differing = {"DiT-B/2, shared modulation", "DiT-XL/2", "DiT-XL/2 at 512 px"}  # explained in docs/compute.md
    for label, model, printed in published_rows():
        digits = len(printed.partition(".")[2])
        counted = forward_macs(model, convention="paper") / 1e9
        assert (f"{counted:.{digits}f}" == printed) == (label not in differing), label


def test_measure_finds_every_stage_and_kind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from mpdit_core.profiling import measure

    monkeypatch.setattr(measure, "SECONDS", 0.05)
    monkeypatch.setattr(measure.MPDiT, "compile_blocks", lambda model: None)  # compiling takes a minute
    measured = result(capsys, "--preset", "tiny", "--measure", "--device", "cpu")["measured"][0]
    assert [(f["mode"], f["pass"]) for f in measured["figures"]] == [
        ("eager", "forward"), ("eager", "training"), ("compiled", "forward"), ("compiled", "training"),
    ]  # fmt: skip
    for timed in measured["figures"]:
        assert 0 < timed["p10_seconds"] <= timed["median_seconds"] <= timed["p90_seconds"]
    for what in ("forward", "training"):
        parts = measured["parts"][what]
        assert list(parts) == ["stage 0", "stage 1", "outside"]
        assert {"attention", "projections", "mlp", "upsampling", "patches", "rest"} <= set(parts["stage 1"])
        assert {"time", "conditioning", "output"} <= set(parts["outside"])
        for row in (row for kinds in parts.values() for row in kinds.values()):
            assert 0 < row["p10_seconds"] <= row["median_seconds"] <= row["p90_seconds"]


def counted_by_torch(model: torch.nn.Module, config: ModelConfig) -> tuple[int, int]:
    """MACs of one image, and parameters, of a model that runs."""
    x_t = torch.zeros(1, config.channels, config.input_size, config.input_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x_t, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


def test_a_run_a_checkpoint_and_an_export_are_counted_like_the_network_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, exported = tmp_path / "runs" / "tiny-1", tmp_path / "exported"
    checkpoint = run / "checkpoints" / "step-0000007"
    folder = write_model(checkpoint)
    assert main(["export", str(checkpoint), str(exported), "--quiet"]) == 0
    expected = counted_by_torch(folder.load(), folder.config.model)
    for place in (run, checkpoint, exported):
        model = result(capsys, str(place))["models"][0]
        assert (model["name"], model["macs"], model["parameters"]) == (str(place), *expected)
        assert model["flops"] == 2 * model["macs"]


def test_set_changes_a_model_on_disk_for_the_count_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = write_model(tmp_path / "model").config.model
    changed = config.model_copy(update={"width": 64, "stages": (Stage(8, 2), Stage(4, 1), Stage(2, 1))})
    flags = ["--set", "model.width=64", "--set", "model.stages=[[8,2],[4,1],[2,1]]"]
    model = result(capsys, str(tmp_path / "model"), *flags)["models"][0]
    assert (model["macs"], model["parameters"]) == counted_by_torch(MPDiT(changed), changed)
    assert model["name"].endswith("model*")
    larger = result(capsys, str(tmp_path / "model"), "--res", "64")["models"][0]
    assert larger["tokens"] == [16**2 + 2, 32**2 + 2]


@pytest.mark.parametrize("preset", ["dit-xl-512", "xl-1024", "v2-xl-512"])
def test_the_tables_of_a_model_fit_a_terminal_of_80_columns(preset: str):
    target = Target(preset, load_preset(preset))
    keys = parse_plan("watts=700")
    fits(plan_table([plan(target, keys)], keys))
    for each in (target, Target(f"{preset} @2048", at_resolution(target.run, 2048))):
        record = tables.record(each, convention="true", batch_size=256)
        fits(tables.bill(each, convention="true"))
        fits(tables.overview([record], convention="true"))
        facts = tables.facts(each, record)
        label = max(map(len, facts))
        assert all(2 + label + 2 + len(value) <= 80 for value in facts.values()), facts


def test_all_presets_at_a_large_resolution_fit_a_terminal_of_80_columns():
    targets, _ = find_targets(presets=[], model=None, assignments=[], resolution=2048)
    records = [tables.record(target, convention="true", batch_size=1) for target in targets]
    table = tables.overview(records, convention="true")
    fits(table)
    assert "2048 px" in table.title
    assert all("@" not in row[0] for row in table.rows)
    assert len({row[0] for row in table.rows}) == len(records) > 10


def fits(table: Table) -> None:
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    assert sum(widths) + 3 * len(widths) + 1 <= 80, (table.title, widths)


def test_a_plan_for_this_machine_s_own_rate(capsys: pytest.CaptureFixture[str]):
    keys = "hardware=measured, devices=1, epochs=1, images=1000, utilisation=0.5"
    planned = result(capsys, "--preset", "b-256", "--device", "cpu", "--plan", keys)["plans"][0]
    assert 1e-3 < planned["peak_tflops"] < 1e3  # of any CPU, in TFLOP/s
    assert planned["model"]["flops"] == 2 * training_macs(load_preset("b-256").model) * 1000
    seconds = planned["model"]["flops"] / (planned["peak_tflops"] * 1e12 * 0.5)
    assert planned["model"]["device_hours"] * 3600 == pytest.approx(seconds)
    assert planned["hardware"] == "measured"


def test_lines_of_the_figure_say_how_many_levels_a_model_has():
    levels = [figure.legend(Target(f"{name} @2048", load_preset(name))) for name in DRAWN_BY_DEFAULT]
    assert levels == ["dense: dit-xl-256", "two-level: xl-256", "three-level: v2-xl-512"]


def test_bars():
    assert [bar(0.0, 4), bar(0.5, 4), bar(1 / 32, 4), bar(3.0, 4)] == ["    ", "██  ", "▏   ", "████"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "xl-257"], "no preset 'xl-257'"),
        (["--preset", "DiT-XXL/2"], "no preset 'DiT-XXL/2'"),
        (["--preset", "xl-256", "--res", "250"], "a multiple of 32 pixels"),
        (["--preset", "xl-256", "--res", "0"], "a multiple of 32 pixels"),
        (["--res", "250"], "no preset can be of this resolution"),
        (["--preset", "xl-256", "--set", "model.widht=3"], "did you mean model.width"),
        (["--set", "model.num_heads=7"], "not divisible by num_heads 7"),
        (["--res", "256", "--set", "model.input_size=64"], "say the same thing"),
        (["--convention", "fair"], "true or paper"),
        (["--measure"], "add --preset"),
        (["--plan", "hardware=abacus"], "no such device"),
        (["--plan", "epoch=3"], "unknown key epoch"),
        (["--plan", "utilisation=2.0"], "utilisation"),
        (["--search", "target_macs=1e3"], "no configuration fits"),
        (["--search", "levels=[2]"], "target_macs is missing"),
        (["--plot", "figure.gif"], ".png, .svg, .pdf"),
        (["no/such/run"], "no/such/run"),
    ],
)
def test_user_errors_are_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["profile-flops", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
