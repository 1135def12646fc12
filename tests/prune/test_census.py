"""What the journal tells of masks over time: literal counts on small masks, and on GPT-2's heads and neurons."""

import pytest
import torch

from gpt2.model import GPT2, ModelOptions
from lib import optim, prune
from lib.prune.census import Census
from lib.prune.weight import Weight
from tests.prune.test_prune import TOTAL, Trained, case, schema


def gpt2():
    """Two blocks of two heads of width 2."""
    return GPT2(
        ModelOptions("custom", n_layer=2, n_head=2, n_embd=4, block_size=8, dropout=0.0, activation="gelu-tanh"),
        vocab_size=64,
    )


def census(model, *left_out):
    named = {name: p for name, p in model.named_parameters() if any(p is one for one in model.prunable())}
    weights = {
        n: Weight(n, p, torch.ones_like(p, dtype=torch.uint8), {}) for n, p in named.items() if n not in left_out
    }
    return Census(list(weights.values()), model.units()), {name: weight.mask for name, weight in weights.items()}


def told(found):
    alerts = []
    found.tell(lambda *alert: alerts.append(alert), 5)
    return alerts


def test_neurons_and_heads_without_a_weight():
    """Neurons: c_fc (16, 4), c_proj (4, 16). Heads: the values of c_attn are rows 8 to 11, two of each head."""
    found, masks = census(gpt2())
    assert found.metrics(False) == {"mask_flips": 0, "empty_heads": 0, "empty_neurons": 0}
    masks["h.0.mlp.c_fc.weight"][3] = 0  # reads nothing
    masks["h.0.mlp.c_proj.weight"][:, 3] = 0  # the same neuron writes nothing
    masks["h.1.mlp.c_proj.weight"][:, 7] = 0
    masks["h.1.mlp.c_proj.weight"][1:, 8] = 0  # still writes something
    masks["h.0.attn.c_attn.weight"][10:12] = 0  # the values of head 1
    masks["h.1.attn.c_proj.weight"][:, 0:2] = 0  # what head 0 writes
    masks["h.1.attn.c_attn.weight"][0:8] = 0  # queries and keys: the means of the values remain
    masks["h.1.attn.c_attn.weight"][10] = 0  # half of the values of head 1
    found.updated(100)
    assert found.metrics(False) == {"mask_flips": 100, "mask_change": 100 / 384, "empty_heads": 2, "empty_neurons": 2}
    assert told(found) == []


def test_a_layer_that_collapses_is_told_once_and_again_after_it_has_recovered():
    found, masks = census(gpt2())
    masks["h.1.mlp.c_fc.weight"][:9] = 0
    masks["h.1.mlp.c_proj.weight"][:, 9:] = 0  # no tensor is empty, yet nothing passes
    found.updated(0)
    expected = (
        "collapse", "warn", "h.1.mlp: no weight is left by which anything passes; prune less, or by another "
        "PRUNING_METHOD or PRUNING_DISTRIBUTION", 5,
    )  # fmt: skip
    assert told(found) == [expected]
    assert told(found) == []
    masks["h.1.mlp.c_proj.weight"][0, 15] = 1
    found.updated(0)
    assert told(found) == []
    masks["h.1.mlp.c_proj.weight"][0, 15] = 0
    found.updated(0)
    assert told(found) == [expected]


def test_what_is_out_of_scope_keeps_all_its_weights():
    found, masks = census(gpt2(), "h.0.mlp.c_fc.weight", "h.1.attn.c_attn.weight", "h.1.attn.c_proj.weight")
    masks["h.0.mlp.c_proj.weight"][:, 2] = 0
    masks["h.0.attn.c_attn.weight"][8:] = 0
    found.updated(0)
    assert found.metrics(False) == {"mask_flips": 0, "mask_change": 0, "empty_heads": 2, "empty_neurons": 1}
    assert [alert[2].split(":")[0] for alert in told(found)] == ["h.0.attn"]


def test_a_tensor_outside_all_layers_collapses_too():
    weight = Weight("wpe.weight", torch.nn.Parameter(torch.ones(2, 2)), torch.zeros(2, 2, dtype=torch.uint8), {})
    assert [alert[2].split(":")[0] for alert in told(Census([weight], []))] == ["wpe.weight"]


