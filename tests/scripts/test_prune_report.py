"""The report on pruning, as the program prints it; numbers worked out by hand for the tiny model.

Its parameters: 8,192 + 1,024 in embeddings, 2 x 12,704 in blocks of which 12,288 are matrices, 64 in the last norm.
"""

import pytest
import torch

from gpt2.weights import masks
from lib.base.errors import UserError
from scripts import prune_report
from tests.training import arguments, run, schema, train


@pytest.fixture
def report(folder, monkeypatch, capsys):
    """The report on the tiny run, with changes, as a list of lines with single spaces."""

    def make(**changes):
        monkeypatch.setattr("sys.argv", ["prune_report.py", *arguments(**changes)])
        assert prune_report.main() == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
        return [" ".join(line.split()) for line in lines]

    return make


def test_the_program(program, report):
    words = arguments(pruning_method="magnitude")
    done = program("scripts/prune_report.py", *words)
    note = "chooses masks about 2 times in steps 10 to 30; a lower interval prunes in smaller leaps\n"
    assert (done.returncode, done.stderr) == (0, f"warning: PRUNING_INTERVAL=50 {note}")
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == report(pruning_method="magnitude")
    done = program("scripts/prune_report.py", *words, "--target-sparsity", "1.5")
    sentence = "error: --target-sparsity must lie between 0 and 0.9999; got 1.5\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_gradual_magnitude(report):
    lines = report(pruning_method="magnitude", pruning_interval=10)
    for line in (
        "criterion magnitude: |w|",
        "masks gradual: sparsity grows along the schedule",
        "compared global-rms: all, scores over each tensor's RMS",
        "h.*.attn.c_attn.weight 2 6,144 17.71 % at most 99.00 %",
        "h.*.mlp.c_proj.weight 2 8,192 23.62 % at most 99.00 %",
        "total 8 24,576 70.85 % 50.00 %",
        "start step 10 of 40",
        "end step 30",
        "updates masks are chosen 3 times, every 10 steps",
        # 19 steps with 24,576 weights, 10 with 7/8 of the target pruned, 11 with 12,288 left
        "non-zeros 12,288 of 24,576 in the end, 18,508.8 on average over the run",
        "weights 4 parameter 0.139",
        "state of adamw 8 parameter 0.278",
        "masks 1 weight in scope 0.025",
        "criterion 0 weight in scope 0.000",
        "checkpoint 12.089 parameter 0.419",  # 12 + 24,576 / 8 / 34,688
        "zeroing pruned gradients 9 22.77 %",  # 9 x 24,576 of 28 x 34,688
        "torch's fused AdamW moves 28 bytes for each weight of the model; other optimizers differ.",
    ):
        assert line in lines


def test_given_masks(report, folder):
    """A quarter of one c_attn and three quarters of the other, 1,024 of one c_fc; the other tensors stay dense."""
    own = {f"h.{layer}.attn.c_attn.weight": torch.ones(96, 32, dtype=torch.uint8) for layer in (0, 1)}
    own["h.0.attn.c_attn.weight"][:24] = 0
    own["h.1.attn.c_attn.weight"][:72] = 0
    own["h.1.mlp.c_fc.weight"] = torch.ones(128, 32, dtype=torch.uint8)
    own["h.1.mlp.c_fc.weight"][32:64] = 0
    masks.write(folder / "some.safetensors", own)
    lines = report(pruning_method="given", init_masks="some.safetensors")
    for line in (
        "criterion given: masks that exist already, for the whole run",
        "masks of some.safetensors",
        "h.*.attn.c_attn.weight 2 6,144 17.71 % 25.00 % to 75.00 %",
        "h.*.attn.c_proj.weight 2 2,048 5.90 % 0.00 %",
        "h.*.mlp.c_fc.weight 2 8,192 23.62 % 0.00 % to 25.00 %",
        "total 8 24,576 70.85 % 16.67 %",  # 4,096 of 24,576
        "start before the first step of 40",
        "updates none: the masks are given",
        "non-zeros 20,480 of 24,576 in the end, 20,480.0 on average over the run",
        "16.67 % |" + "#" * 60,
        "masks 1 weight in scope 0.025",
        "criterion 0 weight in scope 0.000",
        "checkpoint 12.089 parameter 0.419",
        "zeroing pruned gradients 9 22.77 %",
        "Masks are given, so nothing is ranked.",
    ):
        assert line in lines
    assert not any(line.startswith(("end ", "compared ", "masks are")) for line in lines)


