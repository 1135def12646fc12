"""Which runs are one configuration, which may be ranked, and what is not equal between them."""

import json
import shutil
from pathlib import Path

import pytest

from lib.base.errors import UsageError, UserError
from lib.report import outcome, statistics, study, verdicts
from tests.report.made import run, sweep, trained_on

LOSSES = {
    "dense": {1: 3.00, 2: 3.02, 3: 3.01},
    "pruned": {1: 3.50, 2: 3.53, 3: 3.51},
    "long": {1: 2.00, 2: 2.02, 3: 2.01},
}
MORE = {"pruned": {"pruning_method": "magnitude"}, "long": {"max_iters": 60}}


def test_only_equal_budgets_are_ranked(tmp_path):
    made = study.of_sweep(sweep(tmp_path / "few", LOSSES, **MORE))
    assert made.equal["tuning"] == "none"
    assert (made.title, made.quantity, made.reference) == ("few", "tokens", "dense")
    [first, second] = made.blocks
    assert (first.budget, [group.name for group in first.groups]) == ("2,560 tokens", ["dense", "pruned"])
    assert first.comparison.verdicts["pruned"].word == statistics.WORSE
    assert first.comparison.verdicts["pruned"].difference == pytest.approx(0.5033333)
    assert (second.budget, [group.name for group in second.groups]) == ("3,840 tokens", ["long"])
    assert second.comparison is None
    assert made.unequal["MAX_ITERS"] == {"40": ["dense", "pruned"], "60": ["long"]}
    assert made.equal["validation loss"] == "8 windows of 32 tokens of stdlib, bytes, 0.05 for validation"


def test_another_evaluation_is_not_ranked_either(tmp_path):
    more = {"pruned": {"eval_samples": 9}}
    made = study.of_sweep(sweep(tmp_path / "few", {name: LOSSES[name] for name in ("dense", "pruned")}, **more))
    assert [[group.name for group in block.groups] for block in made.blocks] == [["dense"], ["pruned"]]
    assert "9 windows" in made.blocks[1].budget


ON = "measured on 8 windows of 32 tokens of stdlib, bytes, 0.05 for validation, sha256"
A, B = "a" * 64, "b" * 64


def on_data(folder, **data):
    """A sweep of one configuration for each of `data`: its fingerprint, or those of seeds; None if none is recorded."""
    made = sweep(folder, dict.fromkeys(data, LOSSES["dense"]), **{name: {"pruning_method": name} for name in data})
    for name, seeds in data.items():
        for seed, one in (seeds if isinstance(seeds, dict) else dict.fromkeys((1, 2, 3), seeds)).items():
            if one:
                trained_on(made / f"{name}-seed{seed}", one)
    return study.of_sweep(made)


def members(made):
    return [[group.name for group in block.groups] for block in made.blocks]


def test_runs_on_other_data_of_the_same_name_are_not_ranked(tmp_path):
    made = on_data(tmp_path / "few", none=A, magnitude=A, random=B)
    assert [(block.budget, [group.name for group in block.groups]) for block in made.blocks] == [
        (f"2,560 tokens; {ON} aaaaaaaaaaaa", ["none", "magnitude"]),
        (f"2,560 tokens; {ON} bbbbbbbbbbbb", ["random"]),
    ]
    assert made.unequal["data"] == {
        "stdlib, bytes, 0.05 for validation, sha256 aaaaaaaaaaaa": ["none", "magnitude"],
        "stdlib, bytes, 0.05 for validation, sha256 bbbbbbbbbbbb": ["random"],
    }
    same = on_data(tmp_path / "same", none=A, magnitude=A)
    assert [block.budget for block in same.blocks] == ["2,560 tokens"]
    assert same.equal["data"] == "stdlib, bytes, 0.05 for validation, sha256 aaaaaaaaaaaa"


def test_data_is_compared_seed_by_seed(tmp_path):
    mixed = {1: A, 2: B, 3: A}
    made = on_data(tmp_path / "few", none=mixed, magnitude=mixed, random={1: B, 2: A, 3: A}, state=A)
    assert members(made) == [["none", "magnitude"], ["random"], ["state"]]
    both = f"{ON} aaaaaaaaaaaa and {ON.removeprefix('measured on ')} bbbbbbbbbbbb"
    assert made.blocks[0].budget == f"2,560 tokens; {both}"


