"""Which configurations a sweep's table ranks, and what it says of those that it does not."""

import json
from pathlib import Path

import pytest

from lib.compare import comparison, table
from lib.compare.sweep import Configuration, Sweep
from tests.runs import ended, trained, write

DENSE = {"val_loss": 2.0, "tokens": 512, "nonzeros": 1000, "flops": 1e9}


@pytest.fixture
def results(tmp_path):
    """The results of a sweep whose configurations have these figures; a text in place of them is a run's state."""

    def make(quantity="tokens", seeds=(1,), elsewhere=None, methods=(), **configurations):
        made = []
        for name, figures in configurations.items():
            own = (("PRUNING_METHOD", "magnitude", "few:1"),) if name in methods else ()
            made.append(Configuration(name, "few:1", Path("defconfigs/gpt2_tiny_defconfig"), own, own))
            for seed in seeds:
                figure = figures.get(seed, figures.get("all", figures)) if isinstance(figures, dict) else figures
                _run((elsewhere or {}).get((name, seed), tmp_path / f"few/{name}-seed{seed}"), figure)
        plan = Sweep("few", tmp_path / "few", seeds, tuple(made), quantity, elsewhere=elsewhere or {})
        return comparison.results(plan)

    return make


def _run(folder, figures):
    if isinstance(figures, str):
        write(folder, *trained(1, 2), ended(2, figures))
        return
    known = DENSE | figures
    start = {"init": known["init"]} if "init" in known else {}
    scope = {"pruning_scope": known["scope"]} if "scope" in known else {}
    write(folder, *trained(1, 2), ended(2), config={"max_iters": 40, "tracker": []} | scope)
    if start:
        first, *rest = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
        line = json.dumps(json.loads(first) | start, separators=(",", ":")) + "\n"
        (folder / "journal.jsonl").write_text("".join([line, *rest]))
    summary = {
        "run": str(folder), "status": "finished", "final_val_loss": known["val_loss"], "best_val_loss": 1.0,
        "sparsity": 1 - known["nonzeros"] / 1000, "average_nonzeros": (1000 + known["nonzeros"]) / 2,
        "tokens": known["tokens"], "total_time_seconds": 3.0, "weights_in_scope": 1000,
        "parameters": known.get("parameters", 2000), "nonzeros": known["nonzeros"],
        "training_flops": 1e9, "training_flops_nonzeros": known["flops"],
        "inference_flops_per_token": 4000, "inference_flops_per_token_nonzeros": 2000 + 2 * known["nonzeros"],
        **known.get("total", {}),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if v is not None}))


def members(found):
    return [block["configurations"] for block in found["blocks"]]


def ranked(found):
    return [row["configuration"] for row in found["configurations"] if "difference" in row]


def test_tokens_must_be_equal(results):
    found = results(dense={}, more={"tokens": 513}, pruned={"nonzeros": 10, "val_loss": 2.5})
    assert (found["version"], found["quantity"]) == (2, "tokens")
    assert found["blocks"] == [
        {"budget": "512 tokens", "value": "512", "configurations": ["dense", "pruned"]},
        {"budget": "513 tokens", "value": "513", "configurations": ["more"]},
    ]
    assert ranked(found) == ["pruned"] and found["configurations"][2]["difference"]["mean"] == 0.5
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.markdown(found).splitlines()[:5]]
    assert rows[0] == [
        "configuration", "block", "n", "validation loss", "against dense", "sparsity", "in scope", "average non-zeros",
        "tokens", "seconds", "final non-zeros", "inference FLOPs per token",
    ]  # fmt: skip
    assert rows[4] == [
        "pruned", "1", "1", "2.5000", "+0.5000", "0.9900", "50.0%", "505", "512", "3", "10", "2.020e+03",
    ]  # fmt: skip
    assert [row[1] for row in table.screen(found)] == ["block", "1", "2", "1"]
    notes = list(table.notes(found))
    assert (
        "Only configurations of one block have equal tokens, those of the runs before included, so only those are "
        "ranked together: 1: 512 tokens for dense, pruned; 2: 513 tokens for more."
    ) in notes
    assert "There is one seed only, so nothing says how much of a difference is chance." in notes


