"""`mpdit plugins new KIND NAME`: writes a plugin package that installs and passes its own test as it is.

Its files are made from templates/: pyproject.toml, README.md, and a module with its test for each kind.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.plugins.contracts import KINDS
from mpdit_core.plugins.finding import names
from mpdit_core.reporting import Reporter, Saved, silent
from mpdit_core.runtime.files import writing_folder
from mpdit_core.settings import Result, setting

TEMPLATES = Path(__file__).with_name("templates")
GROUPS = {contract.singular: kind for kind, contract in KINDS.items()}


class NewPlugin(Result):
    """A new package."""

    path: Path = setting(..., "its folder")
    kind: str = setting(..., "its kind, such as sampler")
    name: str = setting(..., "the plugin's name")


def new_plugin(kind: str, name: str, out: Path | None = None, *, report: Reporter = silent) -> NewPlugin:
    """Writes an installable package for a plugin of a kind in `GROUPS` into `out` (default `./mpdit-NAME`).

    Raises:
        UserError: the kind is unknown (`no-such-kind`), the name is not possible (`invalid-value`) or taken
            (`name-in-use`), or the folder exists (`folder-in-use`).
    """
    if kind not in GROUPS:
        raise UserError(
            f"there is no kind of plugin called {kind!r}", code="no-such-kind", expected=", ".join(GROUPS),
            remedy=did_you_mean(kind, GROUPS),
        )  # fmt: skip
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} cannot be the name of a plugin",
            code="invalid-value",
            expected="a name such as my-sampler: a-z, 0-9 and hyphens",
        )
    if name in names(GROUPS[kind]):
        raise UserError(
            f"a {kind} called {name!r} is already installed", code="name-in-use", remedy="choose another name"
        )
    folder = out or Path(f"mpdit-{name}")
    if folder.exists():
        raise UserError(f"{folder} already exists", code="folder-in-use", remedy="choose another name, or --out FOLDER")

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    module = "mpdit_" + name.replace("-", "_")
    class_name = "".join(part.capitalize() for part in name.split("-"))
    values = {"kind": kind, "group": GROUPS[kind], "word": KINDS[GROUPS[kind]].word, "name": name, "module": module,
              "class_name": class_name, "attribute": "command" if kind == "command" else class_name}  # fmt: skip
    test = "test_command.py" if kind == "command" else "test_class.py"
    files = {"pyproject.toml": "pyproject.toml", "README.md": "README.md", f"{module}.py": f"{kind}.py",
             f"tests/test_{module}.py": test}  # fmt: skip
    with writing_folder(folder) as temporary:
        (temporary / "tests").mkdir()
        for path, template in files.items():
            text = templates.get_template(f"{template}.j2").render(values)
            (temporary / path).write_text(text, encoding="utf-8")
    report(Saved(what="package", path=folder))
    return NewPlugin(path=folder, kind=kind, name=name)
