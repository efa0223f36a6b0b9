"""Installs packages of plugins into a folder on `sys.path`, as pip would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_metadata(
    site: Path, package: str, groups: Mapping[str, Mapping[str, str]], *, version: str = "1.2", summary: str = "A test"
) -> Path:
    """Writes the metadata of an installed package.

    Args:
        groups: `{"mpdit.samplers": {"mine": "my_module:Mine"}}`.
    """
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nSummary: {summary}\n")
    lines = [
        line
        for group, declared in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in declared.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return info


def install(site: Path, name: str, code: str, *, package: str, group: str = "mpdit.samplers") -> Path:
    """Writes a package of one module, whose attribute `S` is the plugin `name`; returns the folder of its metadata."""
    module = package.replace("-", "_")
    (site / f"{module}.py").write_text(code)
    return write_metadata(site, package, {group: {name: f"{module}:S"}}, summary="Pies of all kinds")