def test_data_of_an_earlier_version_is_unknown_and_not_other_data(tmp_path):
    made = on_data(tmp_path / "few", none=None, magnitude=A, random=None)
    assert [block.budget for block in made.blocks] == ["2,560 tokens"]
    assert made.equal["data"] == "stdlib, bytes, 0.05 for validation, sha256 aaaaaaaaaaaa where it is known"
    made = on_data(tmp_path / "more", none=None, magnitude=A, random=B)
    assert members(made) == [["none", "magnitude"], ["random"]]
    assert list(made.unequal["data"]) == [
        "stdlib, bytes, 0.05 for validation, sha256 unknown",
        "stdlib, bytes, 0.05 for validation, sha256 aaaaaaaaaaaa",
        "stdlib, bytes, 0.05 for validation, sha256 bbbbbbbbbbbb",
    ]


def test_a_run_that_has_just_begun_is_not_on_other_data(tmp_path):
    folder = sweep(tmp_path / "few", {"dense": LOSSES["dense"], "pruned": {1: 3.5, 2: 3.53}}, **MORE)
    for place in folder.glob("*-seed*"):
        trained_on(place, A)
    rows = json.loads((folder / "results.json").read_text())
    rows["configurations"][1]["runs"].append({"seed": 3, "folder": str(folder / "pruned-seed3")})
    (folder / "results.json").write_text(json.dumps(rows))
    run(folder / "pruned-seed3", 3, 3.0, status="interrupted", pruning_method="magnitude")
    assert members(study.of_sweep(folder)) == [["dense", "pruned"]]


def matched(folder, **nonzeros):
    """Match the sweep on average non-zeros: configuration -> those of all seeds, or of each."""
    results = json.loads((folder / "results.json").read_text()) | {"quantity": "average-nonzeros"}
    (folder / "results.json").write_text(json.dumps(results))
    for name, value in nonzeros.items():
        for place in folder.glob(f"{name}-seed*/summary.json"):
            own = value[int(place.parent.name[-1])] if isinstance(value, dict) else value
            place.write_text(json.dumps(json.loads(place.read_text()) | {"average_nonzeros": own}))
    return folder


def test_what_is_compared_is_within_two_percent_of_the_reference(tmp_path):
    names = {"low": "magnitude", "dense": "none", "high": "random", "most": "movement"}
    more = {name: {"pruning_method": method} for name, method in names.items()}
    folder = sweep(tmp_path / "few", dict.fromkeys(names, LOSSES["dense"]), **more)
    matched(folder, low=985, dense=1000, high=1015, most=1021)
    first, second = study.of_sweep(folder).blocks
    assert (first.budget, list(first.comparison.verdicts)) == ("1,000 non-zeros on average", ["low", "high"])
    assert [group.name for group in second.groups] == ["most"]
    first, second = study.of_sweep(folder, reference="low").blocks
    assert (first.budget, list(first.comparison.verdicts)) == ("985 non-zeros on average", ["dense"])
    assert [group.name for group in second.groups] == ["high", "most"]
    second, first = study.of_sweep(matched(folder, most=1034), reference="high").blocks
    assert list(first.comparison.verdicts) == ["dense", "most"]
    assert (list(first.beside.verdicts), first.why) == (
        ["high"], ("Not within 2% of dense, so not compared with it: most.",)
    )  # fmt: skip
    assert [group.name for group in second.groups] == ["low"]


def test_each_pair_of_runs_is_within_two_percent(tmp_path):
    more = {"pruned": {"pruning_method": "magnitude"}}
    folder = sweep(tmp_path / "few", {"dense": LOSSES["dense"], "pruned": LOSSES["pruned"]}, **more)
    made = study.of_sweep(matched(folder, dense=1000, pruned={1: 1000, 2: 1000, 3: 1030}))
    assert [[group.name for group in block.groups] for block in made.blocks] == [["dense"], ["pruned"]]
    assert made.notes == (
        "pruned is not ranked with dense, because each pair must come within 2%: with seed 3 it has 1,030 non-zeros on "
        "average, and dense has 1,000 non-zeros on average.",
    )


