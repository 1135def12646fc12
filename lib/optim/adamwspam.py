"""SPAM (Huang et al., arXiv 2501.06842, algorithm 1): AdamW that clips spikes and resets its momentum.

Let t = 1, 2, ... count all steps, and k the steps since the last reset. Resets are at t = DT, 2 DT, ...:

    m = v = 0                                  if DT divides t
    g = sign(g) sqrt(theta v)                  where g^2 > theta v, except in the first steps after a reset
    m = b1 m + (1-b1) g;   v = b2 v + (1-b2) g^2
    w -= lr s_k sqrt(1-b2^n) / (1-b1^n) m / (sqrt(v) + eps);   w -= lr weight_decay w

s_k = 1 - 0.99 (1 + cos(pi k / (N+1))) / 2 warms up for N steps after a reset.

With SPAM_COMPAT=official, as in the published code, n = t. The first step after a reset is then 3 lr s_k, and steps
grow to 6.6 lr s_k while the gradient keeps its sign. By default n counts from the last reset, like the moments. Each
reset then restarts Adam, whose steady steps are as large as lr, and the warm-up has its intended effect.

The published code has two more defects, which the default does not have:
- Take a weight whose first non-zero gradient comes after the steps without clipping. Its v is 0, so the gradient is
  clipped to 0 and v stays 0: the weight does not learn until the next reset. By default nothing is clipped where v = 0.
- With sparse momentum, weight decay acts on a copy and has no effect.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.config.kconf import Options
from lib.optim import Groups, cycle, skippable
from lib.optim.adam import settings
from lib.optim.skippable import Skippable, Tensors, adam_moments, bias_correction, decay, move, restart


@dataclasses.dataclass(frozen=True)
class SpamOptions(Options):
    """Settings of SPAM beside Adam's."""

    spam_interval: int  # steps between resets; 0: never
    spam_warmup_steps: int
    spam_enable_clip: bool
    spam_theta: float | None  # None without clipping
    spam_clip_free_steps: int | None  # after a reset
    spam_density: float  # share of the blocks' weights that have momentum
    spam_compat: str
    seed: int


class Phase(NamedTuple):
    """The position of a step in the cycle of resets, as scalars on the device."""

    resets: Tensor  # number of resets so far
    reset: Tensor  # bool: whether this step resets
    clips: Tensor  # bool: whether this step clips
    scale: Tensor  # of the update: 0.01 -> 1 after a reset
    count: Tensor  # number of steps for bias correction


def phase(step: Tensor, options: SpamOptions) -> Phase:
    """The phase of a step; the first is 1."""
    official = options.spam_compat == "official"
    interval, warmup = options.spam_interval or math.inf, options.spam_warmup_steps
    k = torch.remainder(step, interval)
    first = step < interval  # no reset so far: the learning rate's own warm-up is enough
    rising = 1 - 0.99 * (1 + torch.cos(math.pi / (warmup + 1) * k)) / 2
    since = torch.where(first, step, k + 1)
    free = options.spam_clip_free_steps or 0
    return Phase(
        resets=torch.floor(step / interval),
        reset=~first & (k == 0),
        clips=k >= free if official else since > free,
        scale=torch.where(first | (k >= warmup), 1.0, rising),
        count=step if official else since,
    )


def clip_spikes(grad: Tensor, exp_avg_sq: Tensor, theta: Tensor, learns: bool) -> Tensor:
    """g = sign(g) sqrt(theta v) where g^2 > theta v, in place; returns the number of clipped elements.

    An infinite theta clips nothing. With `learns`, an element with v = 0, which had no gradient yet, is not clipped.
    |g| is compared with sqrt(theta v), because g^2 could underflow.
    """
    limit = (theta * exp_avg_sq).sqrt_()  # inf * 0 is NaN, and nothing is greater than NaN
    spikes = grad.abs() > limit
    if learns:
        spikes &= exp_avg_sq > 0
    torch.where(spikes, limit.copysign_(grad), grad, out=grad)
    return torch.count_nonzero(spikes)


def spam_step(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    theta: float | None,
    learns: bool,
    phase: Phase,
    bad: Tensor,
) -> Tensor:
    """The equations at the top, in place, unless `bad`; returns the number of clipped gradient elements."""
    beta1, beta2 = betas
    restart([*exp_avgs, *exp_avg_sqs], phase.reset & ~bad)
    clipped = torch.zeros((), dtype=torch.int64, device=bad.device)
    if theta is not None:
        threshold = torch.where(phase.clips, theta, math.inf)
        for grad, exp_avg_sq in zip(grads, exp_avg_sqs, strict=True):
            clipped += clip_spikes(grad, exp_avg_sq, threshold, learns)
    adam_moments(exp_avgs, exp_avg_sqs, grads, beta1=beta1, beta2=beta2, bad=bad)
    size = lr * phase.scale * bias_correction(beta2, phase.count).sqrt() / bias_correction(beta1, phase.count)
    move(params, exp_avgs, torch._foreach_sqrt(exp_avg_sqs), eps=eps, size=size, bad=bad)
    decay(params, lr * weight_decay, bad)
    return clipped