def test_changes_are_means_over_the_updates_since_the_last_line():
    found, _ = census(gpt2())
    found.updated(10)
    found.updated(20)
    assert found.metrics(False)["mask_change"] == 15 / 384
    assert "mask_change" not in found.metrics(False)


def test_weights_that_were_ever_active():
    found, masks = census(gpt2())
    assert found.metrics(True)["ever_active"] == 1  # the first forward pass was dense
    first = masks["h.0.mlp.c_fc.weight"]
    first.zero_()
    first[:2] = 1  # 8 of its 64
    found.start(True)
    assert found.metrics(True)["ever_active"] == (384 - 56) / 384
    first[:2] = 0
    first[1:5] = 1
    found.updated(16)
    assert found.metrics(True)["ever_active"] == (384 - 44) / 384
    other, others = census(gpt2())
    others["h.0.mlp.c_fc.weight"].copy_(first)
    other.start(True)
    other.load_state_dict(found.state_dict())
    assert other.metrics(True)["ever_active"] == (384 - 44) / 384
    other.load_state_dict({})  # of an earlier version: from here on
    assert other.metrics(True)["ever_active"] == (384 - 48) / 384


@pytest.mark.parametrize("regrows", [True, False])
def test_the_first_masks_are_no_change(regrows):
    found, masks = census(gpt2())
    masks["h.0.mlp.c_fc.weight"].zero_()
    found.updated(64)
    found.start(regrows)
    first = found.metrics(regrows)
    assert first["mask_flips"] == 0
    assert "mask_change" not in first
    found.updated(8)
    assert found.metrics(regrows)["mask_change"] == 8 / 384


def test_a_resume_tells_what_was_not_told():
    found, masks = census(gpt2())
    masks["h.0.attn.c_proj.weight"].zero_()
    found.updated(0)
    found.load_state_dict(found.state_dict())
    assert len(told(found)) == 1
    found.load_state_dict(found.state_dict())
    assert told(found) == []


# ---- in training -----------------------------------------------------------------------------------------------------

SPARSE_AT_ONCE = ("rigl", "set", "chts", "granet-sparse", "mest", "mest-soft", "static")


@pytest.mark.parametrize(
    "name",
    ["rigl", "set", "chts", "granet", "granet-sparse", "mest", "mest-soft", "ste", "movement", "magnitude", "static"],
)
def test_the_metrics_of_a_run_are_those_of_its_masks(name):
    trained = Trained(case(name))
    ever = [weight.mask.clone() for weight in trained.pruner.weights]
    before, changes = [mask.clone() for mask in ever], []
    for step in range(1, 41):
        trained.step()
        masks = [weight.mask.clone() for weight in trained.pruner.weights]
        flips = sum(int((a != b).sum()) for a, b in zip(masks, before, strict=True))
        if trained.pruner.plan.due(step):
            changes.append(flips / TOTAL)
        before, ever = masks, [a | b for a, b in zip(ever, masks, strict=True)]
        if step % 8 == 0:
            metrics = trained.pruner.metrics(step)
            expected = sum(changes) / len(changes) if changes else None
            assert metrics.get("mask_change") == (None if expected is None else pytest.approx(expected, rel=1e-12)) or (
                step == 8 and name in SPARSE_AT_ONCE  # the first masks count too
            )
            active = sum(int(mask.sum()) for mask in ever) / TOTAL
            assert metrics.get("ever_active") == (active if trained.pruner.regrows else None)
            changes = []
    assert (active < 1) == (name in SPARSE_AT_ONCE)


def test_a_collapse_is_told_in_training():
    """Without a cap, a global comparison empties the second block, whose weights are small."""
    model = gpt2()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1e-3 if name.startswith("h.1.mlp") else 1)
    made = schema(
        PRUNING_SCOPE="h.*.weight", PRUNING_DISTRIBUTION="global", PRUNING_LAYER_CAP="1", TARGET_SPARSITY="0.4",
        PRUNING_DYNAMICS="static", PRUNING_INTERVAL=None,
    )  # fmt: skip
    pruner, alerts = prune.build(model, optim.build(model, made.bind), made.bind), []
    pruner.tell(lambda *alert: alerts.append(alert), 10)
    assert [(kind, level, step) for kind, level, _, step in alerts] == [("collapse", "warn", 10)]
    assert alerts[0][2].startswith("h.1.mlp: ")
    assert pruner.metrics(10)["empty_neurons"] >= 16
