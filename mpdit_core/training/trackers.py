"""Experiment trackers, which also receive a run's metrics: `--set 'train.trackers=["tensorboard"]'`. Off by default.

To add one: a class with `log` and `close` below, a line in `TRACKERS`, its name in `TrainConfig.trackers`, and its
package among the extra `trackers` of pyproject.toml.
"""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mpdit_core.config import RunConfig
from mpdit_core.errors import UserError
from mpdit_core.models.run_folder import RunFolder
from mpdit_core.reporting import Reporter, Warning
from mpdit_core.runtime import files


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], *, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `RUN/trackers/tensorboard`; a resumed run removes the steps after the one that it resumes from."""

    def __init__(self, run: RunFolder, config: RunConfig, *, step: int):
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run.trackers / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            self._writer.add_text("config", f"```json\n{config.model_dump_json(indent=2)}\n```", 0)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of the project `mpdit` under the run folder's name, with local files in `RUN/trackers`.

    Its id is kept there, so that another folder of the same name is another run. Terminal output is not recorded: the
    progress panel would fill the log.
    """

    def __init__(self, run: RunFolder, config: RunConfig, *, step: int):
        kept = run.trackers / "wandb-id.txt"
        name = kept.read_text(encoding="utf-8").strip() if step and kept.exists() else uuid.uuid4().hex[:12]
        files.write_text(kept, name + "\n")
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project="mpdit", name=run.path.name, id=name, dir=str(run.trackers), config=config.model_dump(mode="json"),
            resume="allow" if step else None, settings=wandb.Settings(console="off"),
        )  # fmt: skip

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project `mpdit` under the run folder's name, where trackio keeps its data."""

    def __init__(self, run: RunFolder, config: RunConfig, *, step: int):
        self._trackio: Any = importlib.import_module("trackio")
        self._trackio.init(
            project="mpdit", name=run.path.name, config=config.model_dump(mode="json"),
            resume="allow" if step else "never",
        )  # fmt: skip

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}  # by the name of the package


def require_installed(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker whose package is missing; imports nothing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers contains {name}, whose package is not installed",
                code="missing-package",
                expected=f"the package {name}",
                remedy=f"pip install 'mpdit[trackers]', or leave {name} out of train.trackers",
            )


class Trackers:
    """All trackers of a run. One that fails is left out from then on, with a warning: it must not stop training."""

    def __init__(self, names: Sequence[str], run: RunFolder, config: RunConfig, *, step: int, report: Reporter):
        """Raises `UserError` when one cannot start (not logged in, no network)."""
        self.report = report
        self._open: dict[str, Tracker] = {}
        for name in names:
            try:
                self._open[name] = TRACKERS[name](run, config, step=step)
            except Exception as error:
                raise UserError(
                    f"{name} cannot be started: {type(error).__name__}: {error}",
                    code="tracker-failed",
                    remedy="correct this, or train without trackers: --set train.trackers=[]",
                ) from error

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step=step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._open[name]
                text = f"{name} failed and gets no further metrics: {type(error).__name__}: {error}"
                self.report(Warning(code="tracker-failed", text=text))
