"""RigL, SET, GraNet and MEST update by update: literal masks, and plain loops over floats as the reference.

tests/prune/test_prune.py and test_ranks.py have resumes, skipped steps and ranks, as for every method.
"""

import copy
import math

import pytest
import torch
from torch import nn

from lib.base.errors import UsageError
from lib.config.config_file import ConfigError
from lib.prune import rewire
from lib.prune.mask import MaskOptions
from lib.prune.schedule import Plan
from lib.prune.score.magnitude import Magnitude
from lib.prune.score.random import uniform
from lib.prune.weight import Weight
from tests.prune.test_prune import TOTAL, YES, Trained, schema

NO = lambda: torch.tensor(False)  # noqa: E731


# ---- literal values --------------------------------------------------------------------------------------------------


def built(dynamics, plan, target, tensors, **options):
    """A pruner of tensors of these values that compares all of them, and their weights."""
    optimizer, weights = torch.optim.SGD([nn.Parameter(torch.zeros(1))]), []
    for name, rows in tensors.items():
        parameter = nn.Parameter(torch.tensor(rows))
        weights.append(Weight(name, parameter, torch.ones_like(parameter, dtype=torch.uint8), optimizer))
    values = {"rigl_drop_fraction": 0.3, "granet_start_sparsity": None, "mest_lambda": None, "mest_soft_bound": False}
    values |= {"regrow_warmup": 0, "max_iters": 4, "seed": 1} | options
    parts = (weights, Magnitude(), plan, target, MaskOptions("global", 1.0, None, None, None, None, "magnitude"), ())
    return rewire.build(parts, rewire.RewireOptions(pruning_dynamics=dynamics, **values)), weights


def masks(weights):
    return {weight.name: weight.mask.tolist() for weight in weights}


def test_granet_prunes_by_schedule_drops_more_and_grows_as_many_in_each_tensor():
    """At step 2 of 4, 20 % are due: 3 of 14. Then 0.005 + 0.495 / 2 of each tensor's kept weights are replaced."""
    tensors = {"a": [[0.9, 0.1, 0.5, 0.3, 0.8], [0.2, 0.7, 0.4, 0.6, 0.05]], "b": [[-2.0, 3.0, 0.15, -4.0]]}
    pruner, (a, b) = built(
        "granet", Plan(1, 3, 1, "linear"), 0.4, tensors, rigl_drop_fraction=0.5, granet_start_sparsity=0.0
    )
    a.parameter.grad = torch.tensor([[9.0, 3.0, 9.0, -0.5, 9.0], [-2.0, 9.0, 0.2, 9.0, 0.1]])
    b.parameter.grad = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    pruner.step(2, YES)
    # The three smallest of all are 0.05, 0.1 and 0.15. Then ceil(0.2525 x 8) = 3 of a go: 0.2, 0.3 and 0.4; of b,
    # ceil(0.2525 x 3) = 1: -2. The largest gradients of what is not kept are 3, -2 and -0.5 in a, and 1 in b.
    assert masks((a, b)) == {"a": [[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], "b": [[0, 1, 1, 1]]}
    # What the schedule prunes and what grows again starts from zero; what is dropped beyond it keeps its value.
    assert a.value.tolist() == [pytest.approx(row) for row in ([0.9, 0, 0.5, 0.3, 0.8], [0.2, 0.7, 0, 0.6, 0])]
    assert b.value.tolist() == [[0, 3, 0, -4]]


def test_mest_drops_by_weight_and_gradient_and_grows_others_from_zero():
    """A quarter of 8 kept weights: those with the lowest |w| + 10 |g|, not the smallest."""
    tensors = {"a": [[0.9, -0.8, 0.7, -0.6, 0.5], [0.4, 0.3, -0.2, 0.1, 0.05]]}
    pruner, (a,) = built("mest", Plan(0, 8, 1, "one-shot"), 0.2, tensors, rigl_drop_fraction=0.25, mest_lambda=10.0)
    pruner.begin()
    assert masks((a,)) == {"a": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]}  # the first masks are by magnitude
    a.parameter.grad = torch.tensor([[0.0, 0.1, -0.03, 0.0, 0.01], [-0.5, 0.04, 0.06, 7.0, 7.0]])
    # The scores are 0.9, 1.8, 1.0, 0.6, 0.6, 5.4, 0.7 and 0.8: -0.6 and 0.5 go.
    chances = uniform(1, "a 1", a.mask.shape).flatten()
    free = sorted((3, 4, 8, 9), key=lambda index: -chances[index])[:2]
    pruner.step(1, YES)
    kept = {0, 1, 2, 5, 6, 7, *free}
    assert a.mask.flatten().tolist() == [int(index in kept) for index in range(10)]
    values = [0.9, -0.8, 0.7, 0, 0, 0.4, 0.3, -0.2, 0, 0]
    assert a.value.flatten().tolist() == pytest.approx(values)


