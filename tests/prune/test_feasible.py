"""What cannot be pruned is found from options and shapes, as `lib.prune.build` finds it, but without PyTorch."""

import pytest

from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.prune import feasible
from lib.prune.kinds import Group

SHAPES = {"wte.weight": (256, 32), "h.0.attn.weight": (96, 32), "h.0.mlp.weight": (128, 32), "h.0.mlp.bias": (128,)}
GROUPS = [Group("heads", 4, {}), Group("neurons", 128, {})]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("PRUNING_WARMUP=0.8 PRUNING_END=0.3", r"PRUNING_END=0\.3 is step \d+, before pruning starts at step"),
        ("PRUNING_WARMUP=90000", "PRUNING_WARMUP=90000 lies beyond MAX_ITERS="),
        ("PRUNING_FIRST_SPARSITY=0.9", r"PRUNING_FIRST_SPARSITY=0\.9 exceeds TARGET_SPARSITY=0\.5"),
        ("PRUNING_DISTRIBUTION=n-m PRUNING_N=4", "PRUNING_N=4 must be less than PRUNING_M=4"),
        ("PRUNING_DYNAMICS=granet GRANET_START_SPARSITY=0.6", r"GRANET_START_SPARSITY=0\.6 exceeds TARGET_SPARSITY"),
        ("PRUNING_METHOD=state PRUNING_WARMUP=0", "PRUNING_WARMUP: state pruning reads the optimizer's moments"),
        ("PRUNING_METHOD=state OPTIMIZER=adamwspam SPAM_DENSITY=0.5", r"PRUNING_METHOD=state .* SPAM_DENSITY=0\.5"),
    ],
)
def test_settings_that_contradict_each_other(words, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        feasible.check(described(words))


@pytest.mark.parametrize(
    "words",
    ["", "PRUNING_METHOD=none", "PRUNING_METHOD=given", "PRUNING_METHOD=shrink", "PRUNING_METHOD=sparsegpt",
     "PRUNING_METHOD=str", "PRUNING_METHOD=movement PRUNING_MOVEMENT=soft", "PRUNING_STRUCTURE=both",
     "PRUNING_DYNAMICS=granet GRANET_START_SPARSITY=0.5"],
)  # fmt: skip
def test_what_can_be_is_no_problem(words):
    feasible.check(described(words))
    assert feasible.check_model(described(words), SHAPES, GROUPS) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("PRUNING_SCOPE=foo", "PRUNING_SCOPE: 'foo' matches no parameter; names look like wte.weight and h.0.mlp"),
        ("PRUNING_METHOD=given PRUNING_SCOPE=", "PRUNING_SCOPE is empty"),
        ("PRUNING_DISTRIBUTION=n-m PRUNING_M=6", "PRUNING_M=6 must divide .* h.0.attn.weight has 32 inputs"),
        ("PRUNING_LAYER_CAP=0.4", r"PRUNING_LAYER_CAP=0\.4 of every tensor does not allow a sparsity of 0\.5"),
        ("PRUNING_STRUCTURE=heads TARGET_SPARSITY=0.9", r"TARGET_SPARSITY=0\.9 prunes 4 of 4 heads"),
        ("PRUNING_DYNAMICS=chts PRUNING_SCOPE=h.*", r"PRUNING_DYNAMICS=chts needs matrices, but h.0.mlp.bias has 1"),
        ("PRUNING_DYNAMICS=granet GRANET_START_SPARSITY=0.1 PRUNING_SCOPE=h.*",
         r"GRANET_START_SPARSITY=0\.1 prunes matrices at first, but h.0.mlp.bias has 1"),
        ("PRUNING_DISTRIBUTION=row PRUNING_SCOPE=h.*", "PRUNING_DISTRIBUTION=row needs matrices, but h.0.mlp.bias"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_pruned_so(words, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        feasible.check_model(described(words), SHAPES, GROUPS)


@pytest.mark.parametrize(
    ("words", "warnings"),
    [
        ("TARGET_SPARSITY=0", ["TARGET_SPARSITY=0 prunes nothing; raise it, or set PRUNING_METHOD=none"]),
        ("TARGET_SPARSITY=0.00001", ["TARGET_SPARSITY=1e-05 prunes nothing; raise it, or set PRUNING_METHOD=none"]),
        ("TARGET_SPARSITY=0.0001", []),
        ("PRUNING_STRUCTURE=both TARGET_SPARSITY=0.1",
         ["TARGET_SPARSITY=0.1 prunes none of the 4 heads of a layer; raise it"]),
        ("PRUNING_STRUCTURE=heads PRUNING_DISTRIBUTION=global TARGET_SPARSITY=0.1",
         ["TARGET_SPARSITY=0.1 prunes none of the 4 heads; raise it"]),
    ],
)  # fmt: skip
def test_a_target_that_prunes_nothing_is_warned_of(words, warnings):
    assert feasible.check_model(described(words), SHAPES, GROUPS) == warnings
    assert len(feasible.useless(described(words))) == (words == "TARGET_SPARSITY=0")


def described(words):
    """`bind` of the configuration of these words, with magnitude and the matrices of h.0 where they say no other."""
    made = Schema()
    given = [("PRUNING_METHOD", "magnitude"), *(tuple(word.split("=")) for word in words.split())]
    made.override([(name, text, "test") for name, text in given])
    if made.options["PRUNING_SCOPE"].active and "PRUNING_SCOPE" not in made.given:
        made.override([("PRUNING_SCOPE", "h.*.weight", "test")])
    return made.bind
