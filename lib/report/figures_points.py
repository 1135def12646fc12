"""Loss against sparsity and against average non-zeros: a point for each configuration, with seeds and intervals."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lib.compare import comparison
from lib.report import fairness, law
from lib.report.figures_canvas import COLOURS, LEGEND, Canvas, Drawing, Label, logarithm, numbers, short
from lib.report.figures_looks import COUNTS, Cast, Shown, grey, left_out, scaled, seeds, sentences
from lib.report.law import Law
from lib.report.outcome import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = 6  # the most dense baselines with a line
_LOSS = "loss (nats per token)"


def drawings(cast: Cast) -> Iterator[Drawing]:
    """Every figure of this file for which there is data."""
    for found in (_sparsity(cast), _nonzeros(cast)):
        if found:
            yield found


# ---- parts -----------------------------------------------------------------------------------------------------------


def _points(
    axes: "Axes", found: Sequence[Shown], x: Callable[[Shown], float], seed_x: str = "", unit: float = 1
) -> None:
    """Means with intervals, joined within each method; a small dot for each seed at its own `seed_x`."""
    methods: dict[str, list[Shown]] = {}
    for one in found:
        methods.setdefault(one.method, []).append(one)
    for members in sorted(methods.values(), key=lambda members: not members[0].quiet):
        members = sorted(members, key=x)
        if len(members) > 1:
            joined = [x(one) for one in members], [one.loss for one in members]
            axes.plot(*joined, color=members[0].look.colour, linewidth=1.0, zorder=2)
    for one in sorted(found, key=lambda one: not one.quiet):
        if seed_x and len(one.runs) > 1:
            places = [getattr(run, seed_x) / unit for run in one.runs]
            losses = [run.val_loss for run in one.runs]
            axes.plot(
                places, losses, ".", color=one.look.colour, markersize=4.5, alpha=0.6, markeredgewidth=0, zorder=3
            )
        half = one.interval()
        if half is not None:
            axes.errorbar(x(one), one.loss, half, color=one.look.colour, linewidth=0.9, capsize=1.5, zorder=3)
        face = COLOURS["paper"][0] if one.other else one.look.colour
        axes.plot(
            x(one), one.loss, one.look.marker, color=one.look.colour, markerfacecolor=face, markersize=4.2, zorder=4
        )  # fmt: skip


def _range(axes: "Axes", found: Sequence[Shown], losses: Sequence[float] = ()) -> None:
    """The range of the losses. Intervals of few seeds may be huge, so they do not count beyond the seeds' range."""
    values = [run.val_loss for one in found for run in one.runs] + list(losses)
    low, high = min(values), max(values)
    width = max(high - low, 1e-3)
    ends = [one.loss + sign * (one.interval() or 0) for one in found for sign in (-1, 1)]
    low, high = max(min([low, *ends]), low - width / 3), min(max([high, *ends]), high + width / 3)
    axes.set_ylim(low - 0.05 * width, high + 0.05 * width)
    axes.locator_params(axis="y", nbins=6)
    numbers(axes.yaxis)


def _words(cast: Cast, found: Sequence[Shown]) -> str:
    """What points, bars and hollow markers mean."""
    several = seeds(cast) > 1
    hollow = any(one.other for one in found)
    quiet = sum(one.quiet for one in found)
    return sentences(
        grey(quiet),
        "Markers are means over the seeds, dots are seeds, bars are 95 % intervals of the mean (t)." if several else "",
        "" if several else "There is one seed, so there are no intervals.",
        "Hollow markers have another budget or evaluation than the reference and must not be ranked with it."
        if hollow
        else "",
    )


def _last(found: Sequence[Shown], x: Callable[[Shown], float]) -> list[Shown]:
    """The configuration of each method with the largest x, by loss from the top."""
    last = {one.method: one for one in sorted(found, key=x)}
    return sorted(last.values(), key=lambda one: -one.loss)


# ---- sparsity --------------------------------------------------------------------------------------------------------


def _sparsity(cast: Cast) -> Drawing | None:
    """Loss against final sparsity, with dense baselines as lines."""
    known = [one for one in cast.shown if one.mean("sparsity") is not None]
    sparse = [one for one in known if not one.dense]
    dense = [one for one in known if one.dense and not one.other]  # a line across says: compare with this
    if not sparse:
        return None
    lines = sorted(dense, key=lambda one: one is not cast.reference)[:_LINES]
    caption = sentences(
        "Validation loss against the share of zeros among the weights in scope, at the end.",
        _words(cast, sparse),
        "Lines across are dense baselines" + ("; their bands are 95 % intervals." if seeds(cast) > 1 else ".")
        if lines
        else "",
        f"{len(dense) - len(lines)} further dense baselines are left out." if len(dense) > len(lines) else "",
        left_out(
            "Dense, but without a line, because their budget or evaluation is not the reference's",
            [one for one in known if one.dense and one.other],
        ),
        cast.missing,
    )
    return Drawing(
        "loss-against-sparsity", "Loss against sparsity", caption, lambda canvas: _paint_sparsity(canvas, sparse, lines)
    )


