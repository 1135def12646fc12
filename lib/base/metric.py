"""How a metric is shown: declared where it is computed, recorded in the journal, read by programs that show runs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_FORM = re.compile(r",?\.\d[fe%]")
_KINDS = {"label": str, "form": str, "unit": str, "optional": bool, "row": int, "chart": int}


class Metric(str):
    """A metric's name, which is its key in a dict of metrics. It also says how the values are shown.

    label      its name in the console's line; "" shows only the value, None leaves the metric out
    form       format of a value in the console's line
    unit       text after the value in the console's line
    optional   whether a value of zero is left out
    row        place in the table of `make show`, from 1; 0: only with --all
    chart      place among the dashboard's charts, from 1; 0: after the others, by name
    """

    def __new__(cls, name: str, **shown: Any) -> "Metric":
        """Raises ValueError if `shown` is not valid: it may come from a damaged journal."""
        self = super().__new__(cls, name)
        if not all(type(value) is _KINDS.get(key) for key, value in shown.items()):
            raise ValueError(f"{name}: cannot be shown as {shown}")
        self.shown = shown
        self.label, self.form, self.unit = shown.get("label"), shown.get("form", ".4f"), shown.get("unit", "")
        self.optional, self.row, self.chart = (
            shown.get(key, default) for key, default in (("optional", False), ("row", 0), ("chart", 0))
        )
        if not _FORM.fullmatch(self.form):
            raise ValueError(f"{name}: is not a format: {self.form!r}")
        if not all(text.isprintable() for text in (name, self.label or "", self.unit)):  # they go to the terminal
            raise ValueError(f"{name!r}: has a control character in its name, label or unit")
        return self

    def text(self, value: float) -> str:
        """The value in the console's line: `loss 2.5000`."""
        return f"{self.label} {value:{self.form}}{self.unit}".strip()


# Journals of earlier versions do not say how their metrics are shown.
EARLIER = {
    name: Metric(name, **shown)
    for name, shown in {
        "train_loss": {"label": "loss", "row": 1, "chart": 2},
        "val_loss": {"label": "val loss", "row": 2, "chart": 1},
        "val_perplexity": {"label": "perplexity", "form": ",.2f", "chart": 7},
        "learning_rate": {"label": "lr", "form": ".2e", "row": 3, "chart": 4},
        "sparsity": {"label": "sparsity", "form": ".1%", "optional": True, "row": 4, "chart": 3},
        "average_nonzeros": {"chart": 8},
        "tokens_per_second": {"label": "", "form": ",.0f", "unit": " tokens/s", "row": 5, "chart": 6},
        "grad_norm": {"row": 6, "chart": 5},
        "mfu": {"chart": 9},
        "tokens": {"chart": 10},
    }.items()
}


def described(record: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics that a record of a journal describes; raises ValueError or TypeError if it is damaged."""
    return {name: Metric(name, **shown) for name, shown in record.get("shown", {}).items()}


def line(metrics: Mapping[str, float], known: Mapping[str, Metric]) -> str:
    """The metrics of a record as the console shows them: in their order, but the optional ones last."""
    shown = [known[name] for name in metrics if name in known and known[name].label is not None]
    shown = [metric for metric in shown if not (metric.optional and not metrics[metric])]
    return "  ".join(metric.text(metrics[metric]) for metric in sorted(shown, key=lambda metric: metric.optional))


def chart_order(known: Iterable[Metric]) -> list[str]:
    """Names of the metrics whose charts come first, in order. Trackio's list of them has commas, so no name may."""
    placed = [metric for metric in known if metric.chart and "," not in metric]
    return [str(metric) for metric in sorted(placed, key=lambda metric: metric.chart)]


def rows(known: Iterable[Metric]) -> list[str]:
    """Names of the metrics that `make show` shows without --all, in order."""
    return [str(metric) for metric in sorted(known, key=lambda metric: metric.row) if metric.row]
