"""The canvas of a figure: its sizes and colours, panels, labels beside panels, and ticks."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lib.base.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Name -> its colour on white and on black. Of the series, neighbours differ in hue for all kinds of colour blindness
# (after Okabe and Ito) and in brightness for grey prints; dashes and markers tell them apart too.
COLOURS = {
    "ink": ("#1d1f23", "#e4e5e7"), "soft": ("#5b6069", "#a2a7af"), "grid": ("#e2e2dc", "#2d3136"),
    "quiet": ("#bdbfc3", "#54585e"), "paper": ("#fdfdfb", "#15171a"), "heat": ("#0b4f8a", "#7fbdf5"),
    "series0": ("#0069b4", "#62b5f5"), "series1": ("#d9640f", "#f79a5c"), "series2": ("#00705a", "#45c9a5"),
    "series3": ("#b5579f", "#e695d2"), "series4": ("#8a6d00", "#e6c34a"), "series5": ("#4a3aa0", "#a79bf2"),
    "series6": ("#7b3f1d", "#d0a184"), "series7": ("#c2123f", "#ff7d96"),
}  # fmt: skip
_LONGEST = 26  # characters of a label
_SMALL = 0.92  # of a label, in font sizes
LEGEND = 0.28  # inches before the texts of a legend
_LINE = 1.25  # height of a line of text, in font sizes
_POINTS = 72  # per inch


@dataclasses.dataclass(frozen=True)
class Size:
    """A width in inches, and the font size in points that goes with it."""

    width: float
    font: float


PAGE = Size(4.4, 8.5)  # shown at 340 to 576 pixels
COLUMN = Size(3.3, 7)  # of a paper with two columns
FULL = Size(6.9, 7.5)  # of its page


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn in any size."""

    name: str
    title: str
    caption: str
    paint: Callable[["Canvas"], None]
    wide: bool = False  # in papers it needs both columns


class Label(NamedTuple):
    """A text beside a panel, for what has this value on the y axis."""

    value: float
    text: str
    colour: str
    x: float | None = None  # where on the x axis it ends; None: at the right
    marker: str = ""
    dash: tuple[int, tuple[float, ...]] = (0, ())


