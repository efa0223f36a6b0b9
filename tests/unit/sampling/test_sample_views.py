"""Sweeps, trajectories, interpolations and nearest training images: what is in the views, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from data_helpers import encode
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from sample_helpers import code_of, images_of, make_generator, run_view, sample_options, write_model

from mpdit_cli.app import main
from mpdit_core.data.autoencoders import LoadedAutoencoder
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.standardising import standardise
from mpdit_core.reporting import Progress, Warning
from mpdit_core.sampling import sample
from mpdit_core.sampling.views.interpolation import slerp
from mpdit_core.sampling.views.nearest import TrainingPoints, search
from mpdit_core.sampling.views.trajectory import follow, spread_out
from mpdit_core.sweeps import combinations, read_sweeps, with_value, with_values

SMALL = {"num_samples": 2, "num_steps": 3, "guidance_scale": 1.0}


def images(model, **changes):
    return images_of(model, **SMALL | changes)


def shows(view, image):
    """Whether `image [3, H, W]`, enlarged five times, is somewhere in the view."""
    wanted = image.numpy().transpose(1, 2, 0).repeat(5, 0).repeat(5, 1)
    pixels = np.asarray(view)
    height, width = wanted.shape[:2]
    candidates = np.argwhere((pixels[: 1 - height, : 1 - width] == wanted[0, 0]).all(-1))
    return any(np.array_equal(pixels[y : y + height, x : x + width], wanted) for y, x in candidates)


# Sweeps


def test_a_sweep_holds_every_cell(model, tmp_path):
    texts = ["guidance_scale=1,3", "num_steps=2,4"]
    data = run_view(model, out=tmp_path / "o", sweep=texts).data
    assert [(c["guidance_scale"], c["num_steps"]) for c in data["cells"]] == [
        ("1", "2"), ("1", "4"), ("3", "2"), ("3", "4")
    ]  # fmt: skip
    assert [c["passes"] for c in data["cells"]] == [2, 4, 4, 8]
    assert [c["plugin"]["options"]["num_steps"] for c in data["cells"]] == [2, 4, 2, 4]
    assert json.loads((tmp_path / "o" / "sweep.json").read_text())["sampler"]["package"] == "mpdit"
    view = Image.open(tmp_path / "o" / "sweep.png")
    for scale in (1.0, 3.0):
        for steps in (2, 4):
            assert all(shows(view, x) for x in images(model, guidance_scale=scale, num_steps=steps))
    assert not shows(view, images(model, guidance_scale=2.0)[0])
    assert json.loads((tmp_path / "o" / "sweep.json").read_text())["view"] == "sweep"


def swept(model, text):
    """The options of the first value of a sweep."""
    return with_values(sample_options(model), combinations(read_sweeps([text]))[0])


def test_sweeps_are_read_as_the_fields_are(model):
    assert read_sweeps(["guidance-interval=0,1;0.1,0.8"]) == {"guidance_interval": ("0,1", "0.1,0.8")}
    assert swept(model, "guidance-interval=0.1,0.8;0,1").guidance_interval == (0.1, 0.8)
    assert swept(model, "classes=3,7").classes == "3"
    assert swept(model, "classes=3,7;1").classes == "3,7"
    assert swept(model, "guidance_scale=.5").guidance_scale == 0.5
    assert swept(model, "sampler.grid=cosine").sampler_options == {"grid": "cosine"}
    assert swept(model, "sampler=heun").sampler == "heun"
    assert swept(model, "guidance=apg,cfg").guidance == "apg"
    assert swept(model, "guidance.eta=0.5,1").guidance_options == {"eta": 0.5}
    begun = sample_options(model, sampler_options={"t_min": 0.1})
    assert with_value(begun, "sampler.norm", "2").sampler_options == {"t_min": 0.1, "norm": 2}


@pytest.mark.parametrize(
    ("sweeps", "code"),
    [
        (["num_steps"], "not-a-sweep"),
        (["=1"], "not-a-sweep"),
        (["num_steps=1,2", "num_steps=3"], "swept-twice"),
        (["num_steps=2,2"], "swept-twice"),
        (["num_steps=1", "seed=1", "guidance_scale=1"], "too-many-keys"),
        (["num_steps=1,many"], "invalid-value"),
        (["guidance_interval=0.1,0.8"], "invalid-value"),
        (["girdd=cosine"], "unknown-key"),
        (["batch_size=1,2"], "unknown-key"),
        (["features.x=1"], "unknown-key"),
        (["sampler_options=1"], "unknown-key"),
        (["classes=3,elephant"], "no-such-class"),
    ],
)
def test_sweeps_that_cannot_be(model, tmp_path, sweeps, code):
    assert code_of(run_view, model, out=tmp_path / "o", sweep=sweeps) == code
    assert not list(tmp_path.iterdir())


# Trajectories


def test_a_trajectory_ends_in_the_samples_and_predicts_data(model, tmp_path):
    made = make_generator(model, decode=True, **SMALL)
    events = []
    states = follow(made, report=events.append)
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2, 3]
    assert [round(s.t, 3) for s in states] == [1.0, 0.667, 0.333, 0.0]
    assert torch.equal(states[-1].x_t, states[-1].data)
    assert (states[-1].x_t.int() - images(model).int()).abs().max() <= 1
    with torch.no_grad():
        noise, _ = made.noise([0, 1])
        predicted = noise - made.velocity([0, 1])(noise, 1.0)
    assert torch.equal(states[0].data, made.decode(predicted))
    run_view(model, out=tmp_path / "o", trajectory=True, sampler="heun-sde")
    with GifImageFile(tmp_path / "o" / "trajectory.gif") as moving:
        assert moving.n_frames == 4
    assert Image.open(tmp_path / "o" / "trajectory.png").height > 4 * 80


def test_predictions_of_a_trajectory_remember_no_guidance(model):
    made = make_generator(model, decode=True, **SMALL | {"guidance": "apg", "guidance_scale": 3.0})
    noise, _ = made.noise([0, 1])
    with torch.no_grad():
        predicted = noise - made.velocity([0, 1])(noise, 1.0)
    assert torch.equal(follow(made)[0].data, made.decode(predicted))


def test_spread_out():
    assert spread_out(50, 3) == [0, 24, 49]
    assert spread_out(3, 9) == [0, 1, 2]


# Interpolations


def test_slerp():
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)
    unit_a, unit_b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.allclose(slerp(unit_a, unit_b, 1 / 3), torch.tensor([math.cos(math.pi / 6), 0.5]))
    assert torch.allclose(slerp(a, a, 0.5), a)


@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama"])
def test_an_interpolation_begins_with_the_image_itself(model, tmp_path, sampler):
    result = run_view(model, out=tmp_path / "o", interpolate=(1, 4), num_samples=3, sampler=sampler)
    assert result.data["classes"] == [1, 4]
    picture = np.asarray(Image.open(tmp_path / "o" / "interpolation.png")).astype(int)
    first, last = images(model, num_samples=5, sampler=sampler)[[1, 4]].numpy().transpose(0, 2, 3, 1).astype(int)
    centres = [picture[y : y + 80 : 5, x : x + 80 : 5] for y, x in corners(picture)]
    assert np.abs(centres[0] - first).max() <= 1
    if sampler == "euler":
        assert np.abs(centres[5] - last).max() <= 1


def corners(picture):
    """Top left corners of the six images of a sheet of 2 rows and 3 columns."""
    rows, columns = picture.shape[0] - 2 * 88 - 4, picture.shape[1] - 3 * 88
    return [(rows + 4 + 88 * r, columns + 88 * c) for r in range(2) for c in range(3)]


# Nearest training images


def test_nearest_finds_copies_and_mirror_images(model, latents, tmp_path):
    folder = LatentFolder(latents)
    points = TrainingPoints(folder, make_generator(model, decode=True), "latents")
    queries = torch.cat([points.at([5]), points.at([9], flip=True)]) + 1e-3
    found = search(points, queries, k=3, task="t")
    assert found.indices[:, 0].tolist() == [5, 9]
    assert found.mirrored[1, 0]
    assert found.distance[:, 0].tolist() == pytest.approx([1e-3, 1e-3], rel=1e-2)
    every = standardise(folder.batch(range(len(folder))).mean, model.latents.normalisation).flatten(1)
    both = torch.stack([every, every.unflatten(1, (16, 16)).flip(-1).flatten(1)])
    expected = (both - queries[0]).square().mean(-1).sqrt().amin(0).sort().values[:3]
    assert torch.allclose(found.distance[0].float(), expected, atol=1e-5)
    left = search(points, queries[:1], k=1, task="t", leave_out=[5])
    assert left.indices[0, 0] != 5


@pytest.mark.parametrize(("kept", "passes"), [(2**30, 1), (0, 2)])
def test_pixels_are_decoded_once_as_far_as_they_can_be_kept(model, latents, tmp_path, monkeypatch, kept, passes):
    monkeypatch.setattr("mpdit_core.sampling.views.nearest.KEPT", kept)
    decoded = []
    original = LoadedAutoencoder.decode
    monkeypatch.setattr(LoadedAutoencoder, "decode", lambda self, x: (decoded.append(len(x)), original(self, x))[1])
    data = run_view(model, out=tmp_path / "o", nearest="pixels", latents=latents).data
    of_samples, of_neighbours, drawn = 2, 2, 2 * 4
    assert sum(decoded) == of_samples + passes * 2 * len(LatentFolder(latents)) + of_neighbours + drawn
    assert np.shape(data["neighbours"]) == (2, 4)


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_nearest_draws_what_it_found(model, latents, tmp_path, space):
    data = run_view(model, out=tmp_path / "o", nearest=space, latents=latents).data
    assert np.shape(data["neighbours"]) == (2, 4)
    assert all(row == sorted(row) for row in data["distances"])
    view = Image.open(tmp_path / "o" / "nearest.png")
    assert all(shows(view, x) for x in images(model))


# The command


def test_the_command_makes_each_view(model, latents, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = ["sample", str(model.path), "--device", "cpu", "--num-steps", "2", "-n", "2"]
    for flags in (["--sweep", "seed=1,2"], ["--trajectory"], ["--interpolate", "0,1"]):
        assert main([*base, *flags]) == 0
    assert main([*base, "--nearest", "latents", "--latents", str(latents)]) == 0
    made = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert made == ["tiny-interpolation-1", "tiny-nearest-1", "tiny-sweep-1", "tiny-trajectory-1"]
    assert main([*base, "--show", "--out", "o"]) == 0
    assert "not a terminal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sweep": ("num_steps=1,2",), "num_samples": 1000}, "too-many-images"),
        ({"trajectory": True, "num_samples": 1000}, "too-many-images"),
        ({"interpolate": (1, 1)}, "invalid-value"),
        ({"interpolate": (0, 1), "num_samples": 1}, "invalid-value"),
        ({"nearest": "latents"}, "no-training-latents"),
    ],
)
def test_views_that_cannot_be(model, tmp_path, changes, code):
    assert code_of(run_view, model, out=tmp_path / "o", **changes) == code
    assert not list(tmp_path.iterdir())


def test_other_latents_are_told_or_refused(model, latents, tmp_path):
    events = []
    options = sample_options(model, **SMALL, out=tmp_path / "o", nearest="latents", latents=latents)
    sample(options, report=events.append)
    assert [event.code for event in events if isinstance(event, Warning)] == ["other-latents"]
    wide = write_model(tmp_path / "wide", channels=4)
    assert code_of(run_view, wide, out=tmp_path / "p", nearest="latents", latents=latents) == "other-latents"


def test_one_training_image_has_no_nearest_of_its_own(model, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    one = encode(tmp_path / "images", tmp_path / "one", autoencoder="pixels-gray", resolution=16).latents
    assert code_of(run_view, model, out=tmp_path / "o", nearest="latents", latents=one) == "too-few-images"
    assert not (tmp_path / "o").exists()


def test_one_process_makes_a_view(model, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert code_of(run_view, model, out=tmp_path / "o", trajectory=True) == "one-process"


def test_a_folder_that_is_not_empty_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    assert code_of(run_view, model, out=tmp_path, trajectory=True) == "folder-not-empty"
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]
