"""Iterative magnitude pruning with rewinding: the repository's sweep as planned, and a small one as trained."""

import json

import pytest

from lib.compare import sweep
from lib.record import checkpoint
from tests.compare.test_sweep import COMMON, events, run, write
from tests.training import ROOT

TOKENS = 4 * 2 * 32  # of a step
SMALL = (
    f"common {COMMON} MAX_ITERS=24 EVAL_INTERVAL=0 WARMUP_STEPS=1",
    "match final-nonzeros",
    "dense",
    "mask-1    from=@dense    oneshot PRUNING_METHOD=magnitude PRUNING_DISTRIBUTION=layer TARGET_SPARSITY=0.2",
    "ticket-1  from=@dense@8 PRUNING_METHOD=given INIT_MASKS=@mask-1 MAX_ITERS=16",
    "mask-2    from=@ticket-1 oneshot PRUNING_METHOD=magnitude PRUNING_DISTRIBUTION=layer TARGET_SPARSITY=0.36",
    "ticket-2  from=@dense@8 PRUNING_METHOD=given INIT_MASKS=@mask-2 MAX_ITERS=16",
    "chance-2  from=@dense    oneshot PRUNING_METHOD=random PRUNING_DISTRIBUTION=layer TARGET_SPARSITY=0.36",
    "random-2  from=@dense@8 PRUNING_METHOD=given INIT_MASKS=@chance-2 MAX_ITERS=16",
)


def test_each_round_of_the_sweep_prunes_a_fifth_of_what_is_left_and_rewinds():
    plan = sweep.read(ROOT / "sweeps/lottery")
    made = {one.name: one for one in plan.configurations}
    assert list(made) == [
        "dense", *(f"{kind}-{n}" for n in range(1, 9) for kind in ("mask", "ticket")),
        "chance-4", "random-4", "chance-8", "random-8",
    ]  # fmt: skip
    options = {one.name: {name: text for name, text, _ in one.own} for one in plan.configurations}
    for number in range(1, 9):
        mask, ticket = f"mask-{number}", f"ticket-{number}"
        assert float(options[mask]["TARGET_SPARSITY"]) == pytest.approx(1 - 0.8**number, abs=1e-12)
        assert dict(made[mask].begins) == {"INIT_FROM": (f"ticket-{number - 1}" if number > 1 else "dense", "")}
        assert dict(made[ticket].begins) == {"INIT_FROM": ("dense", "@100"), "INIT_MASKS": (mask, "")}
    for number in (4, 8):
        assert options[f"chance-{number}"]["TARGET_SPARSITY"] == options[f"mask-{number}"]["TARGET_SPARSITY"]
        begins = {"INIT_FROM": ("dense", "@100"), "INIT_MASKS": (f"chance-{number}", "")}
        assert dict(made[f"random-{number}"].begins) == begins
    assert [len(plan.seeds), len(plan.runs())] == [3, 63]
    assert "CHECKPOINT_AT=100" in plan.run(plan.named("dense"), 1).words()


def zeros(folder):
    """Name of each matrix of the blocks -> where its weights are zero in the newest checkpoint."""
    model = checkpoint.load(checkpoint.find(folder / "checkpoints")[-1])["model"]
    return {name: value == 0 for name, value in model.items() if name.startswith("h.") and value.dim() == 2}


def test_two_rounds_and_the_control(tmp_path):
    write(tmp_path, *SMALL, head="defconfig gpt2_tiny\nseeds 1\n")
    run(tmp_path, "--jobs", "2")
    home = tmp_path / "runs/few"
    first, second, chance = (zeros(home / f"{name}-seed1") for name in ("ticket-1", "ticket-2", "random-2"))
    assert sum(int(gone.sum()) for gone in first.values()) == 4_915  # round(0.2 x 24,576)
    for name, gone in second.items():
        assert bool((gone | ~first[name]).all())  # what a round has pruned stays pruned
        assert int(gone.sum()) == int(chance[name].sum()) == pytest.approx(0.36 * gone.numel(), abs=1)
        assert not bool((gone == chance[name]).all())
    assert sum(int(gone.sum()) for gone in second.values()) == 8_847  # round(0.36 x 24,576)
    begun = events(home / "ticket-2-seed1")[0]
    assert (begun["init"]["step"], begun["masks"]["from"]) == (8, "runs/few/mask-2-seed1")

    found = json.loads((home / "results.json").read_text())
    rows = {row["configuration"]: row for row in found["configurations"]}
    steps = {name: row["total_tokens"]["mean"] / TOKENS for name, row in rows.items()}
    # Each run of a chain once, as far as it was needed: dense to its end, since the masks come from there.
    assert steps == {
        "dense": 24, "mask-1": 24, "ticket-1": 40, "mask-2": 40, "ticket-2": 56, "chance-2": 24, "random-2": 40
    }  # fmt: skip
    assert rows["ticket-2"]["dense_flops"]["mean"] == pytest.approx(56 / 24 * rows["dense"]["dense_flops"]["mean"])
    assert rows["random-2"]["dense_flops"]["mean"] == pytest.approx(40 / 24 * rows["dense"]["dense_flops"]["mean"])
    assert [block["configurations"] for block in found["blocks"]] == [
        ["dense"], ["mask-1", "ticket-1"], ["mask-2", "ticket-2", "chance-2", "random-2"]
    ]  # fmt: skip
    text = (home / "table.md").read_text()
    assert "tokens with the runs before" in text and "training FLOPs, dense" in text
