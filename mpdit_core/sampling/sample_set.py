"""The folder a set of samples is written to, and how it grows so that a killed job can go on.

    samples.json               what was asked for, of which model; `complete`, and then the counts
    images/000012.png          --format png (with --by-class: images/<class>/000012.png)
    samples.npz                --format npz: arr_0 uint8 [N, H, W, 3], arr_1 int64 [N] labels, as ADM's evaluator reads
    latents/000003.safetensors --format latents: a block's latents [n, C, h, w], labels and indices
    grid.png                   the first images, labelled
    .progress/000003.json      a finished block; removed with the last

A block's marker is written after the block, so what is marked is there. To add a format: a class as `Writer` below, and
a line in `WRITERS`.
"""

# ruff: noqa: ARG002 - every format is told what some need

from __future__ import annotations

import fcntl
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mpdit_core import __version__
from mpdit_core.errors import UserError
from mpdit_core.pictures import tile
from mpdit_core.runtime import files
from mpdit_core.sampling.generator import SampleBatch

Format = Literal["png", "npz", "latents"]
MANIFEST, PROGRESS = "samples.json", ".progress"
ENCODERS = 4


class Writer:
    """Writes blocks in some format; whatever it leaves under a final name is whole."""

    needs_images = True

    def __init__(self, out: Path, *, count: int, class_names: list[str], by_class: bool):
        self.out, self.count, self.class_names, self.by_class = out, count, class_names, by_class

    def write(self, batch: SampleBatch) -> None:
        raise NotImplementedError

    def is_there(self, block: int, indices: list[int], labels: list[int]) -> bool:
        """Whether the files of a marked block still are (a power cut may lose what a kill cannot)."""
        raise NotImplementedError

    def finish(self, num_blocks: int) -> Path:
        """Called once, by rank 0, when all blocks are there. Returns what to show for it."""
        raise NotImplementedError

    def image(self, index: int, label: int, *, batch_size: int) -> np.ndarray | None:
        """Image `index`, uint8 [3, H, W], read back; None where the format has none."""
        raise NotImplementedError


class PngWriter(Writer):
    def path(self, index: int, label: int) -> Path:
        folder = self.out / "images"
        return (folder / self.class_folder(label) if self.by_class else folder) / f"{index:06d}.png"

    def class_folder(self, label: int) -> str:
        slug = re.sub(r"[^\w.-]+", "_", self.class_names[label]).strip("_.")[:60]
        return slug if slug == str(label) else f"{label:04d}-{slug}"

    def write(self, batch: SampleBatch) -> None:
        assert batch.images is not None
        paths = [self.path(i, label) for i, label in zip(batch.indices, batch.labels, strict=True)]
        with files.user_errors(self.out / "images"):
            for folder in {path.parent for path in paths}:
                folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(ENCODERS) as pool:
                list(pool.map(_write_png, batch.images.numpy(), paths))

    def is_there(self, block: int, indices: list[int], labels: list[int]) -> bool:
        paths = [self.path(i, label) for i, label in zip(indices, labels, strict=True)]
        return all(path.is_file() and path.stat().st_size > 0 for path in paths)

    def finish(self, num_blocks: int) -> Path:
        return self.out / "images"

    def image(self, index: int, label: int, *, batch_size: int) -> np.ndarray | None:
        with Image.open(self.path(index, label)) as picture:
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


