"""`sample`: what an image depends on, what survives a kill, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time

import numpy as np
import pytest
import torch
from data_helpers import save_autoencoder
from PIL import Image
from safetensors.torch import load_file
from sample_helpers import NAMES, spec, write_model

from mpdit_cli.app import main
from mpdit_core.data.manifest import AutoencoderSpec, Normalisation
from mpdit_core.errors import UserError
from mpdit_core.flow.guidance import Guidance, GuidedVelocity
from mpdit_core.model.blocks import ModulationLayer
from mpdit_core.reporting import Result
from mpdit_core.runtime.distributed import World
from mpdit_core.sampling.decode_precision import choose_decode_precision
from mpdit_core.sampling.generator import SampleOptions, generate, prepare
from mpdit_core.sampling.job import SampleRequest, sample
from mpdit_core.sampling.labels import read_classes, spread

CPU = torch.device("cpu")
SMALL = SampleOptions(num_samples=10, batch_size=4, num_steps=4, guidance_scale=2.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def latents(model, *, rank=0, size=1, **changes):
    options = SMALL.model_copy(update=changes)
    batches = list(generate(model, options, device=CPU, world=World(rank, size), decode=False))
    return {i: x for b in batches for i, x in zip(b.indices, b.latents, strict=True)}


def run(model, tmp_path, options=SMALL, **request):
    wanted = SampleRequest(model=str(model.path), options=options, device="cpu", **request)
    *_, last = sample(wanted)
    assert isinstance(last, Result)
    return last.data


# What an image depends on


@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama"])
def test_bit_equal_for_any_number_of_processes_and_threads(model, sampler):
    alone = latents(model, sampler=sampler)
    parts = latents(model, sampler=sampler, rank=0, size=2) | latents(model, sampler=sampler, rank=1, size=2)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    threaded = latents(model, sampler=sampler)
    torch.set_num_threads(before)
    assert sorted(alone) == sorted(parts) == list(range(10))
    for i, x in alone.items():
        assert torch.equal(x, parts[i])
        assert torch.equal(x, threaded[i])


@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama"])
def test_nearly_equal_for_another_batch_size_or_count(model, sampler):
    alone = latents(model, sampler=sampler)
    for other in (latents(model, sampler=sampler, batch_size=7), latents(model, sampler=sampler, num_samples=5)):
        for i, x in other.items():
            assert torch.allclose(x, alone[i], atol=1e-4)


def test_seed_index_label_and_guidance_matter(model):
    alone = latents(model)
    assert not torch.allclose(alone[0], latents(model, seed=1)[0], atol=1e-2)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    assert not torch.allclose(alone[0], latents(model, classes="3")[0], atol=1e-4)
    assert not torch.allclose(alone[0], latents(model, guidance_scale=1.0)[0], atol=1e-4)


def test_bfloat16_stays_close(model):
    narrow, wide = latents(model, precision="bfloat16"), latents(model)
    error = torch.stack([(narrow[i] - wide[i]).abs().mean() for i in wide]).mean()
    assert 0 < error < 2e-2
    assert narrow[0].dtype == torch.float32


def test_evaluations_are_counted(model):
    def counts(**changes):
        batch = next(generate(model, SMALL.model_copy(update=changes), device=CPU, world=World(), decode=False))
        return batch.nfe, batch.passes, batch.saved

    assert counts() == (4, 8, 0)
    assert counts(guidance_scale=1.0) == (4, 4, 0)
    assert counts(guidance_interval=(0.4, 0.8)) == (4, 6, 2)  # of t = 1, 0.75, 0.5, 0.25 two lie within
    assert counts(sampler="heun") == (8, 16, 0)


@pytest.mark.parametrize("as_dit", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama", "dpm"])
def test_time_and_modulation_are_computed_once_an_evaluation(model, tmp_path, as_dit, sampler):
    """Guided: one pass of both halves together; time and shared modulation as one row for all images.

    As in DiT, where the class is added to the time and every block has its own modulation: once a block.
    """
    folder = write_model(tmp_path / "m", class_tokens=0, modulation="per-block") if as_dit else model
    generation = prepare(folder, SMALL.model_copy(update={"sampler": sampler}), device=CPU, decode=False)
    network = generation.network
    rows: dict[str, list[int]] = {"network": [], "time": [], "modulation": []}
    blocks = sum(len(stage.blocks) for stage in network.stages)

    def note(name):
        return lambda _module, inputs, _output: rows[name].append(len(inputs[0]))

    network.register_forward_hook(note("network"))
    network.time_embedding.register_forward_hook(note("time"))
    for module in network.modules():
        if isinstance(module, ModulationLayer):
            module.register_forward_hook(note("modulation"))
    _, velocity = generation.latents([0, 1, 2])
    assert velocity.nfe == SMALL.num_steps
    assert rows["network"] == [6] * SMALL.num_steps
    assert rows["time"] == [1] * SMALL.num_steps
    assert rows["modulation"] == ([6] * (SMALL.num_steps * (blocks + 1)) if as_dit else [1] * SMALL.num_steps)


def test_interval_and_full_guidance_agree_where_both_guide(model):
    full = Guidance(scale=3.0)
    part = Guidance(scale=3.0, interval=(0.3, 0.6))
    network = model.load()
    x, labels = torch.randn(2, 1, 16, 16), torch.tensor([1, 2])

    def at(guidance, t):
        return GuidedVelocity(network, labels, null_label=10, guidance=guidance)(x, torch.tensor([t]))

    with torch.no_grad():
        assert torch.equal(at(full, 0.5), at(part, 0.5))
        assert torch.equal(at(Guidance(), 0.7), at(part, 0.7))
        assert not torch.allclose(at(full, 0.7), at(part, 0.7))


def test_guidance_is_the_stated_combination(model):
    network, x, t = model.load(), torch.randn(2, 1, 16, 16), torch.tensor([0.4])
    labels, null = torch.tensor([1, 2]), torch.tensor([10, 10])
    with torch.no_grad():
        cond, none = network(x, t, labels), network(x, t, null)
        guided = GuidedVelocity(network, labels, null_label=10, guidance=Guidance(scale=2.5))(x, t)
    assert torch.allclose(guided, none + 2.5 * (cond - none), atol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_keep_the_mean_scale(schedule):
    guidance = Guidance(scale=3.0, schedule=schedule)
    assert np.mean([guidance.scale_at((i + 0.5) / 1000) for i in range(1000)]) == pytest.approx(3.0, abs=1e-3)


def test_autoguidance(model, tmp_path):
    weak = write_model(tmp_path / "weak", seed=5)
    guided = latents(model, guide=str(weak.path))
    assert not torch.allclose(guided[0], latents(model)[0], atol=1e-3)
    same = latents(model, guide=str(model.path))  # away from itself: nothing
    assert torch.allclose(same[0], latents(model, guidance_scale=1.0)[0], atol=1e-4)


# Labels


def labels_of(text, count=10, seed=0, names=NAMES):
    rule = read_classes(text, class_names=names, num_classes=len(names), seed=seed)
    return [rule(i) for i in range(count)]


def test_labels():
    assert labels_of("all", 12) == [*range(10), 0, 1]
    assert labels_of("3,1", 4) == [3, 1, 3, 1]
    assert labels_of("Two, nine", 3) == [2, 9, 2]
    assert labels_of("goldfish,1", 2) == [5, 1]
    assert labels_of("goldfish, carassius auratus", 2) == [5, 5]
    assert labels_of("random", seed=1) == labels_of("random", seed=1) != labels_of("random", seed=2)


def test_all_classes_are_balanced_and_spread():
    assert sorted(spread(1000)) == list(range(1000))
    assert max(spread(1000)[:16]) > 800
    assert spread(10) == tuple(range(10))


@pytest.mark.parametrize(("text", "says"), [("10", "0 to 9"), ("fife", "five|fish|nine|did|names"), ("crane", "6, 7")])
def test_unknown_and_ambiguous_classes(text, says):
    with pytest.raises(UserError, match=says):
        labels_of(text)


# Decoding


def test_decoding_in_bfloat16_only_within_one_level(tmp_path, monkeypatch):
    """By an autoencoder of Stable Diffusion's form, thin and random, whose pixels spread as images do."""
    at = AutoencoderSpec(id=str(save_autoencoder(tmp_path / "kl")), factor=8, channels=4)
    normalisation = Normalisation(name="measured", mean=(0.0,) * 4, std=(1 / 0.18215,) * 4)
    latents = spec().model_copy(update={"resolution": 128, "autoencoder": at, "normalisation": normalisation})
    model = write_model(tmp_path / "m", latents=latents, channels=4)
    float32 = prepare(model, SMALL, device=CPU)
    bfloat16 = prepare(model, SMALL.model_copy(update={"precision": "bfloat16"}), device=CPU)
    assert [g.autoencoder.decode_precision for g in (float32, bfloat16)] == ["float32", "bfloat16"]
    x, _ = float32.noise([0, 1])
    wide, narrow = float32.decode(x).float(), bfloat16.decode(x).float()
    assert wide.std() > 20
    assert 0 < (wide - narrow).abs().mean() <= 1
    monkeypatch.setattr("mpdit_core.sampling.decode_precision.LARGEST_DIFFERENCE", 0.1)
    assert choose_decode_precision(bfloat16.autoencoder, latents) == "float32"
    assert bfloat16.autoencoder.decode_precision == "bfloat16"  # only asked


