"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): orthogonalised momentum for the blocks' matrices.

AdamW (torch's fused implementation) trains embeddings (with the tied head), norms and biases, as the authors advise.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lib.config.kconf import Options
from lib.optim import Groups, skippable
from lib.optim.adam import settings
from lib.optim.skippable import Skippable, Tensors, average, decay

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # raise small singular values fastest; all end between 0.7 and 1.2
_ITERATIONS = 5
# Iterations made on the smaller of X X^T and X^T X before X is multiplied. The worst case is a matrix whose columns are
# all equal: of 768 x 3072, five at once are wrong by 0.7 %, two and three by 0.07 %, one by one by 0.002 %. Elsewhere
# all are within 0.06 %.
_STEPS = (2, 3)
_PANEL = 96  # rows of a symmetric product computed at once; at 64 products are slower, at 192 half is less than half
_SMALLEST = 256  # rows of a matrix, from which on a CPU saves time by symmetry
_TOGETHER = 2**20  # elements of matrices that a CPU orthogonalises at once: a batch that stays in the cache


@dataclasses.dataclass(frozen=True)
class MuonOptions(Options):
    """Settings of Muon beside those of AdamW."""

    muon_momentum: float
    muon_scale: str


class Room(dict[str, Tensor]):
    """Memory for the products of one batch, by name, which the next batch uses again.

    On a CPU, memory that is new for every batch took a fifth of the time, because the system clears each page of it.
    """

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of float32 on the CPU with any content; it is valid until the same name is taken again."""
        size = math.prod(shape)
        if name not in self or self[name].numel() < size:
            self[name] = torch.empty(size)
        return self[name][:size].view(shape)


def newton_schulz(matrices: Tensor, room: Room | None = None, bfloat16: bool = False) -> Tensor:
    """(n, rows, columns): each matrix U S V^T becomes about U V^T; a zero matrix stays zero.

    The iteration is X = a X + (b A + c A^2) X with A = X X^T. It runs in bfloat16 on a GPU, and on a CPU if asked. The
    authors find that precise enough, and with a unit for products in bfloat16 it is several times as fast. The result
    may lie in `room`.
    """
    norms = matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    if skippable.on_host(matrices) and not bfloat16 and min(matrices.shape[-2:]) >= _SMALLEST:
        return _by_halves(matrices, norms, Room() if room is None else room)
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # so that A is the smaller of X X^T and X^T X
    x = x / norms
    if bfloat16 or x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


# ---- the same iteration on a CPU, with fewer operations --------------------------------------------------------------


def _by_halves(matrices: Tensor, norms: Tensor, room: Room) -> Tensor:
    """The iteration as X = P X with P = a I + b A + c A^2, in float32.

    A, P and products of them are symmetric, so half of each is computed. Where A is smaller than X, several steps are
    made on A alone: the next A is P A P, and X is multiplied once by all P.
    """
    x = torch.div(matrices, norms, out=room.take("x", *matrices.shape))
    found = room.take("found", *matrices.shape)
    rows, columns = x.shape[-2:]
    tall = rows > columns
    for steps in (1,) * _ITERATIONS if rows == columns else _STEPS:
        gram = _symmetric(x.mT, x, "gram", room) if tall else _symmetric(x, x.mT, "gram", room)
        factor = product = _polynomial(gram, "P", room)
        for step in range(1, steps):
            half = _symmetric(gram, factor, "A P", room)
            gram = _symmetric(factor, half, "gram", room)
            factor = _polynomial(gram, "next P", room)
            product = _symmetric(factor, product, "P P" if step % 2 else "P", room)
        x, found = torch.bmm(*((x, product) if tall else (product, x)), out=found), x
    return x


def _polynomial(gram: Tensor, name: str, room: Room) -> Tensor:
    """a I + b A + c A^2."""
    a, b, c = _COEFFICIENTS
    found = _symmetric(gram, gram, name, room, c).add_(gram, alpha=b)
    found.diagonal(dim1=-2, dim2=-1).add_(a)
    return found


def _symmetric(left: Tensor, right: Tensor, name: str, room: Room, factor: float = 1.0) -> Tensor:
    """factor left @ right, if that is symmetric: its lower half is computed in panels of rows, and mirrored."""
    n, rows, _ = left.shape
    product = room.take(name, n, rows, rows)
    for start in range(0, rows, _PANEL):
        end = min(start + _PANEL, rows)
        panel = room.take("panel", n, end - start, end)
        torch.baddbmm(panel, left[:, start:end], right[:, :, :end], beta=0, alpha=factor, out=panel)
        product[:, start:end, :end] = panel
        product[:, :start, start:end] = panel[:, :, :start].mT
    return product


def _batch(elements: int) -> int:
    """How many matrices of so many elements a CPU orthogonalises at once: each of its cores takes as many."""
    cores = torch.get_num_threads()
    return cores * max(1, _TOGETHER // (cores * elements))


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
    room: Room,
    bfloat16: bool,
) -> None:
    """m = mu m + (1-mu) g;  w -= lr weight_decay w + lr scale orthogonal((1-mu) g + mu m), in place, unless `bad`.

    All matrices have one shape and are orthogonalised together. An orthogonal matrix has hardly any zeros, so
    the update is multiplied by the masks.
    """
    average(momentum_buffers, grads, momentum, bad)  # and then Nesterov momentum
    if skippable.on_host(bad):
        ahead = room.take("ahead", len(grads), *grads[0].shape)
        for grad, momentum_buffer, out in zip(grads, momentum_buffers, ahead, strict=True):
            torch.lerp(grad, momentum_buffer, momentum, out=out)
    else:
        ahead = torch.stack(torch._foreach_lerp(grads, momentum_buffers, momentum))
    updates = newton_schulz(ahead, room, bfloat16).mul_(torch.where(bad, 0.0, lr * scale)).unbind()
    if masks:
        updates = [update * mask for update, mask in zip(updates, masks, strict=True)]
    decay(params, lr * weight_decay, bad)
    torch._foreach_sub_(params, updates)


class Muon(Skippable):
    """Applies `muon_step` to the blocks' matrices and AdamW to the rest."""

    def __init__(self, groups: Groups, adam: dict[str, Any], options: MuonOptions):
        # Checkpoints keep the settings of groups. This one marks states in which q, k and v are separate matrices.
        super().__init__(groups, adam | {"stacked_apart": True})
        self.options, self.stacked, self.room = options, groups.stacked, Room()
        self.bfloat16 = False  # whether a CPU orthogonalises in bfloat16, see lib.optim.use_kernels
        self.masks: dict[nn.Parameter, Tensor] = {}  # empty without pruning
        self.note = ""  # for the user, about the state that was loaded

    def use_masks(self, masks: dict[nn.Parameter, Tensor]) -> None:
        """Multiply updates by these masks from now on (see lib.optim.use_masks)."""
        self.masks = masks

    def use_kernels(self, kernels: Collection[str]) -> None:
        """With `muon` among them, a CPU orthogonalises in bfloat16."""
        self.bfloat16 = "muon" in kernels

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
            count = len(matrices[0])
            size = _batch(shape.numel()) if skippable.on_host(bad) else count
            for start in range(0, count, size):
                muon_step(
                    *(alike and alike[start : start + size] for alike in matrices),
                    lr=group["lr"],
                    momentum=self.options.muon_momentum,
                    weight_decay=group["weight_decay"],
                    scale=update_scale(*shape, self.options.muon_scale),
                    bad=bad,
                    room=self.room,
                    bfloat16=self.bfloat16,
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
