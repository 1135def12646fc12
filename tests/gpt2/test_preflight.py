"""Everything that a configuration alone makes impossible is told at once, and without data."""

import os
import subprocess
import sys

import pytest

from gpt2 import preflight
from lib.base.errors import UsageError
from lib.config.kconf import ROOT
from tests.training import UNEVALUATED, schema

PRUNED = {"pruning_method": "magnitude"}


@pytest.mark.parametrize(
    ("changes", "ranks", "problems"),
    [
        ({}, 2, []),
        ({"n_head": 3, "min_lr": 0.1}, 1, [
            "N_EMBD=32 cannot be divided among N_HEAD=3 heads; choose a multiple",
            "MIN_LR=0.1 exceeds LEARNING_RATE=0.003; lower it or use LR_SCHEDULE=constant",
        ]),
        ({"gradient_accumulation": 3} | PRUNED | {"pruning_scope": "foo"}, 2, [
            "GRADIENT_ACCUMULATION=3: cannot be shared by 2 ranks evenly; set GRADIENT_ACCUMULATION=4 BATCH_SIZE=3, "
            "which learns the same",
            "PRUNING_SCOPE: 'foo' matches no parameter; names look like wte.weight and h.0.attn.c_attn.weight",
        ]),
        (PRUNED | {"pruning_warmup": 0.8, "pruning_end": 0.3}, 1, [
            "PRUNING_END=0.3 is step 12, before pruning starts at step 32 (PRUNING_WARMUP=0.8); end it later or start "
            "it sooner",
        ]),
        (PRUNED | {"pruning_distribution": "n-m", "pruning_n": 4, "pruning_m": 2}, 1,
         ["PRUNING_N=4 must be less than PRUNING_M=2"]),
        ({"pruning_method": "wanda", "pruning_scope": "wte.weight"}, 1, [
            "PRUNING_METHOD=wanda measures the inputs of linear layers, and wte.weight is not the weight of one; leave "
            "it out of PRUNING_SCOPE",
        ]),
        ({"val_fraction": 0}, 1, ["VAL_FRACTION=0 leaves no text for validation; raise it, or set EVALUATE=n"]),
        ({"val_fraction": 0} | UNEVALUATED, 1, []),
        ({"optimizer": "adamwspam", "spam_interval": 100}, 1, [
            "SPAM_WARMUP_STEPS=150 does not end before the next reset; choose less than SPAM_INTERVAL=100",
        ]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_at_once(tmp_path, changes, ranks, problems):
    made = schema(tmp_path, **changes)
    if not problems:
        preflight.check(made.bind, ranks)
        return
    with pytest.raises(UsageError) as error:
        preflight.check(made.bind, ranks)
    assert list(error.value.args) == problems
    assert not (tmp_path / "data").exists()


def test_the_random_state_is_left_as_it_is(tmp_path):
    import torch

    before = torch.get_rng_state()
    preflight.check(schema(tmp_path, **PRUNED).bind)
    assert torch.equal(torch.get_rng_state(), before)


def test_checking_does_not_import_the_compiler(tmp_path):
    """Which would take a second of every start."""
    words = "import sys; from gpt2 import preflight; from tests.training import schema; from pathlib import Path"
    check = "preflight.check(schema(Path.cwd(), pruning_method='movement').bind); print('torch._dynamo' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{words}; {check}"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
