"""The report as Markdown, which is also readable as plain text."""

import html
import re
from collections.abc import Sequence

from lib.base.errors import printable
from lib.compare import table
from lib.report.content import Items, Section, Table, Text
from lib.report.figures import Figure

# What has a meaning in Markdown. Names come from files of others, so none may act.
_SPECIAL = re.compile(r"([\\`*_\[\]|~#$!])")


def document(title: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    parts = [f"# {escaped(title)}"]
    for section in sections:
        parts += [f"## {section.title}", *map(_part, section.parts)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return html.escape(_SPECIAL.sub(r"\\\1", printable(text)), quote=False)


def _part(part: Text | Items | Table | Figure) -> str:
    if isinstance(part, Text):
        return escaped(part.words)
    if isinstance(part, Items):
        return "\n".join(f"{'1.' if part.numbered else '-'} {escaped(words)}" for words in part.words)
    if isinstance(part, Table):
        return _table(part)
    return f"### {escaped(part.title)}\n\n![{escaped(part.title)}](figures/{part.name}.svg)\n\n{escaped(part.caption)}"


def _table(part: Table) -> str:
    return table.lines([[escaped(cell) for cell in row] for row in (part.titles, *part.rows)], part.left)
