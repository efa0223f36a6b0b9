"""`encode_latents` with a teacher: what is stored beside the latents, that it resumes, is checked, and is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import encode, image_folder, refused, shard_hashes
from PIL import Image
from safetensors.numpy import load_file
from teacher_helpers import TEACHER, Cells, feature_hashes

from mpdit_core.data.images import prepare
from mpdit_core.data.latents import LatentFolder
from mpdit_core.data.manifest import MANIFEST, normalisation_of
from mpdit_core.data.standardising import standardise
from mpdit_core.encoding.folder import TeacherFolder
from mpdit_core.encoding.teacher.store import measure_projection
from mpdit_core.encoding.teacher.teachers import to_tokens
from mpdit_core.errors import Interrupted
from mpdit_core.reporting import Progress
from mpdit_core.size import Size


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


@pytest.fixture
def plain(images: Path, tmp_path: Path) -> Path:
    return encode(images, tmp_path / "out").latents


def expected_tokens(picture: np.ndarray) -> np.ndarray:
    """What the teacher of the helpers gives: means of 4 × 4 pixels, and a ramp along the columns: [4, 4]."""
    cells = picture.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3)).reshape(4, 3)
    return np.concatenate([cells, np.array([[0.5], [2.5], [0.5], [2.5]])], axis=1)


def test_features_lie_beside_the_latents(images: Path, plain: Path):
    """Added to a finished folder: the latents stay as they are, and rows and mirror images are those of the latents."""
    before = {p.name: p.stat().st_mtime_ns for p in plain.glob("shard-*")}
    result = encode(images, plain, teacher=TEACHER)
    assert (result.teacher, result.teacher_shape, result.encoded_now) == (TEACHER, (4, 4), 0)
    assert before == {p.name: p.stat().st_mtime_ns for p in plain.glob("shard-*")}
    assert not (plain / "teacher").exists()
    folder = LatentFolder(plain)
    stored = load_file(plain / "teacher-00001.safetensors")
    assert {name: (x.shape, x.dtype) for name, x in stored.items()} == dict.fromkeys(
        ("features", "features_flipped"), ((4, 4, 4), np.dtype("float16"))
    )
    picture = prepare(Image.open(images / "bee/2.png"), Size.square(8))
    batch = folder.batch([7, 0, 7], flip=[False, True, True], teacher=True)
    assert batch.teacher is not None
    assert batch.teacher.dtype == torch.float16
    assert np.allclose(batch.teacher[0], expected_tokens(picture), rtol=1e-3)
    assert np.allclose(batch.teacher[2], expected_tokens(picture[:, ::-1].copy()), rtol=1e-3)
    assert folder.batch([7]).teacher is None
    plan = folder.teacher.plan
    assert (plan.grid, plan.fingerprint, plan.options) == (Size(2, 2), "cells", {"ramp": True})
    assert folder.spec.teacher == plan.hash() != ""
    assert folder.spec.fingerprint == result.fingerprint == encode(images, plain.with_name("other")).fingerprint


def test_mirrored_maps_are_not_stored_twice(images: Path, plain: Path):
    encode(images, plain, teacher=TEACHER, teacher_options={"ramp": False})
    folder = LatentFolder(plain)
    assert not folder.teacher.plan.flip
    picture = prepare(Image.open(images / "bee/2.png"), Size.square(8))
    batch = folder.batch([7, 7], flip=[False, True], teacher=True)
    assert batch.teacher is not None
    for features, seen in zip(batch.teacher, (picture, picture[:, ::-1].copy()), strict=True):
        assert np.allclose(features[:, :3], expected_tokens(seen)[:, :3], rtol=1e-3)


def test_latents_are_their_own_teacher(images: Path, plain: Path):
    encode(images, plain, teacher="latents")
    folder = LatentFolder(plain)
    norm = normalisation_of("measured", folder.manifest.measured_mean, folder.manifest.measured_std)
    batch = folder.batch([3, 3], flip=[False, True], teacher=True)
    latents = standardise(batch.mean, norm)
    assert batch.teacher is not None
    assert batch.teacher.shape == (2, 4, 48)
    upper_right = latents[:, :, :4, 4:].permute(0, 2, 3, 1).flatten(1)  # token 1: patch row, column, channel
    assert torch.allclose(batch.teacher[:, 1].float(), upper_right, atol=2e-3)


def test_features_of_fewer_dimensions(images: Path, plain: Path):
    encode(images, plain, teacher="latents", teacher_dims=5)
    folder = LatentFolder(plain)
    few, directions = folder.batch(range(15), teacher=True).teacher, load_file(plain / "teacher-projection.safetensors")
    encode(images, plain, teacher="latents", replace_teacher=True)
    every = LatentFolder(plain).batch(range(15), teacher=True).teacher
    assert few is not None
    assert every is not None
    expected = every.float() @ torch.from_numpy(directions["directions"])
    assert torch.allclose(few.float(), expected, atol=2e-2)
    assert not (plain / "teacher-projection.safetensors").exists()


def test_a_projection_keeps_what_it_can():
    """The best of its rank: the squares that it loses are the smallest eigenvalues; directions are orthonormal."""
    torch.manual_seed(0)
    features = torch.randn(40, 3, 6) * torch.tensor([5.0, 4, 3, 0.2, 0.1, 0.1]) + 2
    directions, share = measure_projection(features, 3)
    assert torch.allclose(directions.T @ directions, torch.eye(3), atol=1e-5)
    kept = (features @ directions).square().sum() / features.square().sum()
    assert share == pytest.approx(kept.item(), rel=1e-5)
    assert share == pytest.approx(
        (torch.linalg.svdvals(features.flatten(0, 1))[:3] ** 2).sum() / features.square().sum()
    )
    assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("dims", [None, 2])
def test_a_stop_keeps_finished_features(images: Path, tmp_path: Path, dims: int | None):
    """Stopped after each batch in turn, the same command ends with the bytes of an undisturbed one."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    given: dict[str, Any] = {"teacher": TEACHER, "teacher_dims": dims, "shard_size": 2}
    encode(images, whole, **given)
    stops = 0
    for _ in range(20):

        def stop(event: object) -> None:
            if isinstance(event, Progress) and event.task == "teacher" and event.done > 2:
                raise Interrupted(2)

        try:
            encode(images, out, report=stop, **given)
            break
        except Interrupted:
            stops += 1
            assert len(list(out.glob("teacher/shard-*.json"))) >= stops
            assert LatentFolder(out).manifest.teacher is None  # the latents can be read meanwhile
    assert stops >= 3
    assert feature_hashes(out) == feature_hashes(whole)
    assert json.loads((out / MANIFEST).read_text())["teacher"] == json.loads((whole / MANIFEST).read_text())["teacher"]


