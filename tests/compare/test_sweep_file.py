"""The language of sweeps: matrices, chains, matched sizes and sweeps without a file."""

import dataclasses
import itertools
import re
import string
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.base.errors import UsageError
from lib.compare import sweep
from lib.config.config_file import ConfigError, presets
from lib.config.kconf import Schema
from tests.record.test_lineage import BATCH, folder, part
from tests.runs import ended, trained

HEAD = "defconfig gpt2_tiny\nseeds 1..2\ncommon TRACKER=none\n"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads lines after HEAD (so the first is line 4), with words of the command line."""
    monkeypatch.chdir(tmp_path)

    def read(*lines, words=(), head=HEAD, **more):
        Path("few").write_text(head + "".join(f"{line}\n" for line in lines))
        return sweep.read(Path("few"), words, **more)

    return read


@pytest.fixture
def refused(read):
    """The problems of lines after HEAD, without the name of the file."""

    def refused(*lines, **more):
        with pytest.raises(ConfigError) as caught:
            read(*lines, **more)
        return [problem.removeprefix("few:") for problem in caught.value.problems]

    return refused


def names(plan):
    return [one.name for one in plan.configurations]


def chosen(plan, *options):
    """Name -> values of options, of all configurations."""
    return {one.name: tuple(one.schema().options[name].text for name in options) for one in plan.configurations}


# ---- matrices --------------------------------------------------------------------------------------------------------


def test_a_matrix_is_the_product_of_its_axes_without_what_has_no_effect(read):
    plan = read(
        "matrix OPTIMIZER=adamw,sgd PRUNING_METHOD=none,magnitude,state PRUNING_STATE=hybrid,fisher "
        "TARGET_SPARSITY=0.5..0.8:0.3 WEIGHT_DECAY=0"
    )
    assert chosen(plan, "OPTIMIZER", "PRUNING_METHOD", "PRUNING_STATE", "TARGET_SPARSITY", "WEIGHT_DECAY") == {
        "adamw-dense": ("adamw", "none", "", "", "0"),
        "adamw-magnitude-0.5": ("adamw", "magnitude", "", "0.5", "0"),
        "adamw-magnitude-0.8": ("adamw", "magnitude", "", "0.8", "0"),
        "adamw-state-hybrid-0.5": ("adamw", "state", "hybrid", "0.5", "0"),
        "adamw-state-hybrid-0.8": ("adamw", "state", "hybrid", "0.8", "0"),
        "adamw-state-fisher-0.5": ("adamw", "state", "fisher", "0.5", "0"),
        "adamw-state-fisher-0.8": ("adamw", "state", "fisher", "0.8", "0"),
        "sgd-dense": ("sgd", "none", "", "", "0"),
        "sgd-magnitude-0.5": ("sgd", "magnitude", "", "0.5", "0"),
        "sgd-magnitude-0.8": ("sgd", "magnitude", "", "0.8", "0"),
    }
    assert plan.dropped == (("sgd-state", "PRUNING_METHOD=state needs OPTIMIZER other than sgd or muon"),)
    assert [run.name for run in plan.runs()][9:11] == ["sgd-magnitude-0.8-seed1", "adamw-dense-seed2"]
    words = plan.runs()[0].words()
    assert {"OPTIMIZER=adamw", "PRUNING_METHOD=none", "WEIGHT_DECAY=0"} <= set(words)
    assert not [word for word in words if word.startswith(("TARGET_SPARSITY", "PRUNING_STATE"))]


def test_a_named_line_with_axes_is_a_matrix_with_this_name(read):
    plan = read("dense", "mine PRUNING_METHOD=state PRUNING_STATE=hybrid,fisher TARGET_SPARSITY=0.5")
    assert names(plan) == ["dense", "mine-hybrid", "mine-fisher"]
    assert plan.configurations[1].own == (
        ("PRUNING_METHOD", "state", "few:5"),
        ("PRUNING_STATE", "hybrid", "few:5"),
        ("TARGET_SPARSITY", "0.5", "few:5"),
    )


def test_a_dependency_between_two_axes_drops_a_point(read):
    plan = read("matrix PRUNING_METHOD=magnitude,wanda,movement PRUNING_DYNAMICS=gradual,rigl")
    assert names(plan) == ["magnitude-gradual", "magnitude-rigl", "wanda-gradual", "movement"]
    assert plan.dropped == (("wanda-rigl", "PRUNING_DYNAMICS=rigl needs PRUNING_METHOD=magnitude"),)


def test_a_point_that_another_line_has_is_not_there_twice(read):
    assert names(read("matrix PRUNING_METHOD=none,magnitude", "plain", "again")) == ["magnitude", "plain", "again"]
    # A named line with axes wins over a matrix, and one without over both.
    lines = "matrix PRUNING_METHOD=none,magnitude,random", "b PRUNING_METHOD=none,random", "a PRUNING_METHOD=random"
    plan = read(*lines)
    assert names(plan) == ["magnitude", "b-dense", "a"]
    assert plan.dropped == (
        ("dense", "it is the same as b-dense"), ("random", "it is the same as a"), ("b-random", "it is the same as a")
    )  # fmt: skip


def test_points_with_equal_short_names_have_long_ones(read):
    # The decay of sr-ste and the share that rigl drops are axes of their own.
    plan = read("a PRUNING_METHOD=magnitude PRUNING_DYNAMICS=rigl,set RIGL_DROP_FRACTION=0.1,0.2")
    assert names(plan) == ["a-rigl-0.1", "a-rigl-0.2", "a-set-0.1", "a-set-0.2"]
    plan = read("a ADAMWADV_AMSGRAD=y,n OPTIMIZER=adamwadv,adamwspam SPAM_THETA=10,20")
    assert len(set(names(plan))) == 4
    long = read("x" * 55 + " PRUNING_METHOD=magnitude,random")
    assert all(len(name) <= 60 for name in names(long)) and len(set(names(long))) == 2


def test_axes_of_the_command_line_multiply_every_configuration(read):
    plan = read("dense", "half PRUNING_METHOD=magnitude", words=["TARGET_SPARSITY=0.5,0.8", "WEIGHT_DECAY=0,0.1"])
    assert chosen(plan, "TARGET_SPARSITY", "WEIGHT_DECAY") == {
        "dense-weight-decay-0": ("", "0"),
        "dense-weight-decay-0.1": ("", "0.1"),
        "half-weight-decay-0-0.5": ("0.5", "0"),
        "half-weight-decay-0-0.8": ("0.8", "0"),
        "half-weight-decay-0.1-0.5": ("0.5", "0.1"),
        "half-weight-decay-0.1-0.8": ("0.8", "0.1"),
    }
    # One value replaces an axis, as it replaces a value; and `common` can have axes too.
    assert names(read("a OPTIMIZER=adamw,sgd", words=["OPTIMIZER=adam"])) == ["a"]
    assert names(read("common OPTIMIZER=adamw,sgd", "a", "b")) == ["a-adamw", "a-sgd", "b-adamw", "b-sgd"]


def test_seeds_are_ranges_and_the_command_line_sets_them(read, refused):
    assert read("a").seeds == (1, 2)
    assert read("a", words=["SEED=7,9..10"]).seeds == (7, 9, 10)
    assert read("a", words=["SEED=1", "SEED=2..3"]).seeds == (2, 3)
    assert read("a", words=["SEED=3"], head="defconfig gpt2_tiny\n").seeds == (3,)
    assert read("matrix SEED=4..5", head="defconfig gpt2_tiny\n").seeds == (4, 5)
    assert refused("matrix SEED=4..5") == ["4: few:2 gives other seeds; all configurations have the same"]
    assert refused("a", words=["SEED=1..x"]) == [
        "command line: SEED=1..x is no range; write first..last:step, as in 0.5..0.9:0.1, or 1..5"
    ]
    assert refused("a", words=["SEED=-1"]) == ["command line: a seed must lie between 0 and 2147483647; got -1"]


def test_what_is_wrong_with_a_matrix_is_one_sentence(refused):
    assert refused("matrix OPTIMIZER=sgd PRUNING_METHOD=state,movement") == [
        "4: nothing is left: all 2 points are forbidden, because PRUNING_METHOD=state needs OPTIMIZER other than sgd "
        "or muon and PRUNING_METHOD=movement needs OPTIMIZER other than sgd or adam"
    ]
    assert refused("matrix PRUNING_METHOD=none,magnitude PRUNING_STATE=hybrid,fisher") == [
        "4: PRUNING_STATE=hybrid,fisher has no effect in any configuration: it needs PRUNING_METHOD=state"
    ]
    assert refused("matrix WEIGHT_DECAY=0,11 PRUNING_METHOD=none,random") == [
        "4: WEIGHT_DECAY must lie between 0 and 10; got 11"
    ]
    assert refused("matrix WEIGHT_DECAY=0.1,much OPTIMIZER=adamw,sgd") == [
        "4: WEIGHT_DECAY must be a number; got 'much'"
    ]
    assert refused("matrix OPTIMIZER_ADAM=y,n") == ["4: OPTIMIZER_ADAM is a value of OPTIMIZER; write OPTIMIZER=adam"]
    assert refused("matrix OPTIMISER=adamw,sgd") == ["4: unknown option OPTIMISER; did you mean OPTIMIZER?"]
    assert refused("matrix N_LAYER=1..40 N_EMBD=1..40") == [
        "4: 40 x 40 is 1,600 configurations; a line makes up to 1,000"
    ]
    assert refused("matrix OPTIMIZER=adamw,sgd", "matrix OPTIMIZER=sgd,adam WEIGHT_DECAY=0") == [
        "5: makes a second configuration sgd; the first is that of few:4; give the line a name, as in: mine "
        "PRUNING_METHOD=magnitude,random"
    ]
    # One sentence for the whole matrix, although four of its points differ from the first.
    [told] = refused("a OPTIMIZER=adamw,sgd DROPOUT=0,0.1,0.2")
    assert told.startswith("4: a-adamw-0.1 has DROPOUT=0.1, and a-adamw-0 has 0: a table needs equal budgets")


OPTIONS = {
    "OPTIMIZER": ["adamw", "adam", "sgd", "muon", "adamwspam", "adamwprune"],
    "PRUNING_METHOD": ["none", "magnitude", "movement", "state", "wanda", "sparsegpt"],
    "PRUNING_STATE": ["hybrid", "fisher"],
    "PRUNING_DYNAMICS": ["gradual", "rigl", "sr-ste"],
    "PRUNING_DISTRIBUTION": ["global", "erk", "n-m"],
    "TARGET_SPARSITY": ["0.5", "0.8"],
    "SPAM_THETA": ["10", "50"],
}


AXES = st.sets(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=4).flatmap(
    lambda chosen: st.fixed_dictionaries(
        {
            name: st.lists(st.sampled_from(values), min_size=2, max_size=2, unique=True)
            for name, values in OPTIONS.items()
            if name in chosen
        }
    )
)
KNOWN = Schema()


@settings(max_examples=15, deadline=None)
@given(AXES)
def test_a_matrix_has_each_possible_configuration_once(axes):
    """Against trying every point of the product by itself, and dropping the assignments that Kconfig calls idle."""
    words = [f"{name}={','.join(values)}" for name, values in axes.items()]
    expected = set()
    for values in itertools.product(*axes.values()):
        point = _valid(dict(zip(axes, values, strict=True)))
        if point is not None:
            expected.add(point)
    try:
        plan = sweep.read(None, words)
    except ConfigError as error:
        assert not expected or all("has no effect in any configuration" in one for one in error.problems)
        return
    made = [_texts(one.schema()) for one in plan.configurations]
    assert len(made) == len(set(made)) and set(made) == expected
    assert len(set(names(plan))) == len(made)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) for name in names(plan))
    # What is left of a point is valid as a plain line: nothing more collapses.
    for one in plan.configurations:
        assert _valid({name: text for name, text, _ in one.own}) == _texts(one.schema())


def _valid(values):
    """The options of a point without its idle assignments; None if it is forbidden."""
    for _ in range(2):
        schema = KNOWN
        schema.clear()
        schema.load(presets()["gpt2_tiny"])
        try:
            schema.override([(name, text, name) for name, text in values.items()])
        except ConfigError:
            bad = [name for name, text in values.items() if not schema.options[name].in_force(text)]
            if any(schema.options[name].settable for name in bad):
                return None
            values = {name: text for name, text in values.items() if name not in bad}
        else:
            return _texts(schema)
    raise AssertionError("an assignment became idle when others were left out")


def _texts(schema):
    return tuple(option.text for option in schema.options.values())


# ---- chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_begins_with_the_run_of_the_same_seed(read):
    plan = read(
        "dense MAX_ITERS=300",
        "wanda from=@dense@200 oneshot PRUNING_METHOD=wanda TARGET_SPARSITY=0.5",
        "retrained INIT_FROM=@wanda@4 PRUNING_METHOD=given MAX_ITERS=50",
        "ticket PRUNING_METHOD=given INIT_MASKS=@wanda",
    )
    assert [one.begins for one in plan.configurations] == [
        (),
        (("INIT_FROM", ("dense", "@200")),),
        (("INIT_FROM", ("wanda", "@4")),),
        (("INIT_MASKS", ("wanda", "")),),
    ]
    assert [one.oneshot for one in plan.configurations] == [False, True, False, False]
    runs = {run.name: run for run in plan.runs()}
    assert [run.program for run in plan.runs()[:3]] == ["gpt2/train.py", "scripts/oneshot.py", "gpt2/train.py"]
    assert [one.name for one in runs["retrained-seed2"].before(plan)] == ["wanda-seed2"]
    assert runs["dense-seed1"].before(plan) == []
    assert "CHECKPOINT_AT=200" in runs["dense-seed1"].words()
    words = runs["wanda-seed2"].words()
    assert {"PRUNING_DYNAMICS=oneshot", "INIT_FROM=runs/few/dense-seed2@200", "SEED=2", "MAX_ITERS=4"} <= set(words)
    assert not [word for word in words if word.startswith("EVAL_INTERVAL")]
    assert "INIT_MASKS=runs/few/wanda-seed1" in runs["ticket-seed1"].words()
    # As scripts/oneshot.py writes it into .config: one step for each of the four blocks.
    assert chosen(plan, "MAX_ITERS", "EVAL_INTERVAL")["wanda"] == ("4", "1")
    assert runs["wanda-seed2"].schema()["INIT_FROM"] == "runs/few/dense-seed2@200"


def test_a_chain_may_have_a_teacher(read, refused):
    lines = "dense MAX_ITERS=300", "wanda from=@dense oneshot PRUNING_METHOD=wanda"
    given = "from=@wanda PRUNING_METHOD=given MAX_ITERS=50"
    plan = read(*lines, f"plain {given}", f"taught {given} DISTILL_FROM=@dense DISTILL_WEIGHT=0.5,1")
    assert names(plan) == ["dense", "wanda", "plain", "taught-0.5", "taught-1"]
    assert plan.configurations[3].begins == (("INIT_FROM", ("wanda", "")), ("DISTILL_FROM", ("dense", "")))
    runs = {run.name: run for run in plan.runs()}
    assert {run.name for run in runs["taught-1-seed2"].before(plan)} == {"dense-seed2", "wanda-seed2"}
    assert {"DISTILL_FROM=runs/few/dense-seed2", "DISTILL_WEIGHT=1"} <= set(runs["taught-1-seed2"].words())
    assert plan.dense() == ["dense"]
    plan = read(*lines, f"taught {given} DISTILL_FROM=@dense", "long match=tokens:taught", choose=choose)
    assert chosen(plan, "MAX_ITERS")["long"] == ("350",)  # the dense run counts once
    assert refused("a DISTILL_FROM=@b", "b DISTILL_FROM=@a") == [
        "4: the chain is a circle: a needs b, b needs a; let one of them begin from something else"
    ]
    assert refused("a", "b DISTILL_FROM=@a", "c match=flops:b", choose=choose) == [
        "6: match=flops:b: FLOPs of chains cannot be planned; match tokens, or give MAX_ITERS"
    ]


def test_a_chain_begins_with_a_run_that_counts_from_elsewhere(read):
    plan = read("dense", "wanda from=@dense oneshot PRUNING_METHOD=wanda")
    plan = dataclasses.replace(plan, elsewhere={("dense", 2): Path("old/dense-seed7")})
    runs = {run.name: run for run in plan.runs()}
    assert runs["dense-seed2"].folder == Path("old/dense-seed7")
    assert "INIT_FROM=old/dense-seed7" in runs["wanda-seed2"].words()
    assert "INIT_FROM=runs/few/dense-seed1" in runs["wanda-seed1"].words()


def test_a_chain_has_the_shape_of_its_source(read, refused):
    plan = read("common N_EMBD=96", "dense", "big N_EMBD=320 N_LAYER=2", "pruned from=@big PRUNING_METHOD=magnitude",
                "more from=@pruned")  # fmt: skip
    assert chosen(plan, "N_EMBD", "N_LAYER") == {
        "dense": ("96", "4"), "big": ("320", "2"), "pruned": ("320", "2"), "more": ("320", "2")
    }  # fmt: skip
    assert not [word for word in plan.runs()[2].words() if word.startswith("N_")]  # the weights decide
    plan = read("dense MODEL_NAME=gpt2", "more from=@dense")
    assert chosen(plan, "MODEL_NAME", "N_EMBD", "N_LAYER")["more"] == ("gpt2", "768", "12")
    assert refused("dense", "more from=@dense N_EMBD=320") == [
        "5: N_EMBD=320 does not fit INIT_FROM=@dense, which has 160; leave it out"
    ]


def test_chains_in_a_matrix(read, refused):
    plan = read(
        "dense",
        "one from=@dense oneshot PRUNING_METHOD=wanda,magnitude",
        "two from=@one-wanda,@one-magnitude PRUNING_METHOD=given",
        words=["LEARNING_RATE=1e-3,2e-3"],
    )
    assert [one.begins[0][1][0] for one in plan.configurations[2:]] == [
        "dense-1e-3", "dense-2e-3", "dense-1e-3", "dense-2e-3",
        "one-wanda-1e-3", "one-wanda-2e-3", "one-magnitude-1e-3", "one-magnitude-2e-3",
    ]  # fmt: skip
    assert refused("a PRUNING_METHOD=random,magnitude", "b from=@a") == [
        "5: @a is 2 configurations; name one of a-random, a-magnitude"
    ]
    # A point that needs a dropped one is dropped too; a plain line that needs it is a mistake.
    lines = "matrix OPTIMIZER=sgd,adamw PRUNING_METHOD=state", "more from=@sgd,@adamw"
    assert names(read(*lines)) == ["adamw", "more-adamw"]
    why = "PRUNING_METHOD=state needs OPTIMIZER other than sgd or muon"
    assert read(*lines).dropped == (("sgd", why), ("more-sgd", f"it needs sgd, which cannot be: {why}"))
    assert refused(lines[0], "more from=@sgd") == [f"5: it needs sgd, which cannot be: {why}"]


def test_a_chain_with_axes_of_all_lines_takes_only_the_source_with_its_values(read, refused):
    state, given = "PRUNING_METHOD=state TARGET_SPARSITY=0.5", "PRUNING_METHOD=given"
    lines = "common OPTIMIZER=adamw,sgd", "dense", f"st {state}", f"ret from=@st {given}", "size match=flops:st"
    plan = read(*lines, choose=choose)
    assert {one.name: one.begins or one.matched for one in plan.configurations} == {
        "dense-adamw": None, "dense-sgd": None, "st-adamw": None,
        "ret-adamw": (("INIT_FROM", ("st-adamw", "")),), "size-adamw": ("flops", "st-adamw"),
    }  # fmt: skip
    why = "it needs st-sgd, which cannot be: PRUNING_METHOD=state needs OPTIMIZER other than sgd or muon"
    assert plan.dropped[1:] == (("ret-sgd", why), ("size-sgd", why))
    assert refused(lines[0], lines[2], f"ret from=@st OPTIMIZER=adam {given}") == [
        "6: @st is only st-adamw, whose axes have other values than ret; name @st-adamw"
    ]
    # Where an axis has no effect, nobody knows which one is meant.
    assert refused("half PRUNING_METHOD=random", f"ret from=@half {given}", words=["TARGET_SPARSITY=0.5,0.8"]) == [
        "5: @half is 2 configurations; name one of half-0.5, half-0.8"
    ]
    # One that a plain line describes too is that line's.
    plan = read(lines[0], "matrix PRUNING_METHOD=random,magnitude", "mine OPTIMIZER=sgd PRUNING_METHOD=random",
                f"ret from=@random {given}")  # fmt: skip
    assert [one.begins for one in plan.configurations if one.begins] == [
        (("INIT_FROM", ("random-adamw", "")),), (("INIT_FROM", ("mine", "")),)
    ]  # fmt: skip


def test_a_line_that_loses_all_its_sources_is_an_error(refused):
    lines = "dense", "st OPTIMIZER=adamw,sgd PRUNING_METHOD=state", "a PRUNING_METHOD=random,given from=@st-sgd"
    why = "it needs st-sgd, which cannot be: PRUNING_METHOD=state needs OPTIMIZER other than sgd or muon"
    assert refused(*lines) == [f"6: nothing is left: {why}"]
    # Also if its sources lost theirs.
    more = "b PRUNING_METHOD=random LEARNING_RATE=1e-3,2e-3 from=@a-random"
    assert refused(*lines, more) == [
        f"6: nothing is left: {why}",
        f"7: nothing is left: it needs a-random, which cannot be: {why}",
    ]


def test_what_is_wrong_with_a_chain_is_one_sentence(refused):
    assert refused("a from=@b", "b from=@c", "c PRUNING_METHOD=given INIT_MASKS=@a") == [
        "4: the chain is a circle: a needs b, b needs c, c needs a; let one of them begin from something else"
    ]
    assert refused("a from=@a")[0].startswith("4: the chain is a circle: a needs a;")
    assert refused("dense", "a from=@dens") == ["5: there is no configuration 'dens'; did you mean dense?"]
    assert refused("dense", "a from=@dense@last") == [
        "5: @dense@last: the checkpoint of @dense is a step, best or newest; got 'last'"
    ]
    assert refused("dense MAX_ITERS=100", "a from=@dense@200") == [
        "4: others begin from step 200 of dense, which ends after 100"
    ]
    assert refused("dense CHECKPOINT_BEST=n", "a from=@dense@best") == [
        "4: others begin from the best checkpoint of dense, which has CHECKPOINT_BEST=n"
    ]
    for which in ("1", "best"):
        lines = "w from=@dense oneshot PRUNING_METHOD=wanda", f"a from=@w@{which} PRUNING_METHOD=given"
        assert refused("dense", *lines) == [
            f"5: others begin from @w@{which}, and one-shot pruning saves only its last step; leave out @{which}"
        ]
    assert refused("dense", "w oneshot PRUNING_METHOD=wanda") == [
        "5: oneshot prunes a finished model; name it, as in from=@dense"
    ]
    assert refused("dense", "w from=@dense oneshot PRUNING_METHOD=state") == [
        "5: PRUNING_DYNAMICS=oneshot has no effect: it needs PRUNING_METHOD=magnitude, wanda, sparsegpt, random or "
        "shrink"
    ]
    assert refused("dense", "w from=@dense oneshot PRUNING_METHOD=wanda PRUNING_DYNAMICS=gradual") == [
        "5: PRUNING_DYNAMICS=gradual: the word oneshot sets it; leave it out"
    ]
    assert refused("dense", "w from=@dense oneshot PRUNING_METHOD=wanda MAX_ITERS=4") == [
        "5: MAX_ITERS=4: the steps of one-shot pruning are the blocks of the model; leave it out"
    ]
    assert refused("big N_EMBD=320 PRUNING_METHOD=random", "a PRUNING_METHOD=given INIT_MASKS=@big") == [
        "5: INIT_MASKS=@big has masks for N_EMBD=320, and a has 160; begin from @big too"
    ]


def test_evaluations_are_equal_although_the_first_line_is_one_shot(read, refused):
    lines = "w from=@dense oneshot PRUNING_METHOD=wanda", "dense EVAL_INTERVAL=50"
    assert names(read(*lines)) == ["w", "dense"]
    [told] = refused(*lines, "often EVAL_INTERVAL=7")
    assert told.startswith("6: often has EVAL_INTERVAL=7, and dense has 50: a table needs equal budgets")


# ---- matched budgets -------------------------------------------------------------------------------------------------


def choose(schema, quantity, target):
    """What a real function chooses is tested with it; this one says what it was given."""
    if quantity in ("tokens", "flops"):
        return [("MAX_ITERS", target.options["MAX_ITERS"].text)], f"{quantity} of {target['MAX_ITERS']} steps"
    return [("N_EMBD", "96"), ("N_LAYER", "2")], f"{quantity} of width {target['N_EMBD']}"


def test_a_configuration_is_sized_like_another(read):
    plan = read(
        "match average-nonzeros",
        "small match=average-nonzeros:half",
        "half N_EMBD=320 PRUNING_METHOD=magnitude",
        "after from=@small",
        choose=choose,
    )
    assert plan.quantity == "average-nonzeros" and read("a").quantity == "tokens"
    small = plan.configurations[0]
    assert (small.matched, small.chosen) == (("average-nonzeros", "half"), "average-nonzeros of width 320")
    assert chosen(plan, "N_EMBD", "N_LAYER") == {"small": ("96", "2"), "half": ("320", "4"), "after": ("96", "2")}
    assert {"N_EMBD=96", "N_LAYER=2"} <= set(plan.runs()[0].words())


def test_matched_tokens_count_the_runs_before(read, refused):
    lines = (
        "dense MAX_ITERS=1000",
        "wanda from=@dense@600 oneshot PRUNING_METHOD=wanda",
        "retrained from=@wanda PRUNING_METHOD=given MAX_ITERS=300",
        "masked from=@dense PRUNING_METHOD=given INIT_MASKS=@retrained MAX_ITERS=50",
    )
    asked = ("long match=tokens:retrained", "late from=@dense@200 match=tokens:retrained", "all match=tokens:masked")
    plan = read(*lines, *asked, choose=choose)
    # 600 of dense, none of wanda, 300 of its own; then less the 200 that come before `late`. `masked` needs all 1,000
    # of dense, once, the 300 of the retrained model that chose its masks, and its own 50.
    assert chosen(plan, "MAX_ITERS") | {"wanda": None, "dense": None} == {
        "dense": None, "wanda": None, "retrained": ("300",), "masked": ("50",),
        "long": ("900",), "late": ("700",), "all": ("1350",),
    }  # fmt: skip
    assert refused(*lines, "none from=@dense match=tokens:retrained", choose=choose) == [
        "8: match=tokens:retrained: the runs before none train 1,000 steps, which are enough already"
    ]
    assert refused(*lines, "some match=flops:retrained", choose=choose) == [
        "8: match=flops:retrained: FLOPs of chains cannot be planned; match tokens, or give MAX_ITERS"
    ]
    assert refused("dense", "a from=@dense@best", "b match=tokens:a", choose=choose) == [
        "6: INIT_FROM=@dense@best: its step is not known before training; name one to match it"
    ]


def old_run(name, **changes):
    """A run outside of the sweep: 30 steps of 256 tokens."""
    made = folder(Path("runs"), name, *trained(*range(1, 31)), ended(30), config=BATCH | changes)
    (made / "checkpoints").mkdir()
    for step in (10, 30):
        (made / f"checkpoints/step-{step:09}.pt").touch()


def test_matched_tokens_count_the_runs_of_other_folders(read, refused):
    old_run("old")
    old_run("odd", batch_size=3)
    common = "common BATCH_SIZE=4 GRADIENT_ACCUMULATION=2 BLOCK_SIZE=32"
    plan = read(
        common,
        "ret INIT_FROM=runs/old MAX_ITERS=300",
        "long match=tokens:ret",
        "rest INIT_FROM=old@10 match=tokens:long",
        "masked PRUNING_METHOD=given INIT_MASKS=runs/old MAX_ITERS=400",
        "more from=@ret MAX_ITERS=50",
        "all match=tokens:more",
        "like match=tokens:masked",
        "hub INIT_FROM=some/model MAX_ITERS=300",
        "fit INIT_FROM=some/model match=tokens:hub",
        choose=choose,
    )
    assert {name: steps for name, (steps,) in chosen(plan, "MAX_ITERS").items()} == {
        "ret": "300", "long": "330", "rest": "320", "masked": "400", "more": "50", "all": "380", "like": "430",
        "hub": "300", "fit": "300",
    }  # fmt: skip
    assert refused(common, "hub INIT_FROM=some/model", "a match=tokens:hub", choose=choose) == [
        "6: match=tokens:hub: nobody knows for how many tokens some/model was trained; give MAX_ITERS"
    ]
    # A run that has begun knows what its source was, even if that is gone.
    lines = common, "ret INIT_FROM=runs/gone MAX_ITERS=300", "long match=tokens:ret"
    assert refused(*lines, choose=choose) == [
        "6: match=tokens:ret: nobody knows for how many tokens runs/gone was trained; give MAX_ITERS"
    ]
    Path("runs/few").mkdir()
    begun = folder(Path("made"), "ret", init=part(ancestors={"a": 256 * 20})).rename("runs/few/ret-seed2")
    (begun / ".config").touch()
    assert chosen(read(*lines, choose=choose), "MAX_ITERS")["long"] == ("320",)
    assert refused(common, "a INIT_FROM=runs/odd MAX_ITERS=300", "b match=tokens:a", choose=choose) == [
        "6: match=tokens:a: no number of steps of 256 tokens makes the missing 82,560; begin from other runs, or leave "
        "it out"
    ]
    why = "FLOPs of chains cannot be planned; match tokens, or give MAX_ITERS"
    flops = "b match=flops:a", "c INIT_FROM=runs/old match=flops:d", "d"
    assert refused(common, "a INIT_FROM=runs/old", *flops, choose=choose) == [
        f"6: match=flops:a: {why}", f"7: match=flops:d: {why}"
    ]  # fmt: skip


def test_what_is_wrong_with_a_match_is_one_sentence(refused):
    assert refused("match flop", "a") == [
        "4: match takes tokens, flops, average-nonzeros or final-nonzeros; got 'flop'; did you mean flops?"
    ]
    how = "write match=QUANTITY:NAME, as in match=average-nonzeros:magnitude-80"
    assert refused("a", "b match=tokens") == [f"5: match=tokens cannot be understood; {how}"]
    assert refused("a", "b match=tokens:a match=flops:a", choose=choose) == ["5: match= is there twice; leave one out"]
    assert refused("a", "b match=token:a") == [f"5: match=token:a cannot be understood; {how}; did you mean tokens?"]
    assert refused("dense", "b match=tokens:dens", choose=choose) == [
        "5: there is no configuration 'dens'; did you mean dense?"
    ]
    assert refused("a match=tokens:b", "b match=flops:a", choose=choose) == [
        "4: the chain is a circle: a needs b, b needs a; let one of them begin from something else"
    ]
    assert refused("a", "b match=tokens:a MAX_ITERS=5", choose=choose) == [
        "5: MAX_ITERS=5: match=tokens:a chooses it; leave it out"
    ]
    assert refused("a", "b from=@a match=final-nonzeros:a", choose=choose) == [
        "5: match=final-nonzeros:a chooses the size of the model, which INIT_FROM=@a decides"
    ]
    assert refused("a", "b from=@a oneshot PRUNING_METHOD=wanda match=tokens:a", choose=choose) == [
        "5: match=tokens:a: one-shot pruning has the size and the steps of its model; leave it out"
    ]


# ---- without a file --------------------------------------------------------------------------------------------------


def test_a_sweep_without_a_file_keeps_a_text_that_repeats_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".config").write_text("CONFIG_MODEL_NAME_CUSTOM=y\nCONFIG_N_EMBD=96\nCONFIG_SEED=5\n")
    words = ["TARGET_SPARSITY=0.5..0.9:0.2", "PRUNING_METHOD=none,random", "PROMPT=two words", "OUTPUT_DIR=out"]
    plan = sweep.read(None, words)
    assert plan.seeds == (5,) and names(plan) == ["dense", "random-0.5", "random-0.7", "random-0.9"]
    assert re.fullmatch("pruning-method-target-sparsity-[0-9a-f]{6}", plan.name)
    assert plan.folder == Path("out") / plan.name and not plan.folder.exists()
    # The order of make's words, the folder and more seeds do not make it another sweep; another base does.
    assert sweep.read(None, ["OUTPUT_DIR=b", *words[:3][::-1], "SEED=1..9"]).name == plan.name
    # Nor do what a run that goes on may have otherwise: so a short one is resumed with another RUN_TIME.
    assert sweep.read(None, [*words, "RUN_TIME=2h", "THREADS=1"]).name == plan.name
    kept = plan.kept()
    Path(".config").write_text("CONFIG_MODEL_NAME_CUSTOM=y\nCONFIG_N_EMBD=64\n")
    assert sweep.read(None, words).name != plan.name
    assert kept.runs()[0].words()[:2] == ["--config", f"out/{plan.name}/base.config"]
    Path(".config").unlink()
    again = sweep.read(plan.folder / "sweep")
    assert (again.name, again.folder, again.seeds) == (plan.name, plan.folder, plan.seeds)
    assert [run.words() for run in again.runs()] == [run.words() for run in kept.runs()]
    assert [_texts(one.schema()) for one in again.configurations] == [_texts(o.schema()) for o in kept.configurations]
    assert again.kept() is again
    # Without .config too: the default preset.
    assert sweep.read(None, ["SEED=1..2"]).configurations[0].schema()["N_EMBD"] == 160


def test_two_hundred_configurations_are_read_quickly(read):
    began = time.process_time()
    plan = read("matrix OPTIMIZER=adamw,adamwspam PRUNING_METHOD=magnitude,random WEIGHT_DECAY=0.01..0.50:0.01")
    assert time.process_time() - began < 20  # 2.3 s on a server CPU
    assert len(plan.configurations) == 200


@settings(max_examples=30, deadline=None)
@given(st.text(string.ascii_letters + string.digits + "=,.:@-_ \n#'", max_size=80))
def test_any_text_is_read_or_refused_in_sentences(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "few"
    path.write_text(f"{HEAD}dense\n{text}\n")
    try:
        sweep.read(path)
    except UsageError as error:
        assert all("\n" not in sentence and sentence for sentence in error.args)
