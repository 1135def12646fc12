"""The figures of a report, drawn with matplotlib: SVG for the page, SVG and PDF for papers."""

import dataclasses
import itertools
from pathlib import Path

from lib.report import figures_costs, figures_curves, figures_looks, figures_matrices, figures_output, figures_points
from lib.report.study import Study

_ORDER = (
    "loss-against-sparsity", "loss-against-nonzeros", "loss-against-tokens", "loss-against-flops", "loss-against-time",
    "cost-against-loss", "tasks", "sparsity-per-layer", "mask-overlap", "optimization",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure that was drawn."""

    name: str  # also of its files, such as loss-against-tokens
    title: str
    caption: str  # sentences, as below a figure in a paper
    svg: str  # an element for the page, for light and dark, without width, height and external references


def draw(study: Study, folder: Path) -> list[Figure]:
    """Draw every figure for which the study has data; also write <name>.svg and <name>.pdf to `folder`.

    The files are as wide as a column of a paper, 3.3 inches, or as its page, 6.9 inches, if they have several panels.
    """
    cast = figures_looks.cast(study)
    kinds = (figures_points, figures_costs, figures_curves, figures_matrices)
    drawings = itertools.chain.from_iterable(kind.drawings(cast) for kind in kinds)
    found = []
    for drawing in sorted(drawings, key=lambda drawing: _ORDER.index(drawing.name)):
        figures_output.write(drawing, folder)
        found.append(Figure(drawing.name, drawing.title, drawing.caption, figures_output.page_svg(drawing)))
    return found