def test_nonzeros_of_another_scope_are_ranked_only_with_the_same_scope_and_size(tmp_path):
    mlp = {"pruning_method": "magnitude", "pruning_scope": "*mlp*weight"}
    every = {"pruning_method": "magnitude", "pruning_scope": "h.*.attn.*.weight,h.*.mlp.*.weight"}
    names = ("dense", "scope", "every", "same", "wider")
    folder = sweep(tmp_path / "few", dict.fromkeys(names, LOSSES["dense"]), scope=mlp, same=mlp, wider=mlp, every=every)
    matched(folder, dense=1000, scope=1000, every=1000, same=1000, wider=1000)
    for place in folder.glob("wider-seed*/summary.json"):
        place.write_text(json.dumps(json.loads(place.read_text()) | {"parameters": 40000}))
    blocks = study.of_sweep(folder).blocks
    assert [(block.budget, [group.name for group in block.groups]) for block in blocks] == [
        ("1,000 non-zeros on average", ["dense", "every"]),
        ("1,000 non-zeros on average in the 24,576 of 34,688 weights of PRUNING_SCOPE=*mlp*weight", ["scope", "same"]),
        ("1,000 non-zeros on average in the 24,576 of 40,000 weights of PRUNING_SCOPE=*mlp*weight", ["wider"]),
    ]
    first, *_ = study.of_sweep(folder, reference="scope").blocks[1:]
    assert list(first.comparison.verdicts) == ["same"]


def began(folder, **ancestors):
    """Let a run have begun from a model that was trained on these tokens."""
    init = {"from": "model", "kind": "file", "path": "model", "sha256": "0", "revision": "", "step": 0}
    start, *rest = (folder / "journal.jsonl").read_text().splitlines()
    start = json.loads(start) | {"init": init | {"ancestors": ancestors}}
    (folder / "journal.jsonl").write_text("\n".join([json.dumps(start, separators=(",", ":")), *rest]) + "\n")


def test_runs_from_the_same_published_model_have_equal_budgets(tmp_path):
    more = {"pruned": {"pruning_method": "magnitude"}}
    folder = sweep(tmp_path / "few", {name: {1: 3.0, 2: 3.1} for name in ("dense", "pruned", "other", "mixed")}, **more)
    for name, ancestors in (("dense", "gpt2"), ("pruned", "gpt2"), ("other", "gpt3")):
        for seed in (1, 2):
            began(folder / f"{name}-seed{seed}", **{ancestors: None})
    began(folder / "mixed-seed1", a=64)
    began(folder / "mixed-seed2", a=128)
    blocks = study.of_sweep(folder).blocks
    assert [(block.budget, [group.name for group in block.groups]) for block in blocks] == [
        ("2,560 (and unknown: gpt2) tokens", ["dense", "pruned"]),
        ("2,560 (and unknown: gpt3) tokens", ["other"]),
        ("2,624 and 2,688 tokens", ["mixed"]),
    ]


def test_a_named_reference_stands_beside_the_dense_one(tmp_path):
    more = {"a": {"pruning_method": "magnitude"}, "b": {"pruning_method": "random"}}
    folder = sweep(tmp_path / "few", {"dense": LOSSES["dense"], "a": LOSSES["pruned"], "b": LOSSES["pruned"]}, **more)
    [block] = study.of_sweep(folder, reference="a").blocks
    assert (block.comparison.reference, block.beside.reference) == ("a", "dense")
    with pytest.raises(UsageError, match="there is no configuration 'dens'; did you mean dense"):
        study.of_sweep(folder, reference="dens")


def test_the_margin_is_the_deviation_of_the_dense_configuration_whatever_the_reference_is(tmp_path):
    more = {"a": {"pruning_method": "magnitude"}, "b": {"pruning_method": "random"}}
    losses = {"a": LOSSES["pruned"], "b": {1: 3.60, 2: 3.64, 3: 3.62}, "dense": LOSSES["dense"]}
    [block] = study.of_sweep(sweep(tmp_path / "few", losses, **more), reference="a").blocks
    for one in (block.comparison, block.beside):
        assert one.margin == pytest.approx(0.01)
        assert one.margin_from == "the standard deviation of dense over its 3 seeds"
    for name, own, options in [
        ("no dense", LOSSES["dense"], {"pruning_method": "movement"}),
        ("one seed", {1: 3.0}, {}),
        ("other budget", LOSSES["dense"], {"max_iters": 60}),
        ("diverged", LOSSES["dense"] | {2: float("nan")}, {}),
    ]:
        folder = sweep(tmp_path / name, losses | {"dense": own}, **more, dense=options)
        made = study.of_sweep(folder, reference="b")
        [one] = [block.comparison for block in made.blocks if block.comparison]
        assert (one.reference, one.margin) == ("b", pytest.approx(0.02))
        assert one.margin_from == "the standard deviation of b over its 3 seeds"


