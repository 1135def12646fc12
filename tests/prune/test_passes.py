"""Pruning before the first step in passes: exact counts, the masks of plain loops, ranks and layer collapse."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from gpt2 import first_batches
from gpt2.data.windows import DataOptions
from gpt2.model import GPT2
from gpt2.shape import ModelOptions
from lib import prune
from lib.base.errors import UserError
from lib.machine import device
from lib.machine.dist import Ranks
from lib.prune.passes import PassPruner, sparsity_after
from lib.prune.select import PruningError
from tests import forked
from tests.prune.test_prune import schema

SHAPE = ModelOptions("custom", n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.1, activation="gelu-tanh")
TOTAL = 2 * 12 * 16 * 16  # 6,144
WHOLE = {"PRUNING_SCOPE": None, "PRUNING_INTERVAL": None, "PRUNING_DYNAMICS": "static", "TARGET_SPARSITY": "0.9"}
CASES = {
    "gradient": {"PRUNING_PASSES": "4", "PRUNING_BATCHES": "2", "PRUNING_DISTRIBUTION": "global"},
    "grasp": {"PRUNING_PASSES": "4", "PRUNING_BATCHES": "2"},
    "synflow": {"PRUNING_PASSES": "4"},
}


class Tokens:
    """Takes the place of the data: other random tokens in every micro-batch; notes what is read."""

    def __init__(self, made, vocab_size=50, length=8):
        self.options, self.vocab_size, self.length, self.read = made.bind(DataOptions), vocab_size, length, []

    def batch(self, step, micro):
        self.read.append((step, micro))
        generator = torch.Generator().manual_seed(100 * step + micro)
        tokens = torch.randint(self.vocab_size, (3, self.length + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]


def machine():
    return device.choose(schema(DEVICE="cpu", DTYPE="float32").bind(device.SystemOptions))


def pruned(method, after=None, ranks=None, **values):
    """A tiny GPT-2 and its pruner, as a session builds them; `after(pruner)` is called when a pass has scored."""
    made = schema(**WHOLE | {"PRUNING_METHOD": method, "GRADIENT_ACCUMULATION": "2"} | CASES[method] | values)
    torch.manual_seed(0)
    model, data = GPT2(SHAPE, 50), Tokens(made)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    optimizer, here = torch.optim.SGD(model.parameters()), machine()
    losses = first_batches.losses(model, data, dataclasses.replace(here, ranks=ranks or here.ranks))
    if after is None:
        return model, prune.build(model, optimizer, made.bind, losses=losses), data
    pruner = prune.build(model, optimizer, made.bind)
    measure = pruner.criterion.measure

    def watched(*arguments):
        measure(*arguments)
        after(pruner)

    pruner.criterion.measure = watched
    pruner.choose(model, losses)
    return model, pruner, data


# ---- how many --------------------------------------------------------------------------------------------------------


def test_density_falls_exponentially():
    assert [sparsity_after(k, 4, 0.9999) for k in (1, 2, 3, 4)] == pytest.approx([0.9, 0.99, 0.999, 0.9999])
    assert [sparsity_after(k, 2, 0.75) for k in (1, 2)] == [0.5, 0.75]
    assert sparsity_after(3, 3, 0.7) == 0.7 and sparsity_after(2, 3, 0.0) == 0.0


@pytest.mark.parametrize("distribution", ["global", "global-rms", "layer", "erk", "row"])
@pytest.mark.parametrize("method", CASES)
def test_each_pass_prunes_exactly_its_share(method, distribution):
    """0.1^(k/4) of 6,144 weights are 3,455.04, 1,942.90, 1,092.58 and 614.4."""
    kept = []
    model, pruner, _ = pruned(method, lambda pruner: kept.append(pruner.kept), PRUNING_DISTRIBUTION=distribution)
    assert [*kept, pruner.kept] == [6144, 3455, 1943, 1093, 614]
    assert sum(int(weight.mask.sum()) for weight in pruner.weights) == 614
    assert sum(int((weight.value != 0).sum()) for weight in pruner.weights) == 614
    assert pruner.metrics(1)["average_nonzeros"] == 614 and pruner.goal() == (TOTAL - 614) / TOTAL
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training


def test_groups_of_neighbours_lose_exactly_theirs():
    groups = {"PRUNING_DISTRIBUTION": "n-m", "TARGET_SPARSITY": None}
    _, pruner, _ = pruned("synflow", **groups)
    for weight in pruner.weights:
        assert (weight.mask.view(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("method", CASES)
def test_what_a_pass_has_pruned_stays_pruned(method):
    gone = []
    _, pruner, _ = pruned(method, lambda one: gone.append([weight.mask == 0 for weight in one.weights]))
    gone.append([weight.mask == 0 for weight in pruner.weights])
    for before, after in itertools.pairwise(gone):
        assert all((a <= b).all() for a, b in zip(before, after, strict=True))


# ---- which -----------------------------------------------------------------------------------------------------------


def lowest(scores, masks, keep):
    """Masks that keep the `keep` highest scores of what `masks` keep, over all tensors; by a full sort in float64."""
    order = sorted(
        (float(score), tensor, i)
        for tensor, (part, mask) in enumerate(zip(scores, masks, strict=True))
        for i, (score, kept) in enumerate(zip(part.flatten(), mask.flatten(), strict=True))
        if kept
    )
    found = [np.zeros(mask.size) for mask in masks]
    for _, tensor, i in order[len(order) - keep :]:
        found[tensor][i] = 1
    return [part.reshape(mask.shape) for part, mask in zip(found, masks, strict=True)]


def mean_loss(model, data, batches, temperature=1.0):
    """In float64, from the model's logits, without dropout."""
    total = 0.0
    for step in range(batches):
        for micro in range(2):
            x, y = data.batch(step, micro)
            logits = model(x).flatten(0, 1) / temperature
            total = total + nn.functional.cross_entropy(logits, y.flatten()) / (2 * batches)
    return total