class Canvas:
    """An empty figure of a fixed width. `panels` sets its height and must be called once."""

    def __init__(self, size: Size):
        from matplotlib.figure import Figure

        self.size = size
        self.figure: Figure = Figure(figsize=(size.width, 1))
        self.line = size.font * _LINE / _POINTS  # inches

    def text_width(self, text: str, scale: float = 1.0) -> float:
        """The width of a text in inches, in matplotlib's own font, which is wider than most."""
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import text_to_path

        font = FontProperties(size=self.size.font * scale)
        return text_to_path.get_text_width_height_descent(text, font, False)[0] / _POINTS

    def widest(self, texts: Sequence[str], scale: float = 1.0) -> float:
        """The width of the widest text in inches; 0 if there is none."""
        return max((self.text_width(text, scale) for text in texts), default=0.0)

    def panels(
        self,
        count: int,
        columns: int = 1,
        *,
        height: float,
        left: float = 0.0,
        right: float = 0.06,
        top: float = 0.08,
        bottom: float = 0.0,
        gap: tuple[float, float] = (0.0, 0.0),
    ) -> list["Axes"]:
        """Panels in rows, with all lengths in inches. `left` and `bottom` default to the room of ticks and a label.

        `right` is the room beside each panel, `gap` what is between columns and between rows beyond that.
        """
        left = left or 3.2 * self.line + 0.04
        bottom = bottom or 2.7 * self.line + 0.04
        rows = -(-count // columns)
        width = (self.size.width - left - columns * right - (columns - 1) * gap[0]) / columns
        total = top + rows * height + (rows - 1) * gap[1] + bottom
        self.figure.set_size_inches(self.size.width, total)
        found = []
        for place in range(count):
            row, column = divmod(place, columns)
            x = left + column * (width + right + gap[0])
            y = bottom + (rows - 1 - row) * (height + gap[1])
            box = (x / self.size.width, y / total, width / self.size.width, height / total)
            axes = self.figure.add_axes(box)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(length=2, pad=2)
            found.append(axes)
        return found

    def height(self, axes: "Axes") -> float:
        """The height of a panel in inches."""
        return axes.get_position().height * self.figure.get_size_inches()[1]

    def labels(self, axes: "Axes", entries: Sequence["Label"]) -> None:
        """Texts at the right of a panel, each at the height of its value, moved apart where they would overlap.

        A thin line joins a label with its value where that is far away. Labels that do not fit are left out, the last
        first. The limits of the axes must be set before.
        """
        size = self.size.font * _SMALL
        line = size * _LINE / _POINTS / self.height(axes)  # in heights of the panel
        entries = sorted(entries[: max(1, int(1.05 / line))], key=lambda entry: entry.value)
        place = axes.transScale + axes.transLimits  # from values to shares of the panel
        left = axes.get_xlim()[0]
        points = [place.transform((left if one.x is None else one.x, one.value)) for one in entries]
        wanted = [min(1.0, max(0.0, float(y))) for _, y in points]
        offset = 0.06 / (axes.get_position().width * self.size.width)
        for at, want, (x, _), one in zip(apart(wanted, line, 0.0, 1.05), wanted, points, entries, strict=True):
            start = 1.0 if one.x is None else min(1.0, float(x))
            if abs(at - want) > line / 4 or start < 0.97:
                across, up = [start, 1.0, 1 + offset * 0.8], [want, want, at]
                axes.plot(
                    across, up, transform=axes.transAxes, clip_on=False, color=one.colour, linewidth=0.4, zorder=1
                )
            axes.text(
                1 + offset, at, one.text, color=one.colour, transform=axes.transAxes, verticalalignment="center",
                fontsize=size,
            )  # fmt: skip

    def legend(self, axes: "Axes", entries: Sequence["Label"]) -> None:
        """Texts beside a panel from its top down, each after its marker or a piece of its line."""
        size, width = self.size.font * _SMALL, axes.get_position().width * self.size.width
        line = self.line / self.height(axes)
        for place, one in enumerate(entries):
            y = 1 - (place + 0.5) * line
            x = [1 + 0.13 / width] if one.marker else [1 + 0.04 / width, 1 + 0.22 / width]
            look = {"marker": one.marker, "markersize": 4.2} if one.marker else {"linestyle": one.dash}
            axes.plot(x, [y] * len(x), transform=axes.transAxes, clip_on=False, color=one.colour, **look)
            axes.text(
                1 + LEGEND / width, y, one.text, transform=axes.transAxes, color=one.colour, fontsize=size,
                verticalalignment="center",
            )  # fmt: skip

    def names(self, x: str, y: str) -> None:
        """The names of the axes, once for all panels."""
        width, height = self.figure.get_size_inches()
        boxes = [axes.get_position() for axes in self.figure.axes]
        middle = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2
        self.figure.text(middle, 0.6 * self.line / height, x, horizontalalignment="center")
        middle = (min(box.y0 for box in boxes) + max(box.y1 for box in boxes)) / 2
        self.figure.text(0.03 / width, middle, y, rotation=90, verticalalignment="center")

    def head(self, axes: "Axes", text: str, colour: str = COLOURS["ink"][0]) -> None:
        """A title above a panel, at its left."""
        axes.text(
            0, 1 + 0.35 * self.line / self.height(axes), text, transform=axes.transAxes, color=colour,
            fontweight="bold", fontsize=self.size.font * 0.95,
        )  # fmt: skip


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as close as possible to the wanted ones, in their order, at least `gap` apart and within the limits.

    If they do not all fit, they are evenly spread.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    clusters: list[list[float]] = []  # sum of (wanted place - own offset), number
    for rank, i in enumerate(order):
        clusters.append([wanted[i] - rank * gap, 1])
        while len(clusters) > 1 and clusters[-2][0] / clusters[-2][1] >= clusters[-1][0] / clusters[-1][1]:
            total, number = clusters.pop()
            clusters[-1] = [clusters[-1][0] + total, clusters[-1][1] + number]
    starts = [total / number for total, number in clusters for _ in range(int(number))]
    found = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        most = high - (len(wanted) - 1) * gap
        found[i] = min(max(starts[rank], low), max(most, low)) + rank * gap
    return found


def numbers(axis: "Axis") -> None:
    """Show the ticks of a linear axis as plain numbers with the same decimals."""
    from matplotlib.ticker import Formatter

    class Plain(Formatter):
        def __call__(self, value: float, _: int | None = None) -> str:
            return self.format_ticks([value])[0]

        def format_ticks(self, values: Sequence[float]) -> list[str]:
            width = max((abs(value) for value in values), default=0.0) * 1e-9
            digits = next((n for n in range(9) if all(abs(round(v, n) - v) <= width for v in values)), 9)
            return [f"{value + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}") for value in values]

    axis.set_major_formatter(Plain())


def logarithm(axis: "Axis", low: float, high: float) -> None:
    """Ticks of a logarithmic axis at powers of ten, or finer if those are too few."""
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    axis.set_ticks(ticks, labels=[f"{tick:,.6g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def raised(power: int) -> str:
    """10 to a power, in words for an axis."""
    return "10" + str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def short(text: str) -> str:
    """A name as a label. Of a long one in the form NAME=value only the values are left."""
    text = printable(text)
    if len(text) > _LONGEST:
        text = re.sub(r"(?<!\S)\w+=(?=\S)", "", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