def test_the_shares_that_are_replaced():
    falls = rewire.cosine(0.5, 1000, 0.005)
    assert [falls(step) for step in (0, 500, 1000)] == pytest.approx([0.5, 0.2525, 0.005], rel=1e-12)
    assert rewire.cosine(0.3, 750)(750) == 0
    stages = rewire.halved(0.2, 120)  # as 0.92-0.91-0.9 at 90 and 120 of 160 epochs
    assert [stages(epoch) for epoch in (0, 89, 90, 119, 120, 160)] == [0.2, 0.2, 0.1, 0.1, 0, 0]


# ---- whole runs ------------------------------------------------------------------------------------------------------


class Watched(Trained):
    """Keeps what an update reads: masks and weights before it, and dense gradients."""

    def step(self, healthy=YES):
        self.before = [(w.mask.flatten().tolist(), w.value.double().flatten().tolist()) for w in self.pruner.weights]
        super().step(healthy)

    def backward(self):
        super().backward()
        self.gradients = [w.parameter.grad.double().flatten().tolist() for w in self.pruner.weights]


def lowest(scores, among, number):
    """The indices of the `number` lowest scores; ties by index."""
    return set(sorted((i for i, flag in enumerate(among) if flag), key=lambda i: (scores[i], i))[:number])


def replaced(trained, index, kept, scores, drops, grows, by_gradient):
    """The mask of a tensor after it drops and grows."""
    gone = lowest(scores, kept, drops)
    stays = [int(flag and i not in gone) for i, flag in enumerate(kept)]
    name = trained.pruner.weights[index].name
    chance = uniform(7, f"{name} {trained.done}", trained.pruner.weights[index].mask.shape).flatten().tolist()
    worth = [abs(g) for g in trained.gradients[index]] if by_gradient else chance
    grown = lowest([-value for value in worth], [1 - flag for flag in stays], grows)
    return [int(flag or i in grown) for i, flag in enumerate(stays)]


def own(**options):
    return schema(SEED="7", **options)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_granet_against_plain_loops(start):
    """Along the whole run, global by plain magnitude: which weights are kept, and how many."""
    trained = Watched(own(
        PRUNING_DYNAMICS="granet", GRANET_START_SPARSITY=str(start), PRUNING_DISTRIBUTION="global",
        PRUNING_LAYER_CAP="1", PRUNING_WARMUP="8", PRUNING_END="28",
    ))  # fmt: skip
    assert trained.zeros() == round(start * TOTAL)
    if start:  # ERK: each tensor keeps in proportion to its rows and columns, 28 and 20 of 48
        assert [int(weight.mask.sum()) for weight in trained.pruner.weights] == [84, 60]
    while trained.done < 40:
        trained.step()
        now = [weight.mask.flatten().tolist() for weight in trained.pruner.weights]
        if trained.done not in range(8, 41, 4):
            assert now == [mask for mask, _ in trained.before]
            continue
        x = min(1.0, (trained.done - 8) / 20)
        due = round((start + (0.7 - start) * (1 - (1 - x) ** 3)) * TOTAL)
        flat = [(abs(v), t, i) for t, (m, values) in enumerate(trained.before) for i, v in enumerate(values) if m[i]]
        left = sorted(flat)[due - (TOTAL - len(flat)) :]
        share = 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * trained.done / 40))
        for index, (mask, values) in enumerate(trained.before):
            kept = [int((abs(v), index, i) in left and mask[i]) for i, v in enumerate(values)]
            number = math.ceil(share * sum(kept))
            scores = [abs(v) for v in values]
            assert now[index] == replaced(trained, index, kept, scores, number, number, True), trained.done
        assert sum(map(sum, now)) == trained.pruner.kept == TOTAL - due
    assert trained.pruner.kept == 86
    assert trained.pruner.metrics(40)["ever_active"] == 1 or start


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_mest_against_plain_loops(factor):
    trained = Watched(own(PRUNING_DYNAMICS="mest", MEST_LAMBDA=str(factor), RIGL_DROP_FRACTION="0.4", PRUNING_END="32"))
    sizes = [int(weight.mask.sum()) for weight in trained.pruner.weights]
    assert sizes == [57, 29]  # 86 of 288 in proportion to 192 and 96: 57.3 and 28.7
    changed = 0
    while trained.done < 40:
        trained.step()
        share = 0.4 if trained.done < 24 else 0.2 if trained.done < 32 else 0
        for index, (mask, values) in enumerate(trained.before):
            expected = mask
            if trained.done % 4 == 0 and trained.done <= 32:
                scores = [abs(v) + factor * abs(g) for v, g in zip(values, trained.gradients[index], strict=True)]
                number = round(share * sizes[index])
                expected = replaced(trained, index, mask, scores, number, number, False)
            now = trained.pruner.weights[index].mask.flatten().tolist()
            assert now == expected, trained.done
            changed += now != mask
    assert changed == 2 * 7


