"""`sample`: what is written, how it is continued, what is refused."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from precision_helpers import make_auto_mean
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sample_helpers import code_of, images_of, latents_of, run_sample, sample_options, write_model

from mpdit_cli.app import main
from mpdit_core.errors import Interrupted, UserError
from mpdit_core.reporting import Note, Progress, Saved, Warning
from mpdit_core.runtime.signals import StopRequest
from mpdit_core.sampling import SampleSet, sample


def stamps(folder):
    return {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


# What is written


def test_png(model, tmp_path):
    result = run_sample(model, out=tmp_path / "o")
    files = sorted((tmp_path / "o" / "images").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(10)]
    assert np.array_equal(np.asarray(Image.open(files[9])), images_of(model)[9, 0])
    assert result.grid
    assert Image.open(result.grid).width > 10 * 72
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["grid.png", "images", "samples.json"]
    assert (result.images, result.nfe, result.passes, result.saved) == (10, 4, 8, 0)
    assert (result.precision, result.decode_precision, result.step) == ("float32", "float32", 7)
    assert result.sampler["options"]["num_steps"] == 4


def test_npz_and_latents(model, tmp_path):
    run_sample(model, out=tmp_path / "n", format="npz")
    run_sample(model, out=tmp_path / "p")
    assert run_sample(model, out=tmp_path / "l", format="latents").grid is None
    with np.load(tmp_path / "n" / "samples.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (10, 16, 16, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == list(range(10))
    png = Image.open(tmp_path / "p" / "images" / "000007.png").convert("RGB")
    assert np.array_equal(images[7], np.asarray(png))
    parts = [load_file(f) for f in sorted((tmp_path / "l" / "latents").iterdir())]
    assert torch.cat([p["indices"] for p in parts]).tolist() == list(range(10))
    assert torch.equal(torch.cat([p["latents"] for p in parts])[8], latents_of(model)[8])


def test_by_class(model, tmp_path):
    run_sample(model, out=tmp_path / "o", by_class=True)
    assert (tmp_path / "o" / "images" / "0005-goldfish_Carassius_auratus" / "000005.png").is_file()


APG = {"norm_threshold": 5.0, "momentum": -0.5}  # the defaults


def test_the_record_of_a_set(model, tmp_path):
    weak = write_model(tmp_path / "weak", seed=5)
    rules = {"sampler": "heun", "sampler_options": {"grid": "cosine"}, "guidance": "apg"}
    run_sample(model, out=tmp_path / "o", **rules, guidance_options={"eta": 0.5}, guide=str(weak.path))
    made = SampleSet.open(tmp_path / "o")
    assert made.counts
    assert (made.path, made.format, made.num_samples, made.counts.nfe) == (tmp_path / "o", "png", 10, 8)
    assert (made.options.sampler, made.options.num_steps, made.options.guidance_scale) == ("heun", 4, 2.0)
    assert made.options.sampler_options == {"grid": "cosine", "shift": None, "rho": 7.0}
    assert (made.options.guidance, made.options.guidance_options) == ("apg", {"eta": 0.5, **APG})
    assert (made.sampler.name, made.sampler.package) == ("heun", "mpdit")
    assert (made.model.step, made.model.weights_sha256, made.model.dtype) == (7, model.weights_sha256, "float32")
    assert made.guide == weak.weights_sha256
    assert made.latents == model.latents


def test_what_is_reported(model, tmp_path):
    events = []
    sample(sample_options(model, out=tmp_path / "o"), report=events.append)
    assert [type(event) for event in events if not isinstance(event, Progress)] == [Note, Saved, Saved]
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert (progress[0], progress[-1]) == (0, 10)
    assert progress == sorted(progress)


# How it is continued


def test_default_folders_never_overwrite(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(run_sample(model).out) for _ in range(2)] == ["samples/tiny-1", "samples/tiny-2"]


def test_finished_samples_are_left_alone(model, tmp_path):
    first = run_sample(model, out=tmp_path / "o")
    before = stamps(tmp_path / "o")
    assert run_sample(model, out=tmp_path / "o") == first
    assert before == stamps(tmp_path / "o")


@pytest.mark.parametrize("stop", [Interrupted(15), KeyboardInterrupt()])
def test_continues_where_it_stopped(model, tmp_path, monkeypatch, stop):
    monkeypatch.chdir(tmp_path)
    part = tmp_path / "samples" / "tiny-1"

    def interrupt(event):
        if isinstance(event, Progress) and event.done >= 8:
            raise stop

    with pytest.raises(type(stop)):
        sample(sample_options(model), report=interrupt)
    assert not SampleSet.open(part).complete
    kept = part / "images" / "000001.png"
    stamp = kept.stat().st_mtime_ns
    (part / "images" / "000005.png").write_bytes(b"")  # as a power cut would leave it
    assert run_sample(model).out.resolve() == part
    assert kept.stat().st_mtime_ns == stamp
    whole = run_sample(model, out=tmp_path / "whole").samples
    for file in whole.iterdir():
        assert file.read_bytes() == (part / "images" / file.name).read_bytes()
    assert sorted(path.name for path in part.iterdir()) == ["grid.png", "images", "samples.json"]


def test_a_continued_set_keeps_the_types_it_began_with(model, tmp_path, monkeypatch):
    def interrupt(event):
        if isinstance(event, Progress) and event.done >= 8:
            raise Interrupted(15)

    make_auto_mean(monkeypatch, "bfloat16")
    with pytest.raises(Interrupted):
        sample(sample_options(model, out=tmp_path / "part"), report=interrupt)
    whole = run_sample(model, out=tmp_path / "whole")
    make_auto_mean(monkeypatch, "float32")
    part = run_sample(model, out=tmp_path / "part")
    assert part.precision == whole.precision == "bfloat16"
    for file in whole.samples.iterdir():
        assert file.read_bytes() == (part.samples / file.name).read_bytes()
    assert run_sample(model, out=tmp_path / "new").precision == "float32"


def test_a_failing_write_ends_the_job_and_keeps_what_was_written(model, tmp_path, monkeypatch):
    from mpdit_core.sampling.writers import PngWriter

    write = PngWriter.write

    def fail_at_the_second(self, batch):
        if batch.number == 1:
            raise UserError("no space left", code="disk-full")
        write(self, batch)

    monkeypatch.setattr(PngWriter, "write", fail_at_the_second)
    assert code_of(run_sample, model, out=tmp_path / "o") == "disk-full"
    assert (tmp_path / "o" / ".progress" / "000000.json").is_file()
    assert not (tmp_path / "o" / ".lock").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_looked_at_between_blocks(model, tmp_path, signum):
    sent = []

    def send_once(event):  # while signals are remembered: before and after, they mean what they mean elsewhere
        remembered = isinstance(getattr(signal.getsignal(signum), "__self__", None), StopRequest)
        if isinstance(event, Progress) and remembered and not sent:
            sent.append(event.done)
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        sample(sample_options(model, out=tmp_path / "o", num_samples=80), report=send_once)
    assert caught.value.signum == signum
    assert signal.getsignal(signum) == before
    assert list(tmp_path.glob("o/.progress/*.json"))  # the block under way was finished
    run_sample(model, out=tmp_path / "o", num_samples=80)


DAMAGES = ["", "[]", "null", "{", "[" * 10**5, '{"images": "4"}', '{"images": -4, "nfe": 1, "passes": 1, "saved": 0}',
           '{"images": 4, "nfe": 8, "passes": 8, "saved": 0, "x": 1}',
           '{"images": 3, "nfe": 8, "passes": 8, "saved": 0}']  # fmt: skip


@pytest.mark.parametrize("format_", ["png", "npz", "latents"])
def test_damaged_markers_and_blocks_are_made_again(model, tmp_path, monkeypatch, format_):
    out, whole = tmp_path / "o", run_sample(model, out=tmp_path / "whole", format=format_)

    def stop(event):
        if isinstance(event, Progress) and event.done == 10:
            raise KeyboardInterrupt

    folder = out / ".progress"
    block = {
        "png": out / "images/000001.png",
        "npz": folder / "000000.npz",
        "latents": out / "latents/000000.safetensors",
    }
    for damage in DAMAGES:
        with pytest.raises(KeyboardInterrupt):
            sample(sample_options(model, out=out, format=format_), report=stop)
        (folder / "000001.json").write_text(damage)
        for name in ("abc", "12", "000077", "9" * 40, "²"):
            (folder / f"{name}.json").write_text(damage)
        if not (folder / "000002.json").is_dir():
            (folder / "000002.json").unlink()
            (folder / "000002.json").mkdir()
        block[format_].write_bytes(block[format_].read_bytes()[: len(damage) % 60])
    made = run_sample(model, out=out, format=format_)
    assert (made.images, made.nfe, made.passes) == (whole.images, whole.nfe, whole.passes)
    files = lambda result: {p.name: p.read_bytes() for p in [result.samples, *result.samples.glob("*")] if p.is_file()}  # noqa: E731
    if format_ != "npz":  # whose archive holds the time
        assert files(made) == files(whole)
    assert not folder.exists()


@pytest.mark.parametrize("samples", ["", "[]", "{}", '{"format": 2}', '{"format": 2, "samples": []}', "[" * 10**5,
                                     '{"format": 2, "samples": {"num_samples": 1e999}}'])  # fmt: skip
def test_a_damaged_record_of_samples_is_refused(model, tmp_path, samples):
    (tmp_path / "samples.json").write_text(samples)
    assert code_of(run_sample, model, out=tmp_path) in ("damaged-file", "unknown-format")
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]


@pytest.mark.parametrize("format_", ["png", "npz", "latents"])
def test_a_folder_that_is_deleted_ends_in_one_message_and_can_be_sampled_again(model, tmp_path, format_):
    out = tmp_path / "o"

    def delete(event):
        if isinstance(event, Progress) and event.done >= 4 and not (tmp_path / "gone").exists():
            out.rename(tmp_path / "gone")

    options = sample_options(model, out=out, format=format_, num_samples=60)
    assert code_of(sample, options, report=delete) in ("folder-gone", "cannot-write")
    (out / ".progress").mkdir(parents=True, exist_ok=True)
    (out / ".lock.owner").write_text("process 7")
    (out / "images").mkdir(exist_ok=True)  # made again by a write that was under way
    (out / "images" / "000001.png").write_bytes(b"torn")
    assert run_sample(model, out=out, format=format_).images == 10


def test_what_a_kill_left_of_a_complete_set_is_cleaned(model, tmp_path):
    run_sample(model, out=tmp_path / "o", format="npz")
    (tmp_path / "o" / ".progress").mkdir()
    (tmp_path / "o" / ".progress" / "000000.npz").write_bytes(b"a second copy")
    run_sample(model, out=tmp_path / "o", format="npz")
    assert not (tmp_path / "o" / ".progress").exists()


FULL = {  # as versions of safetensors say it
    "npz": 'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space" }',
    "latents": "Error while serializing: I/O error: No space left on device (os error 28)",
}


@pytest.mark.parametrize("format_", FULL)
def test_a_full_disk_is_one_message(model, tmp_path, monkeypatch, format_):
    def full(*_given, **_more):
        raise SafetensorError(FULL[format_])

    monkeypatch.setattr("mpdit_core.sampling.writers.save_file" if format_ == "latents" else "numpy.savez", full)
    assert code_of(run_sample, model, out=tmp_path / "o", format=format_) == "disk-full"


def test_options_without_effect_are_said(model, tmp_path):
    def said(**changes):
        events = []
        sample(sample_options(model, **changes), report=events.append)
        return [event.text for event in events if isinstance(event, Warning) and event.code == "option-without-effect"]

    (text,) = said(out=tmp_path / "a", guidance_scale=1.0, guidance_schedule="linear", guidance_interval=(0.1, 0.9))
    assert "guidance_interval, guidance_schedule" in text
    assert "by_class" in said(out=tmp_path / "b", format="npz", by_class=True)[0]
    assert said(out=tmp_path / "c", guidance_schedule="linear") == []


# What is refused: one message with a code, nothing written


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"classes": "elephant"}, "no-such-class"),
        ({"guidance_interval": (0.8, 0.1)}, "invalid-value"),
        ({"format": "npz", "trajectory": True}, "conflicting-options"),
        ({"by_class": True, "trajectory": True}, "conflicting-options"),
        ({"interpolate": (0, 1), "trajectory": True}, "conflicting-options"),
    ],
)
def test_mistakes(model, tmp_path, changes, code):
    assert code_of(run_sample, model, out=tmp_path / "o", **changes) == code
    assert not list(tmp_path.iterdir())


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sampler", "eular"],
        ["--set", "sampler.gird=cosine"],
        ["--set", "gird=cosine"],
        ["--guidance-interval", "half"],
        ["--guidance", "apgg"],
        ["--guidance", "apg", "--set", "guidance.theta=1"],
        ["--guide", "nowhere"],
        ["--nproc", "none"],
        ["--trajectory", "--nproc", "2"],
        ["--set", "sampler.shift=3"],
    ],
)
def test_mistakes_on_the_command_line(model, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(model.path), "--device", "cpu", "--json", *arguments]) == 2
    error = last_line(capsys)
    assert error["event"] == "error"
    assert "defect" not in error
    assert not list(tmp_path.iterdir())


def test_the_command_line_and_set_reach_the_options(model, tmp_path, capsys):
    arguments = ["sample", str(model.path), "--device", "cpu", "-n", "2", "--json", "--out", str(tmp_path / "o")]
    arguments += ["--guidance-interval", "0.1,0.8", "--set", "sampler.grid=cosine", "--set", "classes=3"]
    arguments += ["--guidance", "apg", "--set", "guidance.eta=1"]
    assert main([*arguments, "--set", "num_steps=5", "--num-steps", "2"]) == 0
    last = last_line(capsys)
    assert (last["event"], last["images"], last["nfe"], last["out"]) == ("result", 2, 2, str(tmp_path / "o"))
    options = SampleSet.open(tmp_path / "o").options
    assert (options.guidance_interval, options.classes, options.num_steps) == ((0.1, 0.8), "3", 2)
    assert options.sampler_options["grid"] == "cosine"
    assert (options.guidance, options.guidance_options) == ("apg", {"eta": 1.0, **APG})


def test_a_person_sees_a_summary(model, tmp_path, capsys):
    arguments = ["sample", str(model.path), "--device", "cpu", "-n", "2", "--num-steps", "2", "--out"]
    assert main([*arguments, str(tmp_path / "o"), "--guidance-scale", "2", "--guidance-interval", "0.1,0.8"]) == 0
    said = capsys.readouterr().out
    for label in ("where", "sampler", "guidance", "cost", "speed"):
        assert f"  {label}" in said


def test_models_that_are_not(tmp_path):
    torn = write_model(tmp_path / "torn")
    weights = torn.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert code_of(run_sample, torn, out=tmp_path / "o")
    bare = write_model(tmp_path / "bare", latents=False)
    assert code_of(run_sample, bare, out=tmp_path / "o") == "no-autoencoder"
    assert not (tmp_path / "o").exists()
    assert run_sample(bare, out=tmp_path / "o", format="latents").images == 10


def test_changed_options_and_foreign_folders(model, tmp_path):
    out = tmp_path / "o"
    run_sample(model, out=out)
    before = stamps(out)
    with pytest.raises(UserError, match=r"options.num_steps: 4 → 5") as caught:
        run_sample(model, out=out, num_steps=5)
    assert caught.value.code == "different-samples"
    other = write_model(tmp_path / "other", seed=9)
    assert code_of(run_sample, other, out=out) == "different-samples"
    assert run_sample(model, out=out, compile="off").out == out  # compiled or not, the samples are the same
    assert stamps(out) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("all of it")
    assert code_of(run_sample, model, out=foreign) == "folder-not-empty"
    assert [f.name for f in foreign.iterdir()] == ["thesis.txt"]


def test_another_version_of_the_record_is_refused(model, tmp_path):
    for version in (1, 3):
        folder = tmp_path / str(version)
        folder.mkdir()
        (folder / "samples.json").write_text(json.dumps({"format": version, "complete": True, "identity": {}}))
        assert code_of(SampleSet.open, folder) == "unknown-format"
        assert code_of(run_sample, model, out=folder) == "unknown-format"
    (folder / "samples.json").write_text(json.dumps({"format": 2, "samples": {"format": "gif"}}))
    assert code_of(SampleSet.open, folder) == "damaged-file"
    assert code_of(SampleSet.open, tmp_path) == "no-such-file"


@pytest.mark.parametrize("complete", [True, False])
def test_a_sampler_whose_package_is_gone_is_named(model, tmp_path, monkeypatch, complete):
    monkeypatch.chdir(tmp_path)
    record = run_sample(model).out / "samples.json"
    stored = json.loads(record.read_text())
    stored["samples"]["options"]["sampler"] = "mine"
    stored["samples"]["sampler"] |= {"name": "mine", "package": "mine-pkg"}
    stored["samples"] |= {} if complete else {"counts": None}
    record.write_text(json.dumps(stored))
    for out in (None, record.parent):
        assert code_of(run_sample, model, sampler="mine", out=out) == "other-package"


def test_nan_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("MPDIT_VERIFY", "off")  # the weights are changed behind their recorded hash
    broken = write_model(tmp_path / "broken")
    weights = load_file(broken.path / "model.safetensors")
    save_file({k: v * float("nan") for k, v in weights.items()}, broken.path / "model.safetensors")
    assert code_of(run_sample, broken, out=tmp_path / "o") == "not-finite"
