"""A run's folder. `RunFolder` alone knows what the files in it are called, and how they are written and read.

config.toml                       the resolved configuration
run.json                          version of this format, and what the latents are
metrics.jsonl                     one line per logged step, and one per evaluation
checkpoints/step-0000400/         model folders with the state of training
samples/step-0000300.png          previews (first EMA); …-raw.png (weights as they are); training.gif
evals/                            records of evaluations
trackers/                         files of TensorBoard and the like
bad-step-….json                   the images of a batch whose loss or gradient was bad
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpdit_core import __version__
from mpdit_core.config import RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.errors import UserError
from mpdit_core.runtime import files
from mpdit_core.settings import read_toml, to_toml, validate

FORMAT = 3
"""Version of a run's folder; any other is refused."""

CONFIG, ABOUT, METRICS = "config.toml", "run.json", "metrics.jsonl"
PREVIEW = re.compile(r"step-[0-9]{1,15}\.png")
LONGEST_LINE = 1_000_000  # characters of metrics.jsonl; a longer line is none of ours
LARGEST_NUMBER = 2**63


class RunFolder:
    """The files of one run. Making one neither reads nor writes anything."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is a run at `path`, of whatever format."""
        return (Path(path) / CONFIG).is_file()

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether a new run can be made at `path`: nothing is there, or what a start that was killed has left."""
        return not path.exists() or all(file.name[0] == "." or file.name == ABOUT for file in path.iterdir())

    @classmethod
    def next(cls, root: Path, preset: str) -> RunFolder:
        """The next free `root/PRESET-N`."""
        pattern = re.compile(rf"{re.escape(preset)}-(\d+)")
        numbers = [int(match.group(1)) for path in root.glob("*") if (match := pattern.fullmatch(path.name))]
        return cls(root / f"{preset}-{max(numbers, default=0) + 1}")

    def write(self, config: RunConfig, latents: LatentSpec) -> None:
        """Makes the folder, or brings its configuration up to date."""
        about = {"format": FORMAT, "mpdit": __version__, "latents": latents.model_dump(mode="json")}
        files.write_json(self.path / ABOUT, about)
        files.write_text(self.path / CONFIG, to_toml(config))

    def config(self) -> RunConfig:
        """The configuration the run was last started with.

        Raises:
            UserError: there is no run here (`not-a-run`), it has another format, or a file is damaged.
        """
        self._about()
        return validate(RunConfig, read_toml(self.path / CONFIG), origin=str(self.path / CONFIG))

    def latents(self) -> LatentSpec:
        """What the latents are that the run is trained on. Raises `UserError` as `config`."""
        return validate(LatentSpec, self._about().get("latents"), origin=str(self.path / ABOUT))

    def _about(self) -> dict[str, Any]:
        if not self.exists(self.path):
            raise UserError(
                f"{self.path} is not a run", code="not-a-run", expected=f"a folder with {CONFIG}, made by `mpdit train`"
            )
        about = files.read_json(self.path / ABOUT) if (self.path / ABOUT).is_file() else {}
        if not isinstance(about, dict):
            raise UserError(f"{self.path / ABOUT} is not a valid record of a run", code="damaged-file")
        if about.get("format") != FORMAT:
            raise UserError(
                f"the run {self.path} has format {about.get('format', 1)}",
                code="unknown-format",
                expected=f"format {FORMAT}, which mpdit {__version__} reads",
                remedy=f"use the version that wrote it ({about.get('mpdit', 'an older one')}), or begin another run",
            )
        return about

    def require(self) -> None:
        """Raises `UserError` (`no-such-folder`) when the run was removed while something worked in it."""
        if not self.exists(self.path):
            raise UserError(
                f"the run {self.path} was removed or moved while it was written to",
                code="no-such-folder",
                expected="a folder that is not moved while the run is written",
                remedy="put it back and resume it, or begin another run",
            )

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl in order, with their finite numbers.

        Torn lines, and ones without a possible step, are passed over.
        """
        for _, values in self._metric_lines():
            yield values

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
        """Drops the lines after `step`, and torn ones, so that a resumed run writes each line once."""
        path = self.path / METRICS
        if not path.exists():
            return
        with files.writing(path) as temporary, open(temporary, "w", encoding="utf-8") as kept:
            kept.writelines(text for text, values in self._metric_lines() if values["step"] <= step)

    def _metric_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        path = self.path / METRICS
        if not path.is_file():
            return
        with open(path, encoding="utf-8", errors="replace") as lines:
            while text := lines.readline(LONGEST_LINE):
                try:
                    values = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if not text.endswith("\n") or not isinstance(values, dict):
                    continue
                values = {key: value for key, value in values.items() if _is_number(value)}
                if isinstance(values.get("step"), int) and values["step"] >= 0:
                    yield text, values

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of `step`, there or not."""
        return self.path / "checkpoints" / f"step-{step:07d}"

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints in order of step."""
        from mpdit_core.models.model_folder import find_checkpoints  # torch, only when it is needed

        return find_checkpoints(self.path)[0]

    def preview(self, step: int, *, raw: bool = False) -> Path:
        """The preview of `step`, there or not; `raw`: that of the weights as they are, not of their average."""
        return self.path / "samples" / f"step-{step:07d}{'-raw' if raw else ''}.png"

    def previews(self) -> list[Path]:
        """The previews of the first EMA in order of step."""
        frames = [path for path in (self.path / "samples").glob("step-*.png") if PREVIEW.fullmatch(path.name)]
        return sorted(frames, key=lambda path: int(path.stem.removeprefix("step-")))

    @property
    def animation(self) -> Path:
        """The GIF of all previews."""
        return self.path / "samples" / "training.gif"

    @property
    def evals(self) -> Path:
        """The folder of records of evaluations."""
        return self.path / "evals"

    @property
    def trackers(self) -> Path:
        """The folder of files of TensorBoard and the like."""
        return self.path / "trackers"

    def __str__(self) -> str:
        return str(self.path)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST_NUMBER  # False for NaN