def spam_step_on_cpu(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    theta: float | None,
    learns: bool,
    phase: Phase,
) -> int:
    """As `spam_step`, up to rounding, by AdamW's fused step.

    SPAM decays weights after the update, AdamW before it: (w - d) (1 - lr weight_decay) is an AdamW step whose update
    is smaller by this factor. AdamW adds epsilon to the root of the corrected second moment, SPAM to the root of v.
    """
    if phase.reset:
        for moment in (*exp_avgs, *exp_avg_sqs):
            moment.zero_()
    clipped = 0
    if theta is not None and phase.clips:
        clipped = sum(clip_spikes_on_cpu(*pair, theta, learns) for pair in zip(grads, exp_avg_sqs, strict=True))
    shrink = lr * weight_decay
    size = lr * float(phase.scale) * (1 - shrink) or 1e-300  # not 0, because AdamW multiplies its decay by it
    correction = float(bias_correction(betas[1], phase.count))
    skippable.fused_adamw(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        lr=size,
        betas=betas,
        eps=eps / math.sqrt(correction),
        weight_decay=shrink / size,
        count=phase.count,
    )
    return clipped


def clip_spikes_on_cpu(grad: Tensor, exp_avg_sq: Tensor, theta: float, learns: bool) -> int:
    """As `clip_spikes`, bit for bit, in pieces that stay in the cache. It writes only to spikes, which are rare."""
    clipped = 0
    buffers = [torch.empty_like(skippable.pieces(grad)[0]) for _ in range(2)]
    for g, v in zip(skippable.pieces(grad), skippable.pieces(exp_avg_sq), strict=True):
        limit, above = (buffer[: len(g)] for buffer in buffers)
        torch.mul(v, theta, out=limit).sqrt_()
        torch.abs(g, out=above).sub_(limit)
        if above.amax() <= 0:  # false if NaN, which infinity minus infinity is
            continue
        where = (above > 0).nonzero().view(-1)
        if learns:
            where = where[v[where] > 0]
        g[where] = limit[where].copysign_(g[where])
        clipped += len(where)
    return clipped


class Spam(Skippable):
    """Applies `spam_step`. With sparse momentum, each step waits for the device, to see whether it resets."""

    def __init__(self, groups: Groups, adam: dict[str, Any], options: SpamOptions):
        super().__init__(groups, adam)
        self.options = options
        self.inside: dict[nn.Parameter, Tensor] = {}  # uint8, 1 where there is momentum; empty if all weights have it
        self.inside_since = -1  # number of resets when `inside` was drawn
        none = torch.zeros((), dtype=torch.int64, device=next(p for g in groups for p in g["params"]).device)
        # numbers of gradient elements since the last log line
        self.state["clipping"] = {"clipped": none.clone(), "seen": none.clone()}

    def update(self, group: dict[str, Any], params: list[nn.Parameter], bad: Tensor) -> None:
        official = self.options.spam_compat == "official"
        now = phase(self.count(params, bad), self.options)
        grads = [p.grad for p in params]
        sparse = group["hidden"] and self.options.spam_density < 1
        if sparse:
            self._choose(int(now.resets))
            torch._foreach_mul_(grads, [self.inside[p] for p in params])
        rule = spam_step_on_cpu if skippable.on_host(bad) else functools.partial(spam_step, bad=bad)
        clipped = rule(
            params,
            grads,
            self.gather(params, "exp_avg"),
            self.gather(params, "exp_avg_sq"),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=0.0 if sparse and official else group["weight_decay"],
            theta=self.options.spam_theta if self.options.spam_enable_clip else None,
            learns=not official,
            phase=now,
        )
        self.state["clipping"]["clipped"] += clipped
        self.state["clipping"]["seen"] += ~bad * sum(grad.numel() for grad in grads)

    def _choose(self, resets: int) -> None:
        """Draw which weights of the blocks have momentum until the next reset.

        The choice is the same on every rank and after a resume. The gradients of the other weights are set to zero, so
        their moments stay 0 until the next reset.
        """
        if resets == self.inside_since:
            return
        self.inside_since = resets
        blocks = [p for group in self.param_groups if group["hidden"] for p in group["params"]]
        for position, p in enumerate(blocks):
            name = f"{self.options.seed} {resets} {position}".encode()
            seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest())
            chance = torch.rand(p.shape, generator=torch.Generator().manual_seed(seed))
            self.inside[p] = (chance < self.options.spam_density).to(p.device, torch.uint8)

    def metrics(self) -> dict[str, float]:
        """The share of gradient elements clipped since the last call, and the number of resets so far."""
        counts = self.state["clipping"]
        clipped, seen = int(counts["clipped"]), int(counts["seen"])
        for count in counts.values():
            count.zero_()
        steps = max((int(state["step"]) for state in self.state.values() if "step" in state), default=0)
        resets = steps // self.options.spam_interval if self.options.spam_interval else 0
        return {"spam_clipped_fraction": clipped / max(seen, 1), "spam_resets": resets}


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """SPAM; raises UsageError if warm-up or clip-free steps do not end before the next reset."""
    cycle.check(bind(cycle.CycleOptions))
    options = bind(SpamOptions)
    adam = settings(bind)
    return Spam(groups, {"betas": adam["betas"], "eps": adam["eps"]}, options)
