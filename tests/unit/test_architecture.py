"""What the layers of pyproject.toml cannot say: no circle, jobs by their faces only, small rooms.

docs/architecture.md describes the tree. `arrows()` counts what one room knows of others.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
MOST_FILES = 13
FACES = {
    "mpdit_core.demo", "mpdit_core.encoding", "mpdit_core.evaluation", "mpdit_core.interop", "mpdit_core.plugins",
    "mpdit_core.profiling", "mpdit_core.run_report", "mpdit_core.sampling", "mpdit_core.training",
    "mpdit_core.data.autoencoders", "mpdit_core.data.sources", "mpdit_core.samplers", "mpdit_core.testing",
}  # fmt: skip
"""Packages that others use only through what their `__init__` names, and through their `options`."""


PYTHON_API = FACES | {
    "mpdit_core", "mpdit_core.errors", "mpdit_core.pictures", "mpdit_core.reporting", "mpdit_core.runtime.options",
    "mpdit_core.sampling.options", "mpdit_core.settings",
}  # fmt: skip
"""What a package with a command may use beside the contract: the Python API, and what options are made of."""


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("mpdit_core", "mpdit_cli", exclude_type_checking_imports=True)


def imports() -> list[tuple[str, str]]:
    """(importer, imported), for every import of one file by another."""
    return [(module, other) for module in sorted(graph().modules) for other in imported_by(module)]


def imported_by(module: str) -> list[str]:
    return sorted(graph().find_modules_directly_imported_by(module))


def room(module: str) -> str:
    """`mpdit_core.training` for a file anywhere in it; a file at the top of mpdit_core is a room of its own."""
    return ".".join(module.split(".")[:2])


def arrows() -> set[tuple[str, str]]:
    """(room, room it imports from)."""
    return {(room(a), room(b)) for a, b in imports() if room(a) != room(b)}


def faced(module: str) -> str | None:
    """The innermost package with a face that holds the module."""
    parts = module.split(".")
    packages = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((package for package in packages if package in FACES), None)


def test_jobs_are_used_through_their_faces():
    through_the_back = [
        f"{importer} -> {imported}"
        for importer, imported in imports()
        if (face := faced(imported)) is not None
        and not f"{importer}.".startswith(f"{face}.")
        and imported != face
        and not imported.endswith(".options")
    ]
    assert through_the_back == []


def test_no_file_imports_itself_by_way_of_others():
    rings: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            rings.append(path[path.index(module) :])
        elif module not in done:
            for other in imported_by(module):
                visit(other, [*path, module])
            done.add(module)

    for module in sorted(graph().modules):
        visit(module, [])
    assert rings == []


@pytest.mark.parametrize("package", ["mpdit_core", "mpdit_cli"])
def test_no_room_is_too_large(package: str):
    folders = {path.parent for path in (ROOT / package).rglob("*.py")} - {ROOT / package}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}


def test_plugins_import_the_contract_alone():
    """What our packages in plugins/ import of mpdit_core is what anybody's may. The playground is a program on top."""
    for path in sorted((ROOT / "plugins").glob("*/mpdit_*/**/*.py")):
        if "mpdit-playground" in path.parts:
            continue
        lines = [line.split()[1] for line in path.read_text(encoding="utf-8").splitlines()
                 if line.strip().startswith(("from mpdit_", "import mpdit_"))]  # fmt: skip
        foreign = {line for line in lines if not line.startswith(path.relative_to(ROOT / "plugins").parts[1])}
        allowed = {"mpdit_core.api", "mpdit_core.testing"} | (PYTHON_API if "playground" in str(path) else set())
        assert foreign <= allowed, path