def _paint_sparsity(canvas: Canvas, sparse: Sequence[Shown], lines: Sequence[Shown]) -> None:
    def x(one: Shown) -> float:
        return one.mean("sparsity")

    entries = [Label(one.loss, short(one.method), one.look.colour, x(one)) for one in _last(sparse, x) if not one.quiet]
    entries += [Label(one.loss, short(one.name), one.look.colour) for one in lines]
    right = canvas.widest([one.text for one in entries]) + 0.12
    (axes,) = canvas.panels(1, height=0.6 * canvas.size.width, right=right)
    for place, one in enumerate(lines):
        dash = (0, ()) if place == 0 else one.look.dash if one.look.dash[1] else (0, (6, 2))
        axes.axhline(one.loss, color=one.look.colour, linewidth=0.9, linestyle=dash, zorder=1)
        if half := one.interval():
            axes.axhspan(one.loss - half, one.loss + half, color=one.look.colour, alpha=0.08, linewidth=0, zorder=0)
    _points(axes, sparse, x, "sparsity")
    values = [x(one) for one in sparse]
    room = max(0.02, 0.06 * (max(values) - min(values)))
    axes.set_xlim(min(values) - room, min(max(values) + room, 1.005))
    _range(axes, [*sparse, *lines])
    axes.set(xlabel="sparsity at the end", ylabel=_LOSS)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.locator_params(axis="x", nbins=6)
    canvas.labels(axes, entries)


# ---- non-zeros -------------------------------------------------------------------------------------------------------


def _nonzeros(cast: Cast) -> Drawing | None:
    """Loss against average non-zeros, with the law of loss against size."""
    base, every = cast.base(cast.shown), [one for one in cast.shown if (one.mean("average_nonzeros") or 0) > 0]
    begun = [one for one in every if any(run.before for run in one.runs)]
    apart = [one for one in every if one not in begun and not comparison.is_same(_scopes(one), _scopes(base))]
    known = [one for one in every if one not in begun and one not in apart]
    if len({one.mean("average_nonzeros") for one in known}) < 2:
        return None
    alike = [one for one in known if one.evaluation == base.evaluation]
    counted = [one for one in alike if (one.mean("total_tokens") or 0) > 0 and not one.diverged]
    fitted = law.fit(
        [one.mean("average_nonzeros") for one in counted],
        [one.mean("total_tokens") for one in counted],
        [one.loss for one in counted],
    )
    tokens = base.mean("total_tokens") or 0.0
    caption = sentences(
        "Validation loss against the weights in scope that are not zero, averaged over training.",
        _words(cast, known),
        fitted if isinstance(fitted, str) else _law_words(fitted, tokens),
        left_out("Not in the law, because they have another evaluation", [one for one in known if one not in alike]),
        left_out("Not in the law, because a run of theirs diverged", [one for one in alike if one.diverged]),
        left_out("Not drawn, because their average has only the last run, without those that it began from", begun),
        left_out("Not drawn, because their non-zeros are counted in another PRUNING_SCOPE", apart),
        cast.missing,
    )
    drawn = fitted if isinstance(fitted, Law) else None
    return Drawing(
        "loss-against-nonzeros", "Loss against average non-zeros", caption,
        lambda canvas: _paint_nonzeros(canvas, known, drawn, tokens),
    )  # fmt: skip


def _scopes(one: Shown) -> comparison.Scopes:
    """The weights that its non-zeros are counted in."""
    return fairness.scopes(Group(one.name, one.runs), "average-nonzeros")


def _law_words(fitted: Law, tokens: float) -> str:
    data = f", drawn for D = {tokens:,.0f} tokens" if fitted.b else ""
    return (
        "The dashed line is the law of Hoffmann et al. (2022) with average non-zeros for N, as Jin et al. (2025) "
        f"propose: {fitted}{data}; a ± {fitted.error:.2g}, residual {fitted.residual:.2g} nats (root mean square over "
        f"{fitted.points} configurations)."
    )


def _paint_nonzeros(canvas: Canvas, known: Sequence[Shown], fitted: Law | None, tokens: float) -> None:
    unit, word = scaled(max(one.mean("average_nonzeros") for one in known), COUNTS)

    def x(one: Shown) -> float:
        return one.mean("average_nonzeros") / unit

    entries = [
        Label(0, short(one.method), one.look.colour, marker=one.look.marker) for one in _last(known, x) if not one.quiet
    ]
    right = canvas.widest([one.text for one in entries]) + LEGEND + 0.06
    (axes,) = canvas.panels(1, height=0.6 * canvas.size.width, right=right)
    axes.set_xscale("log")
    _points(axes, known, x, "average_nonzeros", unit)
    values = [x(one) for one in known]
    low, high = min(values) / 1.12, max(values) * 1.12
    if fitted:
        line = np.geomspace(low, high, 60)
        axes.plot(
            line,
            fitted.loss(line * unit, tokens),
            color=COLOURS["soft"][0],
            linestyle=(0, (5, 2)),
            linewidth=0.9,
            zorder=1,
        )
    axes.set_xlim(low, high)
    _range(axes, known)
    logarithm(axes.xaxis, low, high)
    axes.set(xlabel=f"average non-zeros ({word}s)" if word else "average non-zeros", ylabel=_LOSS)
    canvas.legend(axes, entries)
