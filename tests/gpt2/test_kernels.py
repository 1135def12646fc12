"""How a run computes on a CPU: measured once and kept, as before on a resume, fixed where bits must not differ."""

import json

import pytest
import torch
from torch import nn

from gpt2 import cpu, kernels
from gpt2.kernels import Choice, KernelOptions
from gpt2.model import GPT2
from gpt2.shape import ModelOptions
from lib import optim
from lib.base import load
from lib.base.load import Reading
from lib.config.kconf import Schema
from lib.machine.device import Machine

SHAPE = ModelOptions("custom", n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.0, activation="gelu-tanh")
MUON = KernelOptions("auto", 0, "muon")
AUTO, LONG = KernelOptions("auto", 0, "adamw"), 1e12


def machine(kind="cpu", deterministic=False, dtype=torch.float32):
    return Machine(torch.device(kind), dtype, kind, None, deterministic=deterministic)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The cache is empty, the machine idle, and the number of threads stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(load, "read", lambda: Reading(0.0, 0.0, 0.0, 0.0, 2))
    monkeypatch.setattr(load, "foreign", lambda begin, end: 0.0)
    before = torch.get_num_threads()
    yield tmp_path / "espalier" / "kernels-2.json"
    torch.set_num_threads(before)


@pytest.fixture
def measurements(monkeypatch):
    """A list that grows by each measurement; its result is oneDNN with one thread."""
    made = []
    monkeypatch.setattr(
        kernels, "_measure", lambda *given: made.append(given) or Choice("onednn", 1, "auto: now", 2e11)
    )
    return made


def test_a_shape_is_measured_once_and_kept(measurements, place):
    first = kernels.choose(AUTO, machine(), SHAPE, 4, LONG)
    assert first == Choice("onednn", 1, "auto: now", 2e11)
    again = kernels.choose(AUTO, machine(), SHAPE, 4, LONG)
    assert again == Choice("onednn", 1, "auto: measured before", 2e11)
    assert len(measurements) == 1
    ((key, entry),) = json.loads(place.read_text()).items()
    assert key.endswith("16 wide, 2 heads, 4 x 8 tokens") and "PyTorch 2.13.0" in key
    assert entry == {"kernels": "onednn", "threads": 1, "rate": 2e11}
    kernels.choose(AUTO, machine(), SHAPE, 5, LONG)
    kernels.choose(AUTO, machine(dtype=torch.bfloat16), SHAPE, 4, LONG)
    assert len(measurements) == 3 and len(kernels.read(place)) == 3


def test_what_needs_no_measurement_or_forbids_it(measurements, place):
    threads = torch.get_num_threads()
    assert kernels.choose(AUTO, machine("cuda"), SHAPE, 4, LONG) == Choice("", 0)
    fixed = Choice("torch", threads, "auto: DETERMINISTIC=y takes PyTorch's")
    assert kernels.choose(AUTO, machine(deterministic=True), SHAPE, 4, LONG) == fixed
    short = Choice("torch", threads, "auto: too few operations to measure")
    assert kernels.choose(AUTO, machine(), SHAPE, 4, 0.99e12) == short
    given = Choice("onednn-attention", threads)
    assert kernels.choose(KernelOptions("onednn-attention", 0, "adamw"), machine(), SHAPE, 4, LONG) == given
    assert not measurements and not place.exists()


def test_a_resumed_run_computes_as_before(measurements):
    before = Choice("attention", 1, "auto: now", 1e11).kept()
    assert kernels.choose(AUTO, machine(), SHAPE, 4, LONG, before) == Choice("attention", 1, "auto: as before", 1e11)
    threads = torch.get_num_threads()
    more = before | {"threads": threads + 1}  # on a machine with more cores
    assert kernels.choose(AUTO, machine(), SHAPE, 4, LONG, more).threads == threads
    given = kernels.choose(KernelOptions("auto", threads, "adamw"), machine(), SHAPE, 4, LONG, before)
    assert given == Choice("attention", threads, "auto: as before", 1e11)
    assert not measurements


def test_given_threads_are_not_chosen(measurements):
    threads = torch.get_num_threads()
    assert kernels.choose(KernelOptions("auto", threads, "adamw"), machine(), SHAPE, 4, LONG).threads == threads
    assert measurements[0][-1] is True


def test_beside_busy_programs_nothing_is_chosen(measurements, place, monkeypatch):
    monkeypatch.setattr(load, "foreign", lambda begin, end: 0.25)  # of 2 cores
    threads = torch.get_num_threads()
    because = "auto: not measured, because other programs compute"
    assert kernels.choose(AUTO, machine(), SHAPE, 4, LONG) == Choice("torch", threads, because)
    assert not place.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"KEY": 3}', '{"KEY": {"kernels": "onednn", "threads": 0, "rate": 1.0}}', "\xff"]
)
def test_a_damaged_cache_is_measured_again(measurements, place, content):
    kernels.measured(machine(), SHAPE, 4)
    key = next(iter(kernels.read(place)))
    place.write_bytes(content.replace("KEY", key).encode("latin-1"))
    assert kernels.read(place) == {}
    assert kernels.measured(machine(), SHAPE, 4).reason == "auto: now"
    assert kernels.measured(machine(), SHAPE, 4).reason == "auto: measured before"


def test_a_cache_that_cannot_be_written_is_said(measurements, place):
    place.parent.write_text("a file in the place of the folder")
    words = "auto: measured now, but not kept, because the cache is not writable"
    assert kernels.measured(machine(), SHAPE, 4).reason == words


