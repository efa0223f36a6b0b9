"""docs/plugins.md from its top to its end, and README's sampler: files written, tests run, commands called."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from sample_helpers import write_model

from mpdit_cli.app import main
from mpdit_core import plugins
from mpdit_core.runtime.files import read_json
from mpdit_core.testing import check_sampler

ROOT = Path(__file__).parents[2]
STEP = re.compile(
    r"```(?:python|toml)\n# (?P<file>\S+)\n(?P<code>.*?)```|^    (?P<command>(?:mpdit|pip) [^\n]*)$",
    re.DOTALL | re.MULTILINE,
)


def install(folder: Path) -> None:
    """What `pip install -e` does, without a package index: metadata from pyproject.toml, the folder on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in declared.items())
        for group, declared in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    write_model(Path("runs/digits-1/checkpoints/step-0000007"))
    yield list(STEP.finditer((ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")))
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_step_of_the_page_works(steps, tmp_path: Path, capsys):
    commands = 0
    for step in steps:
        if name := step["file"]:
            Path(name).write_text(step["code"])
            if name.startswith("test_"):
                checks = vars(importlib.import_module(Path(name).stem))
                tests = [check for key, check in checks.items() if key.startswith("test_")]
                assert tests
                for check in tests:
                    check()
        elif step["command"] == "pip install -e .":
            install(tmp_path)
        else:
            words = shlex.split(step["command"])[1:]
            small = {"sample": ["-n", "12"], "eval-fid": ["--metrics", "fid"]}.get(words[0], [])
            assert main([*words, *small, "--quiet", "--device", "cpu"]) == 0, (step["command"], capsys.readouterr().err)
            commands += 1
    assert commands >= 11
    for name in ("shapes-16", "mine-16"):
        assert Path(f"latents/{name}/manifest.json").is_file()
    assert read_json(Path("latents/mine-16/manifest.json"))["count"] == 40
    for n, count in ((1, 10), (2, 25)):
        kept = read_json(Path(f"samples/digits-1-{n}/samples.json"))["identity"]["sampler"]["options"]
        assert (kept["num_steps"], kept["power"]) == (count, 2)
    assert sorted(p.name for p in tmp_path.glob("mpdit-*")) == ["mpdit-colours", "mpdit-fast", "mpdit-scans"]


def test_the_sampler_in_the_readme_keeps_the_contract(tmp_path: Path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_sampler.py").write_text(next(block for block in blocks if "class Mine" in block))
    assert check_sampler(plugins.load("samplers", f"{tmp_path}/my_sampler.py:Mine")).nfe == 20
