"""The file masks.safetensors: its content as published, what is read back, and what is refused."""

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.weights import form, masks
from lib.base.errors import UserError
from lib.prune import masks_file


def header(path):
    """The header of a safetensors file, read without the library."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def store(path, tensors, metadata):
    """A safetensors file, written without the library: `tensors` is name -> (dtype, shape, bytes)."""
    entries, data = {"__metadata__": metadata}, b""
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def about(**values):
    tensors = {"h.0.mlp.c_fc.weight": {"shape": [3, 4], "orientation": "out,in"}}
    return {"espalier-masks": json.dumps({"version": 1, "tensors": tensors} | values)}


BITS = {"h.0.mlp.c_fc.weight": ("U8", [2], b"\xf0\xa0")}


def test_the_content_of_the_file(tmp_path):
    path = tmp_path / "masks.safetensors"
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]], dtype=torch.uint8)
    masks.write(path, {"h.0.mlp.c_fc.weight": mask, "ln_f.bias": torch.tensor([0, 1, 1], dtype=torch.uint8)})
    entries, data = header(path)
    assert json.loads(entries.pop("__metadata__").pop("espalier-masks")) == {
        "version": 1,
        "tensors": {
            "h.0.mlp.c_fc.weight": {
                "shape": [3, 4],
                "orientation": "out,in",
                "huggingface": "transformer.h.0.mlp.c_fc.weight",
                "transposed": True,
            },
            "ln_f.bias": {
                "shape": [3],
                "orientation": "out",
                "huggingface": "transformer.ln_f.bias",
                "transposed": False,
            },
        },
    }
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()} == {
        "h.0.mlp.c_fc.weight": ("U8", [2]),
        "ln_f.bias": ("U8", [1]),
    }
    assert data == b"\xf0\xa0\x60"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_masks_make_the_same_file(tmp_path):
    mask = torch.ones(2, 3, dtype=torch.uint8)
    written = set()
    for i in range(8):
        masks.write(tmp_path / f"{i}", {"b.weight": mask, "a.weight": mask, "c.weight": mask})
        written.add((tmp_path / f"{i}").read_bytes())
    assert len(written) == 1


def test_the_recipe_of_the_docstring_unpacks_the_masks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"h.1.attn.c_attn.weight": torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.uint8)}
    masks.write(tmp_path / "masks.safetensors", own)
    recipe = "\n".join(line[4:] for line in masks_file.__doc__.splitlines() if line.startswith("    "))
    assert len(recipe.splitlines()) == 6
    names = {}
    exec(recipe, names)
    assert names["mask"].tolist() == [[1, 1], [0, 1], [0, 0]]  # as transformers has the weight: transposed
    assert names["about"]["huggingface"] == "transformer.h.1.attn.c_attn.weight"


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, shapes, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_what_was_written_is_read(tmp_path_factory, layout, seed):
    random = np.random.default_rng(seed)
    own = {name: torch.from_numpy(random.integers(0, 2, shape, dtype=np.uint8)) for name, shape in layout.items()}
    path = tmp_path_factory.mktemp("masks") / "some.safetensors"
    masks.write(path, own)
    found, record = masks.read(str(path))
    assert found.keys() == own.keys()
    for name, mask in own.items():
        assert found[name].dtype == torch.uint8
        assert torch.equal(found[name], mask)
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (record["from"], record["path"]) == (str(path), str(path))


def test_a_file_written_without_the_library_is_read(tmp_path):
    path = store(tmp_path / "x", BITS, about())
    assert masks.read(str(path))[0]["h.0.mlp.c_fc.weight"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]]


ONE = "h.0.mlp.c_fc.weight"
WRONG = {
    "other bits": ({ONE: ("U8", [3], b"\xf0\xa0\x00")}, about(), "is U8 [3], but the bits of a mask of [3, 4] are U8"),
    "other type": ({ONE: ("I8", [2], b"\xf0\xa0")}, about(), "is I8 [2], but the bits of a mask of [3, 4] are U8 [2]"),
    "unknown type": ({ONE: ("BF16", [1], b"\xf0\xa0")}, about(), "is BF16 [1], but the bits of a mask of"),
    "other tensors": (BITS | {"x": ("U8", [0], b"")}, about(), "its metadata and its tensors differ in 'x'"),
    "no metadata": (BITS, {}, "holds no masks, because its metadata lacks 'espalier-masks'"),
    "later version": (BITS, about(version=2), "has version 2 of the format of masks, and this Espalier reads 1"),
    "no JSON": (BITS, {"espalier-masks": "{"}, "its metadata 'espalier-masks' is not valid"),
    "deep JSON": (BITS, {"espalier-masks": "[" * 100_000}, "its metadata 'espalier-masks' is not valid"),
    "a list": (BITS, {"espalier-masks": "[]"}, "its metadata 'espalier-masks' is not valid"),
    "no tensors": ({}, about(tensors={}), "its metadata names no tensors"),
    "a text": (BITS, about(tensors={ONE: "x"}), f"the shape of '{ONE}' in its metadata is not valid"),
    "negative": (BITS, about(tensors={ONE: {"shape": [-3, -4]}}), f"the shape of '{ONE}' in its metadata is not valid"),
    "true": (BITS, about(tensors={ONE: {"shape": [True, 12]}}), f"the shape of '{ONE}' in its metadata is not valid"),
    "enormous": (
        BITS,
        about(tensors={ONE: {"shape": [10**12, 10**12], "orientation": "out,in"}}),
        "the bits of a mask of [1000000000000, 1000000000000] are U8 [125000000000000000000000]",
    ),
    "orientation": (
        BITS,
        about(tensors={ONE: {"shape": [3, 4], "orientation": "in,out"}}),
        f"the orientation of '{ONE}' is 'in,out', and this Espalier reads 'out,in'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_file_is_one_sentence(tmp_path, case):
    tensors, metadata, words = WRONG[case]
    path = store(tmp_path / "x", tensors, metadata)
    with pytest.raises(UserError) as raised:
        masks.read(str(path))
    (sentence,) = raised.value.args
    assert sentence.startswith(f"{path}: ")
    assert words in sentence


def test_every_cut_of_a_file_is_one_sentence(tmp_path):
    path = store(tmp_path / "x", BITS, about())
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is cut off, damaged or no safetensors file"):
            masks.read(str(path))


def test_a_file_that_is_missing_or_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name, words in (("absent.safetensors", "No such file"), ("folder.safetensors", "Is a directory")):
        with pytest.raises(UserError, match=rf"{name}: the masks cannot be read: {words}"):
            masks.read(str(tmp_path / name))


def test_a_write_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        masks.write(tmp_path / "absent/masks.safetensors", {"x": torch.ones(2, dtype=torch.uint8)})
    (tmp_path / "masks.safetensors.tmp").symlink_to("/dev/full")  # a device that takes no bytes
    with pytest.raises(UserError, match=r"masks\.safetensors: cannot be written: No space left on device"):
        masks.write(tmp_path / "masks.safetensors", {"x": torch.ones(2, dtype=torch.uint8)})
    assert not (tmp_path / "masks.safetensors").exists()


def test_the_ancestors_of_masks_are_those_of_the_model_beside_them(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    path = folder / "masks.safetensors"
    masks.write(path, {"wte.weight": torch.ones(256, 32, dtype=torch.uint8)})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert masks.read(str(folder))[1]["ancestors"] == {f"exported/masks.safetensors {sha256[:12]}": None}
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 256}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **shape}))
    (folder / "model.safetensors").touch()
    (folder / "espalier.json").write_text(json.dumps({"lineage": {"ancestors": {"0123456789ab": 4096}}}))
    for named in (folder, path):
        found, record = masks.read(str(named))
        assert found["wte.weight"].shape == (256, 32)
        assert record == {
            "from": str(named),
            "path": str(path),
            "sha256": sha256,
            "ancestors": {"0123456789ab": 4096},
            "flops": {},  # exports do not say them
        }
    (folder / "espalier.json").unlink()
    (folder / "model.safetensors").write_bytes(b"weights of others")
    assert masks.read(str(folder))[1]["ancestors"] == {"exported 23203dcad361": None}


def test_masks_are_cut_as_weights_are():
    found = {"wpe.weight": torch.tensor([[1], [0], [1]]), "wte.weight": torch.ones(5, 1), "ln_f.weight": torch.ones(4)}
    cut = form.cut(found, 2, 3)
    assert cut["wpe.weight"].tolist() == [[1], [0]]
    assert [len(mask) for mask in cut.values()] == [2, 3, 4]


def test_a_wrong_name_is_refused_with_the_option_and_the_run_that_looks_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/pruned").mkdir(parents=True)
    (tmp_path / "runs/pruned/run.json").write_text("{}")
    for text, sentence in (
        ("runs/prune@20", "INIT_MASKS: runs/prune@20: there is no such run, folder or file; did you mean pruned?"),
        ("runs/zzzz", "INIT_MASKS: runs/zzzz: there is no such run, folder or file; check the name"),
        ("prunned", "INIT_MASKS: prunned: there is no such run, folder or file; did you mean pruned?"),
        (
            "zzzz",
            "INIT_MASKS: zzzz: there is no run, folder or file of this name; check it, or give OWNER/NAME of a model "
            "on the Hugging Face hub",
        ),
    ):
        with pytest.raises(UserError) as raised:
            masks.read(text, "runs")
        assert raised.value.args == (sentence,)