# What is written


def test_png(model, tmp_path):
    data = run(model, tmp_path, out=tmp_path / "o")
    files = sorted((tmp_path / "o" / "images").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(10)]
    batches = list(generate(model, SMALL, device=CPU, world=World()))
    expected = torch.cat([b.images for b in batches])
    assert np.array_equal(np.asarray(Image.open(files[9])).transpose(2, 0, 1), expected[9])
    assert Image.open(data["grid"]).width > 10 * 72
    assert not (tmp_path / "o" / ".progress").exists()
    assert (data["images"], data["nfe"], data["passes"]) == (10, 4, 8)


def test_npz_and_latents(model, tmp_path):
    run(model, tmp_path, out=tmp_path / "n", format="npz")
    run(model, tmp_path, out=tmp_path / "p")
    run(model, tmp_path, out=tmp_path / "l", format="latents")
    with np.load(tmp_path / "n" / "samples.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (10, 16, 16, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == list(range(10))
    assert np.array_equal(images[7], np.asarray(Image.open(tmp_path / "p" / "images" / "000007.png")))
    parts = [load_file(f) for f in sorted((tmp_path / "l" / "latents").iterdir())]
    assert torch.cat([p["indices"] for p in parts]).tolist() == list(range(10))
    assert torch.equal(torch.cat([p["latents"] for p in parts])[8], latents(model)[8])


def test_by_class(model, tmp_path):
    run(model, tmp_path, out=tmp_path / "o", by_class=True)
    assert (tmp_path / "o" / "images" / "0005-goldfish_Carassius_auratus" / "000005.png").is_file()


def test_default_folders_never_overwrite(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [run(model, tmp_path)["out"] for _ in range(2)] == ["samples/tiny-1", "samples/tiny-2"]


def test_finished_samples_are_left_alone(model, tmp_path):
    run(model, tmp_path, out=tmp_path / "o")
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "o").rglob("*") if f.is_file()}
    run(model, tmp_path, out=tmp_path / "o")
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "o").rglob("*") if f.is_file()}


