"""Names of configurations that no sweep has named: short, clear, and never the same."""

from lib.report import naming, study
from tests.report.made import run


def told(*configurations, options=("LEARNING_RATE", "WEIGHT_DECAY", "PRUNING_METHOD", "TARGET_SPARSITY")):
    """The names of configurations with these values."""
    values = [dict(zip(options, one, strict=True)) for one in configurations]
    shown = naming.telling(values, options)
    return [naming.name({option: one[option] for option in shown}) for one in values]


def test_names_have_the_method_and_its_sparsity_before_what_was_tuned():
    assert told(
        ("2e-3", "0.1", "none", None),
        ("6e-4", "0.03", "magnitude", "0.8"),
        ("6e-4", "0.03", "magnitude", "0.9"),
        ("1e-3", "0.2", "state", "0.8"),
    ) == [
        "pruning_method=none",
        "pruning_method=magnitude target_sparsity=0.8",
        "pruning_method=magnitude target_sparsity=0.9",
        "pruning_method=state target_sparsity=0.8",
    ]


def test_names_have_no_more_options_than_needed():
    assert told(("1", "0.1", "none", None), ("2", "0.1", "magnitude", "0.8")) == [
        "pruning_method=none", "pruning_method=magnitude",
    ]  # fmt: skip
    # One option tells apart what two others would, so these are left out.
    assert told(("1", "2", "5"), ("1", "3", "6"), ("2", "2", "7"), options=("N_LAYER", "N_HEAD", "N_EMBD")) == [
        "n_embd=5", "n_embd=6", "n_embd=7",
    ]  # fmt: skip


def test_what_was_tuned_is_in_names_only_where_nothing_else_differs():
    assert told(("1", "0.1", "none", None), ("2", "0.2", "none", None)) == ["weight_decay=0.1", "weight_decay=0.2"]
    assert told(("1", "0.1", "none", None), ("2", "0.1", "none", None)) == ["learning_rate=1", "learning_rate=2"]


def test_names_are_never_the_same():
    both = ("INIT_FROM", "INIT_MASKS")
    assert told(("x init_masks=y", "z"), ("x", "y init_masks=z"), (None, "z"), ("", "z"), options=both) == [
        "init_from='x init_masks=y'", "init_from=x", "no init_from", "init_from=''",
    ]  # fmt: skip
    assert told(("same", "same"), options=both) == ["all runs"]
    assert naming.name({"INIT_FROM": "\ud800"}) == "init_from='\\ud800'"


def test_runs_have_these_names(tmp_path):
    runs = [run(tmp_path / "dense", 1, 3.0)]
    for method, rate in (("magnitude", 0.001), ("random", 0.003)):
        for sparsity in (0.5, 0.8):
            options = {"pruning_method": method, "target_sparsity": sparsity, "learning_rate": rate}
            runs.append(run(tmp_path / f"{method}-{sparsity}", 1, 3.1, **options))
    names = [group.name for group in study.of_runs(runs, []).groups]
    assert names == [
        "pruning_method=none",
        "pruning_method=magnitude target_sparsity=0.5",
        "pruning_method=magnitude target_sparsity=0.8",
        "pruning_method=random target_sparsity=0.5",
        "pruning_method=random target_sparsity=0.8",
    ]
    by = ["target_sparsity", "pruning_method", "learning_rate"]
    assert study.of_runs(runs, by).groups[1].name == "target_sparsity=0.5 pruning_method=magnitude learning_rate=0.001"