@pytest.mark.parametrize(
    ("changes", "times", "read"),
    [
        ({"pruning_method": "synflow"}, "in 100 passes, each on the network that the last one has left", ""),
        ({"pruning_method": "grasp"}, "once", "read the first batch"),
        (
            {"pruning_method": "gradient", "pruning_dynamics": "static", "pruning_passes": 3, "pruning_batches": 2},
            "in 3 passes, each on the network that the last one has left",
            "read the first 2 batches, in each pass",
        ),
    ],
)
def test_passes_before_the_first_step(report, changes, times, read):
    lines = report(**changes)
    for line in (
        "start before the first step of 40",
        f"updates masks are chosen {times}",
        read,
        "non-zeros 12,288 of 24,576 in the end, 12,288.0 on average over the run",
        "masks 1 weight in scope 0.025",
        "criterion 0 weight in scope 0.000",
    ):
        assert line in lines


def test_one_shot_pruning_is_for_another_program(report):
    with pytest.raises(UserError, match=r"^PRUNING_METHOD=sparsegpt with PRUNING_DYNAMICS=oneshot prunes a finished "):
        report(pruning_method="sparsegpt")


def test_zeros_of_the_first_weights(report, folder):
    pruning = {"pruning_method": "magnitude", "pruning_distribution": "layer", "pruning_interval": 1}
    train(folder, *arguments(**pruning, max_iters=4, tracker="none"))
    shape = dict.fromkeys(("model_name", "n_layer", "n_head", "n_embd", "block_size", "tokenizer"))
    lines = report(**shape, pruning_method="given", init_from="runs/run")
    for line in (
        "masks of zeros",
        "weights of runs/run",
        "h.*.attn.c_attn.weight 2 6,144 17.71 % 50.00 %",
        "total 8 24,576 70.85 % 50.00 %",
        "non-zeros 12,288 of 24,576 in the end, 12,288.0 on average over the run",
    ):
        assert line in lines


@pytest.mark.parametrize(
    "changes",
    [
        {"pruning_interval": 3, "target_sparsity": 0.7, "pruning_warmup": 5},
        {"pruning_dynamics": "static"},
        {"pruning_method": "synflow", "pruning_passes": 4},
        {"pruning_dynamics": "rigl", "pruning_interval": 7},
        {"pruning_dynamics": "chts", "pruning_interval": 7},
        {"pruning_dynamics": "granet", "pruning_interval": 4, "granet_start_sparsity": 0.3, "target_sparsity": 0.8},
        {"pruning_dynamics": "mest", "pruning_interval": 4, "mest_soft_bound": True},
        {"pruning_dynamics": "ste", "pruning_warmup": 0, "pruning_distribution": "n-m"},
        {"pruning_dynamics": "ste", "pruning_interval": 4, "target_sparsity": 0.8},
        {"pruning_dynamics": "s-ste"},
    ],
)
def test_the_average_is_what_a_run_has(report, tmp_path, changes):
    changes = {"pruning_method": "magnitude"} | changes
    average = next(line for line in report(**changes) if line.startswith("non-zeros")).split()[7]
    metrics = next(m for event, step, m in reversed(run(schema(tmp_path, **changes))) if event == "train")
    assert average == f"{metrics['average_nonzeros']:,.1f}"


def test_what_counting_links_costs(report):
    """Of each tensor of m x n weights 4 m n (m + n): 1,572,864 + 262,144 + 2 x 2,621,440 in each of 2 layers."""
    lines = report(pruning_method="magnitude", pruning_dynamics="chts")
    assert "What neurons share is counted by matrix products of 1.42e+07 operations." in lines


def test_what_may_return_is_remembered_if_not_all_was_active_at_first(report):
    remembered = "which were ever active 1 weight in scope 0.025"
    assert remembered in report(pruning_method="magnitude", pruning_dynamics="rigl")
    assert remembered not in report(pruning_method="magnitude", pruning_dynamics="ste")
    assert remembered not in report(pruning_method="magnitude", pruning_dynamics="granet")
    assert remembered in report(pruning_method="magnitude", pruning_dynamics="granet", granet_start_sparsity=0.1)


def test_what_each_update_replaces(report):
    lines = report(pruning_method="magnitude", pruning_dynamics="rigl", pruning_interval=10)
    # 0.15 (1 + cos(pi / 3)), and 0 at the end, step 30
    assert "replaced 22.50 % of the kept weights at the first update, 0.00 % at the last" in lines
    assert "An update of the masks ranks every weight twice, tensor by tensor: to drop and to grow." in lines
    words = {"pruning_dynamics": "granet", "pruning_interval": 10, "granet_start_sparsity": 0.25}
    lines = report(pruning_method="magnitude", **words)
    assert "before the start 25.00 % is pruned at random" in lines
    assert "updates masks are chosen 4 times, every 10 steps" in lines  # at 10, 20, 30 and the last step
    # 0.005 + 0.2475 (1 + cos(pi / 4)), and 0.005 at step 40
    assert "replaced 42.75 % of the kept weights at the first update, 0.50 % at the last" in lines
    assert "Then it ranks every weight twice, tensor by tensor: to drop and to grow." in lines
    lines = report(pruning_method="magnitude", pruning_dynamics="mest", mest_soft_bound=True, pruning_interval=10)
    assert "beyond the target 20.00 % of the kept weights at the first update, 0.00 % at the last" in lines
    assert "total 8 24,576 70.85 % 50.00 %" in lines


