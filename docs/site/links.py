"""A hook of MkDocs: links that leave docs/, such as `../plugins`, lead to the repository."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\]\(\.\./(?P<path>[^)]+)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    return OUTSIDE.sub(lambda match: f"]({config.repo_url}/tree/main/{match['path']})", markdown)
