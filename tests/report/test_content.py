"""What the box of fairness says."""

from lib.report import content, figures, study
from lib.report.content import Table, Text
from lib.report.figures import Figure
from tests.report import simulated
from tests.report.made import run, sweep


def box(folder):
    [section] = [one for one in content.sections(study.of_sweep(folder), []) if one.title.startswith("What is equal")]
    return section.parts


def test_the_box_names_what_is_not_equal(tmp_path):
    losses = {name: {1: 3.0, 2: 3.1} for name in ("dense", "a", "b", "c", "d")}
    folder = sweep(tmp_path / "few", losses, d={"dropout": 0.5, "pruning_method": "magnitude"})
    run(folder / "c-seed2", 2, 3.0, status="diverged", warmup_steps=3)  # what did not end well is not compared
    (folder / "c-seed2/summary.json").unlink()
    words, differs, equal = box(folder)
    assert words == Text("All configurations have the same budget, 2,560 tokens, and the same evaluation.")
    assert differs.rows == (("DROPOUT", "-", "the 4 others"), ("", "0.5", "d"))
    assert dict(equal.rows)["tokens, with the runs before"] == "2,560"


def test_each_figure_follows_the_text_of_its_section(tmp_path):
    assert sorted(name for names in content.FIGURES.values() for name in names) == sorted(figures._ORDER)
    made = study.of_sweep(sweep(tmp_path / "few", {"dense": {1: 3.0}, "again": {1: 3.1}}))
    drawn = [Figure(name, name, "", "") for name in ("loss-against-sparsity", "cost-against-loss", "mask-overlap")]
    parts = {one.title: one.parts for one in content.sections(made, drawn)}
    assert list(parts) == [
        "Verdicts", "What is equal, and what is not", "Results", "Masks", "Runs", "Method",
    ]  # fmt: skip
    assert (parts["Verdicts"][-1], parts["Results"][-1], parts["Masks"]) == (drawn[0], drawn[1], (drawn[2],))


def test_the_results_say_whose_non_zeros_they_average():
    def results(*before):
        groups = simulated.group("dense", 3.0, seeds=1), simulated.group("wanda-50", 3.1, 0.5, seeds=1, before=before)
        [section] = [one for one in content.sections(simulated.study(*groups), []) if one.title == "Results"]
        return [part for part in section.parts if isinstance(part, Text)]

    assert results("dense-seed1") == [
        Text("Non-zeros on average are those of each run itself, without the runs that it began from.", small=True)
    ]
    assert results() == []


def test_a_reference_that_diverged_is_a_warning(tmp_path):
    folder = sweep(tmp_path / "few", {"dense": {1: float("nan"), 2: 3.1}, "a": {1: 3.0, 2: 3.1}})
    [section] = [one for one in content.sections(study.of_sweep(folder), []) if one.title == "Verdicts"]
    assert section.parts[1] == Text(
        "dense diverged with seed 1, so nothing is compared with it: to leave that seed out would favour it. REFERENCE "
        "names another.",
        warns=True,
    )


def test_the_box_says_that_nothing_differs(tmp_path):
    words, nothing, equal = box(sweep(tmp_path / "few", {"dense": {1: 3.0}, "again": {1: 3.1}}))
    assert nothing == Text("Nothing that this report looks at differs.")
    assert isinstance(equal, Table) and "2,560 tokens" in words.words
