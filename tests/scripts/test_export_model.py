"""The program export_model: a run becomes a folder that transformers loads, and that the hub gets."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from lib.config.command_line import resolve
from lib.config.config_file import presets
from lib.config.kconf import Schema
from scripts import export_model
from tests import forked
from tests.gpt2.weights.upload_hub import TOKEN, serve
from tests.training import ROOT, TEXT, arguments, environment, rewrite, train

CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a pruned run, whose data has an absolute path, and its export."""
    folder = tmp_path_factory.mktemp("exports")
    (folder / "corpus.txt").write_text(TEXT)
    source = str(folder / "corpus.txt")
    pruned = {"pruning_method": "magnitude", "target_sparsity": 0.6, "pruning_interval": 5, "checkpoint_best": True}
    train(folder, *arguments(dataset_source=source, **pruned))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        here(patch, folder, "runs/run")
    assert re.fullmatch(
        r"exported         runs/run/checkpoints/step-000000040\.pt\n"
        r"read back        28 tensors are bit-identical to the run's, and the zeros of 8 are those of its masks; "
        r"logits of transformers 5\.24\.0 differ by at most \d\.\de-0\d on 32 tokens\n"
        r"folder           runs/run/export \(0\.\d MB\)\n",
        printed.getvalue(),
    )
    return folder


def here(patch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    """Export in this process, where transformers is imported only once."""
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["export_model.py", *words])
    assert export_model.main() == 0


def export(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in environment().items() if not name.startswith("HF_")}
    return forked.run(folder, "scripts/export_model.py", *words, environment=env | {"HF_HUB_OFFLINE": "1"} | more)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "runs/run/checkpoints/step-000000040.pt", weights_only=True)


def model(folder: Path):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def test_transformers_loads_the_very_weights_and_the_zeros_are_the_masks(place):
    theirs, ours = model(place / "runs/run/export"), checkpoint(place)
    assert (type(theirs).__name__, theirs.dtype) == ("GPT2LMHeadModel", torch.float32)
    found = {name.removeprefix("transformer."): value for name, value in theirs.state_dict().items()}
    assert torch.equal(found.pop("lm_head.weight"), found["wte.weight"])
    assert found.keys() == ours["model"].keys()
    zeros = 0
    for name, value in found.items():
        mine = ours["model"][name]
        mine = mine.t() if name.endswith(CONV1D) else mine[:256] if name == "wte.weight" else mine
        assert torch.equal(value, mine), name
        if name in ours["pruner"]["masks"]:
            shape = ours["pruner"]["shapes"][name]
            mask = np.unpackbits(ours["pruner"]["masks"][name].numpy(), count=value.numel()).reshape(shape).T
            assert np.array_equal(value.numpy() != 0, mask == 1), name
            zeros += int((mask == 0).sum())
    assert zeros == round(0.6 * 24576)


def test_the_folder_has_what_transformers_needs(place):
    out = place / "runs/run/export"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "espalier.json", "generation_config.json", "masks.safetensors", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = model(out).config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions, config.vocab_size) == (2, 2, 32, 32, 256)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    assert (config.bos_token_id, config.eos_token_id, config.architectures) == (0, 0, ["GPT2LMHeadModel"])
    assert (config.tie_word_embeddings, config.activation_function) == (True, "gelu_new")
    assert load_file(out / "model.safetensors").keys() == {f"transformer.{name}" for name in checkpoint(place)["model"]}


def test_the_record_says_what_was_made_and_nothing_about_this_machine(place):
    out = place / "runs/run/export"
    found = json.loads((out / "espalier.json").read_text())
    identity = json.loads((place / "runs/run/run.json").read_text())["run_id"]
    assert found["run"] == {"run_id": identity, "name": "run", "checkpoint": "step-000000040.pt"}
    nothing = dict.fromkeys(("init", "masks", "teacher"))
    assert found["lineage"] == {"ancestors": {identity: 40 * 4 * 2 * 32}, **nothing}
    assert found["configuration"]["dataset_source"] == "corpus.txt"
    assert found["configuration"]["target_sparsity"] == 0.6
    summary = json.loads((place / "runs/run/summary.json").read_text())
    assert found["metrics"]["val_loss"] == summary["final_val_loss"]
    assert found["metrics"]["best_val_loss"] == summary["best_val_loss"]
    assert found["metrics"]["tokens"] == found["metrics"]["tokens_of_the_chain"] == 10240
    assert found["metrics"]["sparsity"] == pytest.approx(0.6, abs=1e-4)
    for path in out.iterdir():
        assert str(place).encode() not in path.read_bytes()


def test_the_code_in_the_card_works_and_greedy_text_is_that_of_make_sample(place, monkeypatch, capsys):
    out = place / "runs/run/export"
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict() == {
        "license": "mit", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["gpt2", "espalier", "pruned", "sparse", "pruning-magnitude"],
    }  # fmt: skip
    code = re.search(r"```python\n(.+?)```", card.text, re.DOTALL)[1]
    monkeypatch.chdir(out)
    for prompt, count in (("def ", 16), ("12 squared is", 18), ("", 31)):
        own = code.replace('"def "', repr(prompt)).replace("max_new_tokens=16", f"max_new_tokens={count}")
        exec(compile(own, "README.md", "exec"), {})
        theirs = capsys.readouterr().out.removesuffix("\n")
        words = ["--run", "runs/run", "--prompt", prompt, "--sample-tokens", str(count), "--temperature", "0"]
        ours = forked.run(place, "gpt2/sample.py", *words).stdout.removesuffix("\n")
        assert theirs == ours
        assert len(ours) > len(prompt)


