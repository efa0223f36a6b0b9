"""Generation, history and the command line of the playground; no Gradio and no browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpdit_playground import show
from mpdit_playground.columns import Column, compute
from mpdit_playground.command import PlaygroundOptions
from mpdit_playground.command_line import flags, sample_command
from mpdit_playground.session import Playground, Request, Run, Visitor
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from sample_helpers import write_model

from mpdit_core.errors import UserError
from mpdit_core.sampling import SamplingOptions

STEPS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(write_model(folder / "a").path), str(write_model(folder / "b", seed=1).path)


@pytest.fixture(scope="module")
def page(models) -> Playground:
    return Playground(PlaygroundOptions(models=models, device="cpu", num_steps=STEPS, batch_size=2))


def request(page: Playground, *, models: int = 1, compare: str = "", num_samples: int = 3, **changes: Any) -> Request:
    options = SamplingOptions(**{"num_steps": STEPS, "batch_size": 2, **changes})
    return Request(
        models=tuple(page.generators)[:models], options=options, num_samples=num_samples, compare=compare
    )  # fmt: skip


def finished(page: Playground, asked: Request) -> Run:
    return list(page.run(asked, Visitor()))[-1]


def pixels(column: Column) -> np.ndarray:
    return np.stack([np.asarray(picture.image) for picture in column.pictures])


def test_images_are_those_of_the_command_line_shown(page, tmp_path, monkeypatch):
    from mpdit_cli.app import main

    asked = request(page, classes=(5, 0), guidance_scale=1.5, sampler="heun", sampler_options={"grid": "shifted"})
    column = finished(page, asked).columns[0]
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(column.command)[1:], "--out", "out", "--quiet"]) == 0
    written = [np.asarray(Image.open(path))[None] for path in sorted(Path("out/images").glob("*.png"))]
    assert np.array_equal(np.stack(written), pixels(column))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classes": "random", "seed": 7, "num_steps": 12, "precision": "float32", "compile": "off"},
        {"classes": (1, 2), "guidance_interval": (0.1, 0.85), "guidance_schedule": "cosine", "guidance_scale": 3.25},
        {"sampler": "euler-maruyama", "sampler_options": {"grid": "karras", "rho": 5.5}, "guide": "a folder/b"},
    ],
)
def test_command_line_says_every_option(changes, monkeypatch):
    from mpdit_cli import console
    from mpdit_cli.app import main

    seen = []
    monkeypatch.setattr(console, "run", lambda job, options, **_: seen.append(options) or 1 / 0)
    monkeypatch.setattr(console, "defect", lambda _: None)
    arguments = shlex.split(sample_command("runs/my run", SamplingOptions(**changes), num_samples=4, device="cpu"))
    main(arguments[1:])
    expected = SamplingOptions(**changes).model_dump() | {"classes": seen[0].classes}
    assert {name: getattr(seen[0], name) for name in expected} == expected
    assert (seen[0].model, seen[0].num_samples, seen[0].device) == ("runs/my run", 4, "cpu")
    assert (
        flags(seen[0]) == shlex.split(sample_command("m", SamplingOptions(**changes), num_samples=4, device="cpu"))[3:]
    )


def test_pictures_resolve_without_further_evaluations(page):
    column = page.columns(request(page, num_samples=2))[0]
    times, original = [], column.pictures[0].update
    column.pictures[0].update = lambda image, t, latent=None: (times.append(t), original(image, t, latent))
    list(compute([column], threading.Event()))
    assert times[0] > 0, "a picture on the way"
    assert times[-1] == 0
    assert column.nfe == STEPS
    assert column.pictures[1].latent is not None


def test_models_and_settings_stand_side_by_side_from_the_same_noise(page):
    run = finished(page, request(page, models=2, compare="guidance_scale=1,3", classes=(1,)))
    titles = [(column.model, column.varied) for column in run.columns]
    assert titles == [(model, f"guidance_scale {scale}") for model in page.generators for scale in (1, 3)]
    assert len({pixels(column).tobytes() for column in run.columns}) == 4
    noise = {tuple(column.generator.noise([0])[0].flatten().tolist()) for column in run.columns}
    assert len(noise) == 1


def test_a_run_can_be_stopped_and_is_kept(page):
    visitor = Visitor()
    runs = page.run(request(page, num_steps=100_000), visitor)
    first = next(runs)
    visitor.stop.set()
    assert list(runs)[-1] is first
    assert first.stopped
    assert list(visitor.runs) == [first]


def test_stop_ends_what_has_not_begun(page):
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        list(compute(page.columns(request(page)), stop))


def test_jobs_stand_in_line(page):
    first, second = page.visitor("first"), page.visitor("second")
    assert (page.queue(first), page.queue(second), page.queue(second)) == (0, 1, 1)
    page.leave("first")
    assert page.queue(second) == 0
    assert first.stop.is_set()
    page.done(second)
    assert page.jobs == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"compare": "sampler=euler,./evil.py:Sampler"}, "no-such-plugin"),
        ({"sampler": "os:system"}, "no-such-plugin"),
        ({"guide": "/etc"}, "no-such-model"),
        ({"compare": "guidance_scale"}, "not-a-sweep"),
        ({"compare": "model=a,b"}, "unknown-key"),
        ({"compare": "num_steps=1,0"}, "invalid-value"),
        ({"models": 0}, "no-model"),
        ({"num_samples": 1000}, "too-many-images"),
        ({"classes": (99,)}, "no-such-class"),
    ],
)
def test_what_a_visitor_must_not_ask_for(page, changes, code):
    with pytest.raises(UserError) as caught:
        page.columns(request(page, **changes))
    assert caught.value.code == code


def test_unknown_model_is_refused(page):
    with pytest.raises(UserError) as caught:
        page.columns(Request(models=("/etc",), options=SamplingOptions(), num_samples=1))
    assert caught.value.code == "no-such-model"


def test_png_holds_its_settings(page):
    run = finished(page, request(page, seed=3))
    column = run.columns[0]
    image = PngImageFile(io.BytesIO(show.png(column, column.pictures[1])))
    settings = json.loads(image.text[show.CHUNK])
    assert (settings["image"], settings["class"], settings["options"]["seed"]) == (1, "one", 3)
    assert settings["command"] == column.command
    assert np.array_equal(np.asarray(image)[None], np.asarray(column.pictures[1].image))


def test_the_link_saves_that_png(page):
    run = finished(page, request(page))
    link = re.search(r'download="([^"]+)" href="data:image/png;base64,([^"]+)"', show.details_html(run, (0, 1)))
    assert link
    assert link[1] == "a-seed-0-000001.png"
    assert base64.b64decode(link[2]) == show.png(run.columns[0], run.columns[0].pictures[1])


def test_names_are_escaped(page):
    column = page.columns(request(page, num_samples=1))[0]
    column.generator.__dict__["class_names"] = ["<script>"]
    assert "<script>" not in show.run_html(Run(request(page), [column]))


def test_a_model_without_classes_has_no_captions(page):
    column = page.columns(request(page, num_samples=1))[0]
    column.generator.__dict__["class_names"] = []
    assert "<span>" not in show.run_html(Run(request(page), [column]))
    assert column.settings(column.pictures[0])["class"] == ""


def test_options_of_sampling_are_where_the_page_begins(models):
    from mpdit_cli.fields import read_options

    given = {"models": [models[0]], "guidance_scale": 2.0, "classes": "goldfish", "host": None, "browser": None}
    options = read_options(PlaygroundOptions, given, ["sampler.grid=cosine"])
    start = Playground(options).start
    assert (start.guidance_scale, start.classes, start.sampler_options) == (2.0, "goldfish", {"grid": "cosine"})
    assert options.host == "127.0.0.1"


def test_nearest_training_images(tmp_path):
    import torch
    from latents_fixture import make_latents
    from mpdit_playground.nearest import nearest

    from mpdit_core.data.latents import LatentFolder
    from mpdit_core.sampling import Generator

    latents = make_latents(tmp_path / "squares")
    spec = LatentFolder(latents).spec
    model = write_model(tmp_path / "m", latents=spec, num_classes=len(spec.class_names))
    generator = Generator(model, SamplingOptions(num_steps=1), device="cpu", num_samples=1)
    found = nearest(generator, torch.zeros(generator.noise([0])[0].shape[1:]), latents=latents)
    assert len(found) == 4
    assert found[0][1].startswith("#")
    with pytest.raises(UserError):
        nearest(generator, torch.zeros(1), latents=tmp_path / "not there")
