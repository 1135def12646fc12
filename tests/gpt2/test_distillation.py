"""The loss of a run with a teacher: values by hand, loops in float64, other programs' formula, and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2 import distillation, loss
from gpt2.data.tokenizer import vocab_size
from gpt2.distillation import DistillOptions, Teacher
from gpt2.loss import linear_cross_entropy, linear_distillation
from gpt2.model import GPT2
from gpt2.shape import ModelOptions, ShapeOptions
from tests.training import schema

N, C, D, VOCABULARY, PADDED = 13, 8, 6, 50, 64  # the teacher has another width, D


@pytest.fixture(params=[1024, 5, 1], ids=lambda rows: f"{rows} rows")
def data(request, monkeypatch):
    """Student, its head, targets, teacher and its head; in one chunk, in three of which the last is shorter, in 13."""
    monkeypatch.setattr(loss, "_ROWS", {"cpu": request.param})
    torch.manual_seed(0)
    x, weight = torch.randn(N, C, requires_grad=True), torch.randn(PADDED, C, requires_grad=True)
    return x, weight, torch.randint(VOCABULARY, (N,)), torch.randn(N, D), torch.randn(PADDED, D)


def softmax(logits):
    """Of plain numbers, in float64."""
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def by_hand(x, weight, targets, teacher_x, teacher_weight, share, temperature):
    """The three losses, and the gradients of the student's inputs and head, in plain loops in float64."""
    x, weight, teacher_x, teacher_weight = (one.detach().double() for one in (x, weight, teacher_x, teacher_weight))
    entropy = divergence = 0.0
    x_grad, weight_grad = torch.zeros_like(x), torch.zeros_like(weight)
    for n, target in enumerate(targets.tolist()):
        z = [float(weight[v] @ x[n]) for v in range(VOCABULARY)]
        t = [float(teacher_weight[v] @ teacher_x[n]) for v in range(VOCABULARY)]
        p, own, soft = softmax(z), softmax([v / temperature for v in z]), softmax([v / temperature for v in t])
        entropy -= math.log(p[target]) / N
        divergence += temperature**2 * sum(q * math.log(q / o) for q, o in zip(soft, own, strict=True)) / N
        for v in range(VOCABULARY):
            hard = p[v] - (v == target)
            error = ((1 - share) * hard + share * temperature * (own[v] - soft[v])) / N
            x_grad[n] += error * weight[v]
            weight_grad[v] += error * x[n]
    return [(1 - share) * entropy + share * divergence, entropy, divergence], x_grad, weight_grad


@pytest.mark.parametrize(("share", "temperature"), [(0.67, 1), (0.3, 2), (1, 0.5), (0, 4)])
def test_value_and_gradients_are_those_of_plain_loops(data, share, temperature):
    x, weight, targets, teacher_x, teacher_weight = data
    expected, x_grad, weight_grad = by_hand(*data, share, temperature)
    losses = linear_distillation(x, weight, targets, VOCABULARY, teacher_x, teacher_weight, share, temperature)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=1e-6)
    (losses[0] * 0.25).backward()
    torch.testing.assert_close(x.grad, x_grad.float() / 4, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, weight_grad.float() / 4, rtol=1e-5, atol=1e-6)
    assert torch.count_nonzero(weight.grad[VOCABULARY:]) == 0


