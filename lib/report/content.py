"""What a report says, without its form: sections of texts, tables and figures, which page.py and markdown.py write."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean

from lib.compare import table
from lib.compare.comparison import CLOSE, spread
from lib.report import fairness, verdicts
from lib.report.figures import Figure
from lib.report.outcome import Group, Outcome
from lib.report.statistics import Comparison, Verdict
from lib.report.study import Study
from lib.terminal.console import duration


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str
    warns: bool = False  # what a reader must know before anything else
    small: bool = False  # an explanation


@dataclasses.dataclass(frozen=True)
class Items:
    """Sentences below each other."""

    words: tuple[str, ...]
    marks: tuple[str, ...] = ()  # of sentences about verdicts: the word of each
    numbered: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first `left` columns are names, the others numbers."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    comparison: Comparison | None = None  # of a table of verdicts, for the picture of its intervals


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report under a heading."""

    title: str
    parts: tuple[Text | Items | Table | Figure, ...]


# Section -> the figures that illustrate it.
FIGURES = {
    "Verdicts": ("loss-against-sparsity", "loss-against-nonzeros"),
    "Results": ("cost-against-loss",),
    "Tasks": ("tasks",),
    "Training": ("loss-against-tokens", "loss-against-flops", "loss-against-time", "optimization"),
    "Masks": ("sparsity-per-layer", "mask-overlap"),
}


def sections(study: Study, figures: Sequence[Figure]) -> list[Section]:
    """The whole report. Each figure follows the text and the tables of its section."""
    drawn = {figure.name: figure for figure in figures}
    found = {
        "Verdicts": _verdicts(study),
        "What is equal, and what is not": _fairness(study),
        "Results": (_results(study.groups), *_begun(study.groups), *_options(study.groups)),
        "Tasks": _tasks(study.groups),
        "Training": (),
        "Masks": (),
        "Runs": (runs(study.groups),),
        "Method": (Items(_METHOD, numbered=True),),
    }
    return [
        Section(title, all_parts)
        for title, parts in found.items()
        if (all_parts := (*parts, *(drawn[name] for name in FIGURES.get(title, ()) if name in drawn)))
    ]


# ---- verdicts --------------------------------------------------------------------------------------------------------

VERDICT_TITLES = (
    "configuration", "verdict", "difference, nats", "in %", "95 % interval", "adjusted p", "n", "more seeds",
)  # fmt: skip


def _verdicts(study: Study) -> Iterator[Text | Items | Table]:
    if len(study.blocks) > 1:
        yield Text(verdicts.not_ranked(study), warns=True)
    for block in study.blocks:
        comparisons = [one for one in (block.comparison, block.beside) if one]
        if len(study.blocks) > 1 or not comparisons:
            yield Text(verdicts.budget(block))
        for words in block.why:
            yield Text(words, warns=study.reference in [group.name for group in block.groups])
        for comparison in comparisons:
            words = [verdicts.sentence(name, one, comparison) for name, one in comparison.verdicts.items()]
            yield Items(tuple(words), tuple(one.word for one in comparison.verdicts.values()))
            rows = [verdict_row(name, one) for name, one in comparison.verdicts.items()]
            yield dataclasses.replace(_without_empty(VERDICT_TITLES, rows, left=2), comparison=comparison)
            yield Text(
                f"Against {comparison.reference}, in nats per token of validation loss after the last step; negative "
                f"is better. {verdicts.margin(comparison)} {comparison.method}",
                small=True,
            )
    if study.notes:
        yield Items(study.notes)


def verdict_row(name: str, one: Verdict) -> tuple[str, ...]:
    """The row of a configuration under VERDICT_TITLES."""
    interval = "-" if one.low is None or one.high is None else f"{_signed(one.low)} to {_signed(one.high)}"
    further = "-"
    if one.more:
        seeds, low, high = ("> 1,000" if n is None else f"{n:,}" for n in (one.more.seeds, one.more.low, one.more.high))
        further = f"{seeds} ({low} to {high})"
    percent = "-" if one.percent is None else f"{one.percent:+.2f}"
    p = "-" if one.p is None else verdicts.p_value(one.p).removeprefix("p = ").removeprefix("p ")
    return name, one.word, _signed(one.difference), percent, interval, p, str(one.n), further


