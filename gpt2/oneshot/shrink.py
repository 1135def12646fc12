"""Removes neurons and heads that add nothing from a model: its logits stay, and every machine computes less."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2.model import GPT2
from gpt2.shape import ShapeOptions
from gpt2.unfilled import Unfilled
from gpt2.weights import layers
from lib.base.errors import UsageError, UserError
from lib.prune.kinds import Group, Part
from lib.prune.units import along

TOLERANCE = 1e-5  # the largest difference of a logit, in float64


@torch.no_grad()
def staying(model: GPT2) -> list[Tensor]:
    """For each of `model.groups()` the indices of the units that stay, on the CPU.

    A unit adds nothing if the weights that read its output are zero, or if its output is zero. A neuron's output is the
    activation of 0 if its row of c_fc and its bias are zero. A head's is a mean of its values v. One unit of each layer
    stays in any case.

    Raises UsageError if all stay.
    """
    parameters = dict(model.named_parameters())
    found = []
    for group in model.groups():
        read = along(parameters[group.behind] != 0, group.parts[group.behind], group.size)
        made = torch.zeros(group.size, dtype=torch.float64)
        for name, part in group.parts.items():
            if name != group.behind:  # of c_attn only the last third, v
                last = (parameters[name] != 0).chunk(part.stack, dim=part.dim)[-1]
                made += along(last, Part(part.dim), group.size)
        left = ((read > 0) & (made > 0)).nonzero().flatten()
        found.append(left if len(left) else torch.zeros(1, dtype=torch.int64))
    if all(len(left) == group.size for group, left in zip(model.groups(), found, strict=True)):
        raise UsageError(
            "no neuron and no head of this model is zero, so nothing can be removed; prune whole ones first, with "
            "PRUNING_STRUCTURE=neurons, heads or both"
        )
    return found


def options(model: GPT2, left: Sequence[Tensor]) -> ShapeOptions:
    """The options of the model that is left."""
    own, counts = model.options, {"heads": [], "neurons": []}
    for group, units in zip(model.groups(), left, strict=True):
        counts[group.kind].append(len(units))
    return ShapeOptions(
        "custom", own.n_layer, own.n_head, own.n_embd, own.block_size, own.dropout, own.activation,
        layers.text(counts["neurons"], 4 * own.n_embd), layers.text(counts["heads"], own.n_head),
    )  # fmt: skip


@torch.no_grad()
def smaller(model: GPT2, left: Sequence[Tensor]) -> GPT2:
    """A new model with only these units, on the device of `model`, in evaluation mode. `model` stays as it is."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for group, units in zip(model.groups(), left, strict=True):
        for name, part in group.parts.items():
            index = places(group, part, state[name].shape[part.dim], units)
            state[name] = state[name].index_select(part.dim, index.to(state[name].device))
    with torch.device("meta"), Unfilled():
        made = GPT2(options(model, left), model.vocab_size)
    made.load_state_dict(state, assign=True)
    return made.eval()


def places(group: Group, part: Part, length: int, units: Tensor) -> Tensor:
    """The indices of the `units` along the dimension of a parameter, which is `length` long."""
    return torch.arange(length).view(part.stack, group.size, -1)[:, units].reshape(-1)


@torch.no_grad()
def gap(before: GPT2, after: GPT2) -> float:
    """The largest difference of a logit on 128 tokens, computed in float64 on the CPU; raises UserError above 1e-5.

    In float32 the order of sums would make differences of about 1e-5 in a large model, as it does between machines.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(before.vocab_size, (1, min(128, before.block_size)), generator=generator)
    logits = [copy.deepcopy(model).cpu().double().eval()(tokens) for model in (before, after)]
    found = float((logits[0] - logits[1]).abs().max())
    if not found <= TOLERANCE:
        raise UserError(
            f"the logits of the smaller model differ by {found:.1e}, more than {TOLERANCE:g}, so nothing is saved; use "
            "another checkpoint"
        )
    return found
