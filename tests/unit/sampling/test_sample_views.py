"""Sweeps, trajectories, interpolations and nearest training images: what is in the pictures, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core.data.autoencoders import PixelAutoencoder
from mpdit_core.data.latents import LatentFolder, standardise
from mpdit_core.reporting import Event, Result
from mpdit_core.runtime.distributed import World
from mpdit_core.sampling.generator import SampleOptions, generate, prepare
from mpdit_core.sampling.views.common import ViewRequest
from mpdit_core.sampling.views.interpolation import interpolate, slerp
from mpdit_core.sampling.views.nearest import TrainingPoints, nearest, search
from mpdit_core.sampling.views.sweep import read_sweeps, sweep, with_value
from mpdit_core.sampling.views.trajectory import follow, spread_out, trajectory

CPU = torch.device("cpu")
SMALL = SampleOptions(num_samples=2, num_steps=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def request(model, out, **options):
    return ViewRequest(model=str(model.path), options=SMALL.model_copy(update=options), out=out, device="cpu")


def end(events):
    *_, last = events
    assert isinstance(last, Result)
    return last.data


def returned(steps):
    """What a generator of events returns."""
    while True:
        try:
            assert isinstance(next(steps), Event)
        except StopIteration as stop:
            return stop.value


def images(model, **options):
    made = generate(model, SMALL.model_copy(update=options), device=CPU, world=World())
    return torch.cat([batch.images for batch in made])


def cut(picture, image):
    """Whether `image [3, H, W]`, enlarged five times, is somewhere in the picture."""
    wanted = image.numpy().transpose(1, 2, 0).repeat(5, 0).repeat(5, 1)
    pixels = np.asarray(picture)
    height, width = wanted.shape[:2]
    candidates = np.argwhere((pixels[: 1 - height, : 1 - width] == wanted[0, 0]).all(-1))
    return any(np.array_equal(pixels[y : y + height, x : x + width], wanted) for y, x in candidates)


# Sweeps


def test_a_sweep_holds_every_cell(model, tmp_path):
    texts = ["guidance_scale=1,3", "num_steps=2,4"]
    data = end(sweep(request(model, tmp_path / "o"), texts))
    assert [(c["guidance_scale"], c["num_steps"]) for c in data["cells"]] == [
        ("1", "2"), ("1", "4"), ("3", "2"), ("3", "4")
    ]  # fmt: skip
    assert [c["passes"] for c in data["cells"]] == [2, 4, 4, 8]
    assert [c["plugin"]["options"]["num_steps"] for c in data["cells"]] == [2, 4, 2, 4]
    assert json.loads((tmp_path / "o" / "sweep.json").read_text())["sampler"]["package"] == "mpdit"
    picture = Image.open(tmp_path / "o" / "sweep.png")
    for scale in (1.0, 3.0):
        for steps in (2, 4):
            assert all(cut(picture, x) for x in images(model, guidance_scale=scale, num_steps=steps))
    assert not cut(picture, images(model, guidance_scale=2.0)[0])
    assert json.loads((tmp_path / "o" / "sweep.json").read_text())["view"] == "sweep"


def test_sweeps_of_sampler_options_words_and_intervals():
    (axis,) = read_sweeps(["guidance-interval=0:1,0.1:0.8"])
    assert axis.values == ((0.0, 1.0), (0.1, 0.8))
    assert with_value(SMALL, "guidance_interval", (0.1, 0.8)).guidance_interval == (0.1, 0.8)
    assert with_value(SMALL, *(lambda a: (a.key, a.values[0]))(read_sweeps(["classes=3,7"])[0])).classes == "3"
    assert with_value(SMALL, "grid", "cosine").sampler_options == {"grid": "cosine"}


# Trajectories


def test_a_trajectory_ends_in_the_samples_and_predicts_data(model, tmp_path):
    generation = prepare(model, SMALL, device=CPU)
    states = returned(follow(generation))
    assert [round(s.t, 3) for s in states] == [1.0, 0.667, 0.333, 0.0]
    assert torch.equal(states[-1].x_t, states[-1].data)
    assert (states[-1].x_t.int() - images(model).int()).abs().max() <= 1
    with torch.no_grad():
        noise, _ = generation.noise([0, 1])
        predicted = noise - generation.velocity([0, 1])(noise, torch.ones(1))
    assert torch.equal(states[0].data, generation.decode(predicted))
    end(trajectory(request(model, tmp_path / "o", sampler="heun-sde")))
    with Image.open(tmp_path / "o" / "trajectory.gif") as moving:
        assert moving.n_frames == 4
    assert Image.open(tmp_path / "o" / "trajectory.png").height > 4 * 80


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
    data = end(interpolate(request(model, tmp_path / "o", num_samples=3, sampler=sampler), "1,4"))
    assert data["classes"] == [1, 4]
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
    points = TrainingPoints(folder, prepare(model, SMALL, device=CPU), "latents")
    queries = torch.cat([points.at([5]), points.at([9], flip=True)]) + 1e-3
    found = returned(search(points, queries, k=3, task="t"))
    assert found.index[:, 0].tolist() == [5, 9]
    assert found.mirrored[1, 0]
    assert found.distance[:, 0].tolist() == pytest.approx([1e-3, 1e-3], rel=1e-2)
    moments, _ = folder.batch(range(len(folder)))
    every = standardise(moments.chunk(2, dim=1)[0], model.latents.normalisation).flatten(1)
    both = torch.stack([every, every.unflatten(1, (16, 16)).flip(-1).flatten(1)])
    expected = (both - queries[0]).square().mean(-1).sqrt().amin(0).sort().values[:3]
    assert torch.allclose(found.distance[0].float(), expected, atol=1e-5)
    left = returned(search(points, queries[:1], k=1, task="t", leave_out=[5]))
    assert left.index[0, 0] != 5


@pytest.mark.parametrize(("kept", "passes"), [(2**30, 1), (0, 2)])
def test_pixels_are_decoded_once_as_far_as_they_can_be_kept(model, latents, tmp_path, monkeypatch, kept, passes):
    monkeypatch.setattr("mpdit_core.sampling.views.nearest.KEPT", kept)
    decoded = []
    original = PixelAutoencoder.decode
    monkeypatch.setattr(PixelAutoencoder, "decode", lambda self, x: (decoded.append(len(x)), original(self, x))[1])
    data = end(nearest(request(model, tmp_path / "o"), "pixels", latents))
    of_samples, of_neighbours, drawn = 2, 2, 2 * 4
    assert sum(decoded) == of_samples + passes * 2 * len(LatentFolder(latents)) + of_neighbours + drawn
    assert np.shape(data["neighbours"]) == (2, 4)


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_nearest_draws_what_it_found(model, latents, tmp_path, space):
    data = end(nearest(request(model, tmp_path / "o"), space, latents))
    assert np.shape(data["neighbours"]) == (2, 4)
    assert all(row == sorted(row) for row in data["distances"])
    picture = Image.open(tmp_path / "o" / "nearest.png")
    assert all(cut(picture, x) for x in images(model))


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
    assert "no terminal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sweep", "num_steps"], "KEY=V1,V2"),
        (["--sweep", "num_steps=1,2", "--sweep", "num_steps=3"], "twice"),
        (["--sweep", "num_steps=1", "--sweep", "seed=1", "--sweep", "guidance_scale=1"], "two"),
        (["--sweep", "num_steps=1,many"], "num_steps"),
        (["--sweep", "girdd=cosine"], "girdd"),
        (["--sweep", "batch_size=1,2"], "same for a whole sheet"),
        (["--sweep", "sampler=euler,eular"], "did you mean euler"),
        (["--sweep", "num_steps=1,2", "-n", "1000"], "smaller --num-samples"),
        (["--trajectory", "-n", "1000"], "smaller --num-samples"),
        (["--trajectory", "--interpolate", "0,1"], "one of them"),
        (["--trajectory", "--format", "npz"], "--format npz"),
        (["--trajectory", "--nproc", "2"], "--nproc"),
        (["--interpolate", "1"], "two different"),
        (["--interpolate", "1,1"], "two different"),
        (["--interpolate", "0,1", "-n", "1"], "two ends"),
        (["--nearest", "latents"], "--latents DIR"),
        (["--nearest", "latents", "--latents", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(model, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(model.path), "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(model, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("all of it")
    assert main(["sample", str(model.path), "--device", "cpu", "--trajectory", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]
