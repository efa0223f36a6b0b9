"""`mpdit ls`: lists what is under a folder. Torch-free; it reads records only, and neither changes nor hashes a file.

To add a kind: its file in `_kind`, a function that reads it in `READERS`, and its name in `options.Kind`.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mpdit_core.data.manifest import MANIFEST, read_manifest
from mpdit_core.errors import UserError
from mpdit_core.evaluation import EvaluationRecord, is_sweep
from mpdit_core.models.run_folder import RunFolder, step_of
from mpdit_core.reporting import Reporter, silent
from mpdit_core.sampling import SampleSet, SamplingOptions
from mpdit_core.workspace.options import Entry, Kind, Listing, ListOptions

DEPTH = 2  # `runs/digits-1` and `latents/digits-16`, seen from the working directory
EVALS = "evals"
SWEEP = "sweep.json"  # in a folder of runs, which is searched at any depth
RESTORE = "restore it from a copy, or remove it"


def list_workspace(options: ListOptions, *, report: Reporter = silent) -> Listing:  # noqa: ARG001 - a job takes a reporter
    """Lists everything under `options.folder`, newest first. A damaged entry is not an error: it is listed as damaged.

    Raises:
        UserError: there is no such folder (`no-such-folder`).
    """
    if not options.folder.is_dir():
        raise UserError(
            f"{options.folder} is not a folder", code="no-such-folder", expected="a folder to search",
            remedy="mpdit ls DIR",
        )  # fmt: skip
    entries = [_entry(kind, path) for kind, path in _found(options.folder, DEPTH)]
    evaluations = defaultdict(list)
    for entry in entries:
        if entry.kind == "evaluation" and entry.distance is not None:
            evaluations[entry.path.parent].append(entry)
    entries = [_with_lowest(entry, evaluations.get(entry.path / EVALS, [])) for entry in entries]
    entries.sort(key=lambda entry: entry.changed, reverse=True)
    damaged = sum(entry.status == "damaged" for entry in entries)
    return Listing(folder=options.folder, entries=tuple(entries), damaged=damaged)


def _found(folder: Path, depth: int) -> Iterator[tuple[Kind, Path]]:
    """What is in `folder`, and the folder itself if it is a run, latents or samples; hidden folders are left out."""
    kind = _kind(folder)
    if kind:
        yield kind, folder
    if kind == "run" or folder.name == EVALS:
        for path in sorted((folder / EVALS if kind == "run" else folder).glob("*.json")):
            if not is_sweep(path):
                yield "evaluation", path
    elif kind is None and (depth > 0 or (folder / SWEEP).is_file()):
        with os.scandir(folder) as children:
            folders = sorted(folder / child.name for child in children if _is_open(child))
        for child in folders:
            yield from _found(child, depth - 1)


def _is_open(child: os.DirEntry) -> bool:
    """Whether it is a folder that is not hidden and that this user may read."""
    try:
        return child.name[0] != "." and child.is_dir() and os.access(child, os.R_OK | os.X_OK)
    except OSError:  # a link that the system cannot follow
        return False


def _kind(folder: Path) -> Kind | None:
    """What the folder is, by files that only this kind has; they may be damaged."""
    if (folder / "run.json").is_file() or (RunFolder.exists(folder) and (folder / "checkpoints").is_dir()):
        return "run"
    if (folder / "encoding" / "plan.json").is_file() or (
        (folder / MANIFEST).is_file() and any(folder.glob("shard-*.safetensors"))
    ):
        return "latents"
    return "samples" if SampleSet.is_at(folder) else None


def _entry(kind: Kind, path: Path) -> Entry:
    files = [status for file in [path, *path.rglob("*")] if (status := _status(file)) is not None]
    changed = max((status.st_mtime for status in files), default=0.0)
    facts: dict[str, Any] = {
        "kind": kind,
        "path": path,
        "changed": datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        "bytes": sum(status.st_size for status in files),
    }
    try:
        return Entry(**facts, **READERS[kind](path))
    except UserError as error:
        status = "unfinished" if error.code.startswith("unfinished") else "damaged"
        return Entry(**facts, status=status, problem=error.what, remedy=error.remedy or RESTORE)


def _status(path: Path) -> os.stat_result | None:
    """Size and times of a regular file; None for anything else, and for a file that was just deleted."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _run(path: Path) -> dict[str, Any]:
    run = RunFolder(path)
    config, spec = run.config(), run.latents()
    last = next((line for line in run.newest_metrics() if "loss" in line), {"step": 0})
    newest = next(reversed(run.checkpoint_folders()), None)
    step = max(last["step"], step_of(newest) if newest else 0) or None  # a stopped run saves between two lines
    return {
        "preset": config.preset,
        "of": Path(spec.folder).name,
        "step": step,
        "images_seen": step and step * config.train.batch_size,
        "loss": last.get("loss"),
        **_fault_of_checkpoint(newest),
    }