def by_hand(method):
    """The masks that four passes of a float64 model give, its scores by autograd, its ranking by `lowest`."""
    model, pruner, data = pruned(method, TARGET_SPARSITY="0")
    model.double().eval()
    weights = [dict(model.named_parameters())[weight.name] for weight in pruner.weights]
    masks = [np.ones(weight.shape) for weight in weights]
    for keep in (3455, 1943, 1093, 614):
        grads = torch.autograd.grad(mean_loss(model, data, 2), weights)
        scores = [(weight * grad).abs().detach().numpy() for weight, grad in zip(weights, grads, strict=True)]
        masks = lowest(scores, masks, keep)
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(torch.from_numpy(mask))
    return masks


def test_snip_in_passes_keeps_what_plain_loops_keep():
    _, pruner, data = pruned("gradient")
    differ = sum(
        int((weight.mask.numpy() != mask).sum())
        for weight, mask in zip(pruner.weights, by_hand("gradient"), strict=True)
    )
    assert differ <= 2  # a pair whose scores differ in the last bits of float32
    assert data.read == [(step, micro) for _ in range(4) for step in (0, 1) for micro in (0, 1)]


def test_one_pass_of_gradient_over_one_batch_is_step_1():
    _, pruner, data = pruned("gradient", PRUNING_PASSES="1", PRUNING_BATCHES="1")
    assert not isinstance(pruner, PassPruner) and pruner.plan.start == 1 and data.read == []
    _, pruner, data = pruned("gradient", PRUNING_PASSES="1", PRUNING_BATCHES="2")
    assert isinstance(pruner, PassPruner) and pruner.plan.start == 0
    assert data.read == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_random_state_stays_as_it_is():
    before = {}
    for method in CASES:
        model, _, _ = pruned(method)
        before[method] = torch.get_rng_state()
    torch.manual_seed(0)
    model = GPT2(SHAPE, 50)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    assert all(torch.equal(state, torch.get_rng_state()) for state in before.values())


# ---- layer collapse --------------------------------------------------------------------------------------------------


class Deep(nn.Sequential):
    """A network without residual connections, whose middle layer is the largest."""

    def __init__(self):
        torch.manual_seed(0)
        sizes = [20, 30, 100, 100, 30, 10]
        pairs = itertools.pairwise(sizes)
        super().__init__(*(layer for pair in pairs for layer in (nn.Linear(*pair, bias=False), nn.ReLU())))

    def flow(self, product):
        x = torch.ones(20, dtype=torch.float64)
        for layer in list(self)[::2]:
            x = product(layer.weight, x)
        return x.sum()


def collapse(method, passes, target):
    """The number of weights that each layer of Deep keeps."""
    made = schema(
        PRUNING_METHOD=method, PRUNING_DYNAMICS="static", PRUNING_INTERVAL=None, PRUNING_PASSES=str(passes),
        PRUNING_DISTRIBUTION="global", PRUNING_LAYER_CAP="1", TARGET_SPARSITY=target,
        **({} if method == "synflow" else {"PRUNING_BATCHES": "2"}),
    )  # fmt: skip
    model = Deep()
    x, y = torch.randn(64, 20), torch.randint(10, (64,))

    def losses(batches, temperature):
        yield nn.functional.cross_entropy(model(x) / (temperature or 1.0), y)

    pruner = prune.build(model, torch.optim.SGD(model.parameters()), made.bind, losses=losses)
    return [int(weight.mask.sum()) for weight in pruner.weights]