def _signed(value: float | None) -> str:
    return "-" if value is None else verdicts.nats(value, "+")


# ---- fairness --------------------------------------------------------------------------------------------------------


def _fairness(study: Study) -> Iterator[Text | Table]:
    words = fairness.QUANTITIES[study.quantity][1]
    if len(study.blocks) == 1:
        close = "" if study.quantity == "tokens" else f", within {CLOSE:.0%}"
        yield Text(
            f"All configurations have the same budget, {study.blocks[0].budget}{close}, and the same evaluation."
        )
    else:
        yield Text(f"Matched on {words}. {verdicts.not_ranked(study)}")
    if study.unequal:
        rows = [
            (name if number == 0 else "", value, _names(groups, values, study.groups))
            for name, values in study.unequal.items()
            for number, (value, groups) in enumerate(values.items())
        ]
        yield Table(("not equal", "value", "configurations"), tuple(rows), left=3)
    else:
        yield Text("Nothing that this report looks at differs.")
    if study.equal:
        yield Table(("equal in all finished runs", "value"), tuple(study.equal.items()), left=2)


def _names(groups: Sequence[str], values: Mapping[str, Sequence[str]], every: Sequence[Group]) -> str:
    """The names of groups with a value; `the 38 others` for most of them, if none of these has another value too."""
    others = {name for names in values.values() if names is not groups for name in names}
    if len(groups) > max(3, len(every) / 2) and not others.intersection(groups):
        return f"the {len(groups)} others"
    return ", ".join(groups)


# ---- tables ----------------------------------------------------------------------------------------------------------


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    return f"{value / (1 << 30):.2f} GiB"


# Title of a column -> the value of a run, and its form.
_COLUMNS: dict[str, tuple[Callable[[Outcome], float | None], Callable[[float], str]]] = {
    "sparsity": (lambda one: one.sparsity, "{:.4f}".format),
    "average non-zeros": (lambda one: one.average_nonzeros, _whole),
    "non-zeros at the end": (lambda one: one.nonzeros, _whole),
    "ever active": (lambda one: one.ever_active, "{:.1%}".format),
    "parameters": (lambda one: one.parameters, _whole),
    "tokens in all": (lambda one: one.total_tokens, _whole),
    "FLOPs by non-zeros": (lambda one: one.flops, "{:.3g}".format),
    "FLOPs dense": (lambda one: one.dense_flops, "{:.3g}".format),
    "time": (lambda one: one.seconds, duration),
    "memory": (lambda one: one.memory, _size),
}


def _results(groups: Sequence[Group]) -> Table:
    """A row per configuration: loss and what it cost, mean over the finished runs."""
    rows = []
    for group in groups:
        finished = [one for one in group.outcomes if one.finished]
        n = (
            str(len(group.losses))
            if len(finished) == len(group.outcomes)
            else f"{len(finished)} of {len(group.outcomes)}"
        )
        shown = [_mean(list(map(read, finished)), form) for read, form in _COLUMNS.values()]
        best = _mean([one.best_val_loss for one in finished], "{:.4f}".format)
        rows.append((group.name, n, table.loss(spread(list(group.losses.values()))), best, *shown))
    titles = ("configuration", "n", "validation loss", "best", *_COLUMNS)
    return _without_empty(titles, rows)


def _begun(groups: Sequence[Group]) -> Iterator[Text]:
    """What the average of runs that began from others is not: that of all training, as their tokens are."""
    if any(one.before for group in groups for one in group.outcomes):
        yield Text(
            "Non-zeros on average are those of each run itself, without the runs that it began from.", small=True
        )