def test_a_soft_bound_keeps_more_than_the_target_until_the_end():
    trained = Watched(own(PRUNING_DYNAMICS="mest", MEST_SOFT_BOUND="y", RIGL_DROP_FRACTION="0.4", PRUNING_END="32"))
    bases = [57, 29]
    while trained.done < 40:
        beyond = 34 if trained.done < 24 else 17 if trained.done < 32 else 0  # round(0.4 x 86) and round(0.2 x 86)
        extra = {34: [23, 11], 17: [11, 6], 0: [0, 0]}[beyond]  # in proportion to 57 and 29: 22.5, 11.5; 11.3, 5.7
        assert trained.pruner.kept == 86 + beyond
        sizes = [int(weight.mask.sum()) for weight in trained.pruner.weights]
        assert sizes == [base + more for base, more in zip(bases, extra, strict=True)]
        trained.step()
        if trained.done % 4 == 0 and trained.done <= 32:
            after = 34 if trained.done < 24 else 17 if trained.done < 32 else 0
            extra = {34: [23, 11], 17: [11, 6], 0: [0, 0]}[after]
            for index, (mask, values) in enumerate(trained.before):
                scores, drops = [abs(v) for v in values], sum(mask) - bases[index]
                expected = replaced(trained, index, mask, scores, drops, extra[index], False)
                assert trained.pruner.weights[index].mask.flatten().tolist() == expected, trained.done
    assert trained.pruner.goal() == trained.pruner.sparsity() == 202 / 288


def test_the_end_of_a_soft_bound_is_made_up_for_if_its_step_is_skipped():
    trained = Trained(own(PRUNING_DYNAMICS="mest", MEST_SOFT_BOUND="y", PRUNING_END="32"))
    while trained.done < 33:
        trained.step(NO if trained.done == 31 else YES)
        assert trained.pruner.kept == (86 if trained.done == 33 else 86 + (17 if trained.done < 24 else 9))
    longer = Trained(own(PRUNING_DYNAMICS="mest", MEST_SOFT_BOUND="y", PRUNING_END="0.8", MAX_ITERS="80"))
    longer.load(trained.state())
    longer.done = 33
    while longer.done < 80:
        longer.step()
        assert longer.pruner.kept == 86  # sparsity does not fall again


def test_a_soft_bound_that_keeps_all_weights_draws_its_first_masks_once():
    """8 of 10 weights by the target, and round(0.3 x 8) more: as many as there are."""
    tensors = {"a": [[0.9, 0.8, 0.7, 0.6, 0.5]], "b": [[0.4, 0.35, 0.3, 0.2, 0.1]]}
    pruner, (a, b) = built(
        "mest", Plan(0, 8, 1, "one-shot"), 0.2, tensors, rigl_drop_fraction=0.3, mest_lambda=0.0, mest_soft_bound=True
    )
    pruner.begin()
    assert pruner.kept == 10 and pruner.bases == {"a": 5, "b": 3}
    with torch.no_grad():
        a.parameter[0, :3] = 0.01  # by magnitude, a would now keep fewer than b
    for weight in (a, b):
        weight.parameter.grad = torch.zeros_like(weight.parameter)
    pruner.step(1, YES)
    assert pruner.bases == {"a": 5, "b": 3}


def test_a_soft_bound_that_prunes_nothing():
    trained = Trained(own(PRUNING_DYNAMICS="mest", MEST_SOFT_BOUND="y", TARGET_SPARSITY="0"))
    for _ in range(8):
        trained.step()
    assert trained.pruner.kept == trained.pruner.total


