"""`mpdit report RUN [RUN…]`: one HTML page about a run, compared with other runs.

The page contains its curves and previews, so that it opens offline and can be sent by mail. Its templates are
page.html.j2, page.css.j2 and page.js.j2; their values come from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mpdit_core.config import RunConfig
from mpdit_core.evaluation import EvaluationRecord
from mpdit_core.reporting import Reporter, Saved, silent
from mpdit_core.run_report.charts import COLOURS
from mpdit_core.run_report.curves import figures
from mpdit_core.run_report.options import ReportOptions, ReportResult
from mpdit_core.run_report.run import Run, facts_of, read_run
from mpdit_core.run_report.verdicts import verdicts_on
from mpdit_core.runtime import files
from mpdit_core.settings import flatten, to_toml
from mpdit_core.version import __version__


def write_report(options: ReportOptions, *, report: Reporter = silent) -> ReportResult:
    """Writes the page to `options.out`, by default `RUN/report.html`.

    Raises:
        UserError: as `read_run`, or the page cannot be written.
    """
    folders = [options.run, *options.others]
    names = names_of(folders)
    runs = [read_run(folder, names[n], number=n, report=report) for n, folder in enumerate(folders)]
    facts = [facts_of(run.config, run.history) for run in runs]
    verdicts = [verdicts_on(run) for run in runs]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("page.html.j2").render(
        runs=runs,
        colours=COLOURS,
        facts={key: [of_run[key] for of_run in facts] for key in facts[0]},
        verdicts=verdicts,
        differences=differences([run.config for run in runs]),
        figures=figures(runs),
        evaluations=[_evaluation(run, record) for run in runs for record in run.records],
        configurations={run.name: to_toml(run.config) for run in runs},
        version=__version__,
    )
    path = options.out or options.run / "report.html"
    files.write_text(path, text)
    report(Saved(what="report", path=path))
    return ReportResult(
        report=path,
        facts=facts[0],
        verdicts=verdicts[0],
        evaluations=sum(len(run.records) for run in runs),
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for each run: the name of its folder, with its parent folders if two names are the same."""
    paths = [folder.resolve() for folder in folders]
    parts = 1
    while parts < 4 and len({path.parts[-parts:] for path in paths}) < len(set(paths)):
        parts += 1
    return ["/".join(path.parts[-parts:]) for path in paths]


def differences(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """The settings that differ between the runs: by key, the value in each run."""
    flat = [{key: str(value) for key, value in flatten(config.model_dump(mode="json")).items()} for config in configs]
    values = {key: [of_run.get(key, "") for of_run in flat] for key in flat[0]}
    return {key: of_runs for key, of_runs in values.items() if len(set(of_runs)) > 1}


def _evaluation(run: Run, record: EvaluationRecord) -> dict[str, Any]:
    """The run, name, figures and protocol of an evaluation, for the page."""
    figures = {}
    for key, label in record.labels.items():
        value, interval = record.metrics.get(key), record.metrics.get(f"{key}_interval")
        if isinstance(value, int | float):
            bar = " [{:.4g}, {:.4g}]".format(*interval) if isinstance(interval, tuple) else ""
            figures[label] = f"{value:.4g}{bar}"
    values = flatten(record.model_dump(mode="json", exclude={"metrics"}))
    return {
        "run": run,
        "name": record.path.stem,
        "step": record.step,
        "count": record.count,
        "figures": figures,
        "protocol": {key: str(value) for key, value in values.items()},
    }