def test_goes_on_where_it_stopped(model, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(model, tmp_path, out=whole)
    events = sample(SampleRequest(model=str(model.path), options=SMALL, out=part, device="cpu"))
    while len(list(part.glob(".progress/*.json"))) < 2:
        next(events)
    events.close()
    kept = part / "images" / "000001.png"
    stamp = kept.stat().st_mtime_ns
    (part / "images" / "000005.png").write_bytes(b"")  # as a power cut would leave it
    run(model, tmp_path, out=part)
    assert kept.stat().st_mtime_ns == stamp
    for file in (whole / "images").iterdir():
        assert file.read_bytes() == (part / "images" / file.name).read_bytes()


def forked(work, *arguments):
    """A child that need not import torch again. It is forked without torch's threads, which a fork does not carry."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def test_survives_sigkill(model, tmp_path):
    out = tmp_path / "o"
    options = SampleOptions(num_samples=64, batch_size=4, num_steps=20)
    child = forked(lambda: run(model, tmp_path, options, out=out, format="npz"))
    deadline = time.monotonic() + 60
    while len(list(out.glob(".progress/*.json"))) < 3:
        assert child.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not (out / "samples.npz").exists()
    done = {f: f.stat().st_mtime_ns for f in out.glob(".progress/*.json")}
    assert 3 <= len(done) < 16
    run(model, tmp_path, options, out=out, format="npz")
    fresh = torch.cat([b.images for b in generate(model, options, device=CPU, world=World())])
    with np.load(out / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"].transpose(0, 3, 1, 2), fresh)


def typed(arguments, said):
    """The command line in this process, with what it prints in the file `said`."""
    with open(said, "w", buffering=1) as sys.stdout:
        sys.argv = ["mpdit", *arguments]
        sys.exit(main(arguments))


@pytest.mark.parametrize("format_", ["png", "latents"])
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(model, tmp_path, asked, format_):
    out, said = tmp_path / "o", tmp_path / "said.txt"
    arguments = ["sample", str(model.path), "-n", "62", "--batch-size", "4", "--num-steps", "20", "--device", "cpu"]
    arguments += ["--format", format_, "--out"]
    child = forked(typed, [*arguments, str(out)], said)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".progress/*.json"))) < 3:
        assert child.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, asked)
    child.join(30)
    assert child.exitcode == 128 + asked
    assert said.read_text().splitlines()[-1].endswith(f"To go on: mpdit {' '.join([*arguments, str(out)])}")
    assert 3 <= len(list(out.glob(".progress/*.json"))) < 16
    assert main([*arguments, str(out)]) == main([*arguments, str(tmp_path / "whole")]) == 0
    files = {file.name: file.read_bytes() for file in content(out, format_)}
    assert files == {file.name: file.read_bytes() for file in content(tmp_path / "whole", format_)}
    assert len(files) == (62 if format_ == "png" else 16)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def content(out, format_):
    return (out / ("images" if format_ == "png" else format_)).iterdir()


def as_rank(rank, port, model, out):
    """What torchrun sets for a process of a group of two, and the command in it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = ["sample", str(model.path), "-n", "10", "--batch-size", "4", "--num-steps", "4", "--device", "cpu"]
    sys.exit(main([*arguments, "--guidance-scale", "2", "--out", str(out), "--format", "latents"]))


def test_two_processes(model, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [forked(as_rank, rank, port, model, tmp_path / "two") for rank in (0, 1)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    alone = latents(model)
    files = sorted((tmp_path / "two" / "latents").iterdir())
    assert len(files) == 3
    for file in files:
        part = load_file(file)
        for i, x in zip(part["indices"].tolist(), part["latents"], strict=True):
            assert torch.equal(x, alone[i])


# What is refused: one message, exit 2, nothing written


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--classes", "elephant"], "no class of this name"),
        (["--classes", "10"], "0 to 9"),
        (["--sampler", "eular"], "did you mean euler"),
        (["--set", "gird=cosine"], "gird"),
        (["--set", "num_steps=3"], "--num-steps"),
        (["--guidance-interval", "0.8,0.1"], "LO <= HI"),
        (["--guidance-interval", "half"], "two times"),
        (["--guide", "nowhere"], "nowhere"),
        (["--device", "tpu"], "--device"),
        (["--nproc", "none"], "--nproc"),
        (["-n", "0"], "num-samples"),
    ],
)
def test_mistakes(model, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(model.path), "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_models_that_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "runs/none"]) == 2
    torn = write_model(tmp_path / "torn")
    weights = torn.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["sample", str(torn.path)]) == 2
    assert "torn" in capsys.readouterr().err
    bare = write_model(tmp_path / "bare", latents=False)
    assert main(["sample", str(bare.path), "--device", "cpu"]) == 2
    assert "--format latents" in capsys.readouterr().err
    assert main(["sample", str(bare.path), "--device", "cpu", "--format", "latents", "--num-steps", "2"]) == 0


def test_changed_options_and_foreign_folders(model, tmp_path, capsys):
    out = tmp_path / "o"
    run(model, tmp_path, out=out)
    manifest = (out / "samples.json").read_text()
    where = ["sample", str(model.path), "--device", "cpu", "--out", str(out)]
    assert main([*where, "-n", "10", "--batch-size", "4", "--num-steps", "5", "--guidance-scale", "2"]) == 2
    assert "sampler.options.num_steps: 4 → 5" in capsys.readouterr().err
    assert (out / "samples.json").read_text() == manifest
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("all of it")
    assert main([*where[:-1], str(foreign)]) == 2
    assert [f.name for f in foreign.iterdir()] == ["thesis.txt"]


def test_nan_is_reported(tmp_path, capsys):
    broken = write_model(tmp_path / "broken")
    weights = load_file(broken.path / "model.safetensors")
    from safetensors.torch import save_file

    save_file({k: v * float("nan") for k, v in weights.items()}, broken.path / "model.safetensors")
    code = main(["sample", str(broken.path), "--device", "cpu", "--num-steps", "2", "--out", str(tmp_path / "o")])
    assert code == 2
    assert "NaN" in capsys.readouterr().err


def test_json_holds_the_result(model, tmp_path, capsys):
    out = str(tmp_path / "o")
    assert main(["sample", str(model.path), "--device", "cpu", "--num-steps", "2", "--out", out, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["images"], last["nfe"], last["out"]) == ("result", 16, 2, out)