def _fault_of_checkpoint(newest: Path | None) -> dict[str, Any]:
    """What is wrong with a run's newest checkpoint; empty if nothing is."""
    if newest is None:
        return {}
    torn = [file for file in {newest / "model.safetensors", *newest.rglob("*.safetensors")} if not _is_whole(file)]
    if not torn and (newest / "config.json").is_file():
        return {}
    file = min(torn, default=newest / "config.json")
    remedy = f"restore it, or remove {newest} to continue from the checkpoint before it"
    return {"status": "damaged", "problem": f"{file} is missing or incomplete", "remedy": remedy}


def _is_whole(file: Path) -> bool:
    """Whether a .safetensors file has the length that its header gives."""
    try:
        with safe_open(file, "np"):
            return True
    except (OSError, SafetensorError):
        return False


def _latents(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    shape = " × ".join(map(str, manifest.plan.latent_shape))
    names = manifest.plan.class_names
    classes = f"{len(names):,} classes" if names else "without classes"
    facts = {"images": manifest.count, "about": f"{manifest.plan.resolution} px, {shape}, {classes}"}
    found = {shard.file: _status(path / shard.file) for shard in manifest.shards}
    sizes = {file: status.st_size for file, status in found.items() if status is not None}
    bad = [shard.file for shard in manifest.shards if sizes.get(shard.file) != shard.bytes]
    if not bad:
        return facts
    remedy = "run the `mpdit encode-latents` command of this folder again, first with --verify, then without"
    problem = f"{path / bad[0]} is missing or incomplete" + (f", and {len(bad) - 1} more" if bad[1:] else "")
    return facts | {"status": "damaged", "problem": problem, "remedy": remedy}


def _samples(path: Path) -> dict[str, Any]:
    found = SampleSet.open(path)
    facts: dict[str, Any] = {
        "preset": found.model.preset,
        "step": found.model.step,
        "images": found.num_samples,
        "of": Path(found.model.path).name,
        "about": _in_short(found.sampler.name, found.options),
    }
    if not found.complete:
        remedy = "run the same `mpdit sample` command again; it resumes where it stopped"
        facts |= {"status": "unfinished", "problem": f"the samples in {path} are not complete", "remedy": remedy}
    return facts


def _in_short(sampler: str, options: SamplingOptions) -> str:
    guided = f", guidance scale {options.guidance_scale:g}" if options.guidance_scale != 1 else ""
    return f"{sampler}, {options.num_steps} steps{guided}"


def _evaluation(path: Path) -> dict[str, Any]:
    record = EvaluationRecord.read(path)
    distance = record.value("fid")
    return {
        "preset": record.model.preset if record.model else None,
        "step": record.model.step if record.model else None,
        "images": record.count,
        "of": record.what,
        "about": _in_short(record.sampling.sampler.name, record.sampling.options) if record.sampling else "",
        "distance": distance if isinstance(distance, float) else None,
        "distance_name": "FID" if record.is_fid else record.extractor.plugin.name,
    }


def _with_lowest(entry: Entry, evaluations: list[Entry]) -> Entry:
    """A run with the lowest distance of its `evaluations`: the lowest FID if it has one, as FIDs are comparable."""
    if entry.kind != "run" or not evaluations:
        return entry
    _, name, lowest = min((each.distance_name != "FID", each.distance_name, each.distance) for each in evaluations)
    return entry.model_copy(update={"distance": lowest, "distance_name": name})


READERS: dict[Kind, Callable[[Path], dict[str, Any]]] = {
    "run": _run,
    "latents": _latents,
    "samples": _samples,
    "evaluation": _evaluation,
}
