"""A table of text: `mpdit_cli.console` draws it on a terminal, documents contain it as Markdown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text. `note` stands below the table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown, its note as paragraphs."""
        lines = ["| " + " | ".join(self.columns) + " |", "|---" + "|---:" * (len(self.columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        note = ["", self.note.replace("\n", "\n\n")] if self.note else []
        return "\n".join([f"**{self.title}**", "", *lines, *note]) + "\n"
