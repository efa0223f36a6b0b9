"""Whether a run is normal: which runs are compared with which, and what the report says of them."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_helpers import latent_spec

from mpdit_core.config import PreviewConfig, RunConfig, TimeConfig
from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.evaluation import EvaluationRecord
from mpdit_core.evaluation.record import ExtractorRecord, ModelRecord, ReferenceRecord, RulesRecord, SamplingRecord
from mpdit_core.flow.loss import build_terms
from mpdit_core.flow.path import interpolate, target_velocity
from mpdit_core.flow.times import draw_times
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.plugins import PluginRecord, option_values
from mpdit_core.presets import load_preset
from mpdit_core.reporting import silent
from mpdit_core.run_report import ReportOptions, bands, write_report
from mpdit_core.run_report.bands import LossBand, band_for, recorded_bands
from mpdit_core.run_report.published import published_fids, published_for
from mpdit_core.run_report.run import read_run
from mpdit_core.run_report.verdicts import loss_of_rescaling, verdicts_on
from mpdit_core.sampling import SamplingOptions

TINY = load_preset("tiny")
PLAIN = {"flow-matching": {"weight": 1.0, "weighting": "uniform", "snr_limit": 5.0}}  # as a run's folder has it


def write_run(
    folder: Path, losses: list[float], config: RunConfig = TINY, latents: LatentSpec | None = None
) -> RunFolder:
    """A run that logged `losses`, one per step."""
    run = RunFolder(folder)
    run.write(config.model_copy(update={"objective": config.objective}), latents or latent_spec(config))
    batch = config.train.batch_size
    for step, loss in enumerate(losses, 1):
        run.append_metrics({"step": step, "loss": loss, "images_seen": batch * step, "images_per_second": 1.0})
    return run


def verdict_on(run: RunFolder, quantity: str = "loss") -> Any:
    found = verdicts_on(read_run(run.path, "run", number=0, report=silent))
    return next((verdict for verdict in found if verdict.quantity == quantity), None)


def changed(config: RunConfig, part: str, **values: Any) -> RunConfig:
    return config.model_copy(update={part: getattr(config, part).model_copy(update=values)})


@pytest.fixture
def loss_band(monkeypatch):
    """The program that records bands."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("loss_band")


@pytest.fixture
def band(tmp_path, loss_band, monkeypatch) -> LossBand:
    """Three recorded runs of 40 steps, of which the losses are 2 / √step, and 0.9 and 1.1 times that."""
    runs = []
    for seed, factor in enumerate((0.9, 1.0, 1.1)):
        config = changed(TINY, "train", seed=seed)
        run = write_run(tmp_path / f"seed{seed}", [factor * 2 / math.sqrt(step) for step in range(1, 41)], config)
        runs.append(read_run(run.path, f"seed{seed}", number=seed, report=silent))
    made = loss_band.recorded(runs, what="tests", command="mpdit train")
    monkeypatch.setattr(bands, "recorded_bands", lambda: (made,))
    return made


def test_a_band_is_mean_and_deviation_of_the_recorded_runs(band):
    assert (band.runs, band.logged) == (3, 5)
    assert band.images_seen == tuple(range(40, 321, 40))  # five steps of 8 images
    assert band.loss[0] == pytest.approx(sum(2 / math.sqrt(step) for step in range(1, 6)) / 5, abs=1e-5)
    assert band.deviation == pytest.approx(0.1, abs=1e-5)
    assert band.limits(0) == pytest.approx((0.7 * band.loss[0], 1.3 * band.loss[0]), rel=1e-3)


@pytest.mark.parametrize(("factor", "place"), [(1.0, "inside"), (1.25, "inside"), (1.4, "above"), (0.6, "below")])
def test_a_loss_is_inside_above_or_below_the_band(band, tmp_path, factor, place):
    run = write_run(tmp_path / "run", [factor * 2 / math.sqrt(step) for step in range(1, 24)])
    verdict = verdict_on(run)
    assert verdict.place == place
    assert "160 images" in verdict.text  # the last window that is over: 20 of 23 steps


