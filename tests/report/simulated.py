"""Studies of runs that were never trained, for tests of figures: curves, masks and scores of chosen numbers."""

from pathlib import Path

import numpy as np

from lib.record import mask_sample
from lib.record.scores import Score
from lib.report.outcome import Group, Outcome
from lib.report.study import Block, Study

TENSORS = [f"h.{layer}.{name}" for layer in range(4) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
SHAPES = dict.fromkeys(TENSORS, (100, 30))
SCOPE, STEPS, TOKENS = 1_200_000, 1000, 512_000


def outcome(name: str, seed: int, loss: float, sparsity: float = 0.0, **changes: object) -> Outcome:
    """A finished run whose loss falls from 5.5 to `loss` in 1,000 steps."""
    random = np.random.default_rng([len(name), seed, *name.encode()])
    steps = np.arange(0, STEPS + 1, 25.0)
    falling = loss + (5.5 - loss) * np.exp(-steps / 130) + 0.01 * random.standard_normal(len(steps))
    falling[-1] = loss
    ramp = sparsity * (1 - (1 - np.clip((steps - 250) / 500, 0, 1)) ** 3)
    nonzeros = SCOPE * (1 - float(ramp.mean()))
    tensors = {tensor: min(0.99, sparsity * (0.85 + 0.025 * place)) for place, tensor in enumerate(TENSORS)}
    base = np.random.default_rng(seed).random(36_000) + 0.5 * np.random.default_rng(list(name.encode()[:3])).random(
        36_000
    )
    kept = base[mask_sample.positions(SHAPES)] > np.quantile(base, sparsity)
    known = {
        "folder": Path(f"{name}-seed{seed}"), "name": f"{name}-seed{seed}", "state": "finished",
        "options": {"TARGET_SPARSITY": f"{sparsity:g}"} if sparsity else {}, "seed": seed, "steps": STEPS,
        "val_loss": loss, "best_val_loss": loss, "tokens": TOKENS, "total_tokens": TOKENS,
        "flops": 6 * TOKENS * (nonzeros + 1e5), "dense_flops": 6 * TOKENS * (SCOPE + 1e5), "average_nonzeros": nonzeros,
        "nonzeros": SCOPE * (1 - sparsity), "parameters": SCOPE + 100_000, "in_scope": SCOPE, "sparsity": sparsity,
        "seconds": 55 + 20 * ("movement" in name) + random.random() * 4, "memory": 4.5e8 + 3e7 * ("state" in name),
        "evaluation": "e", "data": "d", "code": "c", "packages": "p", "machine": "m", "retries": 0, "tuned": 0,
        "before": (), "checksum": "", "ever_active": None,
        "curves": {
            "val_loss": (steps, falling), "sparsity": (steps, ramp),
            "learning_rate": (steps, 0.002 * np.minimum(1, (steps + 1) / 100) * np.cos(1.4 * steps / STEPS)),
            "grad_norm": (steps, 0.5 + 3 * np.exp(-steps / 60) + 0.1 * random.random(len(steps))),
            "seconds": (steps, steps * 0.055),
        },
        "layers": tensors if sparsity else {},
        "masks": mask_sample.decode(mask_sample.encode(SHAPES, kept)) if sparsity else None,
        "tasks": {},
    }  # fmt: skip
    return Outcome(**(known | changes))


def score(metric: str, value: float, error: float) -> Score:
    return Score(metric, value, error, 500, None, "1", STEPS, "step-000001000")


def group(name: str, loss: float, sparsity: float = 0.0, seeds: int = 5, **changes: object) -> Group:
    """A configuration whose seeds vary by 0.01 nats."""
    shared = 0.01 * np.random.default_rng(0).standard_normal(seeds)
    own = 0.004 * np.random.default_rng(list(name.encode())).standard_normal(seeds)
    losses = loss + shared + own
    return Group(name, tuple(outcome(name, n + 1, float(losses[n]), sparsity, **changes) for n in range(seeds)))


def study(*groups: Group, others: tuple[Group, ...] = (), reference: str = "dense") -> Study:
    """A study of one block, and a second one for `others`."""
    blocks = [Block("512,000 tokens", tuple(groups), None)] + ([Block("others", others, None)] if others else [])
    return Study("study", "tokens", reference, tuple(blocks), {}, {}, ())


def law(nonzeros: float) -> float:
    return 1.45 + 90 / nonzeros**0.38


METHODS = {"magnitude": 0.0, "state": 0.012, "movement": 0.05, "rigl": 0.03, "random": 0.11}


def worked(seeds: int = 5) -> list[Group]:
    """Like the worked study of the repository: 19 configurations."""
    groups = [group("dense", law(SCOPE), seeds=seeds)]
    for sparsity in (0.5, 0.8, 0.9):
        size = SCOPE * (1 - 0.62 * sparsity)
        groups.append(
            group(
                f"small-dense-{100 * sparsity:.0f}", law(size), seeds=seeds, average_nonzeros=size, parameters=int(size)
            )
        )
    for name, worse in METHODS.items():
        for sparsity in (0.5, 0.8, 0.9):
            loss = law(SCOPE * (1 - 0.62 * sparsity)) + worse * (1 + sparsity) - 0.01
            early = (
                {"average_nonzeros": SCOPE * (1 - 0.95 * sparsity)} if name == "rigl" else {}
            )  # sparse from the start
            groups.append(group(f"{name}-{100 * sparsity:.0f}", loss, sparsity, seeds, **early))
    return groups
