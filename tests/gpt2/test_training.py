"""A compiled start uses settings of torch that are not documented, so an upgrade of torch may lose them."""

import functools
import time

import pytest
import torch
from torch._functorch import config
from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache, check_cacheable
from torch._inductor import cpu_vec_isa

from gpt2 import cpu, training
from gpt2.distillation import DistillOptions, Teacher
from gpt2.divergence import DivergenceOptions
from gpt2.model import GPT2, ModelOptions
from gpt2.training import Training
from lib.machine.device import Machine
from lib.prune.dense import NoPruning


@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
@pytest.mark.parametrize("kernels", [(), ("onednn",)], ids="-".join)
def test_a_warm_start_need_not_trace_the_training_step(monkeypatch, kernels, taught):
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", lambda: [])
    torch._dynamo.reset()
    machine = Machine(torch.device("cpu"), torch.float32, "cpu", None)
    model = GPT2(ModelOptions("custom", 1, 2, 8, 4, 0.0, "gelu-tanh"), 11)
    cpu.use(model, kernels)
    optimizer, guard = torch.optim.SGD(model.parameters()), DivergenceOptions("stop", None)
    teacher = Teacher(GPT2(model.options, 11), DistillOptions(0.5, 2.0)) if taught else None
    training = Training(model, optimizer, NoPruning(model.prunable()), machine, guard, dict, teacher)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    tokens = torch.zeros(1, 4, dtype=torch.long)
    step = functools.partial(teacher.losses, model) if teacher else model
    torch.compile(step, dynamic=False, fullgraph=True, backend=keep)(tokens, tokens)
    with config.patch(autograd_cache_allow_custom_autograd_functions=False):
        with pytest.raises(BypassAOTAutogradCache):  # so the setting is still needed
            check_cacheable(graphs[0])
        training.compile(True)
        check_cacheable(graphs[0])


def test_one_thread_at_a_time_tries_instructions(monkeypatch):
    """torch's own function, tried by two threads at once, compiled with flags that the next start did not find."""
    now, most, tries = [], [], []

    def find():
        now.append(1)
        most.append(len(now))
        time.sleep(0.05)
        now.pop()
        tries.append(1)
        return ["AVX"]

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", find)
    training._look_for_instructions.cache_clear()
    training._look_for_instructions()
    training._look_for_instructions()
    assert cpu_vec_isa.valid_vec_isa_list() == ["AVX"]
    while len(tries) < 2:
        time.sleep(0.01)
    assert (len(tries), max(most)) == (2, 1)
    training._look_for_instructions.cache_clear()