def test_the_plot_rises_from_start_to_end(report):
    lines = report(pruning_method="magnitude", pruning_schedule="one-shot", pruning_warmup="0.5")
    bars = [line.partition("|")[2] for line in lines if "|" in line and "#" in line]
    assert len(bars) == 8
    assert {bar.strip() for bar in bars} == {"#" * 32}  # of 60 columns over steps 1 to 40, those from step 20 on


def test_per_tensor_budgets(report):
    """ERK keeps rows + columns of each tensor, of 1,024 in all, times the 2,458 weights kept: 307, 154, 384 and 384."""
    lines = report(pruning_method="magnitude", pruning_distribution="erk", target_sparsity=0.9)
    shares = {line.split()[0]: line.split()[5] for line in lines if line.startswith("h.*")}
    assert shares == {
        "h.*.attn.c_attn.weight": "90.01", "h.*.attn.c_proj.weight": "84.96",
        "h.*.mlp.c_fc.weight": "90.62", "h.*.mlp.c_proj.weight": "90.62",
    }  # fmt: skip
    lines = report(pruning_method="magnitude", pruning_dynamics="sr-ste")
    assert "total 8 24,576 70.85 % 50.00 %" in lines
    assert "updates masks are chosen 41 times, at every step and before the first" in lines
    assert "start before the first step of 40" in lines


def test_owl_decides_the_shares_in_training_within_its_range(report):
    lines = report(pruning_method="wanda", pruning_distribution="owl", target_sparsity=0.6)
    assert "compared owl: in a tensor, less where outliers are" in lines
    assert "h.*.attn.c_attn.weight 2 6,144 17.71 % at most 76.00 %" in lines  # 0.6 + 2 x 0.08
    assert "total 8 24,576 70.85 % 60.00 %" in lines
    text = " ".join(lines)
    assert "computes Wanda's scores twice, for the outliers of the blocks, and every score once, and ranks them" in text
    lines = report(pruning_method="magnitude", pruning_distribution="owl", target_sparsity=0.9)
    assert "h.*.mlp.c_fc.weight 2 8,192 23.62 % at most 100.00 %" in lines


def test_a_large_first_update_is_in_the_plot_and_in_the_average(report):
    words = {"pruning_method": "magnitude", "pruning_interval": 5, "target_sparsity": 0.8}
    lines = report(**words, pruning_first_sparsity=0.4)
    assert "at once 40.00 %" in lines
    bars = [line.partition("|")[2] for line in lines if "|" in line and "#" in line]
    # Of 60 columns over steps 1 to 40, those from step 10 on have half of the rows at once.
    assert [len(bar.strip()) for bar in bars[-4:]] == [47] * 4 and len(bars[-5].strip()) < 47


def test_neurons_and_heads(report):
    words = {"pruning_structure": "both", "n_head": 4, "target_sparsity": 0.25, "pruning_interval": 5}
    lines = report(pruning_method="magnitude", **words)
    assert "pruned as a whole both: neurons and heads, each to the same share" in lines
    at = lines.index("Neurons and heads")
    assert lines[at + 1 : at + 4] == [
        "layers of model pruned in the end weights each",
        "heads 2 8 2 1,048",  # 8 x (4 x 32 + 3)
        "neurons 2 256 64 65",  # 2 x 32 + 1
    ]
    assert "h.*.mlp.c_fc.bias 2 256 0.74 % 25.00 %" in lines
    assert "total 12 25,024 72.14 % 25.00 %" in lines
    assert "An update of the masks computes every score once, sums them, and ranks the sums." in lines
    lines = report(pruning_method="random", **words, pruning_distribution="global-rms")
    assert "h.*.attn.c_proj.weight 2 2,048 5.90 % at most 75.00 %" in lines  # one of 4 heads stays


def test_the_vocabularys_padding_is_not_in_scope(report):
    """50,257 rows of 32 of the 50,304 that the model has; the model is 50,257 x 32 + 26,496 without them."""
    lines = report(pruning_method="magnitude", pruning_scope="wte.weight", tokenizer="gpt2")
    assert "wte.weight 1 1,608,224 98.38 % at most 99.00 %" in lines
    assert "total 1 1,608,224 98.38 % 50.00 %" in lines


