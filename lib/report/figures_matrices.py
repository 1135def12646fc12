"""Figures of matrices: the sparsity of each tensor in each configuration, and how much the masks of methods overlap."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lib.record import mask_sample
from lib.report.figures_canvas import COLOURS, Canvas, Drawing, short
from lib.report.figures_looks import Cast, Shown, seeds, sentences

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _ROWS = 24, 64  # the most configurations and tensors of the heat map
_LEVELS, _METHODS = 3, 10  # the most matrices, and the most rows of one
_CLOSE = 0.01  # sparsities that differ by less are equal here
_DARK = 0.55  # from this value on a cell's number is light


def drawings(cast: Cast) -> Iterator[Drawing]:
    """Every figure of this file for which there is data."""
    for found in (_layers(cast), _overlap(cast)):
        if found:
            yield found


def _cells(axes: "Axes", values: np.ndarray) -> None:
    """A matrix as cells of one colour, as opaque as their values from 0 to 1; NaN stays empty."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    cells, colours = [], []
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            cells.append(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92))
            colours.append(to_rgba(COLOURS["heat"][0], round(0.06 + 0.94 * min(1.0, max(0.0, float(value))), 3)))
    axes.add_collection(PatchCollection(cells, facecolors=colours, linewidths=0))
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(values.shape[0] - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


# ---- layers ----------------------------------------------------------------------------------------------------------


def _layers(cast: Cast) -> Drawing | None:
    """Sparsity of each tensor at the end, mean over the seeds."""
    found = [one for one in cast.shown if not one.dense and any(run.layers for run in one.runs)]
    if not found:
        return None
    left = len(found) - _COLUMNS
    if left > 0:
        best = sorted(found, key=lambda one: one.loss)[:_COLUMNS]
        found = [one for one in found if one in best]
    tensors = _ordered(dict.fromkeys(name for one in found for run in one.runs for name in run.layers))
    every = -(-len(tensors) // _ROWS)
    values = np.array([[_mean(one, name) for one in found] for name in tensors[::every]])
    caption = sentences(
        "Share of zeros in each tensor at the end" + (", the mean over the seeds." if seeds(cast) > 1 else "."),
        f"One tensor in {every} is shown." if every > 1 else "",
        f"{left} configurations with higher losses are left out." if left > 0 else "",
        cast.missing,
    )
    return Drawing(
        "sparsity-per-layer", "Sparsity per layer", caption,
        lambda canvas: _paint_layers(canvas, [one.name for one in found], tensors[::every], values), len(found) > 6,
    )  # fmt: skip


def _ordered(names: Mapping[str, None]) -> list[str]:
    """Tensors that differ only in a number, such as that of the layer, are neighbours."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [name for members in kinds.values() for name in members]


def _mean(one: Shown, tensor: str) -> float:
    values = [run.layers[tensor] for run in one.runs if tensor in run.layers]
    return float(np.mean(values)) if values else math.nan


def _paint_layers(canvas: Canvas, names: Sequence[str], tensors: Sequence[str], values: np.ndarray) -> None:
    small = 0.85
    left = canvas.widest([short(name) for name in tensors], small) + 0.08
    bottom = canvas.widest([short(name) for name in names], small) + 0.08
    row = canvas.line * (1.25 if len(tensors) <= 32 else 0.9)
    (axes,) = canvas.panels(
        1, height=row * len(tensors), left=left, right=0.08, bottom=bottom, top=canvas.line * 2
    )  # fmt: skip
    _cells(axes, values)
    font = canvas.size.font
    axes.set_yticks(
        range(len(tensors)), [short(name) for name in tensors], fontsize=font * (small if row > canvas.line else 0.7)
    )
    axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=90, fontsize=font * small)
    width = axes.get_position().width * canvas.size.width / len(names)
    if width > canvas.text_width("100", 0.75) * 1.1 and row > canvas.line:
        for (line, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                colour = COLOURS["paper" if value > _DARK else "ink"][0]
                text = f"{100 * value:.0f}"
                axes.text(column, line, text, color=colour, ha="center", va="center", fontsize=font * 0.75)
    _scale(canvas, axes)


def _scale(canvas: Canvas, axes: "Axes") -> None:
    """A key of the colours above the panel, in percent."""
    width, height = axes.get_position().width * canvas.size.width, canvas.height(axes)
    inset = axes.inset_axes((0, 1 + 0.5 * canvas.line / height, min(1.0, 1.1 / width), 0.45 * canvas.line / height))
    _cells(inset, np.linspace(0, 1, 11)[None])
    inset.set_yticks([])
    inset.set_xticks([])
    inset.text(11, 0, "0 to 100 % zeros", va="center", fontsize=canvas.size.font * 0.85, color=COLOURS["soft"][0])


# ---- overlap ---------------------------------------------------------------------------------------------------------


def _overlap(cast: Cast) -> Drawing | None:
    """How much the kept weights of methods overlap at equal sparsity."""
    sampled = [one for one in cast.shown if not one.dense and all(run.masks for run in one.runs)]
    panels, notes, errors = [], [], []
    for level, members in _levels(sampled):
        values, chance, error = _matrix(members)
        if np.isfinite(values[~np.eye(len(members), dtype=bool)]).any():
            panels.append((f"{100 * level:.4g} % sparse", members, values))
            notes.append(f"{chance:.2f} at {100 * level:.4g} %")
            errors.append(error)
    if not panels:
        return None
    caption = sentences(
        "Intersection over union of the kept weights, between runs with the same seed.",
        "The diagonal is between different seeds of one method." if seeds(cast) > 1 else "",
        f"Random masks of these sparsities would have {', '.join(notes)}.",
        f"Standard errors are at most {max(errors):.3f}." if max(errors) > 0 else "",
        cast.missing,
    )
    return Drawing(
        "mask-overlap", "Overlap of masks", caption, lambda canvas: _paint_overlap(canvas, panels), len(panels) > 1
    )


def _levels(sampled: Sequence[Shown]) -> list[tuple[float, list[Shown]]]:
    """Sparsity -> the configurations that have it, at least two; the levels with most configurations, ascending."""
    found: list[tuple[float, list[Shown]]] = []
    for one in sorted(sampled, key=lambda one: one.mean("sparsity")):
        if found and one.mean("sparsity") - found[-1][0] < _CLOSE:
            found[-1][1].append(one)
        else:
            found.append((one.mean("sparsity"), [one]))
    several = [(round(level, 3), members) for level, members in found if len(members) > 1]
    most = sorted(several, key=lambda item: -len(item[1]))[:_LEVELS]
    names = {one.name for one in sampled}
    order = [one.name for one in sampled if one.name in names]
    return [
        (level, sorted(sorted(members, key=lambda one: one.loss)[:_METHODS], key=lambda one: order.index(one.name)))
        for level, members in sorted(most, key=lambda item: item[0])
    ]


def _matrix(members: Sequence[Shown]) -> tuple[np.ndarray, float, float]:
    """Mean overlaps, what chance would give on average, and the largest standard error of a mean."""
    values, chances, worst = np.full((len(members), len(members)), np.nan), [], 0.0
    for i, one in enumerate(members):
        for j, other in enumerate(members[: i + 1]):
            pairs = [
                (mine, theirs)
                for a, mine in enumerate(one.runs)
                for b, theirs in enumerate(other.runs)
                if (a > b if i == j else mine.seed == theirs.seed)
            ]
            found = [both for a, b in pairs if (both := mask_sample.overlap(a.masks, b.masks))]
            if not found:
                continue
            each = np.array([both.value for both in found])
            values[i, j] = values[j, i] = each.mean()
            chances += [both.chance for both in found]
            sampling = math.sqrt(sum(both.error**2 for both in found)) / len(found)
            # Pairs of the diagonal share runs, so their spread says too little; sampling is what is known of them.
            spread = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 and i != j else 0.0
            worst = max(worst, sampling, float(spread))
    return values, float(np.mean(chances)) if chances else 0.0, worst


def _paint_overlap(canvas: Canvas, panels: Sequence[tuple[str, list[Shown], np.ndarray]]) -> None:
    small = 0.85
    texts = [[short(one.method) for one in members] for _, members, _ in panels]  # the title has the sparsity
    names = canvas.widest([text for each in texts for text in each], small) + 0.08
    most = max(map(len, texts))
    least = canvas.text_width(".00", small) * 1.15  # the number must fit
    columns = next(n for n in range(len(panels), 0, -1) if n == 1 or canvas.size.width / n - names - 0.1 > least * most)
    cell = min(0.4, (canvas.size.width / columns - names - 0.1) / most)
    every = canvas.panels(
        len(panels), columns, height=cell * most, left=names, bottom=names, top=canvas.line * 1.6,
        right=max(0.05, (canvas.size.width - columns * (names + cell * most)) / columns),
        gap=(names, names + canvas.line * 1.8),
    )  # fmt: skip
    for axes, (title, members, values), text in zip(every, panels, texts, strict=True):
        _cells(axes, values)
        axes.set_xlim(-0.5, most - 0.5)
        axes.set_ylim(most - 0.5, -0.5)
        axes.set_yticks(range(len(members)), text, fontsize=canvas.size.font * small)
        axes.set_xticks(range(len(members)), text, rotation=90, fontsize=canvas.size.font * small)
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                colour = COLOURS["paper" if value > _DARK else "ink"][0]
                number = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
                axes.text(column, row, number, color=colour, ha="center", va="center", fontsize=canvas.size.font * 0.85)
        canvas.head(axes, title)
