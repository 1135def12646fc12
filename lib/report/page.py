"""The report as one self-contained HTML page. It loads nothing, and every text that comes from files is escaped."""

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from statistics import median

from lib.base.errors import printable
from lib.report import statistics
from lib.report.content import Items, Section, Table, Text
from lib.report.figures import Figure
from lib.report.statistics import Comparison, Verdict
from lib.report.style import CSS

GENERATOR = '<meta name="generator" content="espalier report">'  # by which a folder is known as a report
# No script, nothing from elsewhere: even if a figure held a link, a browser would not follow it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# A sign beside each word, because colours alone do not reach everybody.
_SIGNS = {
    statistics.BETTER: "▼", statistics.WORSE: "▲", statistics.EQUIVALENT: "≈", statistics.UNDECIDED: "?",
    statistics.ONE_SEED: "1", statistics.NO_PAIR: "1", statistics.DIVERGED: "✕",
}  # fmt: skip
_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")  # of a negative number
_TOGETHER = re.compile(
    r"(?<=\b[pn]) (?=[=<])|(?<=\b[pn] [=<]) (?=\d)|(?<=\d) (?=%|nats\b)"
)  # spaces inside `p = 0.012`
_LONG = 40  # characters of a cell that may be broken into lines
_FAR = 4  # times the median of their distances is what the pictures of intervals show
_WIDTH, _HEIGHT = 176, 22  # of the picture of an interval, in its own units


def document(title: str, about: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    links = " ".join(f'<a href="#{_id(section.title)}">{_text(section.title)}</a>' for section in sections)
    body = "\n".join(
        f'<section id="{_id(section.title)}">\n<h2>{_text(section.title)}</h2>\n'
        + "\n".join(_parts(section.parts))
        + "\n</section>"
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{GENERATOR}
<title>{_text(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{_text(title)}</h1>
<p class="about">{_text(about)}</p>
<nav aria-label="Contents">{links}</nav>
{body}
<footer class="note">The same as <code>report.md</code>, <code>results.csv</code> and <code>verdicts.csv</code>; each
figure as SVG and PDF in <code>figures/</code>.</footer>
</main>
</body>
</html>
"""


def _id(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _text(words: str) -> str:
    """A text for HTML; hyphens before numbers become minus signs, and no line ends inside `p = 0.012` and `5 %`."""
    return html.escape(_TOGETHER.sub("\N{NO-BREAK SPACE}", _MINUS.sub("\N{MINUS SIGN}", printable(words))))


def _parts(parts: Sequence[Text | Items | Table | Figure]) -> Iterator[str]:
    """The parts of a section; figures that follow each other stand side by side where there is room."""
    for of_figures, group in itertools.groupby(parts, lambda part: isinstance(part, Figure)):
        found = "\n".join(map(_part, group))
        yield f'<div class="figures">\n{found}\n</div>' if of_figures else found


def _part(part: Text | Items | Table | Figure) -> str:
    if isinstance(part, Text):
        kind = ' class="warning"' if part.warns else ' class="note"' if part.small else ""
        return f"<p{kind}>{_text(part.words)}</p>"
    if isinstance(part, Items):
        return _items(part)
    if isinstance(part, Table):
        return _table(part)
    return (
        f'<figure id="figure-{_id(part.name)}">\n<h3>{_text(part.title)}</h3>\n{part.svg}\n'
        f"<figcaption>{_text(part.caption)}</figcaption>\n</figure>"
    )


def _items(items: Items) -> str:
    if items.marks:
        rows = [
            f"<li>{_mark(mark)}<span>{_text(words)}</span></li>"
            for mark, words in zip(items.marks, items.words, strict=True)
        ]
        return f'<ul class="sentences">\n{chr(10).join(rows)}\n</ul>'
    kind = "ol" if items.numbered else "ul"
    rows = [f"<li>{_text(words)}</li>" for words in items.words]
    return f'<{kind} class="note">\n{chr(10).join(rows)}\n</{kind}>'


def _mark(word: str) -> str:
    kind = word.replace(" ", "-") if word in _SIGNS else "undecided"
    sign = f'<span aria-hidden="true">{_SIGNS.get(word, "")}</span>'
    return f'<span><span class="word {kind}">{sign} {_text(word)}</span></span>'


# ---- tables ----------------------------------------------------------------------------------------------------------


def _table(table: Table) -> str:
    titles = [f'<th scope="col"{_side(n, table)}>{_text(title)}</th>' for n, title in enumerate(table.titles)]
    rows = [[_cell(cell, n, table) for n, cell in enumerate(row)] for row in table.rows]
    if table.comparison:
        titles.insert(2, '<th scope="col" class="name">interval and margin</th>')
        scale = _scale(table.comparison)
        for row, verdict in zip(rows, table.comparison.verdicts.values(), strict=True):
            row[1] = f'<td class="name">{_mark(verdict.word)}</td>'
            row.insert(2, f'<td class="name">{_interval(verdict, table.comparison, scale)}</td>')
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_text(table.titles[0])}"><table>\n'
        f"<thead><tr>{''.join(titles)}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>"
    )


def _side(place: int, table: Table) -> str:
    return ' class="name"' if place < table.left else ""


def _cell(cell: str, place: int, table: Table) -> str:
    if place == 0 and not cell:
        return '<td class="name again"></td>'
    if place < table.left and len(cell) > _LONG:
        return f'<td class="name long">{_text(cell)}</td>'
    return f"<td{_side(place, table)}>{_text(cell)}</td>"


def _scale(comparison: Comparison) -> float:
    """The distance from zero that the pictures of the intervals show, in nats. What lies far out ends at their edge."""
    verdicts = comparison.verdicts.values()
    far = [max(map(abs, (one.difference, one.low or 0.0, one.high or 0.0))) for one in verdicts if one.difference]
    usual = _FAR * median(far) if far else 0.0
    return max(min(max(far, default=0.0), usual), (comparison.margin or 0.0) * 1.2, 1e-12)


def _interval(one: Verdict, comparison: Comparison, scale: float) -> str:
    """A picture: the interval as a line, the difference as a dot, zero as a vertical line, the margin as a band."""
    if one.difference is None:
        return ""

    def place(value: float) -> str:
        return f"{_WIDTH / 2 + max(-1.0, min(1.0, value / scale)) * (_WIDTH / 2 - 6):.1f}"

    middle = _HEIGHT / 2
    margin = comparison.margin or 0.0
    left, right = place(-margin), place(margin)
    parts = [
        f'<rect class="margin" x="{left}" y="2" width="{float(right) - float(left):.1f}" height="{_HEIGHT - 4}"/>',
        f'<line class="zero" x1="{place(0)}" x2="{place(0)}" y1="1" y2="{_HEIGHT - 1}"/>',
    ]
    if one.low is not None and one.high is not None:
        parts.append(f'<line class="bar" x1="{place(one.low)}" x2="{place(one.high)}" y1="{middle}" y2="{middle}"/>')
    parts.append(f'<circle class="dot" cx="{place(one.difference)}" cy="{middle}" r="3.5"/>')
    kind = one.word.replace(" ", "-") if one.word in _SIGNS else "undecided"
    return f'<svg class="interval {kind}" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'
