"""GPT-2s that transformers saved give the same logits here, whatever form their files have; others are refused."""

import hashlib
import json
import shutil

import pytest
import safetensors.torch
import torch

from gpt2.model import GPT2, ModelOptions
from gpt2.weights.source import Shape, find, read
from lib.base.errors import UserError
from lib.prune import masks_file

TOKENS = torch.tensor([[72, 101, 108, 108, 111, 0, 255, 31, 7, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
# The published layout: (in, out), where our model has (out, in).
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model of transformers with 2 layers, width 48 and 256 tokens; and the folder that transformers saved."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=48, n_positions=32, vocab_size=256, **ends)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases too, which begin as 1 and 0
    folder = tmp_path_factory.mktemp("published") / "tiny-model"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def copy(published, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(published[1], tmp_path / "tiny-model")


def tensors(folder):
    """What model.safetensors holds; the file is removed, so that another form can take its place."""
    path = folder / "model.safetensors"
    found = safetensors.torch.load(path.read_bytes())
    path.unlink()
    return found


def shards(folder, name, save):
    """Save the weights in two files and an index."""
    state, places = tensors(folder), {}
    stem, suffix = name.rsplit(".", 1)
    for number in (1, 2):
        part = dict(list(state.items())[number - 1 :: 2])
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        save(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _as_it_is(folder):
    pass


def _shards(folder):
    shards(folder, "model.safetensors", safetensors.torch.save_file)


def _pickle(folder):
    torch.save(tensors(folder), folder / "pytorch_model.bin")


def _early_pickle(folder):
    torch.save(tensors(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _pickled_shards(folder):
    shards(folder, "pytorch_model.bin", torch.save)


def _bare_names_and_buffers(folder):
    """As the hub's first GPT-2 has them."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in tensors(folder).items()}
    for n in (0, 1):
        state |= {f"h.{n}.attn.bias": torch.ones(1, 1, 32, 32), f"h.{n}.attn.masked_bias": torch.tensor(-1e4)}
    safetensors.torch.save_file(state, folder / "model.safetensors")


def _head_that_is_tied(folder):
    state = tensors(folder)
    torch.save({"lm_head.weight": state["transformer.wte.weight"], **state}, folder / "pytorch_model.bin")


def _only_the_head(folder):
    """safetensors.torch.save_model keeps one of two tensors that share memory, the first by name."""
    state = tensors(folder)
    state["lm_head.weight"] = state.pop("transformer.wte.weight")
    safetensors.torch.save_file(state, folder / "model.safetensors")


def _wider_floats(folder):
    state = {name: tensor.double() for name, tensor in tensors(folder).items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")


FORMS = [
    _as_it_is, _shards, _pickle, _early_pickle, _pickled_shards, _bare_names_and_buffers, _head_that_is_tied,
    _only_the_head, _wider_floats,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_transformers(published, copy, form):
    form(copy)
    source = find(str(copy))
    assert (source.kind, source.path, source.tokenizer, source.revision) == ("huggingface", copy, "bytes", "")
    assert source.shape == Shape(n_layer=2, n_head=4, n_embd=48, block_size=32, vocab_size=256)
    assert (source.step, source.ancestors, source.foreign) == (0, {}, "tiny-model")
    assert source.lineage("3f2a5c07d1e8" + "0" * 52) == {"tiny-model 3f2a5c07d1e8": None}
    weights = read(source, 32, 256)
    model = GPT2(ModelOptions("custom", 2, 4, 48, 32, 0.0, "gelu-tanh"), 256).eval()
    assert weights.state.keys() == model.state_dict().keys()
    assert weights.masks == {}
    model.load(weights.state)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), published[0](TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "ours"), [("gelu_new", "gelu-tanh"), ("gelu_pytorch_tanh", "gelu-tanh"), ("gelu", "gelu")]
)
def test_the_activation_is_the_one_that_the_configuration_names(copy, name, ours):
    from transformers import GPT2LMHeadModel

    configure(copy, activation_function=name)
    source = find(str(copy))
    assert source.activation == ours
    model = GPT2(ModelOptions("custom", 2, 4, 48, 32, 0.0, ours), 256).eval()
    model.load(read(source, 32, 256).state)
    theirs = GPT2LMHeadModel.from_pretrained(copy, local_files_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-5)


def test_every_tensor_is_bit_identical_and_linear_weights_are_transposed(published):
    state, theirs = read(find(str(published[1])), 32, 256).state, published[0].transformer.state_dict()
    assert state["h.0.attn.c_attn.weight"].shape == (144, 48)
    assert theirs["h.0.attn.c_attn.weight"].shape == (48, 144)
    for name, tensor in state.items():
        assert torch.equal(tensor, theirs[name].t() if name.endswith(CONV1D) else theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_become_float32(copy, dtype):
    state = tensors(copy)
    safetensors.torch.save_file({name: tensor.to(dtype) for name, tensor in state.items()}, copy / "model.safetensors")
    found = read(find(str(copy)), 32, 256).state
    assert found["ln_f.bias"].dtype == torch.float32
    assert torch.equal(found["ln_f.bias"], state["transformer.ln_f.bias"].to(dtype).float())


def test_the_sha256_is_that_of_the_file_or_of_the_list_of_shards(copy):
    whole = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    assert read(find(str(copy)), 32, 256).sha256 == whole
    _shards(copy)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    lines = "".join(f"{name} {hashlib.sha256((copy / name).read_bytes()).hexdigest()}\n" for name in names)
    assert read(find(str(copy)), 32, 256).sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_rows_that_pad_gpt2s_vocabulary_are_cut(tmp_path):
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_layer=1, n_head=1, n_embd=2, n_positions=4, vocab_size=50304))
    model.save_pretrained(tmp_path)
    source = find(str(tmp_path))
    assert (source.tokenizer, source.shape.vocab_size) == ("gpt2", 50304)
    state = read(source, 3, 50257).state
    assert torch.equal(state["wte.weight"], model.wte.weight[:50257])
    assert torch.equal(state["wpe.weight"], model.wpe.weight[:3])


@pytest.mark.parametrize(
    ("rows", "tokenizer"),
    [(50256, ""), (50257, "gpt2"), (50304, "gpt2"), (50305, ""), (256, "bytes"), (255, ""), (65, "")],
)
def test_the_number_of_rows_says_which_tokenizer_fits(copy, rows, tokenizer):
    configure(copy, vocab_size=rows)
    assert find(str(copy)).tokenizer == tokenizer


def test_masks_and_ancestors_of_our_export_are_read(copy):
    mask = torch.ones(144, 48, dtype=torch.uint8)
    mask[2, 3] = 0
    masks_file.write(copy / "masks.safetensors", {"h.1.attn.c_attn.weight": mask})
    (copy / "espalier.json").write_text('{"lineage": {"ancestors": {"aaaaaaaaaaaa": 1000, "gpt2": null}}}')
    source = find(str(copy))
    assert source.ancestors == {"aaaaaaaaaaaa": 1000, "gpt2": None}
    found = read(source, 32, 256).masks
    assert list(found) == ["h.1.attn.c_attn.weight"]
    assert torch.equal(found["h.1.attn.c_attn.weight"], mask)


# ---- what cannot be used ---------------------------------------------------------------------------------------------


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "a model of the type 'llama', and only gpt2 can be read"),
        ({"model_type": None}, "a model of the type None"),
        ({"activation_function": "relu"}, "activation_function='relu', and .* only gelu_new, gelu_pytorch_tanh, gelu;"),
        ({"activation_function": ["gelu"]}, r"activation_function=\['gelu'\]"),
        ({"activation_function": None}, "activation_function=None"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"n_inner": "100"}, "n_inner is '100', not a whole number"),
        ({"n_inner": 0}, "MLP_WIDTHS=0: each number must be from 1 to 400,000"),
        ({"n_head": 5}, "n_embd=48 is no multiple of n_head=5"),
        ({"n_layer": 10**12}, "n_layer must lie between 1 and 1000; got 1000000000000"),
        ({"n_positions": 65537}, "block_size must lie between 1 and 65536; got 65537"),
        ({"n_layer": 0}, "n_layer is 0, not a positive whole number"),
        ({"n_positions": "32"}, "n_positions is '32', not a positive whole number"),
        ({"vocab_size": None}, "vocab_size is None, not a positive whole number"),
    ],
)
def test_a_configuration_of_another_model_is_one_sentence(copy, changes, words):
    configure(copy, **changes)
    with pytest.raises(UserError, match=rf"config\.json: .*{words}") as caught:
        find(str(copy))
    assert "\n" not in str(caught.value)


def test_what_computes_the_same_is_accepted(copy):
    configure(copy, reorder_and_upcast_attn=True, n_inner=192, resid_pdrop=0.5)
    assert find(str(copy)).shape.n_embd == 48


def test_a_nested_tensor_is_one_sentence(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"wpe.weight": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: the tensor wpe\.weight is nested; use weights that fit"):
        read(find(str(copy)), 32, 256)


class Code:
    """A pickle of this makes a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _no_config(folder):
    (folder / "config.json").unlink()


def _config_no_json(folder):
    (folder / "config.json").write_text('{"model_type": ')


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _missing_shard(folder):
    _shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _shard_elsewhere(folder):
    tensors(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "../../x.safetensors"}}')


def _index_no_json(folder):
    _shards(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


def _cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _code(folder):
    torch.save(tensors(folder) | {"more": Code(folder / "executed")}, folder / "pytorch_model.bin")


def _cut_off_pickle(folder):
    _pickle(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])


def _list(folder):
    torch.save(list(tensors(folder).values()), folder / "pytorch_model.bin")


def _changed(name, new):
    """A function that puts `new(tensor)` in the place of the tensor with this name; None removes it."""

    def change(folder):
        state = tensors(folder)
        old = state.pop(f"transformer.{name}")
        if (value := new(old)) is not None:
            state[f"transformer.{name}"] = value
        safetensors.torch.save_file(state, folder / "model.safetensors")

    return change


def _renamed(folder):
    state = tensors(folder)
    state["transformer.ln_g.bias"] = state.pop("transformer.ln_f.bias")
    safetensors.torch.save_file(state, folder / "model.safetensors")


def _untied(folder):
    state = tensors(folder)
    state["lm_head.weight"] = state["transformer.wte.weight"] + 1
    safetensors.torch.save_file(state, folder / "model.safetensors")


def _twice(folder):
    state = tensors(folder)
    state["wpe.weight"] = state["transformer.wpe.weight"].clone()
    safetensors.torch.save_file(state, folder / "model.safetensors")


def _sparse(folder):
    state = tensors(folder)
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"].to_sparse()
    torch.save(state, folder / "pytorch_model.bin")


def _shard_with_a_long_name(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"wte.weight": "a" * 245 + ".safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _uncounted(folder):
    digits = "9" * 4300  # Python reads so many, but makes no text of their sum
    (folder / "espalier.json").write_text(f'{{"lineage": {{"ancestors": {{"a": {digits}, "b": {digits}}}}}}}')


def _lineage(folder):
    (folder / "espalier.json").write_text('{"lineage": {"ancestors": {"a": "many"}}}')


def _mask(folder):
    masks_file.write(folder / "masks.safetensors", {"h.0.mlp.c_fc.weight": torch.ones(3, 3, dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_config, "has no config.json, so it is neither a run nor a Hugging Face folder"),
        (_config_no_json, "config.json: cannot be read as JSON: Expecting value"),
        (_no_weights, "has no weights: neither model.safetensors nor pytorch_model.bin nor shards of them"),
        (_missing_shard, "1 of 2 shards are missing, the first is model-00002-of-00002.safetensors"),
        (_shard_elsewhere, "model.safetensors.index.json: has no weight_map from tensors to files beside it"),
        (_index_no_json, "model.safetensors.index.json: is not a JSON object"),
        (_cut_off, "model.safetensors: is cut off or damaged"),
        (_pointer, "model.safetensors: is cut off or damaged"),
        (_code, "pytorch_model.bin: holds something other than tensors, or would execute code"),
        (_cut_off_pickle, "pytorch_model.bin: cannot be read as a file of torch.save"),
        (_list, "pytorch_model.bin: holds no dictionary of weights"),
        (_changed("wpe.weight", lambda old: old[:20].clone()), "the tensor wpe.weight is [20, 48], not [32, 48]"),
        (
            _changed("wpe.weight", lambda old: old.int()),
            "wpe.weight holds no plain floating-point numbers, but torch.int32",
        ),
        (_changed("wpe.weight", lambda old: old / 0), "weights in wpe.weight are NaN or infinite"),
        (_renamed, "the tensor ln_g.bias is not part of this GPT-2"),
        (_changed("wpe.weight", lambda old: None), "1 of 28 tensors are missing, the first is wpe.weight"),
        (_untied, "lm_head.weight differs from wte.weight, and the head of this GPT-2 is tied"),
        (_twice, "the tensor wpe.weight is there twice"),
        (_sparse, "wpe.weight holds no plain floating-point numbers, but torch.float32 (torch.sparse_coo, cpu)"),
        (_lineage, "espalier.json: has no valid lineage"),
        (_uncounted, "espalier.json: has no valid lineage"),
        (_shard_with_a_long_name, "has no weight_map from tensors to files beside it"),
        (_mask, "the mask of h.0.mlp.c_fc.weight does not fit the weights"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(copy, damage, words):
    damage(copy)
    with pytest.raises(UserError) as caught:
        read(find(str(copy)), 32, 256)
    assert words in str(caught.value)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (copy / "executed").exists()


def test_more_tokens_than_rows_cannot_be_read(published):
    with pytest.raises(UserError, match="the weights are for 256 tokens, not for 50257; choose another TOKENIZER"):
        read(find(str(published[1])), 32, 50257)
