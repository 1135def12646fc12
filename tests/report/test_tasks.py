"""The scores of tasks that a report shows, from the journals of its runs."""

import html
import re

import matplotlib.pyplot as plt
import pytest

from lib.record.journal import Journal
from lib.report import content, figures_costs, figures_looks, study, writing
from lib.report.content import Table, Text
from lib.report.figures_canvas import PAGE, Canvas
from tests.record.test_tasks import task
from tests.report.made import sweep

# Configuration -> seed -> what was measured. The first score of dense with seed 1 is of an earlier step.
MEASURED = {
    "dense": {1: [task(20, 0.9), task(40, 0.3)], 2: [task(40, 0.32), task(40, 0.5, "piqa")]},
    "pruned": {1: [task(40, 0.25), task(40, 3.5, "validation")], 2: [task(40, 0.29)]},
    "bare": {1: [], 2: []},
}


@pytest.fixture
def made(tmp_path):
    """The study of a sweep whose runs were measured after their end, as `make evaluate` does."""
    losses = {name: {1: 3.0 + place, 2: 3.1 + place} for place, name in enumerate(MEASURED)}
    folder = sweep(tmp_path / "few", losses, pruned={"pruning_method": "magnitude"}, bare={"pruning_method": "random"})
    for name, by_seed in MEASURED.items():
        for seed, events in by_seed.items():
            book = Journal(folder / f"{name}-seed{seed}")
            for event, step, metrics, details in events:
                book.write(event, step, metrics, **details)
            book.close()
    return study.of_sweep(folder)


def test_the_table_has_the_newest_scores_of_each_configuration(made):
    [section] = [one for one in content.sections(made, []) if one.title == "Tasks"]
    assert section.parts == (
        Table(
            ("task", "dense", "pruned", "bare"),
            (
                ("hellaswag/acc", "0.3100 ± 0.0141 (n = 2)", "0.2700 ± 0.0283 (n = 2)", "-"),
                ("piqa/acc", "0.5000 (n = 1)", "-", "-"),
                ("validation/acc", "-", "3.5000 (n = 1)", "-"),
            ),
        ),
        Text("Mean ± sample standard deviation over the seeds; the newest measurement of each run.", small=True),
    )


def test_the_figure_has_a_panel_for_each_task_with_seeds_means_and_errors(made):
    [drawing] = [one for one in figures_costs.drawings(figures_looks.cast(made)) if one.name == "tasks"]
    assert (drawing.title, drawing.caption) == (
        "Scores of tasks",
        "Scores with their standard errors over the items of the task. Markers are means over the seeds, dots are "
        "seeds.",
    )
    canvas = Canvas(PAGE)
    drawing.paint(canvas)
    hellaswag, piqa = canvas.figure.axes
    assert [label.get_text() for label in hellaswag.get_yticklabels()] == ["dense", "pruned"]  # what has no score: none
    # Row -> the seeds' dots, and the mean.
    dots = {tuple(line.get_xdata()): line.get_ydata()[0] for line in hellaswag.lines if line.get_marker() == "."}
    assert dots == {(0.3, 0.32): 0, (0.25, 0.29): 1}
    means = [(line.get_xdata()[0], line.get_ydata()[0]) for line in hellaswag.lines if line.get_marker() in "hos^D"]
    assert means == [(pytest.approx(0.31), 0), (pytest.approx(0.27), 1)]
    bars = [bar.get_segments()[0].tolist() for bar in hellaswag.collections]
    assert bars[0] == [pytest.approx([0.26, 0]), pytest.approx([0.36, 0])]  # ± 0.05
    assert bars[1] == [pytest.approx([0.22, 1]), pytest.approx([0.32, 1])]
    assert [line.get_xdata()[0] for line in piqa.lines if line.get_marker() in "hos^D"] == [0.5]
    plt.close("all")


def test_the_page_has_both(made, tmp_path):
    writing.write(tmp_path / "report", made)
    page = html.unescape((tmp_path / "report/index.html").read_text())
    [figure] = re.findall(r'<figure id="figure-tasks">.*?</figure>', page, re.DOTALL)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", figure)
    assert [text for text in texts if "/" in text] == ["hellaswag/acc", "piqa/acc"]
    assert [text for text in texts if text in MEASURED] == ["dense", "pruned"]
    [section] = re.findall(r'<section id="tasks">.*?</section>', page, re.DOTALL)
    cells = re.findall(r"<td>([^<]+)</td>", section.replace("\N{NO-BREAK SPACE}", " "))
    assert cells[:3] == ["0.3100 ± 0.0141 (n = 2)", "0.2700 ± 0.0283 (n = 2)", "-"]
    assert figure in section
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