def test_the_reference_that_is_usual_does_not_make_a_second_comparison(tmp_path):
    folder = sweep(tmp_path / "few", {"dense": LOSSES["dense"], "small": LOSSES["pruned"]}, small={"n_embd": 16})
    [block] = study.of_sweep(folder, reference="dense").blocks
    assert (block.comparison.reference, block.beside) == ("dense", None)
    [block] = study.of_sweep(folder, reference="small").blocks
    assert (block.comparison.reference, block.beside.reference) == ("small", "dense")


def amend(folder, **more):
    """Change results.json, and the first run of its second configuration by `first`."""
    found = json.loads((folder / "results.json").read_text())
    found["configurations"][1]["runs"][0] |= more.pop("first", {})
    (folder / "results.json").write_text(json.dumps(found | more))


def test_a_copied_sweep_is_read_from_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = sweep(Path("runs/few"), {name: LOSSES[name] for name in ("dense", "pruned")}, **MORE)
    shutil.copytree(folder, "copy/few")
    (Path("runs/few/pruned-seed1/summary.json")).write_text("damaged")
    made = study.of_sweep(Path("copy/few"))
    assert made.blocks[0].groups[1].losses == {1: 3.50, 2: 3.53, 3: 3.51}
    assert made.notes == ()


def test_runs_that_are_gone_and_runs_that_only_start_are_told_apart(tmp_path):
    folder = sweep(tmp_path / "few", {name: LOSSES[name] for name in ("dense", "pruned")}, **MORE)
    gone = tmp_path / "other/pruned-seed1"
    amend(folder, first={"folder": str(gone), "reused": True, "finished": True})
    for name in ("journal.jsonl", "summary.json"):
        (folder / "pruned-seed2" / name).unlink()
    assert study.of_sweep(folder).notes == (
        f"Finished, but its folder is gone, so not in this report: {gone}.",
        "Not begun, so not in this report: pruned-seed2.",
    )


def test_another_configuration_stands_for_a_reference_that_has_no_run(tmp_path):
    folder = sweep(tmp_path / "few", {name: LOSSES[name] for name in ("pruned", "dense")}, **MORE)
    amend(folder, reference="dense")
    for seed in (1, 2, 3):
        shutil.rmtree(folder / f"dense-seed{seed}")
    made = study.of_sweep(folder)
    assert "dense, the sweep's reference, has no run yet, so another stands for it." in made.notes
    assert made.reference == "pruned"
    with pytest.raises(UsageError, match=r"^REFERENCE: dense has no run yet; name another, or wait for one$"):
        study.of_sweep(folder, reference="dense")


def test_damaged_tuning_is_one_sentence(tmp_path):
    folder = sweep(tmp_path / "few", LOSSES, **MORE)
    amend(folder, tuning={"trials": [{"configurations": ["pruned"], "val_loss": 3.5, "chosen": True}]})
    with pytest.raises(UserError, match=r"results.json: is damaged: it lacks what .* there \('method'\)$"):
        study.of_sweep(folder)


def test_trials_are_counted_and_told(tmp_path):
    folder = sweep(tmp_path / "few", LOSSES, **MORE)
    found = json.loads((folder / "results.json").read_text())
    trial = {"method": "pruned", "configurations": ["pruned"], "values": {"LEARNING_RATE": "1e-3"}, "losses": [3.5]}
    trials = [trial | {"trial": n, "val_loss": 3.5, "chosen": n == 1, "edge": []} for n in range(3)]
    (folder / "results.json").write_text(json.dumps(found | {"tuning": {"trials": trials}}))
    made = study.of_sweep(folder)
    assert {group.name: group.outcomes[0].tuned for group in made.groups} == {"dense": 0, "pruned": 3, "long": 0}
    assert made.unequal["tuning"] == {"none": ["dense", "long"], "3 trials": ["pruned"]}
    assert any(note.startswith("pruned was tuned in 3 trials") for note in made.notes)


