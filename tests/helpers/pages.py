"""The code blocks and command lines of a page of documentation, in order.

```python            a block to execute
# mine.py            … or, with a file name as its first line, to write
    mpdit train …    an indented command line; or one in a block of `sh`
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PROGRAMS = ("mpdit", "pip", "make", "torchrun", "python")

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(rf"^    (?P<command>(?:{'|'.join(PROGRAMS)}) .*)$", re.MULTILINE)
_FILE = re.compile(r"# (?P<file>[\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Step:
    """One step of a page; `language` is that of a block, or `command`."""

    language: str
    text: str
    file: str = ""

    @property
    def words(self) -> list[str]:
        """The words of a command line, without its comment."""
        return shlex.split(self.text, comments=True)


def steps(page: str) -> list[Step]:
    """Every block and every command line of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = text.replace("\\\n", "")  # joins continued command lines
    found = [(match.start(), step) for match in _BLOCK.finditer(text) for step in _of_block(match)]
    outside = _BLOCK.sub(lambda match: " " * len(match.group()), text)
    found += [(m.start(), Step("command", m["command"])) for m in _COMMAND.finditer(outside)]
    return [step for _, step in sorted(found, key=lambda pair: pair[0])]


def _of_block(match: re.Match) -> Iterator[Step]:
    language, code = match["language"], match["code"]
    if language in ("sh", "bash"):
        yield from (Step("command", line) for line in code.splitlines() if line.startswith(PROGRAMS))
    elif name := _FILE.match(code):
        yield Step(language, code[name.end() :], name["file"])
    else:
        yield Step(language, code)


def python_blocks(page: str) -> list[str]:
    """The blocks of Python to execute, without those to write to a file."""
    return [step.text for step in steps(page) if step.language == "python" and not step.file]


def commands(page: str) -> list[list[str]]:
    """The words of every `mpdit` command line, without `mpdit`."""
    return [step.words[1:] for step in steps(page) if step.language == "command" and step.words[0] == "mpdit"]
