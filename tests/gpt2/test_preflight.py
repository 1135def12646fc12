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
OFTEN = PRUNED | {"pruning_interval": 1}


@pytest.mark.parametrize(
    ("changes", "ranks", "problems"),
    [
        ({}, 2, []),
        ({"n_head": 3, "min_lr": 0.1}, 1, [
            "N_EMBD=32 cannot be divided among N_HEAD=3 heads; choose a multiple",
            "MIN_LR=0.1 exceeds LEARNING_RATE=0.003; lower it or use LR_SCHEDULE=constant",
        ]),
        ({"gradient_accumulation": 3} | PRUNED | {"pruning_scope": "foo"}, 2, [
            "BATCH_SIZE=4 GRADIENT_ACCUMULATION=3: 2 processes cannot share a step evenly; set a multiple of 2, such "
            "as GRADIENT_ACCUMULATION=4, or start another number of processes",
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
        (PRUNED | {"pruning_distribution": "owl", "pruning_scope": "wte.weight"}, 1, [
            "PRUNING_DISTRIBUTION=owl measures the inputs of linear layers, and wte.weight is not the weight of one; "
            "leave it out of PRUNING_SCOPE",
        ]),
        (PRUNED | {"pruning_first_sparsity": 0.6}, 1, [
            "PRUNING_FIRST_SPARSITY=0.6 exceeds TARGET_SPARSITY=0.5, but sparsity never falls; lower it",
        ]),
        ({"lr_schedule": "restarts", "lr_first_restart": 0.5, "lr_last_restart": 0.4}, 1, [
            "LR_FIRST_RESTART=0.5 is step 20 and LR_LAST_RESTART=0.4 is step 16, but they must be steps in this order, "
            "before the last of MAX_ITERS=40",
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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pruning_method": "sparsegpt"}, "PRUNING_METHOD=sparsegpt prunes a finished model and trains nothing; run it "
         "with make oneshot RUN=... PRUNING_METHOD=sparsegpt"),
        ({"pruning_method": "shrink"}, "PRUNING_METHOD=shrink removes neurons and heads from a finished model and "
         "trains nothing; run it with make shrink RUN=..."),
        ({"pruning_method": "wanda", "pruning_structure": "both"}, "PRUNING_DYNAMICS=oneshot prunes a finished model "
         "and trains nothing; run it with make oneshot RUN=... PRUNING_METHOD=wanda"),
        ({"finetune_recipe": "sft"}, "FINETUNE_RECIPE=sft fine-tunes a finished model; run it with make finetune"),
    ],
)  # fmt: skip
def test_what_another_program_does_is_refused_by_training_and_warned_of_elsewhere(tmp_path, changes, sentence):
    made = schema(tmp_path, **changes)
    with pytest.raises(UsageError) as caught:
        preflight.check_trainable(made.bind(preflight.TrainableOptions))
    assert str(caught.value) == sentence
    assert preflight.untrainable(made) == [sentence]
    assert sentence in preflight.new(made)


def test_what_a_new_run_names_must_be_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"init_from": "./a", "pruning_method": "given", "init_masks": "b.safetensors", "distill_from": "./c"}
    with pytest.raises(UsageError) as caught:
        preflight.new(schema(tmp_path, **names))
    assert list(caught.value.args) == [
        "INIT_FROM: a: there is no such run, folder or file; check the name",
        "INIT_MASKS: b.safetensors: there is no such file; check the name",
        "DISTILL_FROM: c: there is no such run, folder or file; check the name",
    ]
    with pytest.raises(UsageError, match=r"^INIT_FROM: x{300}: cannot be read: File name too long$"):
        preflight.new(schema(tmp_path, init_from="x" * 300))
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b.safetensors").touch()
    assert preflight.new(schema(tmp_path, **names)) == []


def test_the_shape_that_weights_will_have_is_not_checked(tmp_path):
    words = {"init_from": "gpt2", "pruning_scope": "h.11.mlp.c_fc.weight", "n_head": 3} | OFTEN
    assert preflight.new(schema(tmp_path, **words)) == []
    with pytest.raises(UsageError, match="cannot be divided among N_HEAD=3"):
        preflight.quick(schema(tmp_path, **words).bind)
    with pytest.raises(UsageError, match="PRUNING_END=0"):
        preflight.new(schema(tmp_path, **words, pruning_end=0.1))


def test_options_that_do_nothing_are_warned_of(tmp_path):
    dense = "TARGET_SPARSITY=0 prunes nothing; raise it, or set PRUNING_METHOD=none"
    assert preflight.new(schema(tmp_path, **OFTEN, target_sparsity=0)) == [dense]
    assert preflight.new(schema(tmp_path, **OFTEN, target_sparsity=0, init_from="gpt2")) == [dense]
    assert preflight.new(schema(tmp_path, distill_weight=0.5)) == [
        "DISTILL_WEIGHT=0.5 does nothing, because DISTILL_FROM is empty"
    ]


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
