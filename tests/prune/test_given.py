"""Given masks: zeros that stay zeros under every optimizer, resuming, and masks that do not fit."""

import math

import pytest
import torch

from gpt2.model import GPT2, ModelOptions
from lib import optim, prune
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from tests.prune.test_prune import YES

OPTIMIZERS = {
    "adamw": {},
    "muon": {},
    "adamwspam": {"SPAM_DENSITY": "0.5", "SPAM_INTERVAL": "30", "SPAM_WARMUP_STEPS": "5"},
    "stablespam": {},
    "sgd": {},
}
SCOPE = "h.*.attn.*.weight,h.*.mlp.*.weight,wte.weight"
SHAPE = ModelOptions("custom", n_layer=1, n_head=2, n_embd=8, block_size=8, dropout=0.0, activation="gelu-tanh")
VOCABULARY = 50  # the other 14 rows of wte are padding


def schema(**values):
    base = {"PRUNING_METHOD": "given", "PRUNING_SCOPE": SCOPE, "WEIGHT_DECAY": "0.1", "LEARNING_RATE": "0.01"}
    made = Schema()
    made.override([(name, text, "test") for name, text in (base | values).items()])
    return made


def random_masks(model, share=0.6):
    """Masks of the tensors of SCOPE, where about `share` is pruned; wte.weight has the rows of the vocabulary."""
    generator = torch.Generator().manual_seed(3)
    rows = {"wte.weight": VOCABULARY}
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and name != "wpe.weight":
            shape = (rows.get(name, len(parameter)), parameter.shape[1])
            found[name] = (torch.rand(shape, generator=generator) > share).to(torch.uint8)
    return found


class Retrained:
    """A one-layer GPT-2 that learns random tokens under masks, one step at a time, as the loop does it."""

    def __init__(self, made, masks=None):
        torch.manual_seed(0)
        self.model = GPT2(SHAPE, VOCABULARY)
        self.optimizer = optim.build(self.model, made.bind)
        self.pruner = prune.build(self.model, self.optimizer, made.bind, masks)
        self.done = 0

    def step(self, healthy=YES):
        self.done += 1
        self.optimizer.zero_grad()
        tokens = torch.randint(VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(self.done))
        self.model(tokens[:, :-1], tokens[:, 1:]).backward()
        self.pruner.step(self.done, healthy)
        optim.skip_if(self.optimizer, 1 - healthy().float())
        self.optimizer.step()
        self.pruner.moved(self.done)

    def values(self):
        return {weight.name: weight.value.clone() for weight in self.pruner.weights}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_200_steps_leave_exactly_the_given_zeros(kind):
    made = schema(OPTIMIZER=kind, **OPTIMIZERS[kind])
    masks = random_masks(GPT2(SHAPE, VOCABULARY))
    trained = Retrained(made, masks)
    before = trained.values()
    for step in range(1, 201):
        trained.step()
        for weight in trained.pruner.weights:
            gone = masks[weight.name] == 0
            assert torch.count_nonzero(weight.value[gone]) == 0, (weight.name, step)
            assert torch.count_nonzero(weight.grad[gone]) == 0
            for key, value in weight.state.items():
                if isinstance(value, torch.Tensor) and value.shape == gone.shape:
                    assert torch.count_nonzero(value[gone]) == 0, (weight.name, key, step)
    for name, value in trained.values().items():
        assert torch.equal((value != 0).byte(), masks[name]), name  # every kept weight is trained
        assert (value != before[name])[masks[name] == 1].all(), name
    assert len(trained.pruner.weights) == 5
    assert torch.count_nonzero(trained.model.wte.weight[VOCABULARY:]) == 14 * 8  # padding is not pruned
    assert trained.pruner.sparsity() == trained.pruner.goal()


def test_the_metrics_and_the_goal_are_those_of_the_masks():
    masks = random_masks(GPT2(SHAPE, VOCABULARY))
    trained = Retrained(schema(), masks)
    zeros, total = sum(int((mask == 0).sum()) for mask in masks.values()), sum(map(torch.numel, masks.values()))
    assert total == 3 * 8 * 8 + 8 * 8 + 2 * 4 * 8 * 8 + VOCABULARY * 8
    assert trained.pruner.sparsity() == zeros / total  # before the first step
    trained.step()
    trained.step()
    assert trained.pruner.metrics(2) == {
        "sparsity": zeros / total,
        "average_nonzeros": total - zeros,
        "mask_flips": 0,
        "empty_heads": 0,
        "empty_neurons": 2,  # of 32, which read and write by 8 weights each
    }
    assert trained.pruner.goal() == pytest.approx(zeros / total, abs=1e-12)
    name = "h.0.mlp.c_fc.weight"
    assert trained.pruner.layers()["sparsity/h.0.mlp.c_fc"] == int((masks[name] == 0).sum()) / masks[name].numel()
    assert trained.pruner.criterion.is_magnitude is False
    assert not math.isinf(trained.pruner.goal())


def state(trained):
    return {
        "model": trained.model.state_dict(),
        "optimizer": trained.optimizer.state_dict(),
        "pruner": trained.pruner.state_dict(),
    }


