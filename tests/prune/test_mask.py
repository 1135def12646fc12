"""Masks against a full stable sort for every distribution: exactly as many as asked for, where they should be."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune

from gpt2.model import GPT2, ModelOptions
from lib.base.errors import UsageError
from lib.prune.limits import MaskOptions, count
from lib.prune.mask import apportion, budgets, choose
from lib.prune.select import PruningError
from lib.prune.weight import Weight

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, float("inf"), -float("inf"), 1e-45, 3e-39, 3e38]
FLOATS = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False))
DISTRIBUTIONS = ["global", "global-rms", "layer", "erk", "row", "n-m"]


def options(distribution, cap=1.0, n=2, m=4):
    return MaskOptions(distribution, cap, n, m, None, None, "magnitude")


def weights_of(scores, masks=None):
    masks = masks or [torch.ones_like(score, dtype=torch.uint8) for score in scores]
    return [
        Weight(f"h.{i}.weight", torch.nn.Parameter(score.clone()), masks[i].clone(), {})
        for i, score in enumerate(scores)
    ]


def masks_of(scores, sparsity, chosen, before=None):
    return choose(weights_of(scores, before), lambda weight: weight.value, sparsity, chosen, before is not None)


def zeros(masks):
    return [int((one == 0).sum()) for one in masks]


@st.composite
def tensors(draw, multiple=1):
    """Up to four matrices, of special and arbitrary values or of few distinct ones."""
    values = draw(st.sampled_from([FLOATS, st.sampled_from([0.0, 0.5, 1.0])]))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.integers(1, 5)), multiple * draw(st.integers(1, 4))
        flat = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
        found.append(torch.tensor(flat).view(rows, columns))
    return found


# ---- the reference: sort everything ----------------------------------------------------------------------------------


def take(values, k, gone):
    """Indices of the k that go of a flat array: those gone already, then the lowest, of equal ones the first."""
    return np.lexsort((np.arange(len(values)), values, ~gone))[:k]


def take_jointly(values, k, gone):
    flags = [np.ones(len(value), bool) for value in values]
    joint = take(np.concatenate(values), k, np.concatenate(gone))
    owner = np.repeat(np.arange(len(values)), [len(value) for value in values])
    start = np.cumsum([0] + [len(value) for value in values])
    for index in joint:
        flags[owner[index]][index - start[owner[index]]] = False
    return flags


def rms_scaled(score):
    finite = score[np.isfinite(score)].astype(np.float64)
    rms = math.sqrt((finite**2).sum() / len(finite)) if len(finite) else 0.0
    with np.errstate(over="ignore"):
        return score / np.float32(rms) if rms >= np.finfo(np.float32).tiny else score


def water(shares, rooms, amount):
    """Real-valued parts in proportion to shares, none above its room: filled step by step, in fractions."""
    parts, rest = [Fraction(0)] * len(shares), {i for i in range(len(shares)) if rooms[i]}
    while amount and rest:
        step = min(
            min((rooms[i] - parts[i]) / Fraction(shares[i]) for i in rest), amount / sum(shares[i] for i in rest)
        )
        for i in rest:
            parts[i] += step * shares[i]
            amount -= step * shares[i]
        rest = {i for i in rest if parts[i] < rooms[i]}
    return parts


def reference(scores, sparsity, chosen, before=None):
    """Masks by sorting, as nested booleans: True stays. The number each tensor loses is taken from `budgets`."""
    values = [score.numpy().ravel() for score in scores]
    gone = [
        np.zeros(len(value), bool) if before is None else (before[i].numpy().ravel() == 0)
        for i, value in enumerate(values)
    ]
    k = round(sparsity * sum(map(len, values)))
    if chosen.pruning_distribution in ("global", "global-rms"):
        if chosen.pruning_distribution == "global-rms" and k > sum(one.sum() for one in gone):
            values = [rms_scaled(value) for value in values]
        return capped([value.astype(np.float64) for value in values], k, chosen.pruning_layer_cap, gone)
    shapes = {str(i): score.shape for i, score in enumerate(scores)}
    each = budgets(chosen, shapes, sparsity, [int(one.sum()) for one in gone]).values()
    flags = []
    for value, score, budget, less in zip(values, scores, each, gone, strict=True):
        flags.append(np.ones(len(value), bool))
        if chosen.pruning_distribution == "row":
            rows, width = score.shape
            for r in range(rows):
                part = slice(r * width, (r + 1) * width)
                own = budget // rows + (r < budget % rows)
                flags[-1][part][take(value[part], own, less[part])] = False
        elif chosen.pruning_distribution == "n-m":
            m = chosen.pruning_m
            outside = np.ones(len(value), bool)
            for g in range(0, len(value), m):
                outside[g : g + m][take(value[g : g + m], m - chosen.pruning_n, less[g : g + m])] = False
            order = np.lexsort((np.arange(len(value)), value, ~less, outside))
            flags[-1][order[:budget]] = False
        else:
            flags[-1][take(value, budget, less)] = False
    return flags


def capped(values, k, cap, gone):
    limits = [
        max(int(Fraction(str(cap)) * len(value)), int(less.sum())) for value, less in zip(values, gone, strict=True)
    ]
    free, flags = list(range(len(values))), {}
    while free:
        joint = take_jointly([values[i] for i in free], k, [gone[i] for i in free])
        flags |= dict(zip(free, joint, strict=True))
        over = [i for i in free if (~flags[i]).sum() > limits[i]]
        for i in over:
            flags[i] = take_jointly([values[i]], limits[i], [gone[i]])[0]
            k -= limits[i]
        free = [i for i in free if i not in over] if over else []
    return [flags[i] for i in range(len(values))]


def assert_as_sorted(scores, sparsity, chosen, before=None):
    found = masks_of(scores, sparsity, chosen, before)
    for one, score, expected in zip(found, scores, reference(scores, sparsity, chosen, before), strict=True):
        assert one.dtype == torch.uint8 and one.shape == score.shape
        assert np.array_equal(one.numpy().ravel().astype(bool), expected)
    assert sum(zeros(found)) == round(sparsity * sum(score.numel() for score in scores))
    return found


# ---- every distribution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[:5])
@settings(max_examples=60)
@given(tensors(), st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.999, 1.0])))
def test_masks_are_those_of_a_full_sort(distribution, scores, sparsity):
    assert_as_sorted(scores, sparsity, options(distribution))


@given(tensors(multiple=4), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4)]), st.floats(0, 1))
def test_n_of_m_masks_are_those_of_a_full_sort(scores, pattern, share):
    n, m = pattern
    assert_as_sorted(scores, share * (1 - n / m), options("n-m", n=n, m=m))
    for found in assert_as_sorted(scores, 1 - n / m, options("n-m", n=n, m=m)):
        assert (found.view(-1, m).sum(1) == n).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=40)
@given(tensors(multiple=4), tensors(multiple=4), st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_what_is_pruned_stays_pruned(distribution, scores, others, shares):
    most, before = 0.5 if distribution == "n-m" else 1.0, None
    for i, share in enumerate(sorted(shares)):
        now = [score.roll(i) for score in scores]  # scores change between updates
        found = assert_as_sorted(now, most * share, options(distribution), before)
        if before is not None:
            assert all((new <= old).all() for new, old in zip(found, before, strict=True))
        before = found


@pytest.mark.parametrize("distribution", ["global", "global-rms"])
@settings(max_examples=60)
@given(tensors(), st.floats(0, 1), st.floats(0.2, 1))
def test_no_tensor_exceeds_its_cap(distribution, scores, share, cap):
    limits = [int(Fraction(str(cap)) * score.numel()) for score in scores]
    sparsity = int(share * sum(limits)) / sum(score.numel() for score in scores)
    found = assert_as_sorted(scores, sparsity, options(distribution, cap))
    assert all(pruned <= limit for pruned, limit in zip(zeros(found), limits, strict=True))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_large_tensors(distribution):
    generator = torch.Generator().manual_seed(0)
    scores = [
        torch.randn(shape, generator=generator).abs() * scale for shape, scale in [((300, 400), 1), ((64, 2000), 3)]
    ]
    first = assert_as_sorted(scores, 0.3, options(distribution))
    assert_as_sorted([score.roll(1) for score in scores], 0.5, options(distribution), first)
    ties = [(score * 4).round() for score in scores]
    assert_as_sorted(ties, 0.45, options(distribution))


def test_global_is_that_of_torch():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(40, 30, bias=False), torch.nn.Linear(30, 50, bias=False)]
    scores = [layer.weight.detach().abs() for layer in layers]
    found = masks_of(scores, 0.37, options("global"))
    torch_prune.global_unstructured([(layer, "weight") for layer in layers], torch_prune.L1Unstructured, amount=0.37)
    for layer, one in zip(layers, found, strict=True):
        assert torch.equal(layer.weight_mask, one.float())


def test_global_rms_does_not_see_the_scale_of_a_tensor():
    scores = [torch.rand(64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    scaled = [score * 4.0**i for i, score in enumerate(scores)]
    for one, other in zip(*(masks_of(s, 0.6, options("global-rms")) for s in (scores, scaled)), strict=True):
        assert torch.equal(one, other)


# ---- literal masks ---------------------------------------------------------------------------------------------------

A = torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 7.0, 6.0, 5.0]])
B = torch.tensor([[10.0, 20.0, 30.0, 40.0]])


@pytest.mark.parametrize(
    "distribution, expected",
    [
        ("global", [[[0, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 1]]]),
        ("global-rms", [[[0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 1, 1]]]),  # divided by 5.05 and 27.4
        ("layer", [[[0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 1, 1]]]),
        ("erk", [[[0, 0, 0, 0], [1, 1, 1, 0]], [[0, 1, 1, 1]]]),  # densities as 6/8 to 5/4: 3.27 and 2.73 stay
        ("row", [[[1, 0, 1, 0], [1, 1, 0, 0]], [[0, 0, 1, 1]]]),
        ("n-m", [[[1, 0, 1, 0], [1, 1, 0, 0]], [[0, 0, 1, 1]]]),
    ],
)
def test_half_of_two_small_tensors(distribution, expected):
    assert [one.tolist() for one in masks_of([A, B], 0.5, options(distribution))] == expected


@pytest.mark.parametrize(("layers", "share"), [(12, 0.865), (24, 0.920), (36, 0.947), (48, 0.963)])
def test_plain_global_takes_most_of_gpt2s_residual_projections(layers, share):
    """What docs/pruning.md says of the initialisation, at 50 %."""
    torch.manual_seed(0)
    model = GPT2(
        ModelOptions("custom", layers, n_head=1, n_embd=64, block_size=8, dropout=0.0, activation="gelu-tanh"),
        vocab_size=64,
    )
    chosen = [(name, p) for name, p in model.named_parameters() if any(p is one for one in model.prunable())]
    masks = masks_of([p.detach().abs() for _, p in chosen], 0.5, options("global"))
    taken = [mask for (name, _), mask in zip(chosen, masks, strict=True) if "c_proj" in name]
    assert sum(zeros(taken)) / sum(mask.numel() for mask in taken) == pytest.approx(share, abs=0.003)


def test_the_cap_sends_the_rest_elsewhere():
    assert [one.tolist() for one in masks_of([A, B], 0.5, options("global", cap=0.5))] == [
        [[0, 0, 0, 0], [1, 1, 1, 1]],
        [[0, 0, 1, 1]],
    ]


def test_rows_differ_by_one_at_most():
    found = masks_of([torch.arange(15.0).view(3, 5)], 8 / 15, options("row"))
    assert found[0].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


def test_rows_that_lost_too_much_leave_the_others_more():
    before = [torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.uint8)]
    found = masks_of([torch.arange(12.0).view(3, 4)], 0.5, options("row"), before)
    assert found[0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]


def test_tensors_that_lost_too_much_leave_the_others_more():
    scores = [torch.ones(1, 10), torch.ones(1, 10), torch.ones(1, 10)]
    before = [torch.zeros(1, 10, dtype=torch.uint8), *(torch.ones(1, 10, dtype=torch.uint8) for _ in range(2))]
    assert zeros(masks_of(scores, 0.5, options("layer"), before)) == [10, 3, 2]
    assert zeros(masks_of(scores, 0.5, options("global", cap=0.6), before)) == [10, 5, 0]


# ---- how much of each tensor -----------------------------------------------------------------------------------------


def test_budgets_of_gpt2():
    shapes = {"attn.c_attn": (2304, 768), "attn.c_proj": (768, 768), "mlp.c_fc": (3072, 768), "mlp.c_proj": (768, 3072)}
    layer = budgets(options("layer"), shapes, 0.5)
    assert layer == {"attn.c_attn": 884736, "attn.c_proj": 294912, "mlp.c_fc": 1179648, "mlp.c_proj": 1179648}
    erk = budgets(options("erk"), shapes, 0.8)
    assert erk == {"attn.c_attn": 1415577, "attn.c_proj": 412877, "mlp.c_fc": 1916928, "mlp.c_proj": 1916928}
    densities = {name: 1 - erk[name] / math.prod(shape) for name, shape in shapes.items()}
    assert densities["attn.c_proj"] / densities["mlp.c_fc"] == pytest.approx(
        (1536 / 768**2) / (3840 / (3072 * 768)), rel=1e-5
    )


def test_erk_leaves_small_tensors_dense():
    assert budgets(options("erk"), {"large": (100, 100), "small": (4, 4)}, 0.5) == {"large": 5008, "small": 0}


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=7),
    st.floats(0, 1),
)
def test_apportion_is_the_largest_remainder_of_filling_with_water(parts, share):
    shares, rooms = zip(*parts, strict=True)
    amount = round(share * sum(rooms))
    found, exact = apportion(shares, rooms, amount), water(shares, rooms, Fraction(amount))
    assert sum(found) == amount
    assert all(part in (math.floor(real), math.ceil(real)) for part, real in zip(found, exact, strict=True))
    up = [real % 1 for part, real in zip(found, exact, strict=True) if part > real]
    down = [real % 1 for part, real in zip(found, exact, strict=True) if part < real]
    assert not up or not down or min(up) >= max(down)


def test_apportion_gives_parts_without_a_share_what_the_others_have_no_room_for():
    assert apportion([0, 0], [5, 5], 0) == [0, 0]
    assert apportion([0, 0], [6, 3], 6) == [4, 2]
    assert apportion([1, 0], [2, 5], 4) == [2, 2]
    assert apportion([1, 0], [5, 5], 4) == [4, 0]
    assert apportion([1, 0], [0, 0], 0) == [0, 0]


@pytest.mark.parametrize("distribution", ["layer", "erk"])
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.floats(0, 1))
def test_budgets_add_up(distribution, shapes, sparsity):
    found = budgets(options(distribution), {str(i): shape for i, shape in enumerate(shapes)}, sparsity)
    assert sum(found.values()) == count(sparsity, sum(map(math.prod, shapes)))
    assert all(0 <= found[str(i)] <= math.prod(shape) for i, shape in enumerate(shapes))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_vectors_may_compete_where_shapes_do_not_matter():
    for distribution in ("global", "global-rms", "layer"):
        assert zeros(masks_of([torch.arange(1.0, 5.0)], 0.5, options(distribution))) == [2]


def test_pruned_weights_are_not_returned():
    with pytest.raises(
        UsageError, match=r"a sparsity of 0\.25 prunes 3 weights, but 6 are pruned already and cannot return"
    ):
        masks_of([A, B], 0.25, options("global"), masks_of([A, B], 0.5, options("global")))


def test_groups_that_lost_too_much_are_refused():
    before = [torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.uint8)]
    with pytest.raises(UsageError, match=r"h\.0\.weight: more than 2 of 4 neighbours are pruned already"):
        masks_of([A], 0.5, options("n-m"), before)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_nan_is_refused_by_name(distribution):
    bad = B.clone()
    bad[0, 2] = float("nan")
    with pytest.raises(PruningError, match=r"the scores of h\.1\.weight are NaN"):
        masks_of([A, bad], 0.5, options(distribution))


def test_the_same_sparsity_again_changes_nothing():
    before = masks_of([A, B], 0.5, options("global"))
    again = masks_of([-A, -B], 0.5, options("global"), before)
    assert all(torch.equal(one, other) and one is not other for one, other in zip(before, again, strict=True))