def test_only_the_same_network_loss_times_and_latents_are_compared(band):
    latents = latent_spec(TINY)
    other = Normalisation(name="measured", mean=(-0.4,), std=(0.6,))
    assert band_for(TINY, latents) is band
    for config in (
        changed(TINY, "model", mlp="swiglu"),
        changed(TINY, "time", shift=2.0),
        TINY.model_copy(update={"objective": {"flow-matching": {"weighting": "snr"}}}),
    ):
        assert band_for(config, latents) is None
    for update in (
        {"normalisation": other}, {"count": 200}, {"class_names": ("a",)},
        {"autoencoder": AutoencoderSpec(id="pixels", factor=1, channels=1)},
    ):  # fmt: skip
        assert band_for(TINY, latents.model_copy(update=update)) is None
    assert band_for(TINY, latents.model_copy(update={"folder": "elsewhere", "count": 101})) is band


def test_optimisation_that_differs_is_named(band, tmp_path):
    same = changed(TINY, "train", seed=7, ema_decays=(0.5,), log_every=1, steps=9, decay_steps=3)
    assert band.differences(same) == {}
    other = changed(TINY, "train", learning_rate=1e-4)
    assert band.differences(other) == {"train.learning_rate": (1e-3, 1e-4)}
    text = verdict_on(write_run(tmp_path / "run", [2.0] * 24, other)).text
    assert "train.learning_rate 0.001, not 0.0001" in text


def test_steps_are_compared_at_equal_images(band, tmp_path):
    half = changed(TINY, "train", batch_size=4)
    losses = [2 / math.sqrt(step / 2) for step in range(1, 45)]
    assert verdict_on(write_run(tmp_path / "run", losses, half)).place == "inside"


def test_of_several_bands_the_nearest_optimisation_counts(band, monkeypatch):
    slow = band.model_copy(update={"config": changed(TINY, "train", learning_rate=1e-4)})
    monkeypatch.setattr(bands, "recorded_bands", lambda: (slow, band))
    assert band_for(TINY, latent_spec(TINY)) is band
    assert band_for(slow.config, latent_spec(TINY)) is slow


@pytest.mark.parametrize(("losses", "place"), [([1.9], "above"), ([1.4], "below"), ([1.9] * 50 + [1.4] * 100, "below")])
def test_without_recorded_runs_the_loss_of_rescaling_is_the_measure(tmp_path, losses, place):
    assert verdict_on(write_run(tmp_path / "run", losses)).place == place


def test_a_run_too_short_for_the_band_is_not_compared_with_it(band, tmp_path):
    assert verdict_on(write_run(tmp_path / "run", [1.9])).place == "above"  # of the loss of rescaling


def test_where_nothing_is_known_the_report_says_so(tmp_path):
    config = TINY.model_copy(update={"objective": {"flow-matching": {"weighting": "snr"}}})
    assert verdict_on(write_run(tmp_path / "run", [1.0], config)).place == "unknown"


def test_runs_that_differ_make_no_band(tmp_path, loss_band):
    paths = [
        write_run(tmp_path / "a", [2.0] * 40).path,
        write_run(tmp_path / "b", [2.0] * 40, changed(TINY, "train", learning_rate=0.5)).path,
    ]
    runs = [read_run(path, path.name, number=0, report=silent) for path in paths]
    with pytest.raises(SystemExit, match=r"train\.learning_rate"):
        loss_band.recorded(runs, what="tests", command="")


def test_one_run_or_short_runs_make_no_band(tmp_path, loss_band):
    short = read_run(write_run(tmp_path / "a", [2.0] * 4).path, "a", number=0, report=silent)
    for runs, why in ([short], "two runs"), ([short, short], "has logged 4"):
        with pytest.raises(SystemExit, match=why):
            loss_band.recorded(runs, what="tests", command="")


@pytest.mark.parametrize("time", [TimeConfig(), TimeConfig(density="uniform"), TimeConfig(density="mode", shift=3.0)])
def test_the_loss_of_rescaling_is_that_of_the_best_multiple(time):
    """Of any latents with mean square 1, here of two values that are the same for a whole image."""
    generator = torch.Generator().manual_seed(0)
    t = draw_times(time, torch.rand(200, generator=generator, dtype=torch.float64), latent_values=256)
    errors = []
    for each in t:
        latents = (torch.randint(2, (1000, 1, 1, 1), generator=generator).double() * 2 - 1).expand(-1, 1, 4, 4)
        noise = torch.randn(1000, 1, 4, 4, generator=generator, dtype=torch.float64)
        x_t, velocity = interpolate(latents, noise, each.expand(1000)), target_velocity(latents, noise)
        multiple = (x_t * velocity).mean() / x_t.square().mean()
        errors.append((velocity - multiple * x_t).square().mean())
    known = (1 / ((1 - t).square() + t.square())).mean().item()
    assert torch.stack(errors).mean().item() == pytest.approx(known, rel=0.01)
    config = TINY.model_copy(update={"time": time})
    assert loss_of_rescaling(config, latent_spec(TINY)) == pytest.approx(known, rel=0.05)


