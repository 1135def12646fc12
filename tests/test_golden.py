"""The training path of every pair of optimizer and pruning that the menu allows, pinned by its losses.

Any change of the arithmetic shows here. If one is meant, raise the number of the part that learns something else now
(lib/config/matters.py), write the new losses with `python -m tests.test_golden`, and say why in the commit. It refuses
losses that changed while all numbers of their parts stayed: sweeps would still count finished runs of earlier code.
"""

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lib.config import matters
from lib.config.config_file import ConfigError
from tests.training import run, schema

GOLDEN = Path(__file__).parent / "golden" / "losses_pairs.txt"
NUMBERS = GOLDEN.with_name("numbers.txt")  # golden losses -> their digest, and the numbers of their parts beyond 1
WHOLE = {f"losses_{name}.txt": {"training": 1, f"OPTIMIZER={name}": 1} for name in ("adam", "adamw", "sgd")}
RATES = {"sgd": 0.1}
# Movement has two forms below, sparsegpt, shrink and oneshot are for finished models, and given needs masks.
APART = {"movement", "sparsegpt", "shrink", "given", "oneshot"}
BRIEF = {
    "dropout": 0, "max_iters": 20, "eval_interval": 0, "eval_samples": 1, "warmup_steps": 2,
    "spam_interval": 8, "spam_warmup_steps": 3, "spam_clip_free_steps": 2, "stablespam_interval": 8,
    "movement_threshold": 0.6, "movement_learning_rate": 1,
    "str_init": -4, "str_decay": 0.2,
    "pruning_warmup": 4, "pruning_end": 16, "pruning_interval": 3, "target_sparsity": 0.6,
    "pruning_passes": 5, "pruning_batches": 2,
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
    more = {"granet": {"granet_start_sparsity": "0.3"}, "mest": {"mest_lambda": "20", "mest_soft_bound": "y"}}
    dynamics += [{"pruning_method": "magnitude", "pruning_dynamics": name} | own for name, own in more.items()]
    snip = [{"pruning_method": "gradient", "pruning_dynamics": "static"}]  # in several passes
    others = [{"pruning_method": m, "pruning_distribution": "owl"} for m in ("magnitude", "wanda")]
    others.append({"pruning_method": "magnitude", "lr_schedule": "restarts", "pruning_first_sparsity": "0.4"})
    states = [{"pruning_method": "state", "pruning_state": s} for s in options["PRUNING_STATE"].members]
    whole = [s for s in options["PRUNING_STRUCTURE"].members if s != "none"]
    units = [{"pruning_structure": s, "pruning_method": "magnitude"} for s in whole]
    units += [{"pruning_structure": "both", **m} for m in methods if m["pruning_method"] not in ("none", "magnitude")]
    units += [{"pruning_structure": "both", **d} for d in dynamics[1:]]
    units += [{"pruning_structure": "both", "pruning_method": "magnitude", "pruning_distribution": "global-rms"}]
    units = [({"optimizer": "adamw"}, u) for u in units]
    grid = [(o, m) for o in optimizers for m in methods]
    grid += [({"optimizer": "adamw"}, m) for m in dynamics[1:] + snip + states[1:] + others] + units
    for optimizer, method in grid:
        made = configuration(folder, **optimizer, **method)
        if made and made["PRUNING_DYNAMICS"] != "oneshot":
            yield " ".join([*optimizer.values(), *method.values()]), made


def losses(made):
    """The training loss of each step."""
    torch.set_num_threads(1)
    return [metrics["train_loss"] for event, _, metrics in run(made) if event == "train"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return dict(pairs(tmp_path_factory.mktemp("golden")))


def golden():
    """Name -> the losses as they are written."""
    lines = dict(line.split(": ") for line in GOLDEN.read_text().splitlines())
    return lines | {name: GOLDEN.with_name(name).read_text() for name in WHOLE}


def recorded():
    return {name: [float(number) for number in text.split()] for name, text in golden().items() if name not in WHOLE}


# ---- numbers of parts ------------------------------------------------------------------------------------------------

Kept = tuple[str, Mapping[str, int]]  # digest of losses, part -> number


def kept(lines):
    """Name -> what NUMBERS has of these lines of it."""
    found = {}
    for line in lines:
        name, _, rest = line.partition(": ")
        digest, *words = rest.split()
        found[name] = digest, {part: int(number) for part, number in (word.rsplit("=", 1) for word in words)}
    return found


def now(texts, parts):
    """Name -> what NUMBERS should have; `parts` is name -> part -> number."""
    return {
        name: (hashlib.sha256(text.encode()).hexdigest()[:12], {p: n for p, n in parts[name].items() if n > 1})
        for name, text in texts.items()
    }


def unexplained(before: Mapping[str, Kept], after: Mapping[str, Kept]):
    """The losses that changed although no number of their parts was raised, and those whose number was lowered."""
    for name in before.keys() & after.keys():
        (was, old), (new, numbers) = before[name], after[name]
        raised = [part for part, number in numbers.items() if number > old.get(part, 1)]
        if (was != new and not raised) or any(numbers.get(part, 1) < number for part, number in old.items()):
            yield name


def parts_of(found):
    return {name: matters.learns(made) for name, made in found.items()} | {
        name: {part: matters.NUMBERS.get(part, number) for part, number in parts.items()}
        for name, parts in WHOLE.items()
    }


def test_golden_losses_change_only_with_a_number(found):
    expected = now(golden(), parts_of(found))
    assert kept(NUMBERS.read_text().splitlines()) == expected, "see this file's first lines"


def test_a_change_needs_the_number_of_a_part_that_it_concerns():
    before = kept(["adamw none: aaa", "adamw state: bbb", "muon none: ccc", "muon state: ddd pruning=2"])
    changed = {**before, "adamw none": ("new", {}), "adamw state": ("new", {})}
    assert sorted(unexplained(before, changed)) == ["adamw none", "adamw state"]
    changed["adamw state"] = "new", {"pruning": 2}
    assert list(unexplained(before, changed)) == ["adamw none"]
    raised = {"OPTIMIZER=adamw": 2}
    assert list(unexplained(before, {**before, "adamw none": ("new", raised), "adamw state": ("new", raised)})) == []
    assert list(unexplained(before, {**before, "muon state": ("new", {"pruning": 2})})) == ["muon state"]
    assert list(unexplained(before, {**before, "muon state": ("ddd", {})})) == ["muon state"]


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_there_are_losses_of_every_pair_of_the_menu(found):
    assert list(found) == list(recorded())


def tolerance(name):
    """On another processor rounding differs, and of weights that score alike another is kept."""
    return 1e-4 if name.endswith(" none") else 5e-4


@pytest.mark.parametrize("name", recorded() if GOLDEN.exists() else [])
def test_losses_are_the_golden_ones(found, name):
    assert losses(found[name]) == pytest.approx(recorded()[name], rel=tolerance(name))


def main():
    """Write the losses that are new or have changed, and the table of numbers; returns a sentence."""
    texts, before = golden(), recorded()
    with tempfile.TemporaryDirectory() as folder:
        made = dict(pairs(Path(folder)))
        for name, one in made.items():
            values = losses(one)
            if name not in before or values != pytest.approx(before[name], rel=tolerance(name)):
                texts[name] = " ".join(f"{loss:.6f}" for loss in values)
    after = now({name: texts[name] for name in (*made, *WHOLE)}, parts_of(made))
    if wrong := sorted(unexplained(kept(NUMBERS.read_text().splitlines()), after)):
        return f"raise a number in lib/config/matters.py first: these losses changed without one: {', '.join(wrong)}"
    GOLDEN.write_text("".join(f"{name}: {texts[name]}\n" for name in made))
    lines = (
        "".join([name, ": ", digest, *(f" {p}={n}" for p, n in more.items())]) for name, (digest, more) in after.items()
    )
    NUMBERS.write_text("".join(f"{line}\n" for line in lines))
    return f"{len(made)} pairs"


if __name__ == "__main__":
    sys.exit(main())
