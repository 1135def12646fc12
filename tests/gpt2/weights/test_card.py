"""The model card: it says what a run recorded, for every kind of origin, and nothing that was not measured."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gpt2.oneshot import start
from gpt2.weights.adopt import adopt, reshape
from gpt2.weights.card import card
from gpt2.weights.facts import Facts, command, public
from gpt2.weights.source import Shape, Source
from lib.config import matters
from lib.config.command_line import resolve
from lib.config.config_file import presets
from lib.config.kconf import Schema
from lib.record.best import Evaluation
from lib.record.run import Identity
from scripts import oneshot

SHA = "0123456789abcdef" * 4
INIT = {
    "from": "/home/me/models/gpt2", "kind": "huggingface", "path": "/home/me/models/gpt2", "sha256": SHA,
    "revision": "607a30d7", "step": 0, "ancestors": {"openai-community/gpt2@607a30d7": None},
}  # fmt: skip


def facts(tmp_path, *options: str, **changes: object) -> Facts:
    schema = changes.get("schema") or Schema()
    schema.override([(*option.split("=", 1), "test") for option in options])
    shape = Shape(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    config = {name: value for name, value in schema.values().items() if name not in ("data_dir", "output_dir")}
    ancestors = {"0123456789ab": 3000}
    plain = Facts(
        source=Source("runs/x", "run", tmp_path / "step-000000100.pt", shape, "gpt2", "gelu-tanh", "", 100, ancestors),
        identity=Identity("0123456789ab", "project", "x"),
        schema=schema,
        config=config,
        sessions=[{"event": "start"}],
        code="",
        evaluations=[],
        bits_per_byte=None,
        tasks=[],
        zeros={},
        parameters=124_439_808,
    )
    if "ancestors" in changes:
        changes["source"] = dataclasses.replace(plain.source, ancestors=ancestors | changes.pop("ancestors"))
    return dataclasses.replace(plain, **changes)


def row(text: str, name: str) -> str:
    return re.search(rf"^\| {re.escape(name)} \| (.+) \|$", text, re.MULTILINE)[1]


def test_a_dense_run_without_evaluations_claims_nothing(tmp_path):
    text = card(facts(tmp_path))
    assert ModelCard(text).data.to_dict() == {
        "license": "mit", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["gpt2", "espalier"],
    }  # fmt: skip
    assert "(124,439,808 parameters). Its tokenizer is GPT-2's byte-pair encoding." in text
    assert "The run did not evaluate its validation loss." in text
    assert "Scores on tasks were not measured." in text
    assert (row(text, "code"), row(text, "tokens of this run")) == ("not known", "3,000")
    for word in ("sparsity", "zeros", "masks", "faster", "nats"):
        assert word not in text.lower()


def test_losses_are_those_of_these_weights_and_of_the_best(tmp_path):
    losses = [Evaluation(50, 3.25, 0.0), Evaluation(100, 3.5, 0.0)]
    text = card(facts(tmp_path, "EVAL_SAMPLES=20", "SEED=11", evaluations=losses, bits_per_byte=1.25))
    assert row(text, "these weights") == "100 | 3.5000"
    assert row(text, "best of the run up to here") == "50 | 3.2500"
    assert (
        "n: all windows of 1,024 tokens of the validation split, or 20 of them, evenly spread, if it has more" in text
    )
    assert "The loss of these weights is 1.2500 bits per byte of text." in text
    assert row(text, "seed") == "11"
    other = card(facts(tmp_path, evaluations=losses[:1]))  # the last weights were not evaluated
    assert "| these weights |" not in other and "bits per byte" not in other


def test_scores_have_their_error_n_and_version(tmp_path):
    task = {
        "event": "task", "step": 100, "task": "hellaswag", "n": 50, "of": 10042, "version": 1.0, "lm_eval": "0.4.13",
        "metrics": {"hellaswag/acc": 0.31, "hellaswag/acc_stderr": 0.0123},
    }  # fmt: skip
    text = card(facts(tmp_path, tasks=[task]))
    assert row(text, "hellaswag/acc") == "0.3100 | 0.0123 | 50 of 10,042 | 1.0"
    assert "not measured. Bias" not in text
    perplexity = {
        "event": "task", "step": 100, "task": "perplexity/c4", "n": 256, "version": 1,
        "metrics": {"perplexity/c4/loss": 3.2, "perplexity/c4/loss_stderr": 0.01},
    }  # fmt: skip
    text = card(facts(tmp_path, tasks=[perplexity]))
    assert row(text, "perplexity/c4/loss") == "3.2000 | 0.0100 | 256 | 1"
    assert "Scores on tasks were not measured." in text


def test_bytes_and_speeds_are_whole_and_have_no_n(tmp_path):
    size = {"event": "task", "step": 100, "task": "size", "n": 16, "metrics": {"size/dense_float32_bytes": 5158944}}
    name = "speed/csr_decoding_tokens_per_second"
    speed = {"event": "task", "step": 100, "task": "speed", "n": 50, "metrics": {name: 8279.9712}}
    text = card(facts(tmp_path, tasks=[size, speed]))
    assert row(text, "size/dense_float32_bytes") == "5,158,944 | - | - | -"
    assert row(text, name) == "8,280 | - | - | -"


def test_sparsity_per_tensor_and_in_all(tmp_path):
    zeros = {"h.0.attn.c_attn.weight": (30, 120), "h.0.mlp.c_fc.weight": (90, 120)}
    text = card(facts(tmp_path, "PRUNING_METHOD=magnitude", zeros=zeros))
    assert row(text, "`transformer.h.0.attn.c_attn.weight`") == "120 | 30 | 25.00%"
    assert row(text, "all of these") == "240 | 120 | 50.00%"
    assert "50.00% of the weights that pruning covers are exactly zero." in text
    assert "Whether the zeros make inference faster was not measured." in text
    timed = {"event": "task", "step": 100, "task": "speed", "n": 1, "version": None, "metrics": {"speed/dense": 2.0}}
    assert "faster" not in card(facts(tmp_path, "PRUNING_METHOD=magnitude", zeros=zeros, tasks=[timed]))


def test_weights_of_others_keep_their_licence_and_no_path_of_this_machine_is_told(tmp_path):
    origin = facts(tmp_path, sessions=[{"event": "start", "init": INIT}], ancestors=INIT["ancestors"])
    text = card(origin)
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["base_model"]) == ("other", ["openai-community/gpt2"])
    assert row(text, "first weights") == "`gpt2, revision 607a30d7, sha256 0123456789ab`"
    assert (
        row(text, "tokens of the whole chain") == "not known, because those of `openai-community/gpt2@607a30d7` are not"
    )
    assert "The weights began from `openai-community/gpt2@607a30d7`, whose licence holds." in text
    assert "/home/me" not in text
    assert origin.record()["lineage"] == {
        "ancestors": {"0123456789ab": 3000, "openai-community/gpt2@607a30d7": None},
        "init": {"from": "gpt2", "kind": "huggingface", "sha256": SHA, "revision": "607a30d7", "step": 0},
        "masks": None,
        "teacher": None,
    }


def test_a_teacher_of_others_is_named(tmp_path):
    start = {"event": "start", "teacher": INIT}
    origin = facts(tmp_path, sessions=[start], ancestors=INIT["ancestors"])
    text = card(origin)
    assert row(text, "teacher") == "`gpt2, revision 607a30d7, sha256 0123456789ab`"
    assert "The weights began from, or learned from, `openai-community/gpt2@607a30d7`, whose licence holds." in text
    assert origin.record()["lineage"]["teacher"]["from"] == "gpt2"


def test_masks_of_a_file_do_not_change_the_licence(tmp_path):
    masks = {"from": "/m/masks.safetensors", "sha256": SHA, "ancestors": {"m/masks.safetensors 0123456789ab": None}}
    start = {"event": "start", "masks": masks}
    text = card(facts(tmp_path, sessions=[start], ancestors=masks["ancestors"]))
    assert 'license: "mit"' in text
    assert row(text, "masks") == "`masks.safetensors, sha256 0123456789ab`"
    assert "must lie where the command names them" in text


def test_the_record_has_no_numbers_that_json_lacks(tmp_path):
    found = facts(tmp_path, evaluations=[Evaluation(50, 3.5, 0.0), Evaluation(100, float("nan"), 0.0)]).record()
    assert found["metrics"] == {
        "step": 100, "best_val_loss": 3.5, "best_val_loss_step": 50, "tokens": 3000, "tokens_of_the_chain": 3000,
    }  # fmt: skip


def test_tokens_of_a_chain_are_added(tmp_path):
    text = card(facts(tmp_path, ancestors={"ba9876543210": 4000}))
    assert (row(text, "tokens of this run"), row(text, "tokens of the whole chain")) == ("3,000", "7,000")


def test_the_command_quotes_and_shortens(tmp_path):
    options = ["DATASET=files", "DATASET_SOURCE=/data/my corpus/*.txt", "PRUNING_METHOD=magnitude", "TRACKER_TAGS=a"]
    assert command(facts(tmp_path, *options)) == (
        "KCONFIG_CONFIG=/dev/null make train \\\n    DATASET=files \\\n    DATASET_SOURCE='*.txt' \\\n"
        "    PRUNING_METHOD=magnitude"
    )
    once = facts(
        tmp_path, "PRUNING_METHOD=sparsegpt", "INIT_FROM=runs/dense", code="0123456789 with uncommitted changes a"
    )
    assert command(once).startswith(
        "KCONFIG_CONFIG=/dev/null make oneshot \\\n    BLOCK_SIZE=1024 \\\n    INIT_FROM=runs/dense \\\n"
    )
    text = card(once)
    assert row(text, "checkpoint") == "after block 100"
    assert "| optimizer |" not in text
    assert "In a clone of Espalier at commit `0123456789` with uncommitted changes a:" in text
    assert "make reproduce" not in text  # it refuses one-shot runs
    assert "`make reproduce RUN=<folder>` repeats it" in card(facts(tmp_path))


def clone(folder: Path, preset: str) -> None:
    """Give a folder the .config that a clone starts with, if its user took this preset."""
    schema = Schema()
    schema.load(presets()[preset])
    schema.write(folder / ".config")


def parsed(text: str) -> tuple[dict[str, str], str, list[str]]:
    """The environment, the target and the words of a command."""
    before, _, after = text.replace("\\\n", " ").partition("make ")
    target, *words = shlex.split(after)
    return dict(word.split("=", 1) for word in shlex.split(before)), target, words


def decided(schema: Schema) -> dict[str, object]:
    """The values that decide what is learned."""
    return {name: schema[name] for name in matters.decisive(schema) - {"TRACKER_PROJECT", "TRACKER_RUN_NAME"}}


@pytest.mark.parametrize("theirs", ["gpt2_tiny", "gpt2_124m_openwebtext", "gpt2_shakespeare"])
@pytest.mark.parametrize("own", ["gpt2_tiny", "gpt2_124m_openwebtext", "gpt2_tiny_adamwprune_50"])
def test_the_command_configures_the_same_training_whatever_the_clone_has(folder, own, theirs):
    clone(folder, theirs)
    run = Schema()
    run.load(presets()[own])
    environment, target, words = parsed(command(facts(folder, schema=run)))
    assert target == "train"
    assert decided(resolve("", words, environment)[0]) == decided(run)


def test_the_command_of_a_run_with_weights_cuts_as_the_run_did(folder):
    """1,024 positions are the default, and the weights have more."""
    clone(folder, "gpt2_tiny")
    found = Source("it", "huggingface", Path("it"), Shape(2, 4, 32, 2048, 256), "bytes", "gelu", "", 0, {})
    run = resolve("", ["INIT_FROM=it", "BLOCK_SIZE=1024"], {"KCONFIG_CONFIG": "/dev/null"})[0]
    adopt(run, lambda *_: found)
    environment, _, words = parsed(command(facts(folder, schema=run)))
    again = resolve("", words, environment)[0]
    adopt(again, lambda *_: found)
    assert decided(again) == decided(run) and again["BLOCK_SIZE"] == 1024


@pytest.mark.parametrize("method", ["sparsegpt", "shrink"])
def test_the_command_of_a_one_shot_run_prunes_the_same_in_a_clone(folder, monkeypatch, method):
    found = Source("it", "run", Path("it"), Shape(2, 4, 32, 64, 256), "bytes", "gelu", "", 0, {})

    def made(*words: str) -> Schema:
        schema = oneshot.configuration(list(words))
        adopt(schema, lambda *_: found)
        start._count_blocks(schema)
        if method == "shrink":
            reshape(schema, "100,90", "3,4")
        return schema

    clone(folder, "gpt2_124m_openwebtext")  # its data, batches and evaluation count
    run = made("INIT_FROM=it", f"PRUNING_METHOD={method}")
    clone(folder, "gpt2_tiny")
    config = {name.lower(): run[name] for name in run.options}
    text = command(facts(folder, schema=run, config=config))
    assert "openwebtext" in text
    environment, target, words = parsed(text)
    assert target == {"sparsegpt": "oneshot", "shrink": "shrink"}[method]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert decided(made(*words)) == decided(run)


@pytest.mark.parametrize("method", ["none", "given"])
def test_the_command_of_a_fine_tuned_run_says_whether_zeros_hold(folder, method):
    run = resolve("", ["INIT_FROM=it", "FINETUNE_RECIPE=sft", "FINETUNE_DATA=a.jsonl", f"PRUNING_METHOD={method}"], {})[
        0
    ]
    config = {name.lower(): run[name] for name in run.options}
    environment, target, words = parsed(command(facts(folder, schema=run, config=config)))
    assert target == "finetune" and f"PRUNING_METHOD={method}" in words
    clone(folder, "gpt2_tiny")
    assert decided(resolve("", words, environment)[0]) == decided(run)


def test_a_changed_run_says_that_one_training_does_not_repeat_it(tmp_path):
    sessions = [{"event": "start"}, {"event": "resume", "changed": {"learning_rate": [1, 2]}}]
    assert "A resume of the run changed options" in card(facts(tmp_path, sessions=sessions))
    assert "changed options" not in card(facts(tmp_path))


def test_secrets_are_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-Value-123")
    assert "DATASET_SOURCE='data/***.txt'" in command(
        facts(tmp_path, "DATASET=files", "DATASET_SOURCE=data/s3cr3t-Value-123.txt")
    )
    assert public("https://me:pass@host/x") == "https://***@host/x"
    assert public("/home/me/a b/c.txt") == "c.txt"
    assert public("~/x") == "x"
    assert (public("../x/secret.txt"), public("data/../../x/*.txt"), public("a..b/c")) == (
        "secret.txt",
        "*.txt",
        "a..b/c",
    )
    assert public("runs/x@best") == "runs/x@best"


@pytest.mark.parametrize("name", ["a|b", "`x` ``y``", "# <b>\n---\nlicense: x"])
def test_a_strange_name_stays_one_line_of_code(tmp_path, name):
    text = card(facts(tmp_path, identity=Identity("0123456789ab", "p", name)))
    assert ModelCard(text).data.license == "mit"
    title = next(line for line in text.splitlines() if line.startswith("# "))
    assert title.startswith("# `") and title.endswith("`")
