"""Figures over the course of training: loss against tokens, FLOPs and time; gradient norm and learning rate."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lib.report.curves import Curve
from lib.report.figures_canvas import (
    COLOURS,
    LEGEND,
    Canvas,
    Drawing,
    Label,
    logarithm,
    numbers,
    raised,
    short,
)
from lib.report.figures_looks import COUNTS, DASHES, MOST, TIMES, Cast, Shown, grey, scaled, seeds, sentences
from lib.report.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 120  # of a drawn line; a grey one has a third of them
_HUGE = 1e30  # larger values overflow in axes
_PANELS = 12  # the most small multiples


@dataclasses.dataclass(frozen=True)
class Line:
    """A configuration's mean over its seeds, with their smallest and largest values."""

    one: Shown
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def drawings(cast: Cast) -> Iterator[Drawing]:
    """Every figure of this file for which there is data."""
    for name, title, axis, x, note in (
        ("loss-against-tokens", "Loss against tokens", "training tokens", _tokens, "Tokens of earlier runs count."),
        ("loss-against-flops", "Loss against FLOPs", "training FLOPs, by non-zeros", _flops, _FLOPS_NOTE),
        ("loss-against-time", "Loss against time", "time", _time, "Time is that of the run itself, without pauses."),
    ):
        lines = [line for one in cast.shown if (line := _line(one, "val_loss", x)) is not None]
        if lines:
            yield _losses(cast, lines, name, title, axis, note)
    if drawing := _optimization(cast):
        yield drawing


_FLOPS_NOTE = (
    "FLOPs of training are counted by non-zeros, which the recorded sparsity spreads over the steps. Those of earlier "
    "runs count, in proportion to their tokens."
)

# ---- data ------------------------------------------------------------------------------------------------------------


def _line(one: Shown, name: str, x: Callable[[Outcome, np.ndarray], np.ndarray | None]) -> Line | None:
    """Mean and range over the seeds at the steps of the first; None if a run lacks the curve or has one point."""
    curves = [_usable(run.curves.get(name)) for run in one.runs]
    if any(curve is None for curve in curves):
        return None
    first, last = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    steps = curves[0][0][(curves[0][0] >= first) & (curves[0][0] <= last)]
    if len(steps) < 2:
        return None
    if len(steps) > _POINTS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, _POINTS).round().astype(int))]
    places = [x(run, steps) for run in one.runs]
    if any(place is None for place in places):
        return None
    values = np.array([np.interp(steps, *curve) for curve in curves])
    return Line(one, np.mean(places, axis=0), values.mean(0), values.min(0), values.max(0))


def _usable(curve: Curve | None) -> Curve | None:
    """The points of a curve that can be drawn, without NaN and infinities; None if there are none."""
    if curve is None:
        return None
    steps, values = (np.asarray(each, dtype=np.float64) for each in curve)
    finite = (np.abs(values) < _HUGE) & np.isfinite(steps)
    return (steps[finite], values[finite]) if finite.any() else None


def _tokens(run: Outcome, steps: np.ndarray) -> np.ndarray | None:
    """Tokens after each step, with those of earlier runs."""
    if not run.tokens or not run.steps:
        return None
    return steps * run.tokens / run.steps + max(0, (run.total_tokens or run.tokens) - run.tokens)


def _flops(run: Outcome, steps: np.ndarray) -> np.ndarray | None:
    """FLOPs after each step. What zeros saved in total is spread over the steps in proportion to the sparsity."""
    tokens, sparsity = _tokens(run, steps), _usable(run.curves.get("sparsity"))
    if tokens is None or run.flops is None or run.dense_flops is None:
        return None
    own = run.tokens / (run.total_tokens or run.tokens)
    every = np.arange(run.steps + 1, dtype=np.float64) if run.steps < 4096 else np.linspace(0, run.steps, 4097)
    zeros = np.interp(every, *sparsity) if sparsity else np.zeros_like(every)
    summed = np.concatenate([[0.0], np.cumsum(zeros[1:] * np.diff(every))])
    share = summed / summed[-1] if summed[-1] > 0 else every / every[-1]
    dense, saved = run.dense_flops * own, (run.dense_flops - run.flops) * own
    return dense * steps / run.steps - saved * np.interp(steps, every, share) + run.flops * (1 - own)


def _time(run: Outcome, steps: np.ndarray) -> np.ndarray | None:
    """Seconds after each step."""
    curve = _usable(run.curves.get("seconds"))
    return np.interp(steps, *curve) if curve else None