@pytest.mark.parametrize("kind", ["adamw", "muon", "adamwspam"])
def test_a_resumed_run_takes_the_masks_of_its_checkpoint(kind, tmp_path):
    made = schema(OPTIMIZER=kind, **OPTIMIZERS[kind])
    masks = random_masks(GPT2(SHAPE, VOCABULARY))
    whole, first = Retrained(made, masks), Retrained(made, masks)
    for _ in range(20):
        whole.step()
    for _ in range(9):
        first.step()
    torch.save(state(first), tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    second = Retrained(made)  # without masks, and with weights that have no zeros
    second.pruner.check(saved["pruner"])
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    assert second.pruner.load_state_dict(saved["pruner"]) == ""
    second.done = 9
    while second.done < 20:
        second.step()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert second.pruner.metrics(20) == whole.pruner.metrics(20)
    assert second.pruner.goal() == whole.pruner.goal()


def test_a_skipped_step_keeps_zeros_and_weights():
    masks = random_masks(GPT2(SHAPE, VOCABULARY))
    trained = Retrained(schema(), masks)
    trained.step()
    before = trained.values()
    trained.step(healthy=lambda: torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in trained.values().items())
    trained.step()
    assert all(torch.equal((value != 0).byte(), masks[name]) for name, value in trained.values().items())


def test_a_run_that_never_got_masks_does_not_train():
    trained = Retrained(schema())
    with pytest.raises(RuntimeError, match="PRUNING_METHOD=given needs masks"):
        trained.step()


def test_a_tensor_without_a_mask_stays_dense_and_masks_out_of_scope_are_passed_over():
    masks = {"h.0.mlp.c_fc.weight": torch.eye(32, 8).byte(), "wpe.weight": torch.zeros(8, 8).byte()}
    trained = Retrained(schema(), masks)
    for _ in range(3):
        trained.step()
    zeros = {weight.name: int((weight.value == 0).sum()) for weight in trained.pruner.weights}
    assert zeros == {
        "wte.weight": 0,
        "h.0.attn.c_attn.weight": 0,
        "h.0.attn.c_proj.weight": 0,
        "h.0.mlp.c_fc.weight": 32 * 8 - 8,
        "h.0.mlp.c_proj.weight": 0,
    }
    assert torch.count_nonzero(trained.model.wpe.weight) == 64


@pytest.mark.parametrize("rows", [50, 64])
def test_a_mask_of_the_embedding_may_cover_the_padding(rows):
    mask = torch.ones(rows, 8, dtype=torch.uint8)
    mask[:, 0] = 0
    trained = Retrained(schema(), {"wte.weight": mask})
    assert int((trained.model.wte.weight == 0).sum()) == 50
    assert trained.pruner.weights[0].mask.shape == (50, 8)


WRONG = {
    "shape": (
        {"h.0.mlp.c_fc.weight": torch.zeros(8, 32).byte()},
        "INIT_MASKS: the mask of h.0.mlp.c_fc.weight is [8, 32], but the weight is [32, 8]; name masks of a model of "
        "this shape",
    ),
    "rows": (
        {"wte.weight": torch.zeros(51, 8).byte()},
        "INIT_MASKS: the mask of wte.weight is [51, 8], but the weight is [50, 8]; name masks of a model of this shape",
    ),
    "name": (
        {"h.1.mlp.c_fc.weight": torch.zeros(32, 8).byte(), "h.0.mlp.c_fc.weight": torch.zeros(32, 8).byte()},
        "INIT_MASKS: has a mask of 'h.1.mlp.c_fc.weight', which this model lacks; name masks of this model",
    ),
    "scope": (
        {"wpe.weight": torch.zeros(8, 8).byte()},
        "INIT_MASKS: has no mask of a tensor in PRUNING_SCOPE, such as wte.weight; widen PRUNING_SCOPE or name other "
        "masks",
    ),
    "ones": (
        {"wte.weight": torch.ones(50, 8).byte()},
        "INIT_MASKS=zeros: the weights of INIT_FROM have no zeros in PRUNING_SCOPE; name pruned weights as INIT_FROM, "
        "or name masks, as in INIT_MASKS=runs/pruned",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_masks_that_do_not_fit_are_one_sentence(case):
    masks, sentence = WRONG[case]
    with pytest.raises(UsageError) as raised:
        Retrained(schema(), masks)
    assert raised.value.args == (sentence,)
    with torch.device("meta"):
        planned = GPT2(SHAPE, VOCABULARY)
    with pytest.raises(UsageError) as raised:
        prune.build(planned, torch.optim.SGD(planned.parameters()), schema().bind, masks)
    assert raised.value.args == (sentence,)


def test_named_masks_that_prune_nothing_are_named():
    with pytest.raises(UsageError) as raised:
        Retrained(schema(INIT_MASKS="runs/dense"), {"wte.weight": torch.ones(50, 8).byte()})
    assert raised.value.args == (
        "INIT_MASKS=runs/dense: prunes no weight of the tensors in PRUNING_SCOPE; name other masks",
    )