@pytest.mark.parametrize("preset", ["gpt2_tiny", "gpt2_124m_openwebtext"])
def test_the_command_in_the_card_configures_the_same_training(place, preset, folder):
    """In a clone whose .config is that of a preset, with make's own way to the trainer."""
    for name in ("Makefile", "Kconfig", "Kconfig.renames", "gpt2", "lib", "scripts", "defconfigs", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".config").write_bytes(presets()[preset].read_bytes())
    recorder = folder / "python"
    recorder.write_text(
        '#!/bin/sh\nif [ "$1" = gpt2/train.py ]; then shift; printf "%s\\n" "${KCONFIG_CONFIG-.config}" "$@"; fi\n'
    )
    recorder.chmod(0o755)
    text = (place / "runs/run/export/README.md").read_text()
    command = re.search(r"```sh\n(.+?)\n```", text, re.DOTALL)[1]
    env = {name: value for name, value in environment().items() if not name.startswith("MAKE")}
    called = subprocess.check_output(["sh", "-c", f"{command} PYTHON=./python"], cwd=folder, env=env, text=True)
    config, *words = called.splitlines()
    made, run = resolve("", words, {"KCONFIG_CONFIG": config})[0], Schema()
    run.load(place / "runs/run/.config")
    wanted = {name: value for name, value in run.values().items() if value != made.values()[name]}
    assert wanted.keys() <= {
        "dataset_source", "tracker_run_name", "eval_interval", "log_interval", "checkpoint_interval", "sample_tokens",
        "system_metrics_interval", "checkpoint_best", "tracker",
    }  # fmt: skip
    assert wanted["dataset_source"] == str(place / "corpus.txt") and made["DATASET_SOURCE"] == "corpus.txt"


def test_both_stop_at_the_end_of_text(place, monkeypatch):
    """The final norm is made to point to the embedding of byte 0, so every next token is the end of text."""
    path = place / "runs/run/checkpoints/step-000000040.pt"
    before, state = path.read_bytes(), checkpoint(place)
    state["model"]["wte.weight"][0] *= 1000
    state["model"]["ln_f.bias"].copy_(state["model"]["wte.weight"][0])
    rewrite(path, state)
    try:
        here(monkeypatch, place, "runs/run", "--out", "stops")
        output = model(place / "stops").generate(
            torch.tensor([[0, 65]]), attention_mask=torch.ones(1, 2), max_new_tokens=9, do_sample=False
        )
        assert output.tolist() == [[0, 65, 0]]
        words = ["--run", "runs/run", "PROMPT=A", "SAMPLE_TOKENS=9", "TEMPERATURE=0"]
        assert forked.run(place, "gpt2/sample.py", *words).stdout == "A\n"
    finally:
        path.write_bytes(before)


def test_push_sends_the_folder_and_a_checkpoint_can_be_chosen_and_transformers_is_not_needed(place):
    (place / "site").mkdir()
    (place / "site" / "sitecustomize.py").write_text('import sys\nsys.modules["transformers"] = None\n')
    with serve() as hub:
        home = hub.environment(str(place / "home")) | {"PYTHONPATH": str(place / "site")}
        words = ["runs/run", "--checkpoint", "30", "--out", "pushed", "--push", "me/model", "--public"]
        done = export(place, *words, **home)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(
            "exported         runs/run/checkpoints/step-000000030.pt\n"
            "read back        28 tensors are bit-identical to the run's, and the zeros of 8 are those of its masks; "
            "transformers is not installed, so no logits were compared\n"
        )
        assert done.stdout.endswith(f"uploading to me/model\nuploaded         {hub.address}/me/model\n")
        assert hub.repositories == {"me/model": "public"}
        assert hub.commits == [{path.name: path.read_bytes() for path in (place / "pushed").iterdir()}]
        assert all(TOKEN.encode() not in content for content in hub.commits[0].values())
    assert json.loads(hub.commits[0]["espalier.json"])["metrics"]["step"] == 30


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing"], 2, "nothing: there is no run in this folder (run.json is missing)"),
        (["runs/run", "--checkpoint", "7"], 2, "runs/run: there is no checkpoint '7'; choose newest, best (if"),
        (["runs/run", "--push", "model"], 2, "PUSH=model does not name a user; give user/name, as in PUSH=me/model"),
        (["runs/run", "--push", "me/model"], 1, "PUSH=me/model: there is no token for the hub; set HF_TOKEN, or log"),
        (
            ["INIT_FROM=runs/run", "--out", "there"],
            2,
            "INIT_FROM=runs/run: export-model takes RUN=, CHECKPOINT=, OUT=, PUSH= and ARGS=--public; name the model "
            "with RUN=",
        ),
        (["runs/run", "DTYPE=float32"], 2, "DTYPE=float32: export-model takes RUN=, CHECKPOINT=, OUT=, PUSH= and"),
        (["runs/run", "--public"], 2, "--public is about a repository; name it, as in PUSH=me/gpt2"),
        (["runs/run", "--out", "runs"], 2, "runs: has files, such as run, that are no export of Espalier; choose"),
        (["runs/run", "--out", "corpus.txt"], 2, "corpus.txt: is there, and is no folder; choose another OUT"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_written(place, words, code, message):
    before = sorted(place.rglob("*"))
    done = export(place, *words, HF_HOME=str(place / "nobody"))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_the_help_says_what_is_written_and_where(place):
    text = export(place, "--help").stdout
    assert "Write a run's model as a Hugging Face folder" in text
    for words in ("[the latest run]", "[newest]", "[<run>/export]", "HF_TOKEN", "[private]"):
        assert words in text