def test_runs_are_grouped_by_options(tmp_path):
    runs = [run(tmp_path / f"a{seed}", seed, 3.0 + seed / 100) for seed in (1, 2)]
    runs += [run(tmp_path / f"b{seed}", seed, 2.5 + seed / 100, learning_rate=0.1) for seed in (1, 2)]
    made = study.of_runs(runs, ["learning_rate"])
    assert {group.name: group.losses for group in made.groups} == {
        "learning_rate=0.002": {1: 3.01, 2: 3.02},
        "learning_rate=0.1": {1: 2.51, 2: 2.52},
    }
    assert made.equal["tuning"] == "unknown"
    assert [group.name for group in study.of_runs(runs, []).groups] == [
        "learning_rate=0.002",
        "learning_rate=0.1",
    ]
    with pytest.raises(
        UsageError, match="would be one configuration, pruning_method=none, but have different LEARNING_RATE; add it"
    ):
        study.of_runs(runs, ["pruning_method"])
    with pytest.raises(UsageError, match="BY: no run has the option LEARNING_RAT; did you mean LEARNING_RATE"):
        study.of_runs(runs, ["learning_rat"])
    with pytest.raises(
        UsageError, match=r"are the same configuration, learning_rate=0\.002, with seed 1; leave one out of RUNS"
    ):
        study.of_runs([*runs, run(tmp_path / "again", 1, 3.0)], ["learning_rate"])


def test_a_diverged_run_counts_against_its_configuration(tmp_path):
    folder = sweep(tmp_path / "few", {"dense": LOSSES["dense"], "pruned": LOSSES["pruned"]}, **MORE)
    run(folder / "pruned-seed2", 2, 9.0, status="diverged", pruning_method="magnitude")
    (folder / "pruned-seed2" / "journal.jsonl").write_text("")
    (folder / "pruned-seed2" / "summary.json").unlink()
    run(folder / "pruned-seed2", 2, 9.0, status="diverged", pruning_method="magnitude")
    made = study.of_sweep(folder)
    assert made.blocks[0].comparison.verdicts["pruned"].word == statistics.DIVERGED
    assert "Not finished, so not ranked: pruned-seed2 (diverged after step 20 of 40)." in made.notes
    assert "The figures of pruned show only the seeds that went well, because others diverged." in made.notes


@pytest.mark.parametrize("scope", [{}, {"pruning_scope": "*mlp*weight"}])
def test_a_configuration_without_a_finished_run_has_no_other_budget(tmp_path, scope):
    more = {name: {"pruning_method": name} | scope for name in ("random", "state")}
    more = {"all": more["random"] | {"status": "diverged"}, "half": more["state"] | {"status": "interrupted"}}
    losses = {"half": LOSSES["dense"], "all": LOSSES["dense"], "dense": LOSSES["dense"], "pruned": LOSSES["pruned"]}
    folder = matched(sweep(tmp_path / "few", losses, pruned={"pruning_method": "magnitude"}, **more))
    matched(folder, dense=1000, pruned=1000)
    made = study.of_sweep(folder)
    [block] = made.blocks
    assert (block.budget, [group.name for group in block.groups]) == (
        "1,000 non-zeros on average",
        ["half", "all", "dense", "pruned"],
    )
    words = {name: one.word for name, one in block.comparison.verdicts.items()}
    assert words == {"all": statistics.DIVERGED, "pruned": statistics.WORSE}
    assert "Not finished, so not ranked: half-seed1 (interrupted after step 20 of 40)." in made.notes
    matched(folder, pruned=1100)
    assert [[group.name for group in block.groups] for block in study.of_sweep(folder).blocks] == [
        ["half", "all", "dense"],
        ["pruned"],
    ]