def _steps(run: Outcome, steps: np.ndarray) -> np.ndarray:
    return steps


# ---- loss ------------------------------------------------------------------------------------------------------------


def _losses(cast: Cast, lines: Sequence[Line], name: str, title: str, axis: str, note: str) -> Drawing:
    """A figure of losses: one panel, or a panel for each method if there are many configurations."""
    most = max(float(line.x.max()) for line in lines)
    if name == "loss-against-time":
        unit, word = scaled(most, TIMES)
        axis = f"{axis} ({word})"
    elif name == "loss-against-tokens":
        unit, word = scaled(most, COUNTS)
        axis = f"{axis} ({word}s)" if word else axis
    else:
        power = 3 * int(np.log10(max(most, 1)) // 3)
        unit, axis = 10.0**power, f"{axis} ({raised(power)})" if power else axis
    lines = [dataclasses.replace(line, x=line.x / unit) for line in lines]
    panels = _split(cast, lines)
    limits = _limits(lines)
    caption = sentences(
        f"Validation loss{'' if seeds(cast) < 2 else ', the mean over the seeds'}.",
        "Bands reach from the lowest to the highest seed." if seeds(cast) > 1 else "There is one seed.",
        note,
        _which(cast, lines, panels),
        f"The beginning of training, above {limits[1]:.3g} nats, is cut off." if limits[2] else "",
        cast.missing,
    )
    return Drawing(
        name, title, caption, lambda canvas: _paint(canvas, cast, panels, lines, axis, limits), len(panels) > 1
    )


def _split(cast: Cast, lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Title of each panel and what stands out in it."""
    if len(lines) <= MOST:
        return [("", list(lines))]
    methods: dict[str, list[Line]] = {}
    for line in lines:
        if line.one is not cast.reference:
            methods.setdefault(line.one.method, []).append(line)
    if len(methods) <= _PANELS and max(map(len, methods.values())) <= MOST and len(methods) < len(lines) - 1:
        base = [line for line in lines if line.one is cast.reference]
        return [(short(method), base + own) for method, own in methods.items()]
    best = cast.foremost([line.one for line in lines])
    return [("", [line for line in lines if line.one in best])]


def _which(cast: Cast, lines: Sequence[Line], panels: Sequence[tuple[str, list[Line]]]) -> str:
    """What stands out in which panel, and what is grey."""
    if len(panels) > 1:
        there = f", with {short(cast.reference.name)} in each" if cast.reference else ""
        return f"A panel for each method{there}; the others are grey."
    return grey(len(lines) - len(panels[0][1]))


def _limits(lines: Sequence[Line]) -> tuple[float, float, bool]:
    """The range of the losses, and whether the beginning is cut off so that differences at the end can be seen."""
    low = min(float(line.low.min()) for line in lines)
    ends = [float(end) for line in lines for end in (line.low[-1], line.high[-1])]
    high = max(max(ends) + 2 * (max(ends) - min(ends)), max(_at(line, 0.5) for line in lines))
    high = min(high, max(max(ends), *(_at(line, 0.1) for line in lines)))
    room = 0.04 * (high - low) or 0.05
    return low - room, high + room, any(float(line.high.max()) > high + room for line in lines)


def _at(line: Line, share: float) -> float:
    """The mean after this share of a line."""
    return float(line.mean[np.searchsorted(line.x, line.x[0] + share * (line.x[-1] - line.x[0]))])


def _paint(
    canvas: Canvas,
    cast: Cast,
    panels: Sequence[tuple[str, list[Line]]],
    lines: Sequence[Line],
    axis: str,
    limits: tuple[float, float, bool],
) -> None:
    many = len(panels) > 1
    name = (lambda one: one.member) if many else (lambda one: short(one.name))
    texts = [name(line.one) for _, own in panels for line in own if not (many and line.one is cast.reference)]
    narrow = canvas.size.width < 6
    columns = min(len(panels), 2 if narrow else 3) if many else 1
    every = canvas.panels(
        len(panels), columns, height=1.2 if many else 0.62 * canvas.size.width,
        right=canvas.widest(texts) + 0.1, top=canvas.line * 1.5 if many else 0.06,
        gap=(canvas.line, canvas.line * 2.2),
    )  # fmt: skip
    right = max(float(line.x.max()) for line in lines)
    for place, (axes, (title, own)) in enumerate(zip(every, panels, strict=True)):
        axes.set_xlim(0, right * 1.005)
        axes.set_ylim(*limits[:2])
        shown = [line.one for line in own]
        for line in lines:
            _draw(axes, line, line.one in shown)
        own = [line for line in own if not (many and line.one is cast.reference)]
        canvas.labels(
            axes, [Label(float(one.mean[-1]), name(one.one), one.one.look.colour, float(one.x[-1])) for one in own]
        )
        if title:
            canvas.head(axes, title, own[0].one.look.colour)
        _ticks(axes, place, len(panels), columns)
    canvas.names(axis, "loss (nats per token)")


def _draw(axes: "Axes", line: Line, out: bool) -> None:
    """A line with its band; a thin grey one, if it does not stand out."""
    look = line.one.look
    if not out:
        few = np.unique([*range(0, len(line.x), 3), len(line.x) - 1]) if len(line.x) > _POINTS / 2 else slice(None)
        axes.plot(line.x[few], line.mean[few], color=COLOURS["quiet"][0], linewidth=0.6, zorder=1)
        return
    if len(line.one.runs) > 1:
        axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.18, linewidth=0, zorder=2)
    axes.plot(line.x, line.mean, color=look.colour, linestyle=look.dash, zorder=3)


def _ticks(axes: "Axes", place: int, count: int, columns: int) -> None:
    """Ticks; those of inner panels have no numbers."""
    axes.locator_params(axis="x", nbins=4 if columns > 1 else 6)
    axes.locator_params(axis="y", nbins=5)
    numbers(axes.xaxis)
    numbers(axes.yaxis)
    axes.tick_params(labelbottom=place + columns >= count, labelleft=place % columns == 0)


# ---- optimization ----------------------------------------------------------------------------------------------------


def _optimization(cast: Cast) -> Drawing | None:
    """Gradient norm and learning rate over the steps, of the configurations that stand out."""
    rows = []
    for name, label in (("grad_norm", "gradient norm"), ("learning_rate", "learning rate")):
        lines = [line for one in cast.shown if (line := _line(one, name, _steps)) is not None]
        if lines:
            rows.append((label, lines))
    if not rows:
        return None
    best = cast.foremost([one for one in cast.shown if any(line.one is one for _, lines in rows for line in lines)])
    left = len({line.one.name for _, lines in rows for line in lines}) - len(best)
    caption = sentences(
        "Gradient norm before clipping and learning rate over the steps"
        + (", means over the seeds." if seeds(cast) > 1 else "."),
        grey(left),
        cast.missing,
    )
    names = [label for label, _ in rows]
    title = " and ".join(names).capitalize()
    return Drawing("optimization", title, caption, lambda canvas: _paint_rows(canvas, rows, best))


def _paint_rows(canvas: Canvas, rows: Sequence[tuple[str, list[Line]]], best: Sequence[Shown]) -> None:
    alone = {one.name: _single(one, place) for place, one in enumerate(best)}
    right = canvas.widest([short(one.name) for one in best]) + LEGEND + 0.06
    every = canvas.panels(len(rows), height=1.3, right=right, gap=(0, 0.14))
    for place, (axes, (label, lines)) in enumerate(zip(every, rows, strict=True)):
        most = max(float(line.high.max()) for line in lines)
        power = 3 * math.floor(math.log10(most) / 3) if label == "learning rate" and most > 0 else 0
        for line in sorted(lines, key=lambda line: line.one.name in alone):
            one = alone.get(line.one.name, line.one)
            _draw(axes, dataclasses.replace(line, mean=line.mean / 10.0**power, one=one), line.one.name in alone)
        axes.set_xlim(0, max(float(line.x.max()) for line in lines))
        _ticks(axes, place, len(rows), 1)
        axes.set_ylabel(f"{label} ({raised(power)})" if power else label)
        least = min(float(line.mean.min()) for line in lines)
        if label == "gradient norm" and least > 0:
            axes.set_yscale("log")
            axes.set_ylim(least / 1.1, most * 1.1)
            logarithm(axes.yaxis, least / 1.1, most * 1.1)
    canvas.legend(every[0], [Label(0, short(one.name), one.look.colour, dash=one.look.dash) for one in alone.values()])
    every[-1].set_xlabel("step")


def _single(one: Shown, place: int) -> Shown:
    """With a dash of its own, because its label is far from its line, and without seeds, so that no band is drawn."""
    return dataclasses.replace(
        one, runs=one.runs[:1], look=dataclasses.replace(one.look, dash=DASHES[place % len(DASHES)])
    )
