"""The training path of every pair of optimizer and pruning that the menu allows, pinned by its losses.

Any change of the arithmetic shows here. If one is meant, write the new numbers with `python -m tests.test_golden` and
say why in the commit.
"""

import sys
import tempfile
from pathlib import Path

import pytest
import torch

from lib.config.config_file import ConfigError
from tests.training import run, schema

GOLDEN = Path(__file__).parent / "golden" / "losses_pairs.txt"
RATES = {"sgd": 0.1}
# Movement has two forms below, sparsegpt and oneshot prune finished models, and given needs masks.
APART = {"movement", "sparsegpt", "given", "oneshot"}
BRIEF = {
    "dropout": 0, "max_iters": 20, "eval_interval": 0, "eval_samples": 1, "warmup_steps": 2,
    "spam_interval": 8, "spam_warmup_steps": 3, "spam_clip_free_steps": 2, "stablespam_interval": 8,
    "movement_threshold": 0.6, "movement_learning_rate": 1,
    "pruning_warmup": 4, "pruning_end": 16, "pruning_interval": 3, "target_sparsity": 0.6,
}  # fmt: skip


def configuration(folder, **choices):
    """The brief run with these choices and what they leave of BRIEF; None if they contradict each other."""
    bare = {
        name: value
        for name, value in BRIEF.items()
        if "_" not in name or name.split("_")[0] in ("max", "eval", "warmup")
    }
    rate = RATES.get(choices["optimizer"], 0.003)
    try:
        made = schema(folder, learning_rate=rate, **bare, **choices)
    except ConfigError:
        return None
    active = {name: value for name, value in BRIEF.items() if made.options[name.upper()].settable}
    return schema(folder, learning_rate=rate, **(bare | active), **choices)


def pairs(folder):
    """Every optimizer (and base of adamwprune) with every pruning method (and form of movement), as (name, schema)."""
    options = schema(folder).options
    optimizers = [{"optimizer": o} for o in options["OPTIMIZER"].members if o != "adamwprune"]
    bases = options["ADAMWPRUNE_BASE_OPTIMIZER_NAME"].members
    optimizers += [{"optimizer": "adamwprune", "adamwprune_base_optimizer_name": base} for base in bases]
    methods = [{"pruning_method": m} for m in options["PRUNING_METHOD"].members if m not in APART]
    methods += [
        {"pruning_method": "movement", "pruning_movement": form} for form in options["PRUNING_MOVEMENT"].members
    ]
    dynamics = [d for d in options["PRUNING_DYNAMICS"].members if d not in APART]
    dynamics = [{"pruning_method": "magnitude", "pruning_dynamics": d} for d in dynamics]
    states = [{"pruning_method": "state", "pruning_state": s} for s in options["PRUNING_STATE"].members]
    grid = [(o, m) for o in optimizers for m in methods]
    grid += [({"optimizer": "adamw"}, m) for m in dynamics[1:] + states[1:]]
    for optimizer, method in grid:
        if made := configuration(folder, **optimizer, **method):
            yield " ".join([*optimizer.values(), *method.values()]), made


def losses(made):
    """The training loss of each step."""
    torch.set_num_threads(1)
    return [metrics["train_loss"] for event, _, metrics in run(made) if event == "train"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return dict(pairs(tmp_path_factory.mktemp("golden")))


def recorded():
    lines = (line.split(":") for line in GOLDEN.read_text().splitlines())
    return {name: [float(number) for number in numbers.split()] for name, numbers in lines}


def test_there_are_losses_of_every_pair_of_the_menu(found):
    assert list(found) == list(recorded())


@pytest.mark.parametrize("name", recorded() if GOLDEN.exists() else [])
def test_losses_are_the_golden_ones(found, name):
    # On another processor rounding differs, and of weights that score alike another is kept.
    assert losses(found[name]) == pytest.approx(recorded()[name], rel=1e-4 if name.endswith(" none") else 5e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"{name}: {' '.join(f'{loss:.6f}' for loss in losses(made))}\n" for name, made in pairs(Path(folder))]
    GOLDEN.write_text("".join(lines))
    sys.exit(f"{len(lines)} pairs")