def test_synflow_cuts_no_layer_where_snip_and_grasp_do():
    """Of 16,900 weights 34 stay (99.8 %)."""
    assert sum(collapse("synflow", 100, "0.998")) == 34
    assert min(collapse("synflow", 100, "0.998")) > 0
    assert min(collapse("gradient", 1, "0.998")) == 0
    assert min(collapse("grasp", 1, "0.998")) == 0


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CASES)
def test_weights_that_are_nan_are_refused(method):
    made = schema(**WHOLE | {"PRUNING_METHOD": method} | CASES[method])
    model = GPT2(SHAPE, 50)
    with torch.no_grad():
        model.h[0].mlp.c_fc.weight[0, 0] = torch.nan
    losses = first_batches.losses(model, Tokens(made), machine())
    with pytest.raises(PruningError, match="NaN"):
        prune.build(model, torch.optim.SGD(model.parameters()), made.bind, losses=losses)
    assert model.training


@pytest.mark.parametrize("method", CASES)
def test_masks_come_from_losses_or_a_checkpoint(method):
    made = schema(**WHOLE | {"PRUNING_METHOD": method} | CASES[method])
    model = GPT2(SHAPE, 50)
    pruner = prune.build(model, torch.optim.SGD(model.parameters()), made.bind)
    with pytest.raises(RuntimeError, match=r"^masks of several passes are missing: give `build` the losses, or load "):
        pruner.step(1, lambda: torch.tensor(True))
    _, other, _ = pruned(method)
    pruner.check(other.state_dict())
    assert pruner.load_state_dict(other.state_dict()) == ""
    model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
    pruner.step(1, lambda: torch.tensor(True))
    assert pruner.kept == 614
    assert all(torch.count_nonzero(weight.grad[weight.mask == 0]) == 0 for weight in pruner.weights)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"PRUNING_DYNAMICS": "gradual", "PRUNING_METHOD": "synflow"}, "PRUNING_DYNAMICS=gradual has no effect"),
        ({"PRUNING_DYNAMICS": "ste", "PRUNING_METHOD": "grasp"}, "PRUNING_DYNAMICS=ste has no effect"),
        ({"PRUNING_METHOD": "synflow", "PRUNING_BATCHES": "2"}, "PRUNING_BATCHES=2 has no effect"),
        ({"PRUNING_METHOD": "magnitude", "PRUNING_PASSES": "2"}, "PRUNING_PASSES=2 has no effect"),
        ({"PRUNING_METHOD": "grasp", "PRUNING_STRUCTURE": "both"}, "PRUNING_STRUCTURE=both has no effect"),
    ],
)
def test_what_does_not_go_together(values, sentence):
    with pytest.raises(UserError, match=sentence):
        schema(**{"PRUNING_INTERVAL": None, "PRUNING_SCOPE": None} | values)


# ---- ranks -----------------------------------------------------------------------------------------------------------


def rank(number, folder):
    """A process that computes every second micro-batch; writes the digest of the masks of each method."""

    class Two(Ranks):
        rank, size = number, 2

        def share(self, count):
            return range(number, count, 2)

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    found = {}
    for method in CASES:
        _, pruner, data = pruned(method, ranks=Two())
        masks = np.concatenate([weight.mask.numpy().ravel() for weight in pruner.weights])
        found[method] = [hashlib.sha256(masks.tobytes()).hexdigest(), np.flatnonzero(masks).tolist(), data.read]
    torch.distributed.destroy_process_group()
    (folder / f"{number}.json").write_text(json.dumps(found))


def test_two_ranks_choose_the_same_masks_as_one_process(tmp_path):
    processes = [forked.process(rank, number, tmp_path) for number in (0, 1)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    for method in CASES:
        assert first[method][:2] == second[method][:2]
        reads = [{micro for _, micro in found[method][2]} for found in (first, second)]
        assert reads == ([set(), set()] if method == "synflow" else [{0}, {1}])
        _, pruner, _ = pruned(method)
        alone = np.flatnonzero(np.concatenate([weight.mask.numpy().ravel() for weight in pruner.weights])).tolist()
        assert len(set(alone) & set(first[method][1])) >= 612  # another order of the same sum