def test_top_kast_trains_more_weights_than_it_uses(report):
    lines = report(pruning_method="magnitude", pruning_dynamics="topkast", pruning_interval=10, target_sparsity=0.8)
    for line in (
        "masks topkast: sparse at once; trains more than it uses",
        "compared layer: within a tensor, the same share of each",
        "total 8 24,576 70.85 % 80.00 %",
        "updates masks are chosen 5 times, every 10 steps and before the first",
        "non-zeros 4,915 of 24,576 in the end, 4,915.0 on average over the run",
        "which are trained, and a reserve 5 weight in scope 0.123",
        "which were ever active 1 weight in scope 0.025",
        # (12 x 34,688 + 3 x 24,576 / 8 + 4 x 19,661) / 34,688
        "checkpoint 14.533 parameter 0.504",
        "zeroing gradients that are not trained 9 22.77 %",
        "penalty 25 63.26 %",
        "masked weights, forward and backward 36 91.09 %",
        "An update of the masks ranks every weight, and then those that are trained among themselves.",
    ):
        assert line in lines


def test_movement_remembers_scores_and_dense_values(report):
    lines = report(pruning_method="movement")
    assert "criterion 4 weight in scope 0.098" in lines
    assert "checkpoint 16.339 parameter 0.567" in lines  # (12 x 34,688 + 24,576 / 8 + 4 x 24,576 + 4 x 12,288) / 34,688
    assert "scores 16 40.48 %" in lines  # 16 x 24,576 of 28 x 34,688
    assert "masked weights, forward and backward 36 91.09 %" in lines  # 18 for each of 2 micro-batches


def test_s_ste_projects_in_every_pass_and_saves_all_dense_weights(report):
    lines = report(pruning_method="magnitude", pruning_dynamics="s-ste")
    assert "masks s-ste: ste, smooth where masks change (for n:m)" in lines
    assert "total 8 24,576 70.85 % 50.00 %" in lines
    assert "updates masks are chosen 41 times, at every step and before the first" in lines
    assert "smooth weights, forward and backward 248 627.52 %" in lines  # 4 times 60 + 8 / 4 bytes
    assert "zeroing pruned gradients 9 22.77 %" not in lines
    # (12 x 34,688 + 2 x 24,576 / 8 + 4 x 24,576) / 34,688: each weight in scope also has a bit for ever_active
    assert "checkpoint 15.011 parameter 0.521" in lines


def test_soft_movement_has_no_target(report):
    lines = report(pruning_method="movement", pruning_movement="soft")
    assert "total 8 24,576 70.85 % a result" in lines
    assert "non-zeros all weights with scores above the threshold; the plot shows how the threshold rises" in lines
    assert any(line.startswith("threshold |") for line in lines)


def test_str_has_neither_target_nor_path(report):
    lines = report(pruning_method="str")
    for line in (
        "criterion str: each tensor learns a threshold for |w|",
        "h.*.mlp.c_proj.weight 2 8,192 23.62 % by its threshold",
        "total 8 24,576 70.85 % a result",
        "sparsity a result of training: it is neither set nor known before",
        "decided by STR_DECAY: more of it, or more steps, prunes more, until the loss holds against it",
        "read more docs/methods.md#str",
        "criterion 0.003 weight in scope 0.000",  # 8 bytes for each of 8 tensors
        "checkpoint 15.013 parameter 0.521",  # (12 x 34,688 + 2 x 24,576 / 8 + 64 + 4 x 24,576) / 34,688
        "training the thresholds 8 20.24 %",
        "soft thresholds, forward and backward 32 80.97 %",  # 16 for each of 2 micro-batches
        "An update of the masks compares every weight with the threshold.",
    ):
        assert line in lines
    assert not any("|" in line and "#" in line for line in lines)


def test_state_pruning_names_its_formula_and_the_bases_memory(report):
    lines = report(optimizer="adamwprune", pruning_state="fisher")
    assert "formula fisher: w^2 v" in lines
    assert "state of adamwprune 8 parameter 0.278" in lines
    assert "Magnitudes are ranked too, for comparison." in lines


def test_without_pruning_it_says_how_to_choose(report):
    assert report() == [
        "PRUNING_METHOD=none: nothing is pruned; choose a method in `make menuconfig` or on the command line:",
        "make prune-report PRUNING_METHOD=magnitude",
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"pruning_warmup": 0.8},
            "PRUNING_END=0.75 is step 30, before pruning starts at step 32 (PRUNING_WARMUP=0.8); end it later or start "
            "it sooner",
        ),
        (
            {"pruning_scope": "h.*.weight,nothing"},
            "PRUNING_SCOPE: 'nothing' matches no parameter; names look like wte.weight and h.0.attn.c_attn.weight",
        ),
    ],
)
def test_what_cannot_be_is_training_s_sentence(report, tmp_path, changes, sentence):
    changes = {"pruning_method": "magnitude"} | changes
    for refused in (lambda: report(**changes), lambda: run(schema(tmp_path, **changes))):
        with pytest.raises(UserError) as error:
            refused()
        assert (str(error.value), error.value.exit_code) == (sentence, 2)
