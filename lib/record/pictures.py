"""Pictures of a run, drawn from its journal: the loss curve, and the sparsity of each tensor at each evaluation.

matplotlib is an optional package (the extra `report`) and slow to import. So only functions that draw import it. They
leave its settings as they were, and draw the same bytes for the same history, whatever the user's settings are.
"""

import importlib.util
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lib.config import extras
from lib.record import journal
from lib.record.best import SAME
from lib.record.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 800, 500  # pixels
# Metric -> its colour and the form of its last value. The colours also differ in brightness.
CURVES = {"train_loss": ("#6c9bd0", ".5g"), "val_loss": ("#0b3d91", ".5g"), "sparsity": ("#b3541e", ".1%")}
HEAT = "Blues"  # white: no weight is zero
_DOTS = 50  # the most values of a curve that are marked one by one
_ROWS, _STEPS = 24, 9  # the most rows and columns of a heat map that have a label
_LONGEST = 32  # characters of a label
_TINY, _HUGE = 1e-9, 1e30  # the range of a logarithmic axis
_OF_TENSOR = "sparsity/"  # how the metrics begin that an evaluation records for each tensor

Curve = dict[int, float]  # step -> value, steps ascending


def problem() -> str:
    """Why no picture can be drawn and what to do, in one sentence; empty if pictures can be drawn."""
    spec = importlib.util.find_spec("matplotlib")
    if spec and spec.origin:  # a folder of this name has no origin
        return ""
    return f"no pictures: package matplotlib is not installed; {extras.install(extras.extra('report'))}"


def loss_curve(history: History) -> bytes | None:
    """A PNG of train_loss and val_loss over the steps, and of the sparsity if weights were pruned; None without a loss.

    Values that are NaN, infinite or larger than 1e30 are left out.
    """
    losses = {name: curve for name in ("train_loss", "val_loss") if (curve := _finite(history.values(name)))}
    sparsity = _finite(history.values("sparsity"))
    if max(sparsity.values(), default=0) <= SAME:
        sparsity = {}
    return _png(lambda figure: _curves(figure, losses, sparsity)) if losses else None


def layer_sparsity(history: History) -> bytes | None:
    """A PNG with a row for each tensor in the scope of pruning and a column for each evaluation; None without pruning.

    Tensors whose names differ only in a number, such as that of the layer, are neighbours.
    """
    columns: dict[int, dict[str, float]] = {}  # step -> tensor -> sparsity
    for (event, step), row in history.rows.items():
        tensors = {name: value for name, value in row["metrics"].items() if name.startswith(_OF_TENSOR)}
        if event == "eval" and tensors:
            columns[step] = {name.removeprefix(_OF_TENSOR): journal.number(value) for name, value in tensors.items()}
    kinds: dict[str, dict[str, None]] = {}  # h.*.attn.c_attn -> h.0.attn.c_attn, h.1.attn.c_attn, ...
    for name in (name for tensors in columns.values() for name in tensors):
        kinds.setdefault(re.sub(r"\d+", "*", name), {})[name] = None
    rows = [name for names in kinds.values() for name in names]
    steps = sorted(columns)
    values = [[columns[step].get(name, math.nan) for step in steps] for name in rows]
    return _png(lambda figure: _heat(figure, rows, steps, values)) if rows else None


def _finite(curve: Curve) -> Curve:
    """Without what cannot be drawn: matplotlib's axes overflow at the largest numbers."""
    return {step: value for step, value in curve.items() if abs(value) < _HUGE}


def _thin(curve: Curve) -> Curve:
    """The smallest and the largest value of each column of pixels: more points take seconds, and look the same."""
    size = -(-len(curve) // WIDTH)  # points in a column
    if size <= 2:
        return curve
    points = list(curve.items())
    columns = [points[start : start + size] for start in range(0, len(points), size)]
    kept = {find(column, key=lambda point: point[1])[0] for column in columns for find in (min, max)}
    kept |= {points[0][0], points[-1][0]}
    return {step: value for step, value in points if step in kept}


def _png(draw: Callable[["Figure"], None]) -> bytes:
    """The PNG of what `draw` puts on an empty figure."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"), io.BytesIO() as file:
        figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, layout="constrained")
        draw(figure)
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # a version would change the bytes
        return file.getvalue()


def _curves(figure: "Figure", losses: dict[str, Curve], sparsity: Curve) -> None:
    """Draw the losses and, below them, the sparsity unless it is empty."""
    heights = [3, 1] if sparsity else [1]
    every = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    low, high = (limit(value for curve in losses.values() for value in curve.values()) for limit in (min, max))
    if _TINY < low < high / 30:  # a spike would flatten everything else
        every[0].set_yscale("log")
    _plot(every[0], losses)
    every[0].set_ylabel("loss (nats per token)")
    if sparsity:
        every[1].set(ylabel="sparsity", ylim=(0, 1.05))
        every[1].yaxis.set_major_formatter("{x:.0%}")
        _plot(every[1], {"sparsity": sparsity})
    for axes in every:
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    every[-1].set_xlabel("step")
    every[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    every[-1].xaxis.set_major_formatter("{x:,.0f}")


def _plot(axes: "Axes", curves: dict[str, Curve]) -> None:
    """Draw curves; the name and the last value of each stand at its end, so that no legend is needed."""
    axes.margins(x=0.01)
    for name, curve in ((name, _thin(curve)) for name, curve in curves.items()):
        dots = "o" if len(curve) == 1 or (name == "val_loss" and len(curve) <= _DOTS) else ""
        axes.plot(list(curve), list(curve.values()), color=CURVES[name][0], marker=dots, markersize=4)
    axes.autoscale_view()
    place = axes.transScale + axes.transLimits  # from values to shares of the axes
    ends = {name: next(reversed(curve.items())) for name, curve in curves.items()}
    free = 0.0  # the lowest place that no name has taken
    for height, name in sorted((float(place.transform(end)[1]), name) for name, end in ends.items()):
        colour, form = CURVES[name]
        text, at = f"{name}\n{ends[name][1]:{form}}", max(height, free)
        axes.text(1.01, at, text, color=colour, transform=axes.transAxes, verticalalignment="center")
        free = at + 0.12


def _heat(figure: "Figure", rows: Sequence[str], steps: Sequence[int], values: Sequence[Sequence[float]]) -> None:
    """Draw the `values` of rows x steps as colours, and the last value of each labelled row as a number."""
    axes = figure.subplots()
    axes.set_facecolor("0.8")  # shows where there is no value
    mesh = axes.pcolormesh(values, cmap=HEAT, vmin=0, vmax=1)
    axes.invert_yaxis()
    named = range(0, len(rows), -(-len(rows) // _ROWS))
    dated = range(len(steps) - 1, -1, -len(steps) // _STEPS)  # from the last, which counts most
    names = [rows[at] if len(rows[at]) <= _LONGEST else f"{rows[at][: _LONGEST - 1]}…" for at in named]
    small = {"fontsize": 8, "parse_math": False}
    axes.set_yticks([at + 0.5 for at in named], names, **small)
    axes.set_xticks([at + 0.5 for at in dated], [f"{steps[at]:,}" for at in dated])
    for at in named:
        last = f" {values[at][-1]:.1%}" if math.isfinite(values[at][-1]) else ""
        axes.text(len(steps), at + 0.5, last, verticalalignment="center", **small)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="step of the evaluation", title="sparsity of each tensor, and its last value")
    figure.colorbar(mesh, pad=0.08, format="{x:.0%}").outline.set_visible(False)
