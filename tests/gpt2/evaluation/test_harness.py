"""The answers to lm-eval's requests, against sums by hand over the model's own logits. Needs no lm-eval."""

import math

import pytest
import torch

from gpt2.data import tokenizer
from gpt2.evaluation import harness
from gpt2.evaluation.harness import Answers
from gpt2.model import GPT2, ModelOptions
from lib.machine import device

BLOCK = 16
CPU = device.SystemOptions(device="cpu", dtype="float32", threads=0, deterministic=False, sum_dtype="float32")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    made = GPT2(
        ModelOptions("custom", n_layer=2, n_head=2, n_embd=16, block_size=BLOCK, dropout=0.0, activation="gelu-tanh"),
        256,
    ).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def answers(model, batch_size=3, seed=1):
    return Answers(model, tokenizer.load("bytes"), device.choose(CPU), batch_size, seed)


@torch.no_grad()
def by_hand(model, tokens, first):
    """The log-probability of each of `tokens` from `first` on, and whether it is the most likely one, one by one."""
    found = []
    for at in range(first, len(tokens)):
        row = torch.log_softmax(model(torch.tensor([tokens[max(0, at - BLOCK) : at]]))[0, -1].double(), 0)
        found.append((float(row[tokens[at]]), int(row.argmax()) == tokens[at]))
    return found


def total(found):
    return sum(value for value, _ in found), all(likely for _, likely in found)


def test_log_likelihoods_of_several_lengths_are_those_of_single_sequences(model, monkeypatch):
    requests = [("ab", "cd"), ("a", "b"), ("hello wor", "ld"), ("", "xyz"), ("tail  ", "end"), ("q", "rstuv")]
    got = answers(model).loglikelihood(requests)
    for (context, continuation), (value, likely) in zip(requests, got, strict=True):
        tokens = [*(context.encode() or b"\0"), *continuation.encode()]
        first = len(context.rstrip()) if context else 1
        expected, expected_likely = total(by_hand(model, tokens, first))
        assert value == pytest.approx(expected, rel=1e-5)
        assert likely == expected_likely
    monkeypatch.setattr(harness, "ROWS", 2)  # whose logits are computed at a time
    assert answers(model).loglikelihood(requests) == [(pytest.approx(value, rel=1e-5), right) for value, right in got]
    alone = answers(model, batch_size=1).loglikelihood(requests)
    assert [value for value, _ in alone] == pytest.approx([value for value, _ in got], rel=1e-5)


def test_a_continuation_is_greedy_if_each_token_is_the_most_likely_one(model):
    best = int(model(torch.tensor([[*b"ab"]]))[0, -1].detach()[:128].argmax())
    whole = int(model(torch.tensor([[*b"ab"]]))[0, -1].argmax())
    got = answers(model).loglikelihood([("ab", chr(best)), ("ab", chr((best + 1) % 128))])
    assert [likely for _, likely in got] == [best == whole, False]


def test_a_long_context_is_cut_on_the_left(model):
    context, continuation = "0123456789" * 4, "abc"
    ((got, _),) = answers(model).loglikelihood([(context, continuation)])
    window = [*(context + continuation).encode()][-(BLOCK + 1) :]
    logits = torch.log_softmax(model(torch.tensor([window[:-1]]))[0].detach(), -1)
    assert got == pytest.approx(sum(float(logits[n, window[n + 1]]) for n in range(BLOCK - 3, BLOCK)), rel=1e-5)


def test_a_continuation_longer_than_the_context_is_predicted_in_windows(model):
    text = "0123456789" * 4
    ((got, _),) = answers(model).loglikelihood([("ab", text)])
    assert got == pytest.approx(windows_by_hand(model, [*b"ab"], [*text.encode()]), rel=1e-5)


def windows_by_hand(model, context, targets):
    """The sum over windows of 16 targets: the last ones have a full window before them, the first ones less."""
    value, whole = 0.0, [*context, *targets]
    for start in range(0, len(targets), BLOCK):
        stop = len(context) + min(start + BLOCK, len(targets))
        given = whole[max(0, stop - 1 - BLOCK) : stop - 1]
        logits = torch.log_softmax(model(torch.tensor([given]))[0].detach(), -1)
        count = min(BLOCK, len(targets) - start)
        value += sum(float(logits[len(given) - count + n, targets[start + n]]) for n in range(count))
    return value


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 32, 40])
def test_rolling_predicts_each_token_once_after_the_end_of_text(model, length):
    text = ("the quick brown fox jumps over the lazy dog " * 2)[:length]
    (got,) = answers(model).rolling([text])
    assert got == pytest.approx(windows_by_hand(model, [0], [*text.encode()]), rel=1e-5, abs=1e-12)


def continued(model, context, count):
    tokens = [*context.encode()]
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens[-BLOCK:]]))[0, -1].argmax()))
    return bytes(tokens[len(context) :])


def test_generation_is_greedy_in_batches_of_different_lengths(model):
    contexts = ["abc", "x", "hello", "01"]
    got = answers(model).generate([(context, {"max_gen_toks": 6, "until": []}) for context in contexts])
    assert got == [continued(model, context, 6).split(b"\0")[0].decode(errors="replace") for context in contexts]


def test_generation_ends_before_a_stop_sequence(model):
    (whole,) = answers(model).generate([("abc", {"max_gen_toks": 8})])
    assert len(whole) >= 4
    stop = whole[2:4]
    requests = [("abc", {"max_gen_toks": 8, "until": until}) for until in (stop, ["never", stop], [""], None)]
    assert answers(model).generate(requests) == [whole.split(stop)[0]] * 2 + [whole] * 2


def test_a_context_leaves_room_for_the_generation(model):
    context = "0123456789" * 3
    (got,) = answers(model).generate([(context, {"max_gen_toks": 10})])
    assert got == continued(model, context[-6:], 10).split(b"\0")[0].decode(errors="replace")


def test_a_generation_longer_than_the_context_slides_the_window(model):
    (got,) = answers(model).generate([("ab", {"max_new_tokens": 40})])
    assert got == continued(model, "ab", 40).split(b"\0")[0].decode(errors="replace")


def test_sampling_is_repeated_by_its_seed_and_limited_by_top_k(model):
    sampled = {"max_gen_toks": 12, "do_sample": True, "temperature": 5.0}
    one, same, other = (answers(model, seed=seed).generate([("ab", sampled)]) for seed in (1, 1, 2))
    assert one == same != other
    greedy = answers(model).generate([("ab", {"max_gen_toks": 12})])
    for least in ({"top_k": 1}, {"top_p": 1e-6}, {"do_sample": False}, {"temperature": 1e-4}):
        assert answers(model).generate([("ab", sampled | least)]) == greedy


def test_a_padded_batch_costs_nothing_in_precision_under_autocast(model):
    half = device.choose(
        device.SystemOptions(device="cpu", dtype="bfloat16", threads=0, deterministic=False, sum_dtype="float32")
    )
    requests = [("ab", "cd"), ("hello wor", "ld")]
    rough = Answers(model, tokenizer.load("bytes"), half, 2, 1).loglikelihood(requests)
    for (value, _), (exact, _) in zip(rough, answers(model).loglikelihood(requests), strict=True):
        assert value != exact and math.isclose(value, exact, rel_tol=0.05)