def test_granet_that_replaces_nothing_is_gradual_magnitude():
    plain, granet = (
        Trained(own(PRUNING_DYNAMICS=name, PRUNING_WARMUP="5", **more))
        for name, more in (("gradual", {}), ("granet", {"RIGL_DROP_FRACTION": "0"}))
    )
    for _ in range(40):
        plain.step(), granet.step()
        for a, b in zip(plain.pruner.weights, granet.pruner.weights, strict=True):
            assert torch.equal(a.mask, b.mask)
            assert torch.equal(a.value, b.value)
    assert plain.pruner.scales["own"].taken == granet.pruner.scales["own"].taken


def test_global_rms_counts_what_a_sparse_start_has_taken():
    """The scales of a start at 50 % are those of the dense tensors, whatever share each has lost."""
    trained = Trained(own(PRUNING_DYNAMICS="granet", GRANET_START_SPARSITY="0.5", PRUNING_WARMUP="4"))
    dense = Trained(own())
    for weight, whole in zip(trained.pruner.weights, dense.pruner.weights, strict=True):
        left = weight.value.double().square().mean().sqrt().item()
        whole = whole.value.double().square().mean().sqrt().item()
        assert left * trained.pruner.scales["own"].taken[weight.name] == pytest.approx(whole, rel=1e-6)


# ---- weights that return in the update that dropped them -------------------------------------------------------------


@pytest.mark.parametrize("dynamics", ["granet", "mest"])
def test_what_starts_from_zero_warms_up_though_its_mask_did_not_change(dynamics):
    options = {"PRUNING_DYNAMICS": dynamics, "RIGL_DROP_FRACTION": "0.9", "REGROW_WARMUP": "5", "PRUNING_END": "36"}
    options |= {"PRUNING_WARMUP": "8"} if dynamics == "granet" else {}
    trained, returned = Trained(own(**options)), 0
    while trained.done < 40:
        cleared = {}
        clear = trained.pruner._clear
        trained.pruner._clear = lambda weight, gone, clear=clear, cleared=cleared: (
            cleared.update({weight.name: torch.zeros(weight.mask.numel()).index_fill_(0, gone, 1)}),
            clear(weight, gone),
        )
        before = [copy.copy(w.mask.clone()) for w in trained.pruner.weights]
        trained.step()
        del trained.pruner._clear
        for weight, mask in zip(trained.pruner.weights, before, strict=True):
            again = cleared.get(weight.name, torch.zeros(weight.mask.numel()))
            again = (again == 1) & (weight.mask.flatten() == 1)
            returned += int(again.sum())
            grown = (weight.mask.flatten() > mask.flatten()) | again
            places = trained.pruner.warmup.places.get(weight.name, torch.tensor([], dtype=torch.long))
            assert len(places) == len(places.unique())
            if cleared:
                born = dict(zip(places.tolist(), trained.pruner.warmup.born[weight.name].tolist(), strict=True))
                assert {place for place, step in born.items() if step == trained.done} == set(
                    grown.nonzero().flatten().tolist()
                )
    assert returned > 10


# ---- what cannot be --------------------------------------------------------------------------------------------------


def test_a_start_that_cannot_lead_to_the_target_is_refused():
    with pytest.raises(UsageError, match=r"^GRANET_START_SPARSITY=0\.8 exceeds TARGET_SPARSITY=0\.7, to which"):
        Trained(own(PRUNING_DYNAMICS="granet", GRANET_START_SPARSITY="0.8"))
    vector = {"PRUNING_SCOPE": "0.*", "GRANET_START_SPARSITY": "0.1"}
    with pytest.raises(UsageError, match=r"^GRANET_START_SPARSITY=0\.1 prunes matrices at first, but 0\.bias has 1 "):
        Trained(own(PRUNING_DYNAMICS="granet", **vector))


@pytest.mark.parametrize(
    "words",
    [
        {"PRUNING_DYNAMICS": "mest", "GRANET_START_SPARSITY": "0.5"},
        {"PRUNING_DYNAMICS": "set", "MEST_LAMBDA": "1"},
        {"PRUNING_DYNAMICS": "granet", "MEST_SOFT_BOUND": "y"},
        {"PRUNING_DYNAMICS": "mest", "PRUNING_SCHEDULE": "linear"},
        {"PRUNING_DYNAMICS": "granet", "PRUNING_METHOD": "random"},
        {"PRUNING_DYNAMICS": "mest", "PRUNING_DISTRIBUTION": "n-m", "TARGET_SPARSITY": None},
    ],
)
def test_the_menu_forbids_what_does_not_go_together(words):
    with pytest.raises(ConfigError, match="has no effect: it needs"):
        schema(**words)