def _without_empty(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A table without the columns in which no row has a value."""
    kept = [place for place in range(len(titles)) if place < left or any(row[place] != "-" for row in rows)]
    return Table(tuple(titles[place] for place in kept), tuple(tuple(row[n] for n in kept) for row in rows), left)


def _mean(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return form(mean(known)) if known else "-"


def _options(groups: Sequence[Group]) -> Iterator[Table]:
    """The options that differ between the configurations."""
    names = fairness.differing([one for group in groups for one in group.outcomes])
    if names:
        rows = [(group.name, *(_values(group, name) for name in names)) for group in groups]
        yield Table(("options", *(name.lower() for name in names)), tuple(rows), left=1 + len(names))


def _values(group: Group, name: str) -> str:
    found = dict.fromkeys(fairness.value(one, name) or "-" for one in group.outcomes)
    return ", ".join(found)


def _tasks(groups: Sequence[Group]) -> Iterator[Table | Text]:
    """Each metric of tasks: mean over the runs that have it."""
    metrics = dict.fromkeys(metric for group in groups for one in group.outcomes for metric in sorted(one.tasks))
    if not metrics:
        return
    rows = []
    for metric in metrics:
        found = [[one.tasks[metric].value for one in group.outcomes if metric in one.tasks] for group in groups]
        shown = [f"{table.loss(spread(values))} (n = {len(values)})" if values else "-" for values in found]
        rows.append((metric, *shown))
    yield Table(("task", *(group.name for group in groups)), tuple(rows))
    yield Text("Mean ± sample standard deviation over the seeds; the newest measurement of each run.", small=True)


def runs(groups: Sequence[Group]) -> Table:
    """A row per run."""
    titles = ("configuration", "state", "seed", "steps", "validation loss", "best", *_COLUMNS, "retries", "trials")
    rows = [
        (
            group.name, one.state, str(one.seed), _whole(one.steps), _loss(one.val_loss), _loss(one.best_val_loss),
            *(_mean([read(one)], form) for read, form in _COLUMNS.values()), str(one.retries),
            "-" if one.tuned is None else str(one.tuned),
        )
        for group in groups for one in group.outcomes
    ]  # fmt: skip
    return _without_empty(titles, rows, left=2)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


# ---- method ----------------------------------------------------------------------------------------------------------

_METHOD = (
    "The result of a run is its validation loss after the last step, not its best. The best step of each run favours "
    "noisy runs.",
    "Runs with the same seed see the same data in the same order and begin with the same random numbers. So each "
    "configuration is compared with the reference seed by seed. The mean of these differences is the effect.",
    "An interval is the mean difference ± t times its standard error (Student 1908), for this configuration by itself. "
    "A seed is one observation. Bouthillier et al. (2021, arXiv 2103.03098) show how much of a result varies so.",
    "If no configuration's variance stands out, one standard deviation is estimated from the two-way layout "
    "configuration + seed, with more degrees of freedom. Otherwise each pair has its own. Cochran's test (1941) "
    "decides: its p must be above 6 / (n + 4). The usual 0.05 would nearly always pool, because few seeds hardly show "
    "unequal variances.",
    "Several configurations against one reference make false verdicts likelier. p is adjusted by Dunnett's test (1955) "
    "in the pooled layout, and by Holm's (1979) where each pair has its own t.",
    "A configuration is better or worse if its adjusted p is at most 0.05.",
    "It is equivalent if two one-sided tests (Schuirmann 1987), adjusted in the same way, put the difference within "
    "the margin. A margin says which differences do not matter. Declare your own with MARGIN.",
    "Otherwise it is undecided. The number of further seeds comes from the noncentral t distribution, for 80 % power "
    "at the difference and spread that were seen (see Colas et al. 2018, arXiv 1806.08295). Its range shows how "
    "uncertain a standard deviation of few seeds is.",
    "No bootstrap is used: with fewer than 10 seeds its intervals cover far less than they promise.",
    "Configurations are ranked only at equal budget and evaluation. A diverged run counts as an infinite loss, because "
    "leaving it out would show only the seeds that went well. Nothing is compared with a reference that diverged. Runs "
    "that are not finished are not ranked.",
)
