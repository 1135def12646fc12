"""SparseGPT: what pruned weights contributed is put into the weights still to come (Frantar & Alistarh, 2301.00774).

Letters of shapes: S tokens, I inputs, O outputs. Weights are transposed, (I, O): an input's weights are contiguous.
"""

import dataclasses

import torch
from torch import Tensor

from gpt2.oneshot.inputs import Statistic
from lib.base.errors import UserError
from lib.prune import mask, select

_FEW = 8  # inputs whose errors go into each other one by one
_PANEL = 384  # columns of a product X^T X that are computed together, from the diagonal to the right


def _add_products(total: Tensor, x: Tensor) -> None:
    """Add X^T X (I, I) to the columns at and right of the diagonal's panels; the rest is its mirror image."""
    for start in range(0, len(total), _PANEL):
        columns = slice(start, start + _PANEL)
        total[columns, start:].addmm_(x[:, columns].T, x[:, start:])


PRODUCTS = Statistic(2, _add_products)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a tensor is pruned."""

    damping: float  # share of the mean of the Hessian's diagonal
    block: int  # columns, for which the mask is chosen together
    n: int | None  # kept of each m neighbours; None: unstructured
    m: int | None


def prune(weight: Tensor, products: Tensor, windows: int, budget: int, plan: Plan, name: str) -> Tensor:
    """Prune `weight` (O, I) in place and return its uint8 mask, which has exactly `budget` zeros.

    Weights that are zero already count and stay zero; the mask has more zeros where they are more than it may prune.
    `products` (I, I) is X^T X above the diagonal; it is overwritten. An input that is always zero has no part in the
    rest: its weights have the score 0, so they are pruned first, and those that stay keep their value.

    Raises UserError if the Hessian cannot be inverted.
    """
    hessian = products.triu_().mul_(2 / windows)
    dead = hessian.diagonal() == 0
    factor = inverse_factor(hessian, dead, plan.damping, name)
    w = weight.T.float().contiguous()
    alive = (w != 0).to(torch.uint8)
    w[dead] = 0
    kept = solve(w, alive, factor, budget, plan, name).T.contiguous()
    weight.copy_(torch.where(dead, weight * kept, w.T))
    return kept


def inverse_factor(hessian: Tensor, dead: Tensor, damping: float, name: str) -> Tensor:
    """U (I, I), upper triangular in float32, with U^T U = (H + damping)^-1; of `hessian` the upper triangle is read.

    It is computed in float64, which costs little beside the products. With the order of the inputs reversed,
    H = L L^T turns into H = R R^T with R upper triangular. So U is the inverse of R, and H itself is never inverted.
    """
    where = "cpu" if hessian.device.type == "mps" else hessian.device  # MPS has no float64
    h = hessian.to(where, torch.float64)
    diagonal = h.diagonal()
    diagonal[dead.to(where)] = 1
    diagonal.add_(damping * diagonal.mean())
    lower, failed = torch.linalg.cholesky_ex(h.flip(0, 1))  # reads the lower triangle: the upper one of h
    if int(failed):
        raise UserError(
            f"{name.removesuffix('.weight')}: the Hessian of its inputs is singular; raise SPARSEGPT_DAMPING from "
            f"{damping:g}, or CALIBRATION_SAMPLES"
        )
    eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True).to(hessian.device, torch.float32)


def solve(w: Tensor, alive: Tensor, factor: Tensor, budget: int, plan: Plan, name: str) -> Tensor:
    """Prune `w` (I, O) in place; return its mask (I, O). Algorithm 1 of the paper, with U in place of its H^-1.

    Weights that are 0 in the mask `alive` are pruned before all others, and what they would get goes to the rest.
    """
    kept = alive.clone()
    sizes = [part.numel() for part in w.split(plan.block)]
    rooms = [mask.ones(part) for part in alive.split(plan.block)]
    keeps = mask.apportion(sizes, rooms, min(w.numel() - budget, sum(rooms)))
    for start, size, keep in zip(range(0, len(w), plan.block), sizes, keeps, strict=True):
        rows = slice(start, start + plan.block)
        after = slice(start + plan.block, None)
        errors = _block(w[rows], factor[rows, rows], kept[rows], size - keep, plan, name)
        w[rows].mul_(kept[rows])
        w[after].addmm_(factor[rows, after].T, errors, alpha=-1)
    return kept


def _block(w: Tensor, factor: Tensor, kept: Tensor, budget: int, plan: Plan, name: str) -> Tensor:
    """Choose the mask of a block of inputs, `kept`, among those that it keeps so far; return the errors (block, O).

    The block's own weights get its errors here; those that are pruned are not yet zero.

    A few inputs at a time, because torch computes so few elements on one thread: to wake others for each input would
    take longer than the arithmetic.
    """
    diagonal, errors = factor.diagonal()[:, None], torch.empty_like(w)
    step = plan.m or _FEW
    if plan.m is None:
        keys = _keys(w, diagonal, kept, name)
        kept.copy_(select.prune([select.of(keys)], budget)[0].view(kept.shape))
    for start in range(0, len(w), step):
        few, after = slice(start, start + step), slice(start + step, None)
        if plan.m is not None:
            keys = _keys(w[few], diagonal[few], kept[few], name)
            kept[few] &= mask.highest(keys.T, plan.n, plan.m).T
        _few(w[few], factor[few, few], (1 - kept[few]) / diagonal[few], errors[few])
        w[after].addmm_(factor[few, after].T, errors[few], alpha=-1)
    return errors


def _keys(w: Tensor, diagonal: Tensor, alive: Tensor, name: str) -> Tensor:
    keys = select.keys((w / diagonal).square_(), name)
    return select.hold(keys, alive)


def _few(w: Tensor, factor: Tensor, gone: Tensor, errors: Tensor) -> None:
    """Write the errors (few, O) of the inputs `w` in their order; each changes the inputs after it.

    `gone` is 1 / U_jj where a weight is pruned, 0 elsewhere.
    """
    for i in range(len(w)):
        torch.mul(w[i], gone[i], out=errors[i])
        w[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
