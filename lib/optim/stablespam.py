"""Stable-SPAM (Huang et al., arXiv 2502.17055, algorithm 1): AdamW that clips and rescales gradients by their history.

For each tensor, with t = 1, 2, ... the step and n the number of steps since the last reset of momentum, this one
included:

    AdaClip  M = theta M + (1-theta) max|g|;  g *= M' / max|g|  where |g| > M',  M' = M / (1-theta^t)
    AdaGN    a = g1 a + (1-g1) |g|;  b = g2 b + (1-g2) |g|^2;  g *= a' / (sqrt(b') + eps) / |g|,  a', b' bias-corrected
    MoRet    m = v = 0  if DT divides t;  then Adam with decoupled decay, corrected for n steps

The published code uses n in the bias correction of all averages, although a reset does not change those of AdaClip
and AdaGN. After a reset M' is then far too large (500 times at n = 2, still 1.6 times at n = 1000), and AdaClip has no
effect for most of every cycle. Here these averages use t. The published code also uses the old moments in the step of a
reset; here they are zero before that step.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lib.config.kconf import Options
from lib.optim import Groups, skippable
from lib.optim.adam import settings
from lib.optim.skippable import Skippable, Tensors, adam_moments, average, bias_correction, decay, move, restart

_AVERAGES = ("max_average", "norm_average", "norm_sq_average")  # M, a, b


@dataclasses.dataclass(frozen=True)
class StablespamOptions(Options):
    """Settings of Stable-SPAM beside Adam's."""

    stablespam_gamma1: float
    stablespam_gamma2: float
    stablespam_theta: float
    stablespam_interval: int  # steps between resets; 0: never
    stablespam_total_steps: int  # over which gamma1 and beta1 fall to half; 0: both stay constant


def ada_clip(grads: Tensors, max_averages: Tensors, *, theta: float, step: Tensor, bad: Tensor) -> None:
    """Scale down, in place, elements above the running average of the largest element.

    On a CPU, only pieces that have such an element are written, or read again: elements above the average are rare.
    """
    on_cpu = skippable.on_host(bad)
    largest = [_largest(grad) for grad in grads] if on_cpu else []
    maxima = [one.amax() for one in largest] if on_cpu else torch._foreach_norm(grads, math.inf)
    average(max_averages, maxima, theta, bad)
    limits = torch._foreach_div(max_averages, bias_correction(theta, step))
    for number, (grad, maximum, limit) in enumerate(zip(grads, maxima, limits, strict=True)):
        parts = [grad]
        if on_cpu:
            all_parts = skippable.pieces(grad)
            parts = [all_parts[index] for index in (largest[number] > limit).nonzero().view(-1).tolist()]
        for part in parts:
            part.mul_(torch.where(part.abs() > limit, limit / maximum, 1.0))


def _largest(grad: Tensor) -> Tensor:
    """The largest absolute element of each piece."""
    ends = [torch.stack(torch.aminmax(piece)) for piece in skippable.pieces(grad)]
    return torch.stack(ends).abs_().amax(dim=1)


def ada_gn(
    grads: Tensors,
    norm_averages: Tensors,
    norm_sq_averages: Tensors,
    *,
    gamma1: float | Tensor,
    gamma2: float,
    eps: float,
    step: Tensor,
    bad: Tensor,
) -> Tensors:
    """The factors that rescale each gradient to the norm a' / (sqrt(b') + eps); 0 for a zero gradient."""
    norms = torch._foreach_norm(grads)
    average(norm_averages, norms, gamma1, bad)
    average(norm_sq_averages, torch._foreach_mul(norms, norms), gamma2, bad)
    norm = torch.stack(norms)
    mean = torch.stack(norm_averages) / bias_correction(gamma1, step)
    square = torch.stack(norm_sq_averages) / bias_correction(gamma2, step)
    factors = torch.where(norm > torch.finfo(norm.dtype).tiny, mean / (square.sqrt() + eps) / norm, 0.0)
    return list(factors.unbind())


def stablespam_step(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    averages: tuple[Tensors, Tensors, Tensors],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    options: StablespamOptions,
    step: Tensor,
    bad: Tensor,
) -> None:
    """The equations at the top, in place, unless `bad`; `averages` are M, a, b and `step` is t."""
    scale = momentum_scale(step, options.stablespam_total_steps)
    gamma1, gamma2 = options.stablespam_gamma1 * scale, options.stablespam_gamma2
    ada_clip(grads, averages[0], theta=options.stablespam_theta, step=step, bad=bad)
    factors = ada_gn(grads, *averages[1:], gamma1=gamma1, gamma2=gamma2, eps=eps, step=step, bad=bad)
    interval = options.stablespam_interval or math.inf
    since = torch.remainder(step, interval)
    n = torch.where(step < interval, step, since + 1)
    beta1, beta2 = betas[0] * scale, betas[1]
    if skippable.on_host(bad):
        if since == 0:
            for moment in (*exp_avgs, *exp_avg_sqs):
                moment.zero_()
        settings = {"lr": lr, "betas": (float(beta1), beta2), "eps": eps, "weight_decay": weight_decay, "count": n}
        for *tensors, factor in zip(params, grads, exp_avgs, exp_avg_sqs, factors, strict=True):
            skippable.fused_adamw(*([one] for one in tensors), **settings, grad_scale=factor.reciprocal())
        return
    torch._foreach_mul_(grads, factors)
    restart([*exp_avgs, *exp_avg_sqs], (since == 0) & ~bad)
    decay(params, lr * weight_decay, bad)
    adam_moments(exp_avgs, exp_avg_sqs, grads, beta1=beta1, beta2=beta2, bad=bad)
    roots = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(roots, bias_correction(beta2, n).sqrt())
    move(params, exp_avgs, roots, eps=eps, size=lr / bias_correction(beta1, n), bad=bad)


def momentum_scale(step: Tensor, total_steps: int) -> float | Tensor:
    """A factor that falls from 1 to 0.5 along a cosine over `total_steps`; always 1 if that is 0."""
    if not total_steps:
        return 1.0
    return 0.75 + 0.25 * torch.cos(math.pi / (total_steps + 1) * step.clamp(max=total_steps + 1))


class StableSpam(Skippable):
    """Applies `stablespam_step`."""

    def __init__(self, groups: Groups, adam: dict[str, Any], options: StablespamOptions):
        super().__init__(groups, adam)
        self.options = options

    def new_state(self, p: nn.Parameter, group: dict[str, Any]) -> dict[str, Tensor]:
        """Adam's state, and averages of the gradient's maximum, norm and squared norm (scalars)."""
        return super().new_state(p, group) | {name: torch.zeros((), device=p.device) for name in _AVERAGES}

    def update(self, group: dict[str, Any], params: list[nn.Parameter], bad: Tensor) -> None:
        stablespam_step(
            params,
            [p.grad for p in params],
            self.gather(params, "exp_avg"),
            self.gather(params, "exp_avg_sq"),
            tuple(self.gather(params, name) for name in _AVERAGES),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            options=self.options,
            step=self.count(params, bad),
            bad=bad,
        )


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """Stable-SPAM with the settings of Adam and its own."""
    adam = settings(bind)
    return StableSpam(groups, {"betas": adam["betas"], "eps": adam["eps"]}, bind(StablespamOptions))
