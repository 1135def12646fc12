"""The figures of a report: which are drawn, that they are harmless and repeatable, and the numbers that they show."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure as Empty

from lib.report import figures, figures_costs, figures_curves, figures_looks, figures_matrices, figures_output
from lib.report.figures_canvas import PAGE, Canvas, apart, logarithm, numbers, short
from lib.report.outcome import Group
from tests.report.simulated import group, law, outcome, score, study, worked

NAMES = [
    "loss-against-sparsity", "loss-against-nonzeros", "loss-against-tokens", "loss-against-flops", "loss-against-time",
    "cost-against-loss", "tasks", "sparsity-per-layer", "mask-overlap", "optimization",
]  # fmt: skip
WIDE = {"cost-against-loss"}  # of the study below
HOSTILE = '</text><script>"$x_y$" id="a" #0069b4\ud800'


def diverging(found, seed):
    """The group with a run of this seed that diverged."""
    runs = [
        dataclasses.replace(one, state="diverged", val_loss=math.inf) if one.seed == seed else one
        for one in found.outcomes
    ]
    return Group(found.name, tuple(runs))


@pytest.fixture(scope="module")
def groups():
    measured = {"tasks": {"hellaswag/acc": score("hellaswag/acc", 0.31, 0.02), "size/bytes": score("size/bytes", 9, 0)}}
    return [
        group("dense", 1.9, seeds=2, **measured),
        diverging(group("magnitude-80", 2.0, 0.8, seeds=3), 2),
        dataclasses.replace(group("state-80", 2.05, 0.8, seeds=2), name=HOSTILE),
    ]


@pytest.fixture(scope="module")
def drawn(groups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return figures.draw(study(*groups), folder), folder


def drawings(*groups, **more):
    """Name -> drawing."""
    cast = figures_looks.cast(study(*groups, **more))
    kinds = (figures.figures_points, figures_costs, figures_curves, figures_matrices)
    return {one.name: one for kind in kinds for one in kind.drawings(cast)}


# ---- output ----------------------------------------------------------------------------------------------------------


def test_every_figure_is_drawn_for_the_page_and_for_papers(drawn):
    found, folder = drawn
    assert [one.name for one in found] == NAMES
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{n}.{kind}" for n in NAMES for kind in ("pdf", "svg")
    )
    for name in NAMES:
        paper = (folder / f"{name}.svg").read_text()
        assert ET.fromstring(paper).get("width") == ("496.8pt" if name in WIDE else "237.6pt")  # 6.9 and 3.3 inches
        assert "<text" not in paper  # glyphs are paths
        assert "<dc:date>" not in paper
        pdf = (folder / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/FontFile2" in pdf  # embedded
        assert b"CreationDate" not in pdf


def test_an_element_of_the_page_loads_nothing_and_shares_no_id(drawn):
    ids = []
    for one in drawn[0]:
        root = ET.fromstring(one.svg)
        assert (root.tag, root.get("role"), root.get("width")) == ("svg", "img", None)
        assert root.get("aria-label").startswith(one.title)
        assert any(element.tag == "text" for element in root.iter())
        assert {element.tag for element in root.iter()} <= {
            "svg",
            "style",
            "defs",
            "g",
            "path",
            "use",
            "text",
            "clipPath",
            "rect",
            "tspan",
        }
        own = [element.get("id") for element in root.iter() if element.get("id")]
        assert all(name.startswith(f"{one.name}-") for name in own)
        for element in root.iter():
            used = [element.get("href") or "", *re.findall(r"url\(([^)]+)\)", " ".join(element.attrib.values()))]
            assert all(link[1:] in own and link[0] == "#" for link in used if link)
        ids += own
    assert len(ids) == len(set(ids)) > len(NAMES)


def test_every_colour_has_another_one_in_the_dark(drawn):
    for one in drawn[0]:
        used = set(re.findall(r"var\(--f-(\w+),", one.svg))
        assert "ink" in used
        assert used <= set(re.findall(r"--f-(\w+):#", one.svg))
        styles = re.findall(r'style="([^"]*)"', one.svg)
        assert not any(re.search(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", style)) for style in styles)


def test_a_second_drawing_has_the_same_bytes_whatever_the_users_settings(drawn, groups, tmp_path):
    again = drawings(*groups)
    with matplotlib.rc_context({"font.size": 40, "svg.hashsalt": "x", "axes.facecolor": "red", "svg.fonttype": "path"}):
        for name in ("loss-against-sparsity", "mask-overlap"):
            figures_output.write(again[name], tmp_path)
            svg = figures_output.page_svg(again[name])
            assert svg == next(one.svg for one in drawn[0] if one.name == name)
            for kind in ("svg", "pdf"):
                assert (tmp_path / f"{name}.{kind}").read_bytes() == (drawn[1] / f"{name}.{kind}").read_bytes()
        assert matplotlib.rcParams["font.size"] == 40


# ---- what is drawn, and what is said ---------------------------------------------------------------------------------


def test_captions_name_diverged_runs_and_say_what_bands_and_bars_are(drawn):
    said = {one.name: one.caption for one in drawn[0]}
    assert all("Diverged, so not drawn: magnitude-80 (seed 2)." in words for words in said.values())
    assert "Bands reach from the lowest to the highest seed." in said["loss-against-tokens"]
    assert "bars are 95 % intervals of the mean (t)" in said["loss-against-sparsity"]
    assert "Random masks of these sparsities would have 0.11 at 80 %." in said["mask-overlap"]
    assert "No law is fitted: that needs at least 5 different sizes, and there are 2." in said["loss-against-nonzeros"]


def test_only_what_has_data_is_drawn(tmp_path):
    bare = {"curves": {}, "layers": {}, "masks": None, "memory": None, "seconds": None, "flops": None}
    assert list(drawings(group("dense", 1.9, **bare), group("m-50", 2.0, 0.5, **bare))) == [
        "loss-against-sparsity", "loss-against-nonzeros",
    ]  # fmt: skip
    lost = Group(
        "dense", (outcome("dense", 1, math.nan), dataclasses.replace(outcome("dense", 2, 2.0), state="failed"))
    )
    assert figures.draw(study(lost), tmp_path) == []
    huge = Group("m", (outcome("m", 1, 1e300),))
    assert "Diverged, so not drawn: m (seed 1)." in drawings(group("dense", 1.9), huge)["loss-against-tokens"].caption
    assert list(tmp_path.iterdir()) == []


def test_one_seed_has_no_bands_and_no_intervals():
    found = drawings(group("dense", 1.9, seeds=1), group("m-50", 2.0, 0.5, seeds=1))
    assert "There is one seed, so there are no intervals." in found["loss-against-sparsity"].caption
    assert "There is one seed." in found["loss-against-tokens"].caption
    assert "diagonal" not in "".join(one.caption for one in found.values())
    assert not any("95 %" in one.caption or "means" in one.caption for one in found.values())


def test_many_configurations_have_a_panel_for_each_method():
    found = drawings(*worked(seeds=1))
    canvas = Canvas(PAGE)
    found["loss-against-tokens"].paint(canvas)
    assert len(canvas.figure.axes) == 6
    assert [axes.texts[-1].get_text() for axes in canvas.figure.axes] == [
        "small-dense", "magnitude", "state", "movement", "rigl", "random",
    ]  # fmt: skip
    assert "A panel for each method, with dense in each; the others are grey." in found["loss-against-tokens"].caption


def test_of_many_methods_the_eight_best_stand_out():
    every = [group("dense", 1.9, seeds=1), *(group(f"way{n}", 2.5 - n / 20, 0.8, seeds=1) for n in range(12))]
    shown = figures_looks.cast(study(*every)).shown
    assert [one.name for one in shown if one.quiet] == ["way0", "way1", "way2", "way3"]
    assert "5 configurations with higher losses are grey." in drawings(*every)["loss-against-tokens"].caption


def test_another_budget_has_hollow_markers():
    found = drawings(
        group("dense", 1.9, seeds=1), group("m-50", 2.0, 0.5, seeds=1), others=(group("w-50", 1.8, 0.5, seeds=1),)
    )
    assert (
        "Hollow markers have another budget or evaluation than the reference" in found["loss-against-sparsity"].caption
    )
    canvas = Canvas(PAGE)
    found["loss-against-sparsity"].paint(canvas)
    marks = [
        line for line in canvas.figure.axes[0].lines if line.get_marker() in ("o", "s") and len(line.get_xdata()) == 1
    ]
    assert [(line.get_ydata()[0] > 1.9, line.get_markerfacecolor() == line.get_color()) for line in marks] == [
        (True, True), (False, False),
    ]  # fmt: skip


def test_what_must_not_be_ranked_is_on_no_front_and_is_no_baseline():
    found = drawings(
        group("dense", 3.0, seeds=1, seconds=30.0), group("mag-80", 3.1, 0.8, seeds=1, seconds=20.0),
        others=(
            group("dense-long", 2.5, seeds=1, total_tokens=5_120_000, seconds=20.0),
            group("other-data", 1.2, seeds=1, evaluation="8 windows of other data", seconds=10.0),
        ),
    )  # fmt: skip
    for name, said in {
        "cost-against-loss": "Not drawn, because their budget or evaluation is not the reference's: dense-long, "
        "other-data.",
        "loss-against-sparsity": "Dense, but without a line, because their budget or evaluation is not the "
        "reference's: dense-long, other-data.",
    }.items():
        assert said in found[name].caption
        canvas = Canvas(PAGE)
        found[name].paint(canvas)
        losses = {round(float(loss), 1) for line in canvas.figure.axes[0].lines for loss in line.get_ydata()}
        assert {loss for loss in losses if loss > 1} == {3.0, 3.1}  # others are places of labels


def test_what_diverged_with_a_seed_is_on_no_front_and_not_in_the_law():
    lost = diverging(group("mag-80", 2.9, 0.8, seeds=3, seconds=5.0), 3)
    found = drawings(group("dense", 3.0, seeds=3, seconds=30.0), group("state-80", 3.1, 0.8, seeds=3), lost)
    assert (
        "Not drawn, because a run of theirs diverged and the mean of the others would favour them: mag-80. "
        "Diverged, so not drawn: mag-80 (seed 3)."
    ) in found["cost-against-loss"].caption
    canvas = Canvas(PAGE)
    found["cost-against-loss"].paint(canvas)
    for axes in canvas.figure.axes:
        losses = {round(float(loss), 1) for line in axes.lines for loss in line.get_ydata()}
        assert {loss for loss in losses if loss > 1} == {3.0, 3.1}  # others are places of labels
    assert "Not in the law, because a run of theirs diverged: mag-80." in found["loss-against-nonzeros"].caption


@pytest.mark.parametrize(
    ("state", "loss", "diverged"),
    [
        ("finished", 2.0, False), ("finished", math.nan, True), ("finished", 1e7, True), ("finished", None, False),
        ("diverged", None, True), ("failed", None, False), ("running", None, False),
    ],
)  # fmt: skip
def test_a_configuration_diverged_if_a_run_of_it_did(state, loss, diverged):
    second = dataclasses.replace(outcome("a", 2, 2.0), state=state, val_loss=loss)
    assert shown("a", outcome("a", 1, 2.0), second).diverged is diverged


def test_averages_of_other_training_or_other_weights_are_not_drawn():
    def named(name, **options):
        return {"options": {"PRUNING_SCOPE": name, "PRUNING_METHOD": "magnitude", **options}}

    found = drawings(
        group("dense", 3.0, seeds=1), group("mag-80", 3.1, 0.8, seeds=1, **named("h.*.attn.*.weight,h.*.mlp.*.weight")),
        group("wanda-50", 3.2, 0.5, seeds=1, average_nonzeros=600_000.0, before=("dense-seed1",)),
        group("attention-50", 3.3, 0.5, seeds=1, **named("h.*.attn.*.weight")),
    )["loss-against-nonzeros"]  # fmt: skip
    assert (
        "Not drawn, because their average has only the last run, without those that it began from: wanda-50. "
        "Not drawn, because their non-zeros are counted in another PRUNING_SCOPE: attention-50."
    ) in found.caption
    assert "there are 2." in found.caption  # sizes for the law
    canvas = Canvas(PAGE)
    found.paint(canvas)
    marks = [line for line in canvas.figure.axes[0].lines if len(line.get_xdata()) == 1]
    losses = {round(float(line.get_ydata()[0]), 1) for line in marks}
    assert {loss for loss in losses if loss > 1} == {3.0, 3.1}  # others are places in the legend


def test_no_average_is_drawn_where_none_is_of_all_training():
    begun = [group(f"wanda-{n}0", 3.0, n / 10, seeds=1, before=("dense-seed1",)) for n in (5, 8)]
    assert "loss-against-nonzeros" not in drawings(group("dense", 2.9, seeds=1), *begun)


def test_losses_of_another_evaluation_are_not_in_the_law():
    sizes = [1e5, 2e5, 4e5, 8e5, 16e5, 32e5]

    def sized(prefix, below, **more):
        own = [outcome("a", 1, law(size) - below, average_nonzeros=size, **more) for size in sizes]
        return [Group(f"{prefix}{n}", (one,)) for n, one in enumerate(own)]

    others = tuple(sized("o", 1.0, evaluation="other data")[:2])
    caption = drawings(*sized("d", 0.0), others=others, reference="d0")["loss-against-nonzeros"].caption
    assert "L = 1.450 + 90 / N^0.380; a ± " in caption
    assert "over 6 configurations)." in caption
    assert "Not in the law, because they have another evaluation: o0, o1." in caption


def test_the_law_is_drawn_where_the_sizes_determine_it():
    sizes = [1e5, 2e5, 4e5, 8e5, 16e5, 32e5]
    own = [dataclasses.replace(outcome(f"d{size:.0f}", 1, law(size)), average_nonzeros=size) for size in sizes]
    found = drawings(*(Group(f"d{n}", (one,)) for n, one in enumerate(own)), reference="d0")["loss-against-nonzeros"]
    assert "L = 1.450 + 90 / N^0.380; a ± " in found.caption
    assert "root mean square over 6 configurations" in found.caption
    canvas = Canvas(PAGE)
    found.paint(canvas)
    (line,) = [line for line in canvas.figure.axes[0].lines if len(line.get_xdata()) == 60]
    assert line.get_ydata() == pytest.approx(law(np.asarray(line.get_xdata()) * 1e6), rel=1e-4)  # in millions


# ---- numbers ---------------------------------------------------------------------------------------------------------


def shown(name, *runs):
    (one,) = figures_looks.cast(study(Group(name, runs), reference=name)).shown
    return one


def test_a_line_is_the_mean_and_the_range_of_the_seeds():
    curves = [(np.array([10, 20, 30]), np.array(values)) for values in ([3.0, 2.0, 1.0], [5.0, math.nan, 2.0])]
    runs = [outcome("a", seed, 1.5, steps=40, curves={"val_loss": curve}) for seed, curve in enumerate(curves)]
    line = figures_curves._line(shown("a", *runs), "val_loss", figures_curves._tokens)
    assert line.x.tolist() == [128_000, 256_000, 384_000]
    assert (line.low.tolist(), line.mean.tolist(), line.high.tolist()) == ([3, 2, 1], [4, 2.75, 1.5], [5, 3.5, 2])


def test_flops_follow_the_sparsity_and_end_at_those_of_the_run():
    ramp = (np.array([0, 50, 51, 100]), np.array([0.0, 0.0, 0.8, 0.8]))
    run = outcome("a", 1, 2.0, steps=100, flops=60.0, dense_flops=100.0, curves={"sparsity": ramp})
    # 50 dense steps of 1, then 50 steps of 1 - 0.8
    assert figures_curves._flops(run, np.array([0, 50, 75, 100])).tolist() == pytest.approx([0, 50, 55, 60])
    later = dataclasses.replace(run, total_tokens=2 * run.tokens)
    assert figures_curves._flops(later, np.array([0, 100])).tolist() == pytest.approx([30, 60])


def test_the_interval_is_that_of_the_t_distribution():
    runs = [outcome("a", seed, loss) for seed, loss in enumerate((2.0, 2.1, 2.3))]
    one = shown("a", *runs)
    assert one.loss == pytest.approx(2.13333, abs=1e-5)
    assert one.interval() == pytest.approx(4.30265 * 0.152753 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom
    assert shown("a", runs[0]).interval() is None


def test_the_front_has_what_nothing_beats_in_both():
    runs = [
        outcome("x", 1, loss, seconds=seconds) for loss, seconds in ((2.0, 9), (2.2, 3), (2.1, 5), (2.3, 4), (2.0, 10))
    ]
    every = [shown(f"x{n}", run) for n, run in enumerate(runs)]
    assert [one.name for one in figures_costs.front(every, "seconds")] == ["x1", "x2", "x0"]


def test_the_matrix_pairs_seeds_and_has_other_seeds_on_its_diagonal():
    def run(name, seed, bits):
        return outcome(name, seed, 2.0, 0.5, masks=bytes(8) + (8).to_bytes(8, "big") + bytes([bits]))

    a = shown("a", run("a", 1, 0b11110000), run("a", 2, 0b00001111))
    b = shown("b", run("b", 1, 0b11000011), run("b", 2, 0b00001111))
    values, chance, error = figures_matrices._matrix([a, b])
    assert values[0, 1] == pytest.approx((2 / 6 + 1) / 2)
    assert np.diag(values).tolist() == pytest.approx([0, 2 / 6])
    assert chance == pytest.approx(1 / 3)
    assert error == pytest.approx(np.std([1 / 3, 1], ddof=1) / math.sqrt(2))


@pytest.mark.parametrize(
    ("name", "target", "method"),
    [
        ("magnitude-80", "0.8", "magnitude"), ("state-hybrid-0.5", "0.5", "state-hybrid"),
        ("0.9 magnitude", "0.9", "0.9 magnitude"), ("m-1.2", "1.2.3", "m"),
        ("adamw magnitude 0.9", "0.9", "adamw magnitude"), ("adamw 0.9 rigl", "0.9", "adamw rigl"),
        ("small-dense-80", None, "small-dense"), ("dense", None, "dense"),
        ("spam-2", "0.5", "spam-2"), ("80", "0.8", "80"),
        ("pruning_method=magnitude target_sparsity=0.8", "0.8", "pruning_method=magnitude"),
        ("optimizer=adam target_sparsity=0.8 n_layer=2", "0.8", "optimizer=adam n_layer=2"),
        ("target_sparsity=0.8", "0.8", "target_sparsity=0.8"),
    ],
)  # fmt: skip
def test_a_method_is_the_name_without_its_sparsity(name, target, method):
    options = {"TARGET_SPARSITY": target} if target else {}
    assert figures_looks.method(Group(name, (outcome(name, 1, 2.0, options=options),))) == method


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("n_embd=128 n_layer=4", "n_embd=128 n_layer=4"),
        ("pruning_method=magnitude target_sparsity=0.8", "magnitude 0.8"),
        ("a=b-of-a-long-name-without-options", "b-of-a-long-name-without-…"),
    ],
)
def test_a_label_is_short(name, label):
    assert short(name) == label


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ([], []), ([0.5], [0.5]), ([0.5, 0.5], [0.45, 0.55]), ([0.9, 0.1], [0.9, 0.1]),
        ([0.0, 0.0, 0.5], [0.0, 0.1, 0.5]),
        ([1.0, 1.0], [0.9, 1.0]), ([0.5, 0.52, 0.3], [0.46, 0.56, 0.3]), ([0.5] * 21, [n / 20 for n in range(21)]),
    ],
)  # fmt: skip
def test_labels_move_apart_as_little_as_possible(wanted, places):
    assert apart(wanted, 0.1, 0.0, 1.0) == pytest.approx(places)


def test_ticks_are_plain_numbers_with_the_same_decimals():
    axes = Empty().subplots()
    numbers(axes.xaxis)
    form = axes.xaxis.get_major_formatter().format_ticks
    assert form([1.9, 2.0, 2.1]) == ["1.9", "2.0", "2.1"]
    assert form([0, 500, 1000]) == ["0", "500", "1,000"]
    assert form([-0.25, 0.1 + 0.2]) == ["\N{MINUS SIGN}0.25", "0.30"]
    logarithm(axes.yaxis, 150, 1300)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["200", "500", "1,000"]
