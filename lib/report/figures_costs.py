"""What a loss costs and what else it is worth: time and memory against loss, and the scores of tasks."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lib.record.scores import OF_THE_MODEL, Score
from lib.report.figures_canvas import COLOURS, Canvas, Drawing, Label, numbers, short
from lib.report.figures_looks import BYTES, MOST, TIMES, Cast, Shown, left_out, scaled, seeds, sentences

_ROWS, _TASKS = 24, 6  # the most configurations and tasks of the scores


def drawings(cast: Cast) -> Iterator[Drawing]:
    """Every figure of this file for which there is data."""
    for found in (_costs(cast), _tasks(cast)):
        if found:
            yield found


# ---- costs -----------------------------------------------------------------------------------------------------------


def _costs(cast: Cast) -> Drawing | None:
    """Time and memory against loss, with the Pareto front; it is a ranking, so only what may be ranked is drawn."""
    ranked = [one for one in cast.shown if not (one.other or one.diverged)]
    panels = [
        (field, label, found)
        for field, label in (("seconds", "time"), ("memory", "highest memory"))
        if len(found := [one for one in ranked if one.mean(field)]) > 1
    ]
    if not panels:
        return None
    few = len(ranked) <= MOST
    title = " and ".join(label for _, label, _ in panels).replace("highest ", "").capitalize() + " against loss"
    caption = sentences(
        "Means over the seeds: lower and further left is better."
        if seeds(cast) > 1
        else "Lower and further left is better.",
        "The line joins the Pareto front: nothing on it is beaten in both.",
        "" if few else "Only its configurations have names; colours and markers are those of the other figures.",
        "Time is that of the run itself, and comparable only on one machine.",
        left_out(
            "Not drawn, because their budget or evaluation is not the reference's",
            [one for one in cast.shown if one.other],
        ),
        left_out(
            "Not drawn, because a run of theirs diverged and the mean of the others would favour them",
            [one for one in cast.shown if one.diverged and not one.other],
        ),
        cast.missing,
    )
    return Drawing(
        "cost-against-loss", title, caption, lambda canvas: _paint_costs(canvas, panels, few), len(panels) > 1
    )


def _paint_costs(canvas: Canvas, panels: Sequence[tuple[str, str, list[Shown]]], few: bool) -> None:
    narrow = canvas.size.width < 6
    columns = 1 if narrow else len(panels)
    names = [short(one.name) for field, _, found in panels for one in (found if few else front(found, field))]
    every = canvas.panels(
        len(panels), columns, height=1.7, right=canvas.widest(names) + 0.12,
        gap=(0.55, 3 * canvas.line), top=0.1,
    )  # fmt: skip
    for axes, (field, label, found) in zip(every, panels, strict=True):
        units = TIMES if field == "seconds" else BYTES
        unit, word = scaled(max(one.mean(field) for one in found), units)
        best = front(found, field)
        for one in found:
            out = one in best
            face = one.look.colour if out else COLOURS["paper"][0]
            axes.plot(
                one.mean(field) / unit, one.loss, one.look.marker, color=one.look.colour, markerfacecolor=face,
                markersize=4.6 if out else 3.6, zorder=3 + out,
            )  # fmt: skip
        steps = [one.mean(field) / unit for one in best], [one.loss for one in best]
        axes.step(*steps, where="post", color=COLOURS["soft"][0], linewidth=0.9, linestyle=(0, (3, 1.5)), zorder=1)
        axes.margins(x=0.06, y=0.08)
        axes.locator_params(nbins=5)
        numbers(axes.xaxis)
        numbers(axes.yaxis)
        axes.set(xlabel=f"{label} ({word})", ylabel="loss (nats per token)")
        axes.autoscale_view()
        named = found if few else best
        canvas.labels(
            axes, [Label(one.loss, short(one.name), one.look.colour, one.mean(field) / unit) for one in named]
        )


def front(found: Sequence[Shown], field: str) -> list[Shown]:
    """The Pareto front: those that no other beats in loss without costing more. Cheapest first."""
    best: list[Shown] = []
    for one in sorted(found, key=lambda one: (one.mean(field), one.loss)):
        if not best or one.loss < best[-1].loss:
            best.append(one)
    return best


# ---- tasks -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Result:
    """A configuration's score: its mean over the seeds, the mean of the standard errors, and the seeds' values."""

    one: Shown
    value: float
    error: float
    seeds: tuple[float, ...]


def _tasks(cast: Cast) -> Drawing | None:
    """Scores of tasks with their standard errors, a panel for each."""
    metrics: dict[str, list[_Result]] = {}
    rows = cast.foremost(cast.shown) if len(cast.shown) > _ROWS else list(cast.shown)
    for one in rows:
        for metric in dict.fromkeys(metric for run in one.runs for metric in run.tasks):
            if metric.split("/")[0] not in OF_THE_MODEL and (result := _result(one, metric)):
                metrics.setdefault(metric, []).append(result)
    if not metrics:
        return None
    chosen = dict(list(metrics.items())[:_TASKS])
    shown = [one for one in rows if any(result.one is one for results in chosen.values() for result in results)]
    caption = sentences(
        "Scores with their standard errors over the items of the task.",
        "Markers are means over the seeds, dots are seeds." if seeds(cast) > 1 else "",
        f"{len(metrics) - len(chosen)} further scores are in the table only." if len(metrics) > len(chosen) else "",
        f"Only {len(rows)} configurations with low losses are shown." if len(rows) < len(cast.shown) else "",
        cast.missing,
    )
    return Drawing(
        "tasks", "Scores of tasks", caption, lambda canvas: _paint_tasks(canvas, shown, chosen), len(chosen) > 1
    )


def _result(one: Shown, metric: str) -> _Result | None:
    scores: list[Score] = [run.tasks[metric] for run in one.runs if metric in run.tasks]
    values = [score.value for score in scores]
    if not values or not np.isfinite(values).all():
        return None
    errors = [score.stderr for score in scores if score.stderr is not None and np.isfinite(score.stderr)]
    return _Result(one, float(np.mean(values)), float(np.mean(errors)) if errors else 0.0, tuple(values))


def _paint_tasks(canvas: Canvas, shown: Sequence[Shown], chosen: dict[str, list[_Result]]) -> None:
    names = [short(one.name) for one in shown]
    narrow = canvas.size.width < 6
    columns = min(len(chosen), 2 if narrow else 3)
    left = canvas.widest(names) + 0.1
    every = canvas.panels(
        len(chosen), columns, height=max(0.8, canvas.line * 1.15 * len(shown)), left=left, right=0.1,
        top=canvas.line * 1.6, bottom=canvas.line * 1.7, gap=(0.12, canvas.line * 3.4),
    )  # fmt: skip
    for place, (axes, (metric, results)) in enumerate(zip(every, chosen.items(), strict=True)):
        for result in results:
            row, look = shown.index(result.one), result.one.look
            if len(result.seeds) > 1:
                axes.plot(
                    result.seeds,
                    [row] * len(result.seeds),
                    ".",
                    color=look.colour,
                    alpha=0.5,
                    markersize=4.5,
                    markeredgewidth=0,
                )
            axes.errorbar(result.value, row, xerr=result.error, color=look.colour, linewidth=0.9, capsize=1.5)
            axes.plot(result.value, row, look.marker, color=look.colour, markersize=4)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_yticks(range(len(shown)), names if place % columns == 0 else [""] * len(shown))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=4)
        numbers(axes.xaxis)
        canvas.head(axes, short(metric))