class NpzWriter(Writer):
    def block_path(self, block: int) -> Path:
        return self.out / PROGRESS / f"{block:06d}.npz"

    def write(self, batch: SampleBatch) -> None:
        assert batch.images is not None
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        with files.writing(self.block_path(batch.block)) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=pixels, arr_1=np.asarray(batch.labels, dtype=np.int64))

    def is_there(self, block: int, indices: list[int], labels: list[int]) -> bool:
        return self.block_path(block).is_file() and self.block_path(block).stat().st_size > 0

    def finish(self, num_blocks: int) -> Path:
        """One block in memory at a time; for a moment the images are on the disk twice."""
        path = self.out / "samples.npz"
        with np.load(self.block_path(0)) as first:
            shape = (self.count, *first["arr_0"].shape[1:])
        with (
            files.writing(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            for name, descr, full_shape in (("arr_0", "|u1", shape), ("arr_1", "<i8", (self.count,))):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": descr, "fortran_order": False, "shape": full_shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    for block in range(num_blocks):
                        with np.load(self.block_path(block)) as part:
                            member.write(part[name].tobytes())
        return path

    def image(self, index: int, label: int, *, batch_size: int) -> np.ndarray | None:
        with np.load(self.block_path(index // batch_size)) as part:
            return part["arr_0"][index % batch_size].transpose(2, 0, 1)


class LatentsWriter(Writer):
    needs_images = False

    def block_path(self, block: int) -> Path:
        return self.out / "latents" / f"{block:06d}.safetensors"

    def write(self, batch: SampleBatch) -> None:
        import torch
        from safetensors.torch import save_file

        tensors = {
            "latents": batch.latents.contiguous(),
            "labels": torch.tensor(batch.labels),
            "indices": torch.tensor(batch.indices),
        }
        with files.writing(self.block_path(batch.block)) as temporary:
            save_file(tensors, temporary)

    def is_there(self, block: int, indices: list[int], labels: list[int]) -> bool:
        return self.block_path(block).is_file() and self.block_path(block).stat().st_size > 0

    def finish(self, num_blocks: int) -> Path:
        return self.out / "latents"

    def image(self, index: int, label: int, *, batch_size: int) -> np.ndarray | None:
        return None


WRITERS: dict[Format, type[Writer]] = {"png": PngWriter, "npz": NpzWriter, "latents": LatentsWriter}


def _write_png(image: np.ndarray, path: Path) -> None:
    """Not synced to the disk one by one: a kill cannot tear it, and `is_there` notices what a power cut did."""
    temporary = path.with_name(f".{path.name}.part")
    tile(image).save(temporary, format="PNG")
    temporary.replace(path)


def choose_out(name: str, identity: Mapping[str, Any], root: Path) -> Path:
    """`<root>/<name>-<n>`: the newest unfinished one that was asked for in the same words, else the next free."""
    number = newest(name, root)
    known = read_manifest(root / f"{name}-{number}")
    if known and not known.get("complete") and known.get("identity") == identity:
        return root / f"{name}-{number}"
    return root / f"{name}-{number + 1}"


def newest(name: str, root: Path) -> int:
    """The largest n of the folders `<root>/<name>-<n>`; 0 where there is none."""
    pattern = re.compile(rf"{re.escape(name)}-(\d+)")
    return max((int(m[1]) for path in root.glob("*") if (m := pattern.fullmatch(path.name))), default=0)


def read_manifest(out: Path) -> dict[str, Any]:
    """samples.json of a folder; empty where there is none."""
    return files.read_json(out / MANIFEST) if (out / MANIFEST).is_file() else {}


def open_folder(out: Path, identity: Mapping[str, Any]) -> bool:
    """Makes `out`, or checks that it may be gone on with. Returns whether it is complete already.

    Raises:
        UserError: other files are there, or samples that were asked for otherwise (with what differs).
    """
    known = read_manifest(out)
    if known:
        differing = _differences(known.get("identity", {}), identity)
        if differing:
            raise UserError(
                f"{out} holds samples made otherwise: {'; '.join(differing)}",
                expected="the same model and options, to go on with them",
                remedy="another --out, or none for a new folder" + _reinstall(known["identity"], identity),
            )
        return bool(known.get("complete"))
    with files.user_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} is there and does not hold samples of mpdit",
                expected="a new or empty folder, or one to go on with",
                remedy="another --out",
            )
    files.write_json(out / MANIFEST, {"format": 1, "mpdit": __version__, "complete": False, "identity": dict(identity)})
    return False


def _reinstall(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What to type where another version of the sampler's package is installed than the one begun with."""
    before, now = old.get("sampler"), new["sampler"]
    if not isinstance(before, dict) or before.get("package") != now["package"] or before["version"] == now["version"]:
        return ""
    return f"; or pip install '{before['package']}=={before['version']}' to go on"


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, Mapping):
        return [d for k in sorted(old.keys() | new.keys()) for d in _differences(old.get(k), new.get(k), f"{key}.{k}")]
    return [] if old == new else [f"{key.removeprefix('.')}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the folder while samples are written. Raises `UserError` when another process does."""
    path = out / ".lock"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is writing samples to {out}", remedy="wait for it, or choose another --out"
            ) from None
        yield
        path.unlink(missing_ok=True)


class Progress:
    """The markers of finished blocks, each holding the block's counts."""

    def __init__(self, out: Path):
        self.folder = out / PROGRESS

    def mark(self, batch: SampleBatch) -> None:
        counts = {"images": len(batch.indices), "nfe": batch.nfe, "passes": batch.passes, "saved": batch.saved}
        files.write_json(self.folder / f"{batch.block:06d}.json", counts)

    def done(self) -> dict[int, dict[str, int]]:
        return {int(p.stem): files.read_json(p) for p in sorted(self.folder.glob("[0-9]*.json"))}

    def count(self) -> int:
        return sum(1 for _ in self.folder.glob("[0-9]*.json"))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