def test_bytes_do_not_depend_on_batch_size_or_threads(images: Path, tmp_path: Path):
    one = encode(images, tmp_path / "one", teacher=TEACHER, teacher_dims=3, workers=1)
    two = encode(images, tmp_path / "two", teacher=TEACHER, teacher_dims=3, workers=3, batch_size=4)
    assert feature_hashes(one.latents) == feature_hashes(two.latents)


def test_skipped_images_have_no_features(images: Path, tmp_path: Path):
    faulty = images / "bee/3.png"
    good = faulty.read_bytes()
    faulty.write_bytes(b"no picture" + good[10:])
    out = encode(images, tmp_path / "out", on_error="skip", teacher=TEACHER).latents
    batch = LatentFolder(out).batch([8], teacher=True)  # bee/4, behind the faulty one
    picture = prepare(Image.open(images / "bee/4.png"), Size.square(8))
    assert batch.teacher is not None
    assert np.allclose(batch.teacher[0], expected_tokens(picture), rtol=1e-3)


def test_an_image_that_was_repaired_is_named(images: Path, tmp_path: Path):
    """Its size and time are kept, so that the source has the same fingerprint."""
    for name in ("bee/2.png", "bee/3.png"):
        status, good = (images / name).stat(), (images / name).read_bytes()
        (images / name).write_bytes(b"no picture" + good[10:])
        os.utime(images / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    out = encode(images, tmp_path / "out", on_error="skip").latents
    (images / name).write_bytes(good)
    os.utime(images / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    with refused("faulty-image", "bee/3.png"):
        encode(images, out, on_error="skip", teacher=TEACHER)


def test_verify_finds_damaged_features_and_the_next_run_makes_them_again(images: Path, plain: Path):
    encode(images, plain, teacher=TEACHER)
    whole, latents = feature_hashes(plain), shard_hashes(plain)
    path = plain / "teacher-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with refused("damaged-shards", "teacher-00002.safetensors", "1 of 4"):
        encode(images, plain, verify=True)
    with refused("no-such-file", "teacher-00002"):
        LatentFolder(plain).batch([8], teacher=True)
    assert LatentFolder(plain).batch([8]).teacher is None  # who needs no teacher is not disturbed
    encode(images, plain, teacher=TEACHER)
    assert (feature_hashes(plain), shard_hashes(plain)) == (whole, latents)
    encode(images, plain, teacher=TEACHER, verify=True)


def test_a_repair_that_was_killed_after_a_file_and_before_its_record(images: Path, plain: Path):
    """The file may differ from the one in the manifest in its bits, though not in its size: it is made again."""
    encode(images, plain, teacher=TEACHER)
    whole, path = feature_hashes(plain), plain / "teacher-00002.safetensors"
    folder = TeacherFolder(plain)
    folder.begin(LatentFolder(plain).teacher.plan, {n: shard for n, shard in folder.shards().items() if n != 2})
    path.write_bytes(bytes(path.stat().st_size))
    encode(images, plain, teacher=TEACHER)
    assert feature_hashes(plain) == whole


def test_records_that_are_not_complete_do_not_replace_the_manifest(images: Path, plain: Path):
    """A process was killed while it began or ended: the features that the manifest lists are not made again."""
    encode(images, plain, teacher=TEACHER)
    (plain / "teacher").mkdir()
    assert TeacherFolder(plain).is_complete
    assert len(TeacherFolder(plain).shards()) == len(LatentFolder(plain).teacher.shards)


def test_space_for_new_features_is_required_with_verify_too(images: Path, plain: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr("mpdit_core.runtime.files.free_bytes", lambda path: 100)
        with refused("disk-full"):
            encode(images, plain, teacher=TEACHER, verify=True)
    encode(images, plain, teacher=TEACHER, verify=True)
    monkeypatch.setattr("mpdit_core.runtime.files.free_bytes", lambda path: 0)
    encode(images, plain, teacher=TEACHER, verify=True)  # checks alone


def test_verify_computes_features_again(images: Path, plain: Path, monkeypatch: pytest.MonkeyPatch):
    encode(images, plain, teacher=TEACHER, teacher_dims=3)
    whole = Cells.feature_map
    monkeypatch.setattr(Cells, "feature_map", lambda self, images: 1.02 * whole(self, images))
    with refused("damaged-shards", "teacher-00000", "image 0 ", "4 of 4"):
        encode(images, plain, teacher=TEACHER, teacher_dims=3, verify=True)


def test_repaired_latents_keep_their_features(images: Path, plain: Path):
    encode(images, plain, teacher=TEACHER)
    whole = feature_hashes(plain)
    (plain / "shard-00001.safetensors").unlink()
    encode(images, plain)
    assert LatentFolder(plain).batch([5], teacher=True).teacher is not None
    assert feature_hashes(plain) == whole


def test_refusals(images: Path, plain: Path, tmp_path: Path):
    with refused("no-such-plugin"):
        encode(images, plain, teacher="efficientnett")
    with refused("no-teacher", "digits-pixels"):
        encode(images, plain, teacher="digits-pixels")
    with refused("grid-does-not-fit", "3 × 3"):
        encode(images, plain, teacher="latents", teacher_patch_size=3)
    with refused("invalid-value", "48"):
        encode(images, plain, teacher="latents", teacher_dims=48)
    with refused("option-does-not-apply", "teacher_dims"):
        encode(images, plain, teacher_dims=3)
    encode(images, plain, teacher="latents")
    whole = feature_hashes(plain)
    with refused("settings-changed", "grid"):
        encode(images, plain, teacher="latents", teacher_patch_size=2)
    assert feature_hashes(plain) == whole
    encode(images, plain, teacher="latents", teacher_patch_size=2, replace_teacher=True)
    assert LatentFolder(plain).teacher.plan.stored_shape == (16, 12)
    encode(images, plain, teacher="latents", teacher_dims=5, replace_teacher=True)
    (plain / "teacher-projection.safetensors").unlink()
    with refused("damaged-file", "teacher-projection"):
        encode(images, plain, teacher="latents", teacher_dims=5)
    encode(images, plain, teacher="latents", teacher_dims=5, replace_teacher=True)


def test_maps_are_averaged_or_interpolated_to_the_grid():
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 4, 8)
    assert to_tokens(ramp, Size(2, 4)).flatten().tolist() == [0.5, 2.5, 4.5, 6.5] * 2
    finer = to_tokens(ramp, Size(4, 16)).view(4, 16)
    assert torch.allclose(finer[0, 1:-1], torch.arange(0.25, 6.9, 0.5))