@pytest.mark.parametrize("temperature", [1, 3])
def test_it_is_the_formula_of_other_programs(data, temperature):
    """Of SparseFinetuning, the code of arXiv 2310.06927: the sum of kl_div times T^2 over the number of tokens."""
    x, weight, targets, teacher_x, teacher_weight = data
    z, t = ((a @ b[:VOCABULARY].T / temperature).log_softmax(-1) for a, b in ((x, weight), (teacher_x, teacher_weight)))
    theirs = F.kl_div(z, t, log_target=True, reduction="sum") * temperature**2 / N
    expected = torch.autograd.grad(theirs, [x, weight])
    losses = linear_distillation(x, weight, targets, VOCABULARY, teacher_x, teacher_weight, 1.0, temperature)
    torch.testing.assert_close(losses[2], theirs.detach(), rtol=1e-6, atol=0)
    for found, wanted in zip(torch.autograd.grad(losses[0], [x, weight]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


# The student has the probabilities 1/4, 1/2, 1/4, the teacher 1/2, 1/4, 1/4, and the next token is the first one. At
# T = 2 the square roots of the odds count: 1, √2, 1 over 2 + √2, and √2, 1, 1 over 2 + √2.
LITERAL = {
    (0.67, 1): ([0.573580, 1.386294, 0.173287], [-0.415, 0.3325, 0.0825]),
    (0.5, 2): ([0.777240, 1.386294, 0.168186], [-0.496320, 0.371320, 0.125]),
}


@pytest.mark.parametrize(("share", "temperature"), LITERAL)
def test_values_by_hand(share, temperature):
    logits = torch.tensor([[1.0, 2.0, 1.0]]).log().requires_grad_()
    teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()
    losses = linear_distillation(logits, torch.eye(3), torch.tensor([0]), 3, teacher, torch.eye(3), share, temperature)
    expected, grad = LITERAL[share, temperature]
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=0, atol=2e-6)
    losses[0].backward()
    torch.testing.assert_close(logits.grad, torch.tensor([grad]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1, 2])
def test_a_share_of_0_is_the_cross_entropy_bit_for_bit(data, dtype, temperature):
    x, weight, targets, teacher_x, teacher_weight = data
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        alone = linear_cross_entropy(x, weight, targets, VOCABULARY)
        losses = linear_distillation(x, weight, targets, VOCABULARY, teacher_x, teacher_weight, 0.0, temperature)
    assert torch.equal(losses[:2], torch.stack([alone, alone]))
    before = torch.autograd.grad(alone / 3, [x, weight])
    for found, wanted in zip(torch.autograd.grad(losses[0] / 3, [x, weight]), before, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_under_autocast_gradients_are_float32_of_16_bit_products(data, dtype, tolerance):
    x, weight, targets, teacher_x, teacher_weight = data
    expected, x_grad, weight_grad = by_hand(*data, 0.67, 2)
    with torch.autocast("cpu", dtype):
        losses = linear_distillation(x, weight, targets, VOCABULARY, teacher_x, teacher_weight, 0.67, 2)
    losses[0].backward()
    assert (losses.dtype, x.grad.dtype, weight.grad.dtype) == (torch.float32,) * 3
    assert losses.tolist() == pytest.approx(expected, rel=tolerance)
    for found, wanted in ((x.grad, x_grad), (weight.grad, weight_grad)):
        assert (found - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("temperature", [1, 2])
def test_a_teacher_that_is_the_student_has_nothing_to_say(data, temperature):
    x, weight, targets, _, _ = data
    losses = linear_distillation(x, weight, targets, VOCABULARY, x.detach(), weight.detach(), 1.0, temperature)
    assert losses.tolist() == [0, linear_cross_entropy(x, weight, targets, VOCABULARY).item(), 0]
    assert not any(grad.any() for grad in torch.autograd.grad(losses[0], [x, weight]))


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(1)
    x, weight, teacher_x, teacher_weight = (torch.randn(size, 3, dtype=torch.float64) for size in (4, 6, 4, 6))
    targets = torch.tensor([0, 2, 4, 4])
    assert torch.autograd.gradcheck(
        lambda x, w: linear_distillation(x, w, targets, 5, teacher_x, teacher_weight, 0.6, 1.5)[0],
        (x.requires_grad_(), weight.requires_grad_()), eps=1e-3, atol=1e-3, rtol=1e-3,
    )  # fmt: skip


def test_float16_gradients_do_not_overflow_at_a_high_temperature():
    n, vocabulary = 20_000, 1000
    x, weight = torch.full((n, 4), 20.0, requires_grad=True), torch.zeros(vocabulary, 4, requires_grad=True)
    teacher = torch.zeros(vocabulary, 4)
    teacher[0] = 400.0  # its logit is 32,000: at T = 100 still certain
    with torch.autocast("cpu", torch.float16):
        targets = torch.zeros(n, dtype=torch.long)
        losses = linear_distillation(x, weight, targets, vocabulary, x.detach(), teacher, 1.0, 100.0)
    losses[0].backward()
    # The student has 1/1000 everywhere: the mean of T (p - q) x is 100 (0.001 - 1) 20, and 100 * 0.001 * 20.
    torch.testing.assert_close(weight.grad[0], torch.full((4,), -1998.0), rtol=2e-3, atol=0)
    torch.testing.assert_close(weight.grad[1:], torch.full((999, 4), 2.0), rtol=2e-2, atol=0)
    assert losses[2].item() == pytest.approx(100**2 * math.log(1000), rel=1e-3)


# ---- the teacher -----------------------------------------------------------------------------------------------------

SMALL = ModelOptions("custom", n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.1, activation="gelu-tanh")
WIDE = ShapeOptions("custom", 1, 3, 24, 8, 0.5, "gelu", mlp_widths="", head_counts="")


def models():
    torch.manual_seed(0)
    return GPT2(SMALL, 50), Teacher(GPT2(WIDE, 50), DistillOptions(0.67, 2.0))


def test_a_teacher_has_no_gradients_no_dropout_and_takes_no_random_numbers():
    student, teacher = models()
    tokens, targets = torch.randint(50, (3, 8)), torch.randint(50, (3, 8))
    state = torch.get_rng_state()
    alone = student(tokens, targets)
    torch.set_rng_state(state)
    losses = teacher.losses(student, tokens, targets)
    assert losses[1] == alone  # the student's dropout is the same
    losses[0].backward()
    assert [parameter.grad for parameter in teacher.model.parameters() if parameter.grad is not None] == []
    assert all(parameter.grad is not None for parameter in student.parameters())
    torch.set_rng_state(state)
    assert torch.equal(teacher.losses(student, tokens, targets), losses)
    assert (teacher.model.training, student.training) == (False, True)


def test_its_losses_are_those_of_whole_logits():
    student, teacher = models()
    student.eval()
    tokens, targets = torch.randint(50, (3, 8)), torch.randint(50, (3, 8))
    losses = teacher.losses(student, tokens, targets)
    z, t = (model(tokens).double().flatten(0, 1) / 2 for model in (student, teacher.model))
    divergence = 4 * F.kl_div(z.log_softmax(-1), t.softmax(-1), reduction="batchmean")
    entropy = F.cross_entropy(2 * z, targets.flatten())
    expected = torch.stack([0.33 * entropy + 0.67 * divergence, entropy, divergence])
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_operations_of_a_teacher_are_those_of_its_forward_pass():
    # Width 24: a block has 12 x 576 + 13 x 24 = 7,224; 48 in the last norm; 24 x 50 in the embedding; attention
    # 4 x 24 x 8.
    assert models()[1].flops_per_token() == 2 * (7_224 + 48 + 1_200) + 768


def test_a_stand_in_has_the_shape_of_what_is_named_or_of_its_student(tmp_path):
    device, vocabulary = torch.device("cpu"), vocab_size("bytes")
    assert distillation.stand_in(schema(tmp_path), vocabulary, device) is None
    made = schema(tmp_path, distill_from="@dense")
    model = distillation.stand_in(made, vocabulary, device).model
    assert (model.options.n_embd, model.options.n_layer, model.block_size) == (32, 2, 32)