def test_muon_is_measured_apart_and_only_in_bfloat16(place, monkeypatch):
    monkeypatch.setattr(kernels, "_wins", lambda *_: False)
    monkeypatch.setattr(kernels, "_orthogonalises_faster", lambda width: width == 16)
    assert kernels.choose(MUON, machine(dtype=torch.bfloat16), SHAPE, 4, LONG).kernels == "muon"
    assert kernels.choose(AUTO, machine(dtype=torch.bfloat16), SHAPE, 4, LONG).kernels == "torch"
    assert kernels.choose(MUON, machine(), SHAPE, 4, LONG).kernels == "torch"
    again = kernels.choose(MUON, machine(dtype=torch.bfloat16), SHAPE, 4, LONG)
    assert (again.kernels, again.reason) == ("muon", "auto: measured before")
    assert [", Muon: " in key for key in kernels.read(place)] == [True, False, True]


@pytest.mark.parametrize("faster", [False, True])
def test_muon_takes_bfloat16_where_that_is_faster(monkeypatch, faster):
    made = []

    def seconds(run):
        run()
        return 2.0 if made[-1] != faster else 1.0

    monkeypatch.setattr(kernels, "_time", seconds)
    monkeypatch.setattr(kernels, "newton_schulz", lambda matrices, room, bfloat16=False: made.append(bfloat16))
    assert kernels._orthogonalises_faster(16) == faster
    assert {False, True} == set(made)


def test_a_real_measurement_chooses_among_what_there_is_and_draws_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = kernels.measured(machine(), SHAPE, 4)
    assert set(found.kernels.split("-")) <= {*cpu.KERNELS, "torch"}
    assert 1 <= found.threads <= torch.get_num_threads()
    assert found.rate > 1e6
    assert torch.equal(before, torch.get_rng_state())


def test_the_faster_one_is_taken_only_if_it_is_five_percent_faster(monkeypatch):
    seconds, state = {False: 1.0, True: 1.0}, {}
    monkeypatch.setattr(kernels, "_time", lambda run: seconds[state["on"]])
    layer = kernels.Layer(machine(), SHAPE, 4)
    monkeypatch.setattr(cpu, "use", lambda part, own: state.update(on=bool(own)))
    assert not kernels._wins("onednn", layer.linear, layer.product)
    seconds[True] = 0.96
    assert not kernels._wins("onednn", layer.linear, layer.product)
    seconds[True] = 0.95
    assert kernels._wins("onednn", layer.linear, layer.product)


def test_threads_are_halved_while_that_is_faster(monkeypatch):
    costs = {8: 4.0, 4: 2.0, 2: 1.9, 1: 1.9}
    now = []
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    monkeypatch.setattr(kernels, "_time", lambda run: costs[now[-1]])
    assert kernels._threads(kernels.Layer(machine(), SHAPE, 4), 8) == 2
    costs[2] = 2.0
    assert kernels._threads(kernels.Layer(machine(), SHAPE, 4), 8) == 4


@pytest.mark.parametrize("chosen", ["torch", "onednn", "attention", "onednn-attention"])
def test_every_choice_has_the_losses_of_plain_float32(chosen):
    losses = []
    for one in ("torch", chosen):
        torch.manual_seed(0)
        model = GPT2(SHAPE, 50)
        Choice(one).apply(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
            loss = model(tokens[:, :-1], tokens[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0] < 3.9


def test_a_choice_reaches_every_layer():
    model = GPT2(SHAPE, 50)
    Choice("onednn-attention").apply(model)
    assert [module.onednn for module in model.modules() if isinstance(module, cpu.Linear)] == [True] * 4
    assert model.h[0].attn.attend.in_parts is True
    Choice("torch").apply(model)
    assert not any(getattr(module, "onednn", False) or getattr(module, "in_parts", False) for module in model.modules())
    assert isinstance(model.h[0].mlp.c_fc, nn.Linear)


def test_a_choice_reaches_muon_and_leaves_other_optimizers_alone():
    model, bind = GPT2(SHAPE, 50), Schema().bind
    other = optim.build(model, bind)
    Choice("attention-muon").apply(model, other)
    schema = Schema()
    schema.override([("OPTIMIZER", "muon", "test")])
    muon = optim.build(model, schema.bind)
    assert muon.bfloat16 is False
    Choice("attention-muon").apply(model, muon)
    assert muon.bfloat16 is True
    Choice("attention").apply(model, muon)
    assert muon.bfloat16 is False


def test_a_planned_run_gets_what_was_measured_and_a_short_one_chooses_itself(measurements):
    def schema(**values):
        made = Schema()
        sizes = {"MODEL_NAME": "custom", "N_LAYER": "1", "N_HEAD": "2", "N_EMBD": "16", "BLOCK_SIZE": "8"}
        given = sizes | {"TOKENIZER": "bytes", "DTYPE": "float32", "DEVICE": "cpu"} | values
        made.override([(name, value, "test") for name, value in given.items()])
        return made

    assert kernels.planned(schema(MAX_ITERS="10"), 1) == {}
    assert kernels.planned(schema(MAX_ITERS="1000000000"), 0) == {"KERNELS": "onednn", "THREADS": "1"}
    assert kernels.planned(schema(MAX_ITERS="1000000000", KERNELS="torch"), 0) == {}
    assert len(measurements) == 1


def test_given_kernels_have_the_rate_that_was_measured_with_them(measurements):
    """So that COMPILE=auto decides in a run of a sweep as it would alone."""
    kernels.measured(machine(), SHAPE, 4)
    torch.set_num_threads(1)

    def rate(chosen="onednn", batch=4, **about):
        return kernels.choose(KernelOptions(chosen, 1, "adamw"), machine(**about), SHAPE, batch, LONG).rate

    assert rate() == 2e11
    assert [rate("torch"), rate(batch=14), rate(dtype=torch.bfloat16), rate(deterministic=True)] == [None] * 4
    torch.set_num_threads(2)
    assert rate() is None
    assert len(measurements) == 1