def test_the_loss_of_rescaling_of_uniform_times_is_half_of_pi():
    uniform = TINY.model_copy(update={"time": TimeConfig(density="uniform")})
    assert loss_of_rescaling(uniform, latent_spec(TINY)) == pytest.approx(math.pi / 2, abs=1e-6)


def test_the_loss_of_rescaling_holds_for_standardised_latents_and_plain_flow_matching_only():
    latents = latent_spec(TINY)
    assert loss_of_rescaling(TINY.model_copy(update={"objective": PLAIN}), latents) is not None
    published = latents.model_copy(update={"normalisation": Normalisation(name="published", mean=(0,), std=(1,))})
    assert loss_of_rescaling(TINY, published) is None
    for objective in ({"flow-matching": {"weighting": "snr"}}, PLAIN | {"contrastive": {}}):
        assert loss_of_rescaling(TINY.model_copy(update={"objective": objective}), latents) is None
    assert loss_of_rescaling(changed(TINY, "model", prediction="latents"), latents) is None


@pytest.mark.parametrize("band", recorded_bands(), ids=lambda band: band.config.preset)
def test_a_shipped_band_has_three_runs_and_falls_below_rescaling(band):
    assert band.runs >= 3
    assert len(band.loss) == len(band.images_seen)
    assert (band.config.preview, band.latents.folder) == (PreviewConfig(), "")  # no paths of the machine
    limit = loss_of_rescaling(band.config, band.latents)
    assert limit is not None
    assert 2.2 > band.limits(0)[1] > band.limits(len(band.loss) - 1)[0]
    assert band.limits(len(band.loss) - 1)[1] < limit


@pytest.mark.parametrize("band", recorded_bands(), ids=lambda band: band.config.preset)
def test_a_shipped_band_accepts_a_run_of_today(band):
    """A new setting of the network or of the loss must not leave a band without runs to compare."""
    terms = build_terms({name: {} for name in band.config.objective})
    today = band.config.model_copy(update={"objective": {name: option_values(term) for name, term in terms.items()}})
    assert band.accepts(today, band.latents)
    assert band.differences(today) == {}


def test_the_demo_s_band_is_that_of_its_preset():
    digits, *_ = [band for band in recorded_bands() if band.config.preset == "digits"]
    assert digits.config.model == load_preset("digits").model
    assert digits.differences(load_preset("digits")) == {}


# Published FIDs


IMAGENET = LatentSpec(
    resolution=256,  # pyright: ignore[reportArgumentType]
    autoencoder=AutoencoderSpec(id="stabilityai/sd-vae-ft-ema", factor=8, channels=4),
    normalisation=Normalisation(name="measured", mean=(0.0,) * 4, std=(1.0,) * 4),
    class_names=tuple(map(str, range(1000))),
    source="imagenet",
    count=1_281_167,
)


def fid_record(run: RunFolder, step: int, value: float, *, guidance: float = 1.0, count: int = 50_000) -> None:
    """An FID of 50,000 samples against ADM's reference, on disk."""
    EvaluationRecord(
        what="runs/a", count=count, is_fid=True, keys={"fid": "fid"}, labels={"fid": "FID"}, device="cuda",
        versions={}, seconds=1.0,
        extractor=ExtractorRecord(plugin=PluginRecord(kind="features", name="inception"), fingerprint="abc"),
        rules=RulesRecord(distances="float64", neighbours=3, is_chunk=5000),
        model=ModelRecord(weights_sha256="abc", step=step),
        sampling=SamplingRecord(
            options=SamplingOptions(guidance_scale=guidance), sampler=PluginRecord(kind="samplers", name="euler"),
        ),
        reference=ReferenceRecord(kind="stored statistics", path="VIRTUAL_imagenet256_labeled.npz"),
        metrics={"fid": value},
    ).write(run.evals / f"fid-{step}-{guidance}.json")  # fmt: skip


