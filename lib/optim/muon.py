"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): orthogonalised momentum for the blocks' matrices.

AdamW (torch's fused implementation) trains embeddings (with the tied head), norms and biases, as the authors advise.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lib.config.kconf import Options
from lib.optim import Groups
from lib.optim.adam import settings
from lib.optim.skippable import Skippable, Tensors, average, decay

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # raise small singular values fastest; all end between 0.7 and 1.2
_ITERATIONS = 5


@dataclasses.dataclass(frozen=True)
class MuonOptions(Options):
    """Settings of Muon beside those of AdamW."""

    muon_momentum: float
    muon_scale: str


def newton_schulz(matrices: Tensor) -> Tensor:
    """(n, rows, columns): each matrix U S V^T becomes about U V^T; a zero matrix stays zero.

    The iteration is X = a X + (b A + c A^2) X with A = X X^T. On a GPU it runs in bfloat16, which the authors find
    precise enough and which is several times as fast. Elsewhere it runs in float32: few CPUs multiply bfloat16 faster.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # so that A is the smaller of X X^T and X^T X
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    if x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def update_scale(rows: int, columns: int, muon_scale: str) -> float:
    """The factor that multiplies the orthogonal matrix, besides the learning rate.

    match-rms gives an update the root mean square that AdamW's usually have, 0.2 (Liu et al., arXiv 2502.16982,
    equation 4). Learning rate and decay then mean the same for both. original is the scale of Muon's authors.
    """
    return 0.2 * math.sqrt(max(rows, columns)) if muon_scale == "match-rms" else math.sqrt(max(1, rows / columns))


def muon_step(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    masks: Tensors | None,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    scale: float,
    bad: Tensor,
) -> None:
    """m = mu m + (1-mu) g;  w -= lr weight_decay w + lr scale orthogonal((1-mu) g + mu m), in place, unless `bad`.

    All matrices have one shape and are orthogonalised together. An orthogonal matrix has hardly any zeros, so
    the update is multiplied by the masks.
    """
    average(momentum_buffers, grads, momentum, bad)
    ahead = torch._foreach_lerp(grads, momentum_buffers, momentum)  # Nesterov momentum
    updates = newton_schulz(torch.stack(ahead)).mul_(torch.where(bad, 0.0, lr * scale)).unbind()
    if masks:
        updates = [update * mask for update, mask in zip(updates, masks, strict=True)]
    decay(params, lr * weight_decay, bad)
    torch._foreach_sub_(params, updates)


class Muon(Skippable):
    """Applies `muon_step` to the blocks' matrices and AdamW to the rest."""

    def __init__(self, groups: Groups, adam: dict[str, Any], options: MuonOptions):
        # Checkpoints keep the settings of groups. This one marks states in which q, k and v are separate matrices.
        super().__init__(groups, adam | {"stacked_apart": True})
        self.options, self.stacked = options, groups.stacked
        self.masks: dict[nn.Parameter, Tensor] = {}  # empty without pruning
        self.note = ""  # for the user, about the state that was loaded

    def use_masks(self, masks: dict[nn.Parameter, Tensor]) -> None:
        """Multiply updates by these masks from now on (see lib.optim.use_masks)."""
        self.masks = masks

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets `note` if an earlier version, with another rule, may have written the state."""
        super().load_state_dict(state_dict)
        if self.stacked and not all("stacked_apart" in group for group in state_dict["param_groups"]):
            self.note = (
                "the checkpoint may be of an earlier version, in which Muon took q, k and v as one matrix; from here "
                "on they are three matrices, which changes what the run learns"
            )

    def new_state(self, p: nn.Parameter, group: dict[str, Any]) -> dict[str, Tensor]:
        """The momentum (shape of `p`) for a matrix of the blocks, Adam's state for other parameters."""
        return {"momentum_buffer": torch.zeros_like(p)} if group["hidden"] else super().new_state(p, group)

    def update(self, group: dict[str, Any], params: list[nn.Parameter], bad: Tensor) -> None:
        if not group["hidden"]:
            self._adamw(group, params, bad)
            return
        for shape, matrices in self._matrices(params).items():
            muon_step(
                *matrices,
                lr=group["lr"],
                momentum=self.options.muon_momentum,
                weight_decay=group["weight_decay"],
                scale=update_scale(*shape, self.options.muon_scale),
                bad=bad,
            )

    def _matrices(self, params: list[nn.Parameter]) -> dict[torch.Size, list[Tensors | None]]:
        """Shape -> lists of all matrices of this shape (views): parameters, gradients, momentum buffers, masks or None.

        A parameter that stacks q, k and v is three matrices, as in the authors' GPT-2.
        """
        found: dict[torch.Size, list] = {}
        for p in params:
            tensors = [p, p.grad, self.state[p]["momentum_buffer"]]
            if self.masks:
                tensors.append(self.masks[p] if p in self.masks else torch.ones_like(p))
            for parts in zip(*(tensor.chunk(self.stacked.get(p, 1)) for tensor in tensors), strict=True):
                lists = found.setdefault(parts[0].shape, [[] for _ in parts])
                for alike, part in zip(lists, parts, strict=True):
                    alike.append(part)
        return {shape: lists if self.masks else [*lists, None] for shape, lists in found.items()}

    def _adamw(self, group: dict[str, Any], params: list[nn.Parameter], bad: Tensor) -> None:
        moments = [self.gather(params, name) for name in ("exp_avg", "exp_avg_sq")]
        beta1, beta2 = group["betas"]
        adamw(
            params, [p.grad for p in params], *moments, [], self.gather(params, "step"), fused=True,
            found_inf=bad.float(), amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """Muon; its AdamW has the settings of Adam."""
    adam = settings(bind)
    return Muon(groups, {"betas": adam["betas"], "eps": adam["eps"]}, bind(MuonOptions))
