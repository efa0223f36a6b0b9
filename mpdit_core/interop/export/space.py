"""A model as a Hugging Face Space: the page of the package mpdit-playground in a folder that the Hub runs.

README.md          front matter that the Hub reads, then how to run the page elsewhere
app.py             opens the page
requirements.txt   the packages that the page needs
model/             the model, as an export with format mpdit
"""

from __future__ import annotations

from pathlib import Path

from mpdit_core.interop.export.markdown import render
from mpdit_core.version import __version__

TEMPLATE = Path(__file__).with_name("space.md.j2")
MODEL = "model"
PLAYGROUND = "0.1.0"
"""The first version of mpdit-playground with the names that app.py imports."""

GRADIO, PYTHON = "6.30.0", "3.11"
"""The versions that the Hub installs: the oldest that the packages accept. By default it takes Python 3.10."""

APP = f'''"""The page of this Space: `python app.py`. Gradio's environment variables say where it listens."""

import os
from pathlib import Path

from mpdit_playground import PlaygroundOptions, playground

os.chdir(Path(__file__).parent)
host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
# Further options are what the page begins with, such as num_samples=4 or guidance_scale=2.0.
playground(PlaygroundOptions(models=("{MODEL}",), host=host, browser=False), report=lambda event: print(event.text))
'''


def write_page(folder: Path, *, name: str, licence: str | None, package: str | None) -> None:
    """Writes everything but the model. `package`: the plugin of the model's autoencoder, if it is one."""
    values = {"name": name, "licence": licence or "unknown", "gradio": GRADIO, "python": PYTHON, "model": MODEL}
    (folder / "README.md").write_text(render(TEMPLATE, **values), encoding="utf-8")
    (folder / "app.py").write_text(APP, encoding="utf-8")
    lines = [f"mpdit>={__version__}", f"mpdit-playground>={PLAYGROUND}", *([package] if package else [])]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