def imagenet_run(folder: Path, preset: str, *, epochs: float) -> tuple[RunFolder, int]:
    """A run on ImageNet after so many epochs, and its step."""
    config = load_preset(preset)
    step = round(epochs * IMAGENET.count / config.train.batch_size)
    run = RunFolder(folder)
    run.write(config, IMAGENET)
    images = config.train.batch_size * step
    run.append_metrics(
        {"step": step - 1, "loss": 0.8, "images_seen": images, "images_per_second": 1.0},
        {"step": step, "loss": 0.8, "images_seen": images, "images_per_second": 1.0},
    )
    return run, step


@pytest.mark.parametrize(
    ("preset", "epochs", "fid", "place"),
    [
        ("b-256", 80, 25.5, "inside"), ("b-256", 80, 27.0, "above"), ("b-256", 80, 22.0, "below"),
        ("b-256", 20, 60.0, "inside"), ("b-256", 20, 20.0, "below"), ("b-256", 200, 24.0, "inside"),
        ("b-256", 200, 27.0, "above"), ("xl-256", 160, 8.5, "inside"), ("xl-256", 240, 9.0, "above"),
        ("ablation-b-fno", 80, 24.5, "inside"),
    ],
)  # fmt: skip
def test_an_fid_is_compared_with_what_was_published(tmp_path, preset, epochs, fid, place):
    run, step = imagenet_run(tmp_path / "run", preset, epochs=epochs)
    fid_record(run, step, fid)
    verdict = verdict_on(run, "FID")
    assert verdict.place == place
    assert "2603.26357" in verdict.text


def test_another_protocol_is_not_compared(tmp_path):
    run, step = imagenet_run(tmp_path / "run", "b-256", epochs=80)
    assert verdict_on(run, "FID") is None  # nothing was measured
    fid_record(run, step, 5.0, guidance=2.0)
    assert verdict_on(run, "FID").place == "unknown"
    fid_record(run, step, 5.0, count=5_000)
    assert verdict_on(run, "FID").place == "unknown"


def test_nothing_is_published_for_another_network_loss_or_data():
    b = load_preset("b-256")
    assert [each.value for each in published_for(b, IMAGENET)] == [24.74]
    assert published_for(load_preset("plus-b-256"), IMAGENET) == []
    assert published_for(changed(b, "model", class_tokens=8), IMAGENET) == []
    assert published_for(b.model_copy(update={"objective": PLAIN | {"contrastive": {}}}), IMAGENET) == []
    assert published_for(b, IMAGENET.model_copy(update={"count": 50_000})) == []
    assert published_for(b.model_copy(update={"preset": "mine"}), IMAGENET) != []


def test_published_figures_have_presets_and_sources():
    for each in published_fids():
        assert load_preset(each.preset).model.num_classes == 1000
        assert each.source.startswith("arXiv ")
    assert len({(each.preset, each.epochs) for each in published_fids()}) == len(published_fids())


# The page


def test_the_page_draws_the_band_and_says_where_the_loss_is(band, tmp_path):
    run = write_run(tmp_path / "run", [9.0] * 24)
    result = write_report(ReportOptions(run=run.path))
    (verdict,) = result.verdicts
    page = result.report.read_text()
    assert verdict.place == "above"
    assert verdict.text in page
    (corners,) = [part.split('"')[0] for part in page.split('<polygon class="known" data-run="0" points="')[1:]]
    assert len(corners.split()) == 2 * 5  # the middles of 5 windows are at step 24 or before


def test_a_band_is_drawn_once_and_as_far_as_the_longest_run(band, tmp_path):
    runs = [write_run(tmp_path / f"run{steps}", [1.0] * steps).path for steps in (13, 24, 18)]
    page = write_report(ReportOptions(run=runs[0], others=tuple(runs[1:]))).report.read_text()
    assert page.count("<polygon") == 1
    assert '<polygon class="known" data-run="1"' in page


def test_the_page_draws_published_figures_up_to_the_next(tmp_path):
    run, step = imagenet_run(tmp_path / "run", "dit-xl-256", epochs=40)
    assert "known" not in write_report(ReportOptions(run=run.path)).report.read_text().partition("</style>")[2]
    fid_record(run, step, 30.0)
    page = write_report(ReportOptions(run=run.path)).report.read_text()
    (line,) = [part for part in page.split("<polyline ") if 'data-name="published"' in part]
    assert "18.04" in line
    assert "9.35" not in line
