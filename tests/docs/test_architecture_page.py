"""docs/architecture.md names existing files, every room, and every file that says how something is added."""

from __future__ import annotations

import re

import pytest
from pages import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").replace("\\_", "_")
NAMED = sorted(set(re.findall(r"\b(?:mpdit_core|mpdit_cli|tests)/[\w/.]*\w", PAGE)))


@pytest.mark.parametrize("path", NAMED)
def test_files_named_on_the_page_exist(path: str):
    assert (ROOT / path).exists()


def test_every_extension_point_has_a_test():
    rows = [row.split("|")[1:-1] for row in PAGE.partition("| to add |")[2].partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) > 30
    assert [row[0] for row in rows if not re.search(r"tests/|`check_", row[4])] == []


def test_every_room_is_in_the_tree():
    rooms = {p.name for p in (ROOT / "mpdit_core").iterdir() if (p / "__init__.py").is_file()}
    assert rooms == set(re.findall(r"^      (\w+)/", PAGE, re.MULTILINE))


def test_every_extension_point_is_on_the_page():
    """A file whose first lines say "To add …" is named, or its folder is."""
    points = [
        path.relative_to(ROOT)
        for package in ("mpdit_core", "mpdit_cli")
        for path in (ROOT / package).rglob("*.py")
        if "To add" in path.read_text(encoding="utf-8").partition('"""\n')[0]
    ]
    missing = [str(path) for path in points if not {str(path), str(path.parent)} & set(NAMED)]
    assert missing == []
