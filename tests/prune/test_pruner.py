"""What a pruner takes from checkpoints of earlier versions, with states that are written out here."""

import pytest
import torch

from gpt2.model import GPT2, ModelOptions
from lib import optim, prune
from lib.record.checkpoint import CheckpointError
from tests.prune.test_prune import schema


def padded(name):
    """A pruner of a GPT-2 with a vocabulary of 10 in 64 rows of 4, and a state in which all rows counted."""
    own = {"PRUNING_DYNAMICS": name, "PRUNING_SCOPE": "wte.weight", "TARGET_SPARSITY": "0.5"}
    made = schema(**own | ({"PRUNING_INTERVAL": None} if name == "static" else {}))
    model = GPT2(
        ModelOptions("custom", n_layer=1, n_head=1, n_embd=4, block_size=8, dropout=0.0, activation="gelu-tanh"),
        vocab_size=10,
    )
    pruner = prune.build(model, optim.build(model, made.bind), made.bind)
    used = torch.tensor([[1, 1, 0, 0]] * 4 + [[1, 1, 1, 0]] * 6)
    state = {
        "shapes": {"wte.weight": [64, 4]},
        # The first five bytes are the ten rows of the vocabulary.
        "masks": {"wte.weight": torch.tensor([0xCC] * 2 + [0xEE] * 3 + [0x00] * 27).byte()},
        "memory": {"wte.weight": {}},
        "hidden": {},
        "counters": {"changed_at": 0, "kept_steps": 0, "flips": 0, "common": 0, "joint": 0},
    }
    return pruner, state, used.byte()


@pytest.mark.parametrize("name", ["static", "rigl"])
def test_a_run_that_counted_the_vocabularys_padding_goes_on(name):
    pruner, state, used = padded(name)
    pruner.check(state)
    assert pruner.load_state_dict(state) == (
        "the checkpoint's version counted the vocabulary's padding, 216 elements, among the weights in scope; "
        "from here on the padding does not count"
    )
    assert torch.equal(pruner.weights[0].mask, used)
    assert (pruner.total, pruner.kept) == (40, 26)
    # 26 are kept and 20 asked for: static prunes the others now, rigl draws no masks anew
    assert pruner.behind(3) == (name == "static")
    own = pruner.state_dict()
    assert own["shapes"] == {"wte.weight": [10, 4]}
    assert own["masks"]["wte.weight"].tolist() == [0xCC] * 2 + [0xEE] * 3
    pruner.check(own)
    assert pruner.load_state_dict(own) == ""


def test_memory_and_hidden_values_of_padding_are_left_out():
    pruner, state, used = padded("static")
    weight = pruner.weights[0]
    weight.memory = {"movement": torch.zeros(10, 4), "step": torch.zeros(()), "inputs": torch.zeros(4)}
    memory = {
        "movement": torch.arange(256.0).view(64, 4),
        "step": torch.tensor(3.0),
        "inputs": torch.tensor([1.0, 2.0, 3.0, 4.0]),
    }
    pruner.zeroes_weights = False
    state |= {"memory": {"wte.weight": memory}, "hidden": {"wte.weight": torch.arange(1.0, 123.0)}}
    pruner.check(state)
    pruner.load_state_dict(state)
    assert torch.equal(weight.memory["movement"], torch.arange(40.0).view(10, 4))
    assert weight.memory["step"] == 3
    assert weight.memory["inputs"].tolist() == [1, 2, 3, 4]
    assert weight.value[used == 0].tolist() == list(range(1, 15))


@pytest.mark.parametrize("shape", [[63, 4], [64, 5], [9, 4], [128, 4]])
def test_masks_with_other_rows_than_the_paddings_are_refused(shape):
    pruner, state, _ = padded("static")
    state["shapes"] = {"wte.weight": shape}
    with pytest.raises(
        CheckpointError, match=rf"wte\.weight is \[{shape[0]}, {shape[1]}\] in the checkpoint and \[10, 4\] in"
    ):
        pruner.check(state)
    state["shapes"], state["masks"] = {"wte.weight": [64, 4]}, {"wte.weight": torch.zeros(5, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=r"the mask of wte\.weight in the checkpoint has the wrong size"):
        pruner.check(state)
