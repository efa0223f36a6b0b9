"""A run's folder. `RunFolder` alone knows the names of the files in it, and how they are written and read.

config.toml                       the resolved configuration
run.json                          version of this format, and the description of the latents
metrics.jsonl                     one line per logged step, and one per evaluation
checkpoints/step-0000400/         model folders with the state of training
ema/step-0000400.safetensors      snapshots of the power-function EMAs (ema_snapshots.py)
samples/step-0000300.png          previews (first EMA); …-raw.png (weights themselves); training.gif
evals/                            records of evaluations
trackers/                         files of TensorBoard and the like
bad-step-….json                   the images of a batch with a bad loss or gradient
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpdit_core.config import RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.runtime import files
from mpdit_core.settings import read_toml, to_toml, validate
from mpdit_core.version import __version__

FORMAT = 3
"""Version of a run's folder; any other is refused."""

CONFIG, ABOUT, METRICS = "config.toml", "run.json", "metrics.jsonl"
MAX_LINE_BYTES = 1_000_000  # bytes of metrics.jsonl; longer lines are not ours
MAX_NUMBER = 2**63  # of a metric; larger ones are left out, as NaN is


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint, snapshot or preview: 400 of `step-0000400.png`."""
    return int(path.stem.removeprefix("step-"))


class RunFolder:
    """The files of one run. The constructor neither reads nor writes anything."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.evals = self.path / "evals"  # records of evaluations
        self.trackers = self.path / "trackers"  # files of TensorBoard and the like
        self.animation = self.path / "samples" / "training.gif"  # of all previews

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is a run at `path`, of whatever format."""
        return (Path(path) / CONFIG).is_file()

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether a new run can be made at `path`: it holds nothing, or only what a start that was killed has left."""
        return not path.exists() or all(file.name[0] == "." or file.name == ABOUT for file in path.iterdir())

    @classmethod
    def next(cls, root: Path, preset: str) -> RunFolder:
        """The next free `root/PRESET-N`."""
        pattern = re.compile(rf"{re.escape(preset)}-(\d+)")
        numbers = [int(match.group(1)) for path in root.glob("*") if (match := pattern.fullmatch(path.name))]
        return cls(root / f"{preset}-{max(numbers, default=0) + 1}")

    def write(self, config: RunConfig, latents: LatentSpec, *, init_from: str | None = None) -> None:
        """Makes the folder, or brings its configuration up to date. `init_from`: the model that it begins with."""
        spec = latents.model_dump(mode="json")
        about = {"format": FORMAT, "mpdit": __version__, "latents": spec, "init_from": init_from}
        files.write_json(self.path / ABOUT, about)
        files.write_text(self.path / CONFIG, to_toml(config))

    def withdraw(self) -> None:
        """Removes what `write` made, of a run that could not begin."""
        for name in (CONFIG, ABOUT):
            files.remove(self.path / name)
        with contextlib.suppress(OSError):  # it held other things before
            self.path.rmdir()

    def config(self) -> RunConfig:
        """The configuration the run was last started with.

        Raises:
            UserError: there is no run here (`not-a-run`), it has another format, or a file is damaged.
        """
        self._about()
        return validate(RunConfig, read_toml(self.path / CONFIG), origin=str(self.path / CONFIG))

    def latents(self) -> LatentSpec:
        """The description of the latents that the run is trained on. Raises `UserError` as `config`."""
        return validate(LatentSpec, self._about().get("latents"), origin=str(self.path / ABOUT))

    def init_from(self) -> str | None:
        """The model whose weights the run began with; None for random ones. Raises `UserError` as `config`."""
        found = self._about().get("init_from")
        return found if isinstance(found, str) else None

    def _about(self) -> dict[str, Any]:
        if not self.exists(self.path):
            raise UserError(
                f"{self.path} is not a run", code="not-a-run", expected=f"a folder with {CONFIG}, made by `mpdit train`"
            )
        return files.read_versioned(
            self.path / ABOUT, "the record of a run", version=FORMAT, remedy="begin another run"
        )

    def require(self) -> None:
        """Raises `UserError` (`no-such-folder`) when the run was removed in the meantime."""
        if not self.exists(self.path):
            raise UserError(
                f"the run {self.path} was removed or moved while it was written to",
                code="no-such-folder",
                expected="a folder that is not moved while the run is written",
                remedy="put it back and resume it, or begin another run",
            )

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl in order, with their finite numbers. Steps never decrease.

        Torn lines and lines without a valid step are left out.
        """
        path = self.path / METRICS
        if not path.is_file():
            return
        with open(path, encoding="utf-8", errors="replace") as lines:
            while text := lines.readline(MAX_LINE_BYTES):
                if text.endswith("\n") and (values := _metrics_of(text)):
                    yield values

    def newest_metrics(self) -> Iterator[dict[str, Any]]:
        """As `metrics`, from the last line to the first: the last is read at once, even from a long file."""
        return (values for _, values in self._newest_lines())

    def _newest_lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """As `newest_metrics`, each with the number of bytes up to its end; read in blocks of `MAX_LINE_BYTES`."""
        path = self.path / METRICS
        if not path.is_file():
            return
        with open(path, "rb") as file:
            start, text = file.seek(0, os.SEEK_END), b""
            while start > 0:
                size = min(start, MAX_LINE_BYTES)
                start = file.seek(start - size)
                text = file.read(size) + text
                first = text.find(b"\n") + 1 if start else 0  # what comes before belongs to a line of the next block
                *lines, torn = text[first:].split(b"\n")
                end = start + len(text) - len(torn)
                for line in reversed(lines):
                    if values := _metrics_of(line):
                        yield end, values
                    end -= len(line) + 1
                text = text[:first] if first <= MAX_LINE_BYTES else b""  # the end of a line that is not ours

    def append_metrics(self, *lines: dict[str, Any]) -> None:
        """Adds lines, each with a `step`: all of them, or none when the disk does not take them (`UserError`)."""
        path = self.path / METRICS
        with files.user_errors(path), open(path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            text = "".join(json.dumps(line) + "\n" for line in lines).encode()
            try:
                while text:
                    text = text[file.write(text) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise

    def truncate_metrics(self, step: int) -> None:
        """Removes the lines after `step`, and a torn one, so that a resumed run writes each line once."""
        path = self.path / METRICS
        if not path.exists():
            return
        with files.user_errors(path), open(path, "r+b") as file:
            file.truncate(next((end for end, values in self._newest_lines() if values["step"] <= step), 0))

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of `step`, which may not exist."""
        return self.path / "checkpoints" / f"step-{step:07d}"

    def checkpoint_folders(self) -> list[Path]:
        """The checkpoints in order of step; model_folder.py tells which are complete."""
        return [path for path in self._by_step("checkpoints") if path.is_dir()]

    def ema_snapshot(self, step: int) -> Path:
        """The snapshot of the power-function EMAs at `step`, which may not exist."""
        return self.path / "ema" / f"step-{step:07d}.safetensors"

    def ema_snapshot_steps(self) -> list[int]:
        """The steps with a snapshot, in order."""
        return [step_of(path) for path in self._by_step("ema", ".safetensors")]

    def remove_ema_snapshots(self, *, after: int) -> None:
        """Deletes the snapshots after step `after`; a run that resumes there writes them again."""
        for step in self.ema_snapshot_steps():
            if step > after:
                files.remove(self.ema_snapshot(step))

    def preview(self, step: int, *, raw: bool = False) -> Path:
        """The preview of `step`, which may not exist; `raw`: of the weights themselves, not of their average."""
        return self.path / "samples" / f"step-{step:07d}{'-raw' if raw else ''}.png"

    def previews(self) -> list[Path]:
        """The previews of the first EMA in order of step."""
        return self._by_step("samples", ".png")

    def _by_step(self, folder: str, suffix: str = "") -> list[Path]:
        """What is called `step-NUMBER` and the suffix in a folder of the run, in order of the number."""
        name = re.compile(rf"step-[0-9]{{1,15}}{re.escape(suffix)}")
        return sorted((p for p in (self.path / folder).glob("step-*") if name.fullmatch(p.name)), key=step_of)

    def __str__(self) -> str:
        return str(self.path)


def _metrics_of(line: str | bytes) -> dict[str, Any] | None:
    """The finite numbers of a line; None for a line without a valid step."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    values = {k: v for k, v in values.items() if type(v) in (int, float) and abs(v) < MAX_NUMBER}  # False for NaN
    return values if isinstance(values.get("step"), int) and values["step"] >= 0 else None
