"""Markdown templates whose values cannot become markup or commands, whoever wrote them.

A card quotes names and figures from files of other people. Every value is escaped as text, unless a filter names its
place: `code` in a code span, `shell` on a command line, `python` in Python code. No value can start a new line, so none
can close a code block or add a command.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

SPECIAL = re.compile(r"[\\`*_\[\]|~]")  # what Markdown would read as markup


def render(template: Path, **values: Any) -> str:
    """The text of a Markdown template with `values`, ending in one newline."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,  # marks the result of a macro as escaped
        finalize=as_text,
        undefined=StrictUndefined,
    )
    environment.filters |= {"code": as_code, "shell": as_shell, "python": as_python}
    return environment.get_template(template.name).render(values).rstrip() + "\n"


def as_text(value: Any) -> Markup:
    """`value` as plain text: on one line, without markup of Markdown or HTML."""
    if isinstance(value, Markup):
        return value
    text = SPECIAL.sub(r"\\\g<0>", one_line(value))
    return Markup(html.escape(text, quote=False))


def as_code(value: Any) -> Markup:
    """`value` as a code span, in which HTML has no meaning; its backticks become apostrophes."""
    return Markup("`" + one_line(value).replace("`", "'") + "`")


def as_shell(value: Any) -> Markup:
    """`value` as one word of a command line."""
    return Markup(shlex.quote(one_line(value)))


def as_python(value: Any) -> Markup:
    """`value` as a string of Python code."""
    return Markup(json.dumps(one_line(value), ensure_ascii=False))


def one_line(value: Any) -> str:
    """`value` as text whose white space and control characters are single spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