@pytest.mark.parametrize(
    ("quantity", "name", "near", "far"),
    [
        ("flops", "flops", 1.02e9, 1.021e9),
        ("final-nonzeros", "nonzeros", 980, 979),
        ("average-nonzeros", "nonzeros", 960, 959),  # 980 and 979.5 on average
    ],
)
def test_other_quantities_come_within_two_percent(results, quantity, name, near, far):
    found = results(quantity, dense={}, near={name: near, "tokens": 100}, far={name: far})
    assert members(found) == [["dense", "near"], ["far"]]
    assert ranked(found) == ["near"]


def test_what_is_compared_is_within_two_percent_of_the_reference(results):
    figures = {"low": {"flops": 0.985e9}, "dense": {}, "high": {"flops": 1.015e9}, "most": {"flops": 1.021e9}}
    found = results("flops", methods=("low", "high", "most"), **figures)
    assert (found["reference"], members(found)) == ("dense", [["low", "dense", "high"], ["most"]])
    assert found["blocks"][0]["budget"] == "1e+09 FLOPs of training"
    assert ranked(found) == ["low", "high"]
    assert table.screen(found)[0][4] == "vs dense"
    assert "Against dense: the same for the differences between runs with the same seed and data." in table.notes(found)
    found = results("flops", methods=("low", "high"), low={"flops": 0.985e9}, high={"flops": 1.015e9})
    assert (found["reference"], members(found), ranked(found)) == ("low", [["low"], ["high"]], [])


def test_each_pair_of_runs_is_within_two_percent(results):
    found = results("flops", seeds=(1, 2, 3), dense={}, even={"flops": 1.01e9}, uneven={
        1: {}, 2: {}, 3: {"flops": 1.03e9},
    })  # fmt: skip
    assert members(found) == [["dense", "even"], ["uneven"]] and ranked(found) == ["even"]
    assert found["outliers"] == [
        "uneven is not ranked with dense, because each pair must come within 2%: with seed 3 it has 1.03e+09 FLOPs of "
        "training, and dense has 1e+09 FLOPs of training."
    ]
    assert found["outliers"][0] in table.notes(found)


def test_runs_that_are_equal_pair_by_pair_are_ranked_although_their_seeds_differ(results):
    uneven = {1: {}, 2: {"tokens": 400, "flops": 2e9}}
    for quantity in ("tokens", "flops"):
        found = results(quantity, seeds=(1, 2), dense=uneven, other=uneven)
        assert members(found) == [["dense", "other"]] and found["outliers"] == []


def test_a_run_without_a_partner_must_equal_all(results):
    found = results("flops", seeds=(1, 2), dense={1: {}, 2: "failed"}, other={1: {}, 2: {"flops": 1.03e9}})
    assert members(found) == [["dense"], ["other"]]
    assert found["outliers"] == [
        "other is not ranked with dense, because each pair must come within 2%: with seed 2 it has 1.03e+09 FLOPs of "
        "training."
    ]


@pytest.mark.parametrize("quantity", ["average-nonzeros", "final-nonzeros"])
def test_nonzeros_of_another_scope_are_ranked_only_with_the_same_scope_and_size(results, quantity):
    default, mlp = {"scope": " h.*.mlp.*.weight,h.*.attn.*.weight"}, {"scope": "*mlp*weight"}
    found = results(quantity, dense={}, scope=mlp, same=mlp, all=default, wider=mlp | {"parameters": 3000})
    assert members(found) == [["dense", "all"], ["scope", "same"], ["wider"]] and ranked(found) == ["all"]
    unit = {"average-nonzeros": "1,000 non-zeros on average", "final-nonzeros": "1,000 non-zeros at the end"}[quantity]
    assert [block["budget"] for block in found["blocks"]] == [
        unit,
        f"{unit} in the 1,000 of 2,000 weights of PRUNING_SCOPE=*mlp*weight",
        f"{unit} in the 1,000 of 3,000 weights of PRUNING_SCOPE=*mlp*weight",
    ]
    assert members(results(quantity, scope=mlp, same=mlp, dense={})) == [["scope", "same"], ["dense"]]
    assert members(results("flops", dense={}, scope=mlp)) == [["dense", "scope"]]  # FLOPs are those of the whole model


def test_a_scope_of_unknown_size_is_ranked_with_none(results):
    unknown = {"scope": "*mlp*weight", "parameters": None}
    found = results("average-nonzeros", one=unknown, other=unknown, dense={})
    assert members(found) == [["one"], ["other"], ["dense"]]
    assert found["blocks"][0]["budget"] == "1,000 non-zeros on average in an unknown scope"


