"""HoldMasks: which weights stay zero, whatever the masks come from; and in the scripts of docs/finetuning.md."""

import copy
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="needs the package transformers: make test")

from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lib.base.errors import UserError
from lib.hold_masks import HoldMasks
from lib.prune import masks_file
from lib.prune.hold_masks import linear_weights
from tests.training import ROOT

HOLD = torch.tensor([[1, 0, 1], [0, 1, 1]])  # (out, in)


class Model(nn.Module):
    """A layer of each kind: their weights are (in, out) and (out, in)."""

    def __init__(self):
        super().__init__()
        self.c_fc, self.head = Conv1D(2, 3), nn.Linear(2, 2)

    def get_output_embeddings(self):
        return self.head

    def forward(self, x):
        return self.head(self.c_fc(x))


def begun(hold, model, optimizer=None):
    """What a trainer calls before its first step."""
    hold.on_train_begin(SimpleNamespace(), None, None, model=model, optimizer=optimizer)
    return hold


def test_a_mask_of_ours_is_transposed_for_a_conv1d(tmp_path):
    masks_file.write(tmp_path / "masks.safetensors", {"c_fc.weight": HOLD.to(torch.uint8)})
    for source in (tmp_path, tmp_path / "masks.safetensors", {"c_fc.weight": HOLD.t()}):
        model = Model()
        hold = begun(HoldMasks(source), model)
        assert torch.equal(model.c_fc.weight != 0, HOLD.t() != 0)
        assert (hold.broken(), hold.sparsity()) == (0, pytest.approx(1 / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_and_old_moments_are_masked_so_nothing_moves(dtype):
    model = Model()
    x, optimizer = torch.ones(4, 3), torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(x).sum().backward()
    optimizer.step()  # moments that are older than the mask
    with torch.no_grad():
        model.c_fc.weight.mul_(HOLD.t())
    model.to(dtype)
    for state in optimizer.state.values():
        state.update({name: value.to(dtype) for name, value in state.items() if name.startswith("exp")})
    hold = begun(HoldMasks(model), model, optimizer)
    gone = HOLD.t() == 0
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(2):  # accumulated
            model(x.to(dtype)).float().square().sum().backward()
        assert not model.c_fc.weight.grad[gone].any()
        assert model.c_fc.weight.grad[~gone].all()
        optimizer.step()
        hold.on_optimizer_step(None, None, None)
        assert not model.c_fc.weight[gone].any()
    assert not optimizer.state[model.c_fc.weight]["exp_avg"][gone].any()
    assert hold.broken() == 0
    logs = {}
    hold.on_log(None, None, None, logs=logs)
    assert logs == {"sparsity": pytest.approx(1 / 3)}
    hold.on_train_end(None, None, None)
    assert hold.hooks == []


def test_the_zeros_of_a_folder_are_those_of_its_layers(tmp_path):
    model = Model()
    with torch.no_grad():
        model.c_fc.weight.mul_(HOLD.t())
    tensors = {"c_fc.weight": model.c_fc.weight.detach(), "wte.weight": torch.zeros(3, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    fresh = Model()
    assert HoldMasks(tmp_path).apply(fresh) == 2
    assert torch.equal(fresh.c_fc.weight != 0, HOLD.t() != 0)


def test_what_cannot_be_held_is_one_sentence(tmp_path):
    def refused(masks, model=None, args=None):
        with pytest.raises(UserError) as error:
            hold = HoldMasks(masks)
            hold.on_train_begin(args or SimpleNamespace(), None, None, model=model or Model())
        return str(error.value)

    assert refused(Model()) == "HoldMasks: this model: prunes no weight; name a pruned run or model"
    assert refused({"x.weight": HOLD}) == (
        "HoldMasks: the model has no parameter 'x.weight', and the given mapping has its mask"
    )
    assert refused({"c_fc.weight": HOLD}).startswith("HoldMasks: the mask of c_fc.weight is [2, 3], but c_fc.weight is")
    sharded = SimpleNamespace(fsdp=["full_shard"])
    ours = {"c_fc.weight": HOLD.t()}
    assert "shard parameters, whose parts have no mask; train with DDP" in refused(ours, None, sharded)
    whole = Model()
    whole.c_fc.weight = nn.Parameter(torch.ones(3, 2, dtype=torch.int8), requires_grad=False)
    assert "sharded or quantised, so its weights cannot be masked" in refused(ours, whole)
    missing = "nothing: is no run, no masks.safetensors and no folder of safetensors; check the name"
    assert refused(tmp_path / "nothing").endswith(missing)


DRIVER = """
import runpy, sys
for name in ("sft.py", "dpo.py", "grpo.py"):
    runpy.run_path(name, run_name="__main__")
"""


def test_without_a_model_nothing_is_masked_in_silence():
    hold = HoldMasks({"c_fc.weight": HOLD.t()})
    for ask in (hold.apply, hold.sparsity, hold.broken):
        with pytest.raises(UserError, match=r"^HoldMasks: has no model yet; call bind\(model\), or apply\(model\)$"):
            ask()


def test_a_name_that_fits_several_parameters_is_refused():
    with pytest.raises(UserError, match=r"^HoldMasks: 'weight' of .* fits several parameters of the model "):
        HoldMasks({"weight": torch.zeros(2, 2)}).bind(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


@pytest.fixture
def adapted():
    """GPT-2 with half of the weights of its linear layers pruned, and adapters beside all of them but c_proj."""
    import peft
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Conv1D) and "c_attn" not in name:
                module.weight.mul_(torch.rand_like(module.weight) < 0.5)
    hold = HoldMasks(model)
    lora = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    return hold, peft.get_peft_model(model, lora).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(16)[None]).logits


@pytest.mark.extra("trl")
def test_an_adapted_model_computes_as_the_merged_one_while_it_is_measured(adapted):
    hold, model = adapted
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    own = logits(model)
    with model.disable_adapter():
        reference = logits(model)
    sparsity = hold.bind(model).sparsity()  # of c_proj only: nothing is adapted there
    pruned = sum(int(one.pruned.sum()) for one in hold.held) / sum(one.pruned.numel() for one in hold.held)
    assert 0.1 < sparsity < pruned - 0.1
    with hold.merged(model):
        assert hold.sparsity() == pytest.approx(pruned)
        merged = logits(model)
        with model.disable_adapter():  # the reference model of DPO and GRPO
            assert torch.equal(logits(model), reference)
    assert torch.equal(logits(model), own)
    assert hold.sparsity() == sparsity
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())
    plain, count = hold.merge(copy.deepcopy(model))
    assert count > 0
    assert torch.equal(logits(plain), merged)
    assert not torch.allclose(own, merged)


@pytest.mark.extra("trl")
def test_after_an_error_in_an_evaluation_adapters_count_again(adapted):
    hold, model = adapted
    own = logits(model)
    with pytest.raises(ZeroDivisionError), hold.merged(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model), own)


@pytest.mark.extra("trl")
def test_the_weights_of_an_adapted_model_are_those_with_its_adapters(adapted):
    _, model = adapted
    found = dict(linear_weights(model))
    assert len(found) == 8
    for name, weight in linear_weights(copy.deepcopy(model).merge_and_unload()):
        assert torch.equal(found[f"base_model.model.{name}"], weight)


@pytest.mark.extra("trl")
def test_the_scripts_of_the_page_hold_every_zero_in_two_processes(tmp_path):
    import json

    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2.weights import tokenizer_files
    from tests.scripts.test_finetune import ROWS

    torch.manual_seed(0)
    shape = {"vocab_size": 256, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            masks[f"{name}.weight"] = keep = torch.rand_like(module.weight) < 0.5
            module.weight.data.mul_(keep)
    model.save_pretrained(tmp_path / "exported")
    tokenizer_files.write(tmp_path / "exported", "bytes", 64)
    page = (ROOT / "docs/finetuning.md").read_text()
    scripts = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, re.DOTALL))
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.py").write_text(scripts[name].replace("max_steps=30", "max_steps=4"))
    (tmp_path / "all.py").write_text(DRIVER)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "all.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    launched = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150)
    assert launched.returncode == 0, launched.stderr[-3000:]
    first = load_file(tmp_path / "exported/model.safetensors")
    for name in ROWS:
        found = load_file(tmp_path / f"out-{name}/model.safetensors")
        assert sum(int(found[one][~keep].count_nonzero()) for one, keep in masks.items()) == 0
        assert any(not torch.equal(found[one], first[one]) for one in masks)
    (run,) = (tmp_path / "runs").glob("sft*")
    steps = [json.loads(line)["step"] for line in (run / "journal.jsonl").open() if '"event":"train"' in line]
    assert sorted(set(steps)) == sorted(steps)
