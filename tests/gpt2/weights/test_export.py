"""An export is whole under its name or absent, its tensors are transformers', and reading back finds differences."""

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt2 import trained
from gpt2.model import GPT2, ModelOptions
from gpt2.weights import export, facts, masks, source
from gpt2.weights.source import Shape, Source, Weights
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Schema
from tests.disk import disk
from tests.training import arguments, train

__all__ = ["disk"]  # fixtures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The source, the weights, the facts and the logits of a pruned run of the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    train(folder, *arguments(max_iters=6, eval_interval=3, pruning_method="random", pruning_interval=2))
    schema, run = Schema(), folder / "runs/run"
    schema.load(run / ".config")
    found = source.find(str(run))
    model = trained.load(found, schema)
    with torch.no_grad():
        logits = model.model.eval()(export.window(found))[0]
    return found, model.weights, facts.collect(run, found, model.weights, schema), logits


def write(out: Path, made) -> None:
    with export.folder(out) as draft:
        export.write(draft, *made[:3])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path, made):
    out = tmp_path / "deep" / "out"
    write(out, made)
    first = content(out)
    (out / "config.json").write_text("{}")
    write(out, made)
    assert content(out) == first
    with export.folder(out) as draft:  # a later model that is not pruned
        (draft / "espalier.json").write_text("{}")
    assert content(out) == {"espalier.json": b"{}"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_an_error_or_ctrl_c_leaves_the_earlier_export_and_nothing_else(tmp_path, made, error):
    for out in (tmp_path / "new", tmp_path / "old"):
        if out.name == "old":
            write(out, made)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(error), export.folder(out) as draft:
            (draft / "model.safetensors").write_bytes(b"half")
            raise error("now")
        assert sorted(tmp_path.rglob("*")) == before


def test_what_killed_exports_left_is_removed_and_their_earlier_export_comes_back(tmp_path, made):
    out, gone = tmp_path / "a.b", 2**22 + 1  # Linux has no process of this number
    for name in (f".a.b.{gone}.tmp", f".a.b.{os.getpid()}.tmp", f".a.b.{os.getppid()}.tmp", f".axb.{gone}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    write(tmp_path / f".a.b.{gone}.old", made)
    with pytest.raises(KeyboardInterrupt), export.folder(out):
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {"a.b", f".a.b.{os.getppid()}.tmp", f".axb.{gone}.tmp"}
    assert (out / "model.safetensors").stat().st_size > 4


def test_files_that_are_no_export_are_never_replaced(tmp_path, made):
    out = tmp_path / "out"
    out.mkdir()
    write(out, made)  # an empty folder
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError) as error:
        export.check(out)
    assert str(error.value) == (
        f"{out}: has files, such as notes.txt, that are no export of Espalier; choose another OUT or remove them"
    )
    (out / "notes.txt").unlink()
    export.check(out)
    (out / "espalier.json").unlink()  # now it may be anybody's model
    with pytest.raises(UsageError) as error:
        export.check(out)
    assert str(error.value) == f"{out}: has files, that are no export of Espalier; choose another OUT or remove them"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is there, and is no folder"):
        export.check(link)


def test_a_full_disk_is_one_sentence_at_every_size(disk, made):
    sizes = itertools.count(1, 5)
    for pages in sizes:
        place = disk(f"size={pages * 4096}")
        try:
            write(place / "out", made)
        except UserError as error:
            assert len(error.args) == 1 and "No space left on device" in str(error) and "; make room" in str(error)
            assert list(place.iterdir()) == []
        else:
            break
    assert pages > 30  # the weights take 34 pages
    assert export.read_back(place / "out", *made[:2], made[3])


# ---- the tensors -----------------------------------------------------------------------------------------------------


def test_the_orientation_of_each_tensor():
    state = {"h.0.mlp.c_fc.weight": torch.tensor([[1.0, 2.0]]), "wte.weight": torch.tensor([[3.0, 4.0]])}
    found = {name: tensor.tolist() for name, tensor in export.published(state).items()}
    assert found == {
        "transformer.h.0.mlp.c_fc.weight": [[1.0], [2.0]],
        "transformer.wte.weight": [[3.0, 4.0]],
    }


def test_the_file_is_that_of_the_library_and_keeps_every_bit(tmp_path):
    odd = torch.tensor([[-0.0, 1e-45, 3.4e38], [0.1, -1.5, 0.0]])
    tensors = {"transformer.b": odd.t(), "transformer.a": torch.arange(5.0), "transformer.scalar": torch.tensor(2.5)}
    export.write_weights(tmp_path / "ours", tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", {"format": "pt"})
    one, other = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert np.array_equal(tensor.numpy().view("uint32"), other[name].numpy().view("uint32"))
    assert b'"__metadata__":{"format":"pt"}' in (tmp_path / "ours").read_bytes()


@pytest.mark.parametrize("heads", [2, 4])
def test_a_model_of_transformers_comes_back_bit_by_bit(tmp_path, heads):
    """Imported from the folder that transformers wrote, and exported again."""
    torch.manual_seed(heads)
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=16, n_embd=32, n_layer=2, n_head=heads, bos_token_id=0, eos_token_id=0
    )
    theirs = transformers.GPT2LMHeadModel(config)
    theirs.save_pretrained(tmp_path / "theirs")
    found = source.find(str(tmp_path / "theirs"))
    weights = source.read(found, 16, 256)
    export.write_weights(tmp_path / "model.safetensors", export.published(weights.state))
    before, after = load_file(tmp_path / "theirs/model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert np.array_equal(before[name].numpy().view("uint32"), after[name].numpy().view("uint32")), name


def test_an_export_in_its_runs_folder_is_read_as_an_export(made):
    found, weights, _, _ = made
    run = found.path.parent.parent
    write(run / "export", made)
    back = source.find(str(run / "export"))
    assert (back.kind, back.path, back.ancestors) == ("huggingface", run / "export", found.ancestors)
    state = source.read(back, 32, 256).state
    assert all(torch.equal(state[name], value) for name, value in weights.state.items())
    kept, origin = masks.read(str(run / "export"))
    assert origin["ancestors"] == found.ancestors
    assert all(torch.equal(kept[name], value) for name, value in weights.masks.items())


def test_the_configuration_is_the_one_that_transformers_writes(tmp_path):
    shape = Shape(n_layer=3, n_head=2, n_embd=8, block_size=64, vocab_size=50257)
    found = Source("given", "run", tmp_path, shape, "gpt2", "gelu-tanh", "", 1, {})
    (tmp_path / "config.json").write_text(json.dumps(export.configuration(found, 0.0, 50256)))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    plain = transformers.GPT2Config(
        n_layer=3, n_head=2, n_embd=8, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    other = {"architectures", "dtype", "torch_dtype", "_name_or_path"}
    one, two = loaded.to_dict(), plain.to_dict()
    assert {k: v for k, v in one.items() if k not in other} == {k: v for k, v in two.items() if k not in other}


def test_an_exact_gelu_is_exported_and_read_back(tmp_path, made):
    found, weights, told, _ = made
    exact = dataclasses.replace(found, activation="gelu")
    model = GPT2(dataclasses.replace(told.schema.bind(ModelOptions), activation="gelu"), 256).eval()
    model.load(weights.state)
    write(tmp_path / "out", (exact, weights, told))
    assert json.loads((tmp_path / "out/config.json").read_text())["activation_function"] == "gelu"
    assert source.find(str(tmp_path / "out")).activation == "gelu"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    tokens = export.window(exact)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=0, atol=1e-7)


# ---- reading back ----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path, made):
    write(tmp_path / "out", made)
    return tmp_path / "out"


def test_what_was_compared_is_said(written, made, monkeypatch):
    text = export.read_back(written, *made[:2], made[3])
    start = "28 tensors are bit-identical to the run's, and the zeros of 8 are those of its masks; "
    assert text.startswith(f"{start}logits of transformers 5.24.0 differ by at most ")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert export.read_back(written, *made[:2], made[3]) == (
        f"{start}transformers is not installed, so no logits were compared"
    )


def test_one_wrong_bit_is_found(written, made):
    path = written / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError) as error:
        export.read_back(written, *made[:2], made[3])
    assert str(error.value) == f"{path}: transformer.ln_f.bias differs from the run's; the disk may be damaged"


def test_other_logits_other_ids_and_other_masks_are_found(written, made):
    found, weights, _, logits = made
    with pytest.raises(UserError, match=r"differ from the run's by 2\.0e-03, more than 0\.001"):
        export.read_back(written, found, weights, logits + 0.002)
    shutil.copy(written / "tokenizer.json", written / "kept")
    changed = json.loads((written / "tokenizer.json").read_text())
    vocabulary = changed["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (written / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="gives other ids than the run"):
        export.read_back(written, found, weights, logits)
    shutil.move(written / "kept", written / "tokenizer.json")
    name = "h.0.attn.c_proj.weight"
    masks.write(written / "masks.safetensors", weights.masks | {name: 1 - weights.masks[name]})
    with pytest.raises(UserError, match=r"the mask of h\.0\.attn\.c_proj\.weight differs from the run's"):
        export.read_back(written, found, weights, logits)
    masks.write(written / "masks.safetensors", {n: torch.zeros_like(mask) for n, mask in weights.masks.items()})
    hidden = Weights(weights.state, weights.sha256, {n: torch.zeros_like(m) for n, m in weights.masks.items()})
    with pytest.raises(UserError, match="has weights under its mask that are not zero"):
        export.read_back(written, found, hidden, logits)
