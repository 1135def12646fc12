"""The weights of a run are read from the checkpoint that was named, with its masks, shape, activation and tokenizer."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from gpt2.weights.named import resolved
from gpt2.weights.source import Shape, find, read
from lib.base.errors import UserError
from tests import training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the run runs/run, pruned to 50 %, and its checkpoints of steps 10, 20, 23, 30 and 40."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {"pruning_method": "magnitude", "target_sparsity": 0.5, "checkpoint_keep": 5, "tracker": "none"}
    changes |= {"pruning_interval": 3, "checkpoint_at": 23}
    training.train(folder, *training.arguments(activation="gelu", **changes))
    return folder


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained / "runs" / "run"


def saved(run, step):
    """What is in a checkpoint, read without our code."""
    return torch.load(run / "checkpoints" / f"step-{step:09d}.pt", weights_only=True)


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ("runs/run", 40), ("run", 40), ("run@newest", 40), ("runs/run@20", 20), ("run@30", 30),
        ("runs/run/checkpoints/step-000000010.pt", 10), ("runs/run/", 40), ("latest@10", 10),
    ],
)  # fmt: skip
def test_a_run_and_its_checkpoints_are_found_by_every_name(run, given, step):
    source = find(given)
    assert (source.given, source.kind, source.tokenizer, source.revision) == (given, "run", "bytes", "")
    assert source.step == step
    assert source.path.resolve() == run / "checkpoints" / f"step-{step:09d}.pt"
    assert source.shape == Shape(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=256)


def test_the_activation_is_that_of_the_run_and_the_tanh_form_for_earlier_versions(run, tmp_path):
    assert find("run").activation == "gelu"
    earlier = shutil.copytree(run, tmp_path / "earlier")
    lines = (earlier / ".config").read_text().splitlines(keepends=True)
    (earlier / ".config").write_text("".join(line for line in lines if "ACTIVATION" not in line))
    assert find(str(earlier)).activation == "gelu-tanh"


def test_the_best_checkpoint_is_the_one_with_the_lowest_loss(run):
    losses = {record["step"]: record["metrics"]["val_loss"] for record in training.records(run, "eval")}
    assert find("run@best").step == min(losses, key=losses.get)


def test_the_run_itself_is_an_ancestor_with_its_tokens_so_far(run):
    (run_id,) = {record["run_id"] for record in training.records(run, "start")}
    assert find("run@20").ancestors == {run_id: 20 * 4 * 2 * 32}


def test_the_weights_are_those_that_were_saved_bit_for_bit(run):
    weights = read(find("run"), 32, 256)
    expected = saved(run, 40)["model"]
    assert weights.state.keys() == expected.keys()
    assert all(torch.equal(weights.state[name], expected[name]) for name in expected)
    assert {value.dtype for value in weights.state.values()} == {torch.float32}
    told = subprocess.run(["sha256sum", run / "checkpoints" / "step-000000040.pt"], capture_output=True, text=True)
    assert weights.sha256 == told.stdout.split()[0]


def test_the_masks_are_those_of_the_pruner_and_their_weights_are_zero(run):
    weights, packed = read(find("run"), 32, 256), saved(run, 40)["pruner"]["masks"]
    assert weights.masks.keys() == packed.keys()
    assert "h.1.mlp.c_proj.weight" in packed
    for name, mask in weights.masks.items():
        assert (mask.dtype, mask.shape) == (torch.uint8, weights.state[name].shape)
        assert np.array_equal(np.packbits(mask.numpy()), packed[name].numpy())
        assert int((weights.state[name] * (1 - mask)).count_nonzero()) == 0
    assert sum(int(mask.sum()) for mask in weights.masks.values()) == 12288  # half of 2 blocks of 12 * 32 * 32


def test_a_checkpoint_before_the_first_pruning_has_no_masks(run):
    assert read(find("run@10"), 32, 256).masks == {}


@pytest.mark.parametrize("step", [10, 20, 23, 30, 40])
def test_the_average_of_the_nonzeros_is_exact_at_every_checkpoint(run, step):
    """Between two of them the log of a run says too little: here it has a line after every step."""
    logged = {record["step"]: record["metrics"]["average_nonzeros"] for record in training.records(run, "train")}
    assert read(find(f"run@{step}"), 32, 256).average == logged[step]
    assert (logged[step] == 24576) == (step == 10)


def test_a_run_that_prunes_nothing_has_no_average(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run, tmp_path / "runs" / "dense")
    training.rewrite(copy / "checkpoints" / "step-000000040.pt", saved(run, 40) | {"pruner": {}})
    weights = read(find("dense"), 32, 256)
    assert (weights.average, weights.masks) == (None, {})


def test_fewer_positions_and_tokens_are_cut(run):
    state = read(find("run"), 20, 200).state
    expected = saved(run, 40)["model"]
    assert torch.equal(state["wpe.weight"], expected["wpe.weight"][:20])
    assert torch.equal(state["wte.weight"], expected["wte.weight"][:200])
    assert state["wte.weight"].untyped_storage().nbytes() == 200 * 32 * 4  # the rest is not kept in memory


@pytest.mark.parametrize(("positions", "tokens", "words"), [(33, 256, "32 positions"), (32, 257, "256 tokens")])
def test_more_positions_or_tokens_than_there_are_cannot_be_read(run, positions, tokens, words):
    with pytest.raises(UserError, match=f"step-000000040.pt: the weights are for {words}, not for"):
        read(find("run"), positions, tokens)


def test_masks_that_cover_the_padding_of_the_vocabulary_are_cut(run, tmp_path, monkeypatch):
    """As a version saved them that counted the padding; here the last 6 rows of 256 stand for it."""
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run, tmp_path / "runs" / "padded")
    path = copy / "checkpoints" / "step-000000040.pt"
    state, mask = saved(run, 40), np.ones((320, 32), np.uint8)
    mask[3, 5] = 0
    state["model"]["wte.weight"] = torch.cat([state["model"]["wte.weight"], torch.zeros(64, 32)])
    state["pruner"]["masks"]["wte.weight"] = torch.from_numpy(np.packbits(mask))
    state["pruner"]["shapes"]["wte.weight"] = [320, 32]
    training.rewrite(path, state)
    weights = read(find("padded"), 32, 256)
    assert weights.state["wte.weight"].shape == weights.masks["wte.weight"].shape == (256, 32)
    assert (weights.masks["wte.weight"] == 0).nonzero().tolist() == [[3, 5]]


def _rewritten(change):
    def damage(path):
        state = torch.load(path, weights_only=True)
        change(state)
        training.rewrite(path, state)

    return damage


def _nan(state):
    state["model"]["ln_f.bias"][0] = torch.nan


def _missing(state):
    del state["model"]["ln_f.bias"]


def _no_model(state):
    del state["model"]


def _short_mask(state):
    state["pruner"]["masks"]["h.0.mlp.c_fc.weight"] = torch.zeros(3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_rewritten(_nan), "weights in the checkpoint are NaN or infinite"),
        (_rewritten(_missing), "1 of 28 tensors are missing, the first is ln_f.bias"),
        (_rewritten(_no_model), "there are no weights in this checkpoint"),
        (_rewritten(_short_mask), r"masks in this checkpoint .*: a mask of \[128, 32\] has 3 bytes instead of 512"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "the checkpoint is cut off or damaged"),
        (lambda path: path.write_text("text"), "the checkpoint is cut off or damaged"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(run, tmp_path, damage, words):
    copy = shutil.copytree(run, tmp_path / "copy")
    damage(copy / "checkpoints" / "step-000000040.pt")
    with pytest.raises(UserError, match=words) as caught:
        read(find(str(copy)), 32, 256)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "run@15",
            "no checkpoint '15'.*step-000000010, step-000000020, step-000000023, step-000000030, step-000000040",
        ),
        ("run@worst", "no checkpoint 'worst'; choose newest, best"),
        ("./nothing", "nothing: there is no such run, folder or file"),
        ("runs/nothing/else", "there is no such run, folder or file"),
        ("nothing", "there is no run, folder or file of this name"),
        ("runs/run/run.json", "run.json: is one file of a model; name its folder, /"),
        ("runs/run/journal.jsonl", "journal.jsonl: holds something other than tensors"),
        ("runs", "runs: has no config.json, so it is neither a run nor a Hugging Face folder"),
    ],
)
def test_a_name_that_is_no_source_is_one_sentence(run, given, words):
    with pytest.raises(UserError, match=words) as caught:
        find(given)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_its_run_is_one_sentence(run, tmp_path):
    alone = shutil.copy(run / "checkpoints" / "step-000000040.pt", tmp_path)
    with pytest.raises(UserError, match=r"is no checkpoint of nanoGPT.*name a ckpt\.pt, a run or"):
        find(str(alone))


def test_names_are_looked_up_in_an_output_dir(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("run", str(run.parent)).path == run / "checkpoints" / "step-000000040.pt"
    (tmp_path / "run").mkdir()  # a folder that is no model
    assert find("run@20", str(run.parent)).step == 20
    assert resolved("run@20", str(run.parent)) == f"{run}@20"
    assert resolved("run", str(run.parent)) == resolved(str(run), "") == str(run)
    assert resolved("someone/gpt2@main", str(run.parent)) == "someone/gpt2@main"
    with pytest.raises(UserError, match=r"^@20: lacks a run before the @, as in runs/name@200$"):
        find("@20", str(run.parent))
    with pytest.raises(UserError, match=r"^run@: lacks a checkpoint after the @"):
        find("run@", str(run.parent))


def test_a_run_without_its_journal_is_read_and_its_tokens_are_unknown(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "journal.jsonl").unlink()
    assert find(str(copy)).ancestors == {json.loads((run / "run.json").read_text())["run_id"]: None}
    assert hashlib.sha256(find("run").path.read_bytes()).hexdigest() == read(find("run"), 32, 256).sha256
