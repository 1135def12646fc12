"""What the optimizers of this folder share: steps that the device may skip, and parts of Adam for lists of tensors.

A rule has two forms of the same step. On a GPU it makes passes over lists of tensors and never waits for a scalar.
On a CPU such passes are slow, because each reads and writes all weights in memory. There the host reads scalars, and
torch's fused AdamW makes the step.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

Tensors = list[Tensor]
_PIECE = 2**16  # elements of a tensor that fit in a CPU core's cache, with three more such pieces


class Skippable(torch.optim.Optimizer, ABC):
    """An optimizer whose step changes nothing if `found_inf`, a scalar on the device, is above 0 (lib.optim.skip_if).

    The host never waits for this scalar. A skipped step is computed with zero gradients, decay rates of 1 and step size
    0, so every bit of weights and moments stays the same. Only the device knows how many steps were not skipped. So the
    count (`step` in each parameter's state) is on the device, with the scalars that depend on it. A step may change the
    gradients. On a CPU the host reads the scalar, and computes nothing for a skipped step.
    """

    _step_supports_amp_scaling = True  # lets torch.amp.GradScaler pass found_inf instead of waiting for it

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, unless `found_inf` is above 0."""
        found = getattr(self, "found_inf", None)
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                bad = torch.zeros((), dtype=torch.bool, device=params[0].device) if found is None else found > 0
                for p in params:
                    if not self.state[p]:
                        self.state[p] = self.new_state(p, group)
                if on_host(bad):
                    if bad:
                        continue
                else:
                    for p in params:
                        p.grad.masked_fill_(bad, 0)  # not a product, because NaN times 0 is NaN
                self.update(group, params, bad)

    def new_state(self, p: nn.Parameter, group: dict[str, Any]) -> dict[str, Tensor]:
        """State before the first step: Adam's moments (shape of `p`) and the number of steps made (a scalar)."""
        moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return moments | {"step": torch.zeros((), device=p.device)}

    @abstractmethod
    def update(self, group: dict[str, Any], params: list[nn.Parameter], bad: Tensor) -> None:
        """One step for parameters of one group, unless `bad` (a bool scalar, on a CPU always false)."""

    def gather(self, params: list[nn.Parameter], name: str) -> Tensors:
        """The entry `name` of each parameter's state."""
        return [self.state[p][name] for p in params]

    def count(self, params: list[nn.Parameter], bad: Tensor) -> Tensor:
        """Count this step unless `bad`; returns the number of steps so far, this one included.

        All parameters of a group have a gradient at every step, so the count of the first is that of all.
        """
        steps = self.gather(params, "step")
        made = (~bad).to(steps[0].dtype)
        torch._foreach_add_(steps, [made] * len(steps))  # a list, because the host would read a single tensor
        return steps[0].clamp(min=1)  # a skipped first step must not divide by 1 - beta^0 = 0


def on_host(tensor: Tensor) -> bool:
    """Whether the host reads this tensor without waiting for a device."""
    return tensor.device.type == "cpu"


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat views of a contiguous tensor on a CPU, small enough that several operations on one find it in the cache."""
    return tensor.view(-1).split(_PIECE * torch.get_num_threads())


def bias_correction(beta: float | Tensor, count: Tensor) -> Tensor:
    """1 - beta^count in full float32 precision; a subtraction loses about three digits where beta is near 1."""
    log = beta.log() if isinstance(beta, Tensor) else math.log(beta) if beta else -math.inf
    return -torch.expm1(count * log)


def restart(moments: Tensors, now: Tensor) -> None:
    """Zero the moments where `now` (a bool scalar) is true."""
    torch._foreach_mul_(moments, torch.where(now, 0.0, 1.0))


def average(averages: Tensors, values: Tensors, beta: float | Tensor, bad: Tensor) -> None:
    """a = beta a + (1 - beta) x, in place. If `bad`, x must be 0, and a does not change."""
    torch._foreach_mul_(averages, torch.where(bad, 1.0, beta))
    if isinstance(beta, Tensor):  # `alpha` must be a Python number, so the values are copied
        torch._foreach_add_(averages, torch._foreach_mul(values, 1 - beta))
    else:
        torch._foreach_add_(averages, values, alpha=1 - beta)


def adam_moments(
    exp_avgs: Tensors, exp_avg_sqs: Tensors, grads: Tensors, *, beta1: float | Tensor, beta2: float, bad: Tensor
) -> None:
    """m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2, in place, unless `bad`."""
    average(exp_avgs, grads, beta1, bad)
    torch._foreach_mul_(exp_avg_sqs, torch.where(bad, 1.0, beta2))
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)


def fused_adamw(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    count: Tensor,
    grad_scale: Tensor | None = None,
) -> None:
    """torch's fused AdamW step, in place: each element is read and written once.

    g /= grad_scale;  w *= 1 - lr weight_decay;  the moments;  w -= lr / (1-b1^n) m / (sqrt(v / (1-b2^n)) + eps).
    n is `count`.
    """
    torch._fused_adamw_(
        params, grads, exp_avgs, exp_avg_sqs, [], [count] * len(params), lr=lr, beta1=betas[0], beta2=betas[1],
        weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False, grad_scale=grad_scale,
    )  # fmt: skip


def move(params: Tensors, directions: Tensors, denominators: Tensors, *, eps: float, size: Tensor, bad: Tensor) -> None:
    """w -= size direction / (denominator + eps), in place, unless `bad`; overwrites the denominators."""
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(denominators, torch.where(bad, 0.0, size))
    torch._foreach_addcdiv_(params, directions, denominators, value=-1)


def decay(params: Tensors, amount: float, bad: Tensor) -> None:
    """w *= 1 - amount, in place, unless `bad`."""
    if amount:
        torch._foreach_mul_(params, torch.where(bad, 1.0, 1 - amount))
