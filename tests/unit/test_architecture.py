"""What the layers of pyproject.toml cannot say: no import cycle, jobs used through their faces only, small rooms.

docs/architecture.md describes the tree.
"""

from __future__ import annotations

from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
MAX_FILES = 13
FACES = {
    "mpdit_core.demo", "mpdit_core.doctor", "mpdit_core.encoding", "mpdit_core.evaluation", "mpdit_core.interop",
    "mpdit_core.plugins", "mpdit_core.profiling", "mpdit_core.run_report", "mpdit_core.sampling", "mpdit_core.training",
    "mpdit_core.workspace", "mpdit_core.data.autoencoders", "mpdit_core.data.sources", "mpdit_core.samplers",
    "mpdit_core.testing",
}  # fmt: skip
"""Packages that others use only through what their `__init__` names, and through their `options`."""


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("mpdit_core", "mpdit_cli", exclude_type_checking_imports=True)


def imported_by(module: str) -> list[str]:
    return sorted(graph().find_modules_directly_imported_by(module))


def faced(module: str) -> str | None:
    """The package with a face that holds the module."""
    return next((face for face in FACES if f"{module}.".startswith(f"{face}.")), None)


def test_jobs_are_used_through_their_faces():
    through_the_back = [
        f"{importer} -> {imported}"
        for importer in sorted(graph().modules)
        for imported in imported_by(importer)
        if (face := faced(imported)) is not None
        and not f"{importer}.".startswith(f"{face}.")
        and imported != face
        and not imported.endswith(".options")
    ]
    assert through_the_back == []


def test_imports_have_no_cycle():
    sorter = TopologicalSorter({module: imported_by(module) for module in graph().modules})
    sorter.prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("package", ["mpdit_core", "mpdit_cli"])
def test_no_room_is_too_large(package: str):
    folders = {path.parent for path in (ROOT / package).rglob("*.py")} - {ROOT / package}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MAX_FILES} == {}


def test_plugins_import_the_contract_alone():
    """Our packages in plugins/ import what any plugin may; exempt is the playground, a program on top of mpdit."""
    for path in sorted((ROOT / "plugins").glob("*/mpdit_*/**/*.py")):
        if "mpdit-playground" in path.parts:
            continue
        lines = [line.split()[1] for line in path.read_text(encoding="utf-8").splitlines()
                 if line.strip().startswith(("from mpdit_", "import mpdit_"))]  # fmt: skip
        foreign = {line for line in lines if not line.startswith(path.relative_to(ROOT / "plugins").parts[1])}
        assert foreign <= {"mpdit_core.api", "mpdit_core.testing"}, path