def test_a_reference_without_a_finished_run_joins_no_budgets_that_differ(tmp_path):
    names = {"dense": "none", "a": "magnitude", "b": "random", "c": "movement"}
    more = {name: {"pruning_method": method} for name, method in names.items()}
    more["dense"]["status"] = "diverged"
    folder = sweep(tmp_path / "few", dict.fromkeys(names, LOSSES["dense"]), **more)
    first, second = study.of_sweep(matched(folder, a=1000, b=1000, c=1100)).blocks
    assert [group.name for group in first.groups] == ["dense", "a", "b"]
    assert first.why == (
        "dense diverged with seeds 1, 2, 3, so nothing is compared with it: to leave these seeds out would favour it. "
        "REFERENCE names another.",
    )
    assert [group.name for group in second.groups] == ["c"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_nothing_is_compared_with_a_reference_that_diverged(tmp_path, loss):
    more = {"a": {"pruning_method": "magnitude"}, "b": {"pruning_method": "random"}}
    losses = {"dense": LOSSES["dense"] | {2: loss}, "a": LOSSES["pruned"], "b": LOSSES["pruned"]}
    folder = sweep(tmp_path / "few", losses, **more)
    made = study.of_sweep(folder)
    sentence = (
        "dense diverged with seed 2, so nothing is compared with it: to leave that seed out would favour it. "
        "REFERENCE names another."
    )
    [block] = made.blocks
    assert (block.comparison, block.beside, block.why) == (None, None, (sentence,))
    assert verdicts.of_study(made) == [sentence]
    assert made.notes == (f"Diverged, although trained to the end: dense-seed2 (its validation loss is {loss}).",)
    [block] = study.of_sweep(folder, reference="a").blocks
    assert {name: one.word for name, one in block.comparison.verdicts.items()} == {
        "dense": statistics.DIVERGED,
        "b": statistics.EQUIVALENT,
    }
    assert (block.beside, block.why) == (None, (sentence,))


def test_a_reference_whose_run_stopped_as_diverged_is_one_too(tmp_path):
    folder = sweep(tmp_path / "few", {"dense": {1: 3.00}, "pruned": LOSSES["pruned"]}, **MORE)
    runs = [*folder.glob("*-seed*"), *(run(tmp_path / f"x{n}", n, 9.0, status="diverged") for n in (2, 3))]
    [block] = study.of_runs(runs, ["pruning_method"], reference="pruning_method=none").blocks
    assert block.comparison is None
    assert block.why == (
        "pruning_method=none diverged with seeds 2, 3, so nothing is compared with it: to leave these seeds out would "
        "favour it. REFERENCE names another.",
    )


def test_what_has_no_reference_and_what_has_no_loss_is_said(tmp_path):
    folder = sweep(tmp_path / "few", {name: {1: 3.0} for name in ("dense", "a", "b")}, **{
        "a": {"pruning_method": "magnitude", "max_iters": 60}, "b": {"pruning_method": "random", "max_iters": 60},
    })  # fmt: skip
    assert verdicts.of_study(study.of_sweep(folder))[1:] == [
        "With 2,560 tokens: dense. A single configuration is not ranked.",
        "With 3,840 tokens: a, b.",
        "None of them is the reference, so they are not ranked; REFERENCE names one of them.",
    ]
    stopped = [run(tmp_path / "dense", 1, 3.0, status="interrupted"), folder / "a-seed1"]
    made = study.of_runs([*stopped, run(tmp_path / "c", 1, 3.0, pruning_method="random")], ["pruning_method"])
    assert made.blocks[0].why == (
        "pruning_method=none has no loss, so nothing is compared with it; REFERENCE names another.",
    )


def test_one_seed_is_shown_as_one_seed(tmp_path):
    made = study.of_sweep(sweep(tmp_path / "few", {"dense": {1: 3.0}, "pruned": {1: 3.5}}, **MORE))
    assert made.blocks[0].comparison.verdicts["pruned"].word == statistics.ONE_SEED
    assert "There is one seed only, so differences have no interval, and chance may explain them." in made.notes


def test_what_cannot_be_reported_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"few: has no results.json, which make sweep writes; start the sweep"):
        study.of_sweep(tmp_path / "few")
    folder = sweep(tmp_path / "nan", {"dense": {1: float("nan")}, "pruned": {1: float("inf")}})
    with pytest.raises(UserError, match="nan: every validation loss is NaN or infinite, so nothing can be compared"):
        study.of_sweep(folder)
    stopped = run(tmp_path / "stopped", 1, 3.0, status="interrupted")
    with pytest.raises(UserError, match="no run is finished, so there is nothing to report: 1 interrupted"):
        study.of_runs([stopped], [])
    damaged = sweep(tmp_path / "damaged", LOSSES, **MORE)
    (damaged / "dense-seed1/summary.json").write_text("{")
    made = study.of_sweep(damaged)
    assert [len(group.outcomes) for group in made.groups] == [2, 3, 3]
    assert any(note.startswith("Damaged, so not in this report: dense-seed1 (") for note in made.notes)
    start = (damaged / "long-seed1/journal.jsonl").read_text()
    (damaged / "long-seed1/journal.jsonl").write_text(start.replace('"start",', '"start","schema":2,', 1))
    with pytest.raises(outcome.VersionError):
        study.of_sweep(damaged)
    rows = json.loads((damaged / "results.json").read_text())
    rows["configurations"] *= 2
    (damaged / "results.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"results.json: is damaged: it has the configuration dense more than once"):
        study.of_sweep(damaged)
    (damaged / "results.json").write_text('{"sweep": "damaged"}')
    with pytest.raises(UserError, match=r"results.json: is damaged: it lacks what make sweep writes there"):
        study.of_sweep(damaged)
