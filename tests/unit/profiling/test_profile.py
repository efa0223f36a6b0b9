"""`mpdit profile-flops`: counts, plans, searches, measurements, files."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_helpers import model_folder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpdit_cli.app import main
from mpdit_cli.commands.profile_flops import parts_of
from mpdit_core.config import ModelConfig, Stage
from mpdit_core.errors import UserError
from mpdit_core.model.compute import count, forward_macs, training_macs
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset, preset_names
from mpdit_core.profiling import ProfileOptions, ProfileResult, figure, measure, profile_flops
from mpdit_core.profiling.count import model_cost, to_csv
from mpdit_core.profiling.document import published_rows
from mpdit_core.profiling.job import DRAWN_BY_DEFAULT
from mpdit_core.profiling.plan import parse_plan, plan
from mpdit_core.profiling.results import Added, ModelCost
from mpdit_core.profiling.tables import bar, breakdown_table, facts, overview, plan_table
from mpdit_core.profiling.targets import Target, at_resolution, find_targets
from mpdit_core.reporting import Event, Saved, Skipped, Warning
from mpdit_core.settings import parse_assignments, validate
from mpdit_core.size import Size
from mpdit_core.table import Table

DOCS = Path(__file__).parents[3] / "docs" / "compute.md"


def profile(**options: Any) -> ProfileResult:
    return profile_flops(ProfileOptions(**options))


def count_one(**options: Any) -> ModelCost:
    (model,) = profile(**options).models
    return model


def test_without_arguments_every_preset_is_counted():
    models = profile().models
    assert [model.name for model in models] == preset_names()
    xl = next(model for model in models if model.name == "xl-256")
    assert xl.macs == xl.macs_true == 56_428_352_512
    assert xl.parameters == 480_839_216
    assert xl.guided_sampling_macs == 500 * xl.macs
    assert f"{xl.ratio_to_dense:.1%}" == "47.6%"


def test_the_mission_s_command_and_a_large_resolution():
    models = {model.name: model for model in profile(resolution=512).models}
    assert {model.resolution for model in models.values()} == {Size.square(512)}
    assert "xl-512" in models
    assert "xl-256 @512" not in models  # the same network
    assert "b-256 @512" in models
    assert count_one(resolution=2048, preset=["v2-b-512"]).tokens == (32**2 + 16, 64**2 + 16, 128**2 + 16)


@pytest.mark.parametrize(
    ("alias", "preset", "resolution"),
    [("DiT-XL/2", "dit-xl-256", 256), ("sit-b/2", "dit-b-256", 256), ("MPDiT-XL/4x", "xl-256", 256),
     ("MPDiT-XL/8x", "v2-xl-512", 512), ("DiT-XL/2", "dit-xl-512", 512)],
)  # fmt: skip
def test_names_of_the_field_are_aliases(alias: str, preset: str, resolution: int):
    (target,) = find_targets(ProfileOptions(preset=(alias,), resolution=Size.square(resolution)))
    assert target.model == load_preset(preset).model


def test_presets_that_cannot_have_a_resolution_are_left_out_and_named():
    events: list[Event] = []
    models = profile_flops(ProfileOptions(resolution=Size.square(272)), report=events.append).models
    assert {model.preset for model in models} >= {"dit-b-256"}
    skipped = {event.path for event in events if isinstance(event, Skipped)}
    assert "xl-256" in skipped
    assert not skipped & {model.preset for model in models}


def test_the_convention_changes_the_counts_that_are_compared():
    model = count_one(preset=["xl-256"], convention="paper")
    assert (model.macs, model.macs_true) == (model.macs_paper, 56_428_352_512)
    assert f"{model.macs / 1e9:.1f}" == "59.3"
    assert f"{model.ratio_to_dense:.1%}" == "50.0%"


def test_settings_change_the_model():
    model = count_one(preset=["xl-256"], settings={"model": {"stages": [[4, 20], [2, 8]]}})
    assert f"{model.macs_paper / 1e9:.1f}" == "65.4"


def test_every_line_of_a_search_fits_and_is_ready_to_use():
    result = profile(search="target_macs=30e9, show=4")
    found = result.search
    assert found is not None
    assert len(found.shapes) == 4
    assert [s.parameters for s in found.shapes] == sorted((s.parameters for s in found.shapes), reverse=True)
    for shape in found.shapes:
        flags = shlex.split(shape.set)
        again = count_one(preset=["xl-256"], settings=parse_assignments(flags[1::2]))
        assert again.macs == shape.macs <= 30e9
        assert again.parameters == shape.parameters
    (table,) = parts_of(result, named=False)
    assert isinstance(table, Table)
    assert found.shapes[-1].set in table.note


def test_a_plan_by_hand():
    target = Target("xl-256", load_preset("xl-256"))
    options = parse_plan("epochs=240, dense_epochs=1400, images=1000000, hardware=a100, devices=4, watts=400.0")
    planned = plan(target, options)
    hours = 2 * training_macs(target.model) * 240 * 1e6 / (312e12 * 0.4) / 3600
    assert planned.model.device_hours == pytest.approx(hours)
    assert planned.model.wall_hours == pytest.approx(hours / 4)
    assert planned.model.kwh == pytest.approx(hours * 0.4)
    assert planned.ratio_to_dense == pytest.approx(0.4757 * 240 / 1400, rel=1e-3)
    assert planned.source == "data sheet"
    assert plan(target, parse_plan("peak_tflops=100.0")).source == "given"


def test_files_hold_the_numbers(tmp_path: Path):
    files: dict[str, Any] = {"csv": tmp_path / "a.csv", "markdown": tmp_path / "b.md", "plot": tmp_path / "c.png"}
    events: list[Event] = []
    profile_flops(ProfileOptions(preset=("b-256",), **files), report=events.append)
    assert {event.path for event in events if isinstance(event, Saved)} == set(files.values())
    row = next(csv.DictReader(files["csv"].read_text().splitlines()))
    assert row["macs_true"] == "16164889600"
    assert row["stages"] == "4x6 2x6"
    assert "| b-256 | 104.61 | 80/272 | 16.16 | 16.63 |" in files["markdown"].read_text()
    assert files["plot"].read_bytes()[:4] == b"\x89PNG"


def test_the_command_prints_the_result(capsys: pytest.CaptureFixture[str]):
    assert main(["profile-flops", "--preset", "tiny", "--set", "model.width=64", "--res", "32", "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "result"
    assert [(m["name"], m["width"], m["resolution"]) for m in last["models"]] == [("tiny* @32", 64, 32)]


def test_docs_are_what_the_command_writes(tmp_path: Path):
    assert main(["profile-flops", "--quiet", "--markdown", str(tmp_path / "compute.md")]) == 0
    assert (tmp_path / "compute.md").read_text() == DOCS.read_text()


def test_published_rows_are_reproduced():
    differing = {"DiT-B/2, shared modulation", "DiT-XL/2", "DiT-XL/2 at 512 px"}  # explained in docs/compute.md
    for label, model, printed in published_rows():
        digits = len(printed.partition(".")[2])
        counted = forward_macs(model, convention="paper") / 1e9
        assert (f"{counted:.{digits}f}" == printed) == (label not in differing), label


def test_measure_times_every_pass_and_finds_every_stage_and_kind(monkeypatch: pytest.MonkeyPatch):
    """Graphs are captured by the real torch.compile, and a backend that counts their calls runs them as they are."""
    calls = []

    def backend(graph, inputs):
        return lambda *given: (calls.append(torch.is_grad_enabled()), graph.forward(*given))[1]

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **more: compile_module(m, backend=backend, **more))
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    torch._dynamo.reset()
    result = profile(preset=["tiny"], measure=True, device="cpu")
    (measured,) = result.measured
    assert [(each.mode, each.work) for each in measured.passes] == [
        ("eager", "forward"), ("eager", "training"), ("compiled", "forward"), ("compiled", "training"),
    ]  # fmt: skip
    blocks, passes = 2, measure.REPEATS[0] + 2  # two passes warm up
    assert calls == [False] * blocks * passes + [True] * blocks * passes
    for timed in (*measured.passes, *measured.parts["forward"], *measured.parts["training"]):
        assert 0 < timed.p10_seconds <= timed.median_seconds <= timed.p90_seconds
    for times in measured.parts.values():
        kinds = {stage: {time.kind for time in times if time.stage == stage} for stage in ("stage 1", "outside")}
        assert list(dict.fromkeys(time.stage for time in times)) == ["stage 0", "stage 1", "outside"]
        assert {"attention", "projections", "mlp", "upsampling", "patches", "rest"} <= kinds["stage 1"]
        assert {"time", "conditioning", "output"} <= kinds["outside"]
    counted = count(load_preset("tiny").model)
    assert sum(time.flops for time in measured.parts["forward"]) == counted.flops
    assert sum(time.flops for time in measured.parts["training"]) == 2 * counted.training_macs
    _, passes_table, *parts_tables = parts_of(result, named=False)
    assert [len(table.rows) for table in (passes_table, *parts_tables) if isinstance(table, Table)] == [
        4, *map(len, measured.parts.values()),
    ]  # fmt: skip


def test_a_compiler_that_fails_costs_its_figures_only(monkeypatch: pytest.MonkeyPatch):
    def fail(model):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure.MPDiT, "compile_blocks", fail)
    events: list[Event] = []
    result = profile_flops(ProfileOptions(preset=("tiny",), measure=True, device="cpu"), report=events.append)
    assert [each.mode for each in result.measured[0].passes] == ["eager", "eager"]
    assert [event.code for event in events if isinstance(event, Warning)] == ["cannot-compile"]


def counted_by_torch(model: torch.nn.Module, config: ModelConfig) -> tuple[int, int]:
    """MACs of one image, and parameters, of a model that runs."""
    x_t = torch.zeros(1, config.channels, *config.input_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x_t, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


def test_a_run_a_checkpoint_and_an_export_are_counted_like_the_network_they_hold(tmp_path: Path):
    run, exported = tmp_path / "runs" / "tiny-1", tmp_path / "exported"
    checkpoint = run / "checkpoints" / "step-0000007"
    folder = model_folder(checkpoint)
    shutil.copytree(checkpoint, exported)
    expected = counted_by_torch(folder.load(), folder.config.model)
    for place in (run, checkpoint, exported):
        model = count_one(model=str(place))
        assert (model.name, model.macs, model.parameters) == (str(place), *expected)
        assert model.flops == 2 * model.macs


def test_settings_change_a_model_on_disk_for_the_count_alone(tmp_path: Path):
    config = model_folder(tmp_path / "model").config.model
    changed = config.model_copy(update={"width": 64, "stages": (Stage(8, 2), Stage(4, 1), Stage(2, 1))})
    settings = {"model": {"width": 64, "stages": [[8, 2], [4, 1], [2, 1]]}}
    model = count_one(model=str(tmp_path / "model"), settings=settings)
    assert (model.macs, model.parameters) == counted_by_torch(MPDiT(changed), changed)
    assert model.name.endswith("model*")
    assert count_one(model=str(tmp_path / "model"), resolution=64).tokens == (16**2 + 2, 32**2 + 2)


@pytest.mark.parametrize("preset", ["dit-xl-512", "xl-1024", "v2-xl-512"])
def test_the_tables_of_a_model_fit_a_terminal_of_80_columns(preset: str):
    target = Target(preset, load_preset(preset))
    fits(plan_table([plan(target, parse_plan("watts=700"))]))
    for each in (target, Target(f"{preset} @2048", at_resolution(target.run, Size.square(2048)))):
        model = model_cost(each, ProfileOptions(batch_size=256))
        fits(breakdown_table(model))
        fits(overview([model]))
        lines = facts(model)
        label = max(map(len, lines))
        assert all(2 + label + 2 + len(value) <= 80 for value in lines.values()), lines


def test_all_presets_at_a_large_resolution_fit_a_terminal_of_80_columns():
    models = profile(resolution=2048).models
    table = overview(models)
    fits(table)
    assert "2048 px" in table.title
    assert all("@" not in row[0] for row in table.rows)
    assert len({row[0] for row in table.rows}) == len(models) > 10


def fits(table: Table) -> None:
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    assert sum(widths) + 3 * len(widths) + 1 <= 80, (table.title, widths)


def test_the_kinds_of_work_add_up_in_the_breakdown():
    model = count_one(preset=["v2-b-512"])
    rows = {row[0]: row[1:] for row in breakdown_table(model).rows}
    assert rows["tokens"][:3] == ["80", "272", "1040"]
    assert rows["GMACs"][-2:] == [f"{model.macs / 1e9:.2f}", "100.0%"]
    for column in range(3):
        parts = [float(cells[column]) for kind, cells in rows.items() if kind in model.macs_by_kind]
        assert sum(parts) == pytest.approx(float(rows["GMACs"][column]), abs=0.03)


def test_a_plan_for_this_machine_s_own_rate():
    keys = "hardware=measured, devices=1, epochs=1, images=1000, utilisation=0.5"
    (planned,) = profile(preset=["b-256"], device="cpu", plan=keys).plans
    assert 1e-3 < planned.peak_tflops < 1e3  # for any CPU, in TFLOP/s
    assert planned.model.flops == 2 * training_macs(load_preset("b-256").model) * 1000
    seconds = planned.model.flops / (planned.peak_tflops * 1e12 * 0.5)
    assert planned.model.device_hours * 3600 == pytest.approx(seconds)
    assert planned.source == "measured"


def test_lines_of_the_figure_say_how_many_stages_a_model_has():
    stages = [figure.legend(Target(f"{name} @2048", load_preset(name))) for name in DRAWN_BY_DEFAULT]
    assert stages == ["dense: dit-xl-256", "two stages: xl-256", "three stages: v2-xl-512"]


def test_the_default_models_of_the_figure_have_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    drawn: list[Target] = []
    monkeypatch.setattr(figure, "draw", lambda targets, path, convention: drawn.extend(targets))
    profile(plot=tmp_path / "a.png", settings={"model": {"class_tokens": 3}})
    assert [target.model.class_tokens for target in drawn] == [3] * len(DRAWN_BY_DEFAULT)


def test_bars():
    assert [bar(0.0, 4), bar(0.5, 4), bar(1 / 32, 4), bar(3.0, 4)] == ["    ", "██  ", "▏   ", "████"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"model": "no/such/run"}, "no-such-file"),
        ({"preset": ["xl-257"]}, "no-such-preset"),
        ({"preset": ["DiT-XXL/2"]}, "no-such-preset"),
        ({"preset": ["xl-256"], "resolution": 250}, "resolution-does-not-fit"),
        ({"preset": ["xl-256"], "resolution": 0}, "invalid-value"),
        ({"resolution": 250}, "resolution-does-not-fit"),
        ({"preset": ["xl-256"], "settings": {"model": {"widht": 3}}}, "unknown-key"),
        ({"settings": {"model": {"num_heads": 7}}}, "invalid-value"),
        ({"resolution": 256, "settings": {"model": {"input_size": 64}}}, "conflict"),
        ({"convention": "fair"}, "invalid-value"),
        ({"measure": True}, "no-model"),
        ({"plan": "hardware=abacus"}, "no-such-hardware"),
        ({"plan": "epoch=3"}, "unknown-key"),
        ({"plan": "utilisation=2.0"}, "invalid-value"),
        ({"search": "target_macs=1e3"}, "over-budget"),
        ({"search": "target_macs=1e9, stages=[4]"}, "nothing-to-search"),
        ({"search": "stages=[2]"}, "invalid-value"),
        ({"search": "target_macs=30e9", "csv": "a.csv"}, "conflicting-options"),
        ({"plot": "figure.gif"}, "invalid-value"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], code: str):
    with pytest.raises(UserError) as error:
        profile_flops(validate(ProfileOptions, options))
    assert error.value.code == code


def test_what_an_objective_adds_is_counted():
    """A linear layer on the 16 coarse tokens, forward, and backward for its weights and its input."""
    assert count_one(preset=["tiny"]).objective == Added()
    with_modules = parse_assignments(["objective.train_objectives:Reader.weight=0.5", "objective.contrastive={}"])
    model = count_one(preset=["tiny"], settings=with_modules, batch_size=4)
    assert model.objective == Added(parameters=32 + 1, macs=3 * 16 * 32)
    assert model.training_step_macs == 4 * (model.training_macs + 3 * 16 * 32)
    assert "33 parameters, 1,536 MACs" in facts(model)["objective adds"]
    assert "objective_macs" in to_csv([model])