def test_a_configuration_whose_quantity_is_unknown_is_ranked_with_none(results):
    found = results("flops", dense={"flops": None}, other={"flops": None}, known={})
    assert members(found) == [["dense"], ["other"], ["known"]] and ranked(found) == []
    assert "1: an unknown number of FLOPs of training for dense" in table.markdown(found)
    init = {"from": "hub/x", "kind": "huggingface", "path": "/x", "sha256": "0", "revision": "", "step": 0}
    found = results(dense={}, begun={"init": init | {"ancestors": {"hub/x": None}}})
    assert members(found) == [["dense"], ["begun"]]
    assert found["configurations"][1]["runs"][0]["total_tokens"] is None


def test_what_was_trained_before_counts(results):
    init = {"from": "runs/x", "kind": "run", "path": "/x", "sha256": "0", "revision": "", "step": 1}
    begun = {"init": init | {"ancestors": {"x": 212}}, "tokens": 300}
    totals = {"total_training_flops": 2e9, "total_training_flops_nonzeros": 1.9e9}
    found = results(dense={}, chained=begun | {"total": totals})
    assert members(found) == [["dense", "chained"]] and ranked(found) == ["chained"]
    assert found["configurations"][1]["total_tokens"]["mean"] == 512
    assert found["configurations"][1]["flops"]["mean"] == 1.9e9
    assert "training FLOPs, dense" in table.markdown(found)
    more = results(dense={}, chained=begun, third={"tokens": 700})
    assert "tokens with the runs before" in table.markdown(more)
    assert members(results("flops", dense={}, chained=begun | {"total": totals})) == [["dense"], ["chained"]]
    assert members(results("flops", dense={}, chained=begun)) == [["dense"], ["chained"]]  # of an ancestor without them


def test_only_what_the_trials_choose_is_called_tuned(results):
    found = results(dense={}, other={}) | {"tuned": {"LEARNING_RATE": ["1", "2"], "GRAD_CLIP": ["1", "0"]}}
    fair = "A fair comparison tunes all equally well."
    assert f"Not the same in all configurations: LEARNING_RATE and GRAD_CLIP. {fair}" in table.notes(found)
    found["tuning"] = {"space": {"LEARNING_RATE": "log 1,2"}, "untuned": {}}
    chosen = "Not the same in all configurations: LEARNING_RATE. The trials choose them"
    assert {f"{chosen}.", f"Not the same in all configurations: GRAD_CLIP. {fair}"} <= {*table.notes(found)}
    found["tuning"]["untuned"] = {"other": "it begins from another run of the sweep"}
    assert f"{chosen}, but for those that are not tuned." in table.notes(found)


def test_tokens_that_differ_between_seeds_are_a_block_of_their_own(results):
    found = results(seeds=(1, 2), dense={}, uneven={1: {}, 2: {"tokens": 400}})
    assert members(found) == [["dense"], ["uneven"]]
    assert found["blocks"][1]["budget"] == "512 and 400 tokens"


def test_diverged_and_short_runs_are_said(results):
    found = results(
        seeds=(1, 2), dense={}, wild={1: {}, 2: "diverged"}, short={1: "interrupted", 2: {}}, never={1: {}, 2: "failed"}
    )
    notes = list(table.notes(found))
    assert (
        "Diverged, so the figures of their configurations show only the seeds that went well: wild-seed2 (at step 2)."
    ) in notes
    assert (
        "Shorter than planned, so never ranked and not in these figures: short-seed1 (2 of 40 steps), never-seed2 (2 "
        "of 40 steps)."
    ) in notes
    assert not any("one seed only" in note for note in notes)
    assert found["configurations"][1]["difference"]["n"] == 1


def test_a_reference_without_a_finished_run_ranks_nothing(results):
    found = results(dense="diverged", other={}, more={})
    assert members(found) == [["other", "more"]] and ranked(found) == []
    assert table.markdown(found)


def test_the_folders_of_reused_runs_are_kept(results, tmp_path):
    old = tmp_path / "old/run"
    found = results(elsewhere={("dense", 1): old}, dense={}, other={})
    assert found["elsewhere"] == {"dense-seed1": str(old)}
    assert f"Not trained for this sweep, because finished runs count: {old}." in table.notes(found)


def test_what_is_matched_beside_tokens_is_said(results):
    notes = list(table.notes(results("final-nonzeros", dense={}, small={"tokens": 100})))
    assert "All configurations have equal final-nonzeros, within 2%; their tokens and their sizes may differ." in notes
