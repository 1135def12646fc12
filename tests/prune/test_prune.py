"""Pruners on a small network: exact sparsity at every step, zeros that stay, dynamics counted, resuming."""

import math

import pytest
import torch
from torch import nn

from gpt2.model import GPT2, ModelOptions
from lib import optim, prune
from lib.base.errors import UserError
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.record import checkpoint
from lib.record.checkpoint import CheckpointError

ONE = checkpoint.Keeping(checkpoint_keep=1, checkpoint_best=False, checkpoint_at="")
SHAPES = {"0.weight": (12, 16), "2.weight": (8, 12)}
TOTAL = 12 * 16 + 8 * 12  # 288
YES = lambda: torch.tensor(True)  # noqa: E731
METHODS = {
    "magnitude": {},
    "random": {},
    "gradient": {},
    "state": {},
    "wanda": {},
    "movement": {"PRUNING_METHOD": "movement"},
    "static": {"PRUNING_METHOD": "random", "PRUNING_DYNAMICS": "static"},
    "snip": {"PRUNING_METHOD": "gradient", "PRUNING_DYNAMICS": "static"},
    "global": {"PRUNING_METHOD": "magnitude", "PRUNING_DISTRIBUTION": "global"},
    "layer": {"PRUNING_METHOD": "magnitude", "PRUNING_DISTRIBUTION": "layer"},
    "erk": {"PRUNING_METHOD": "magnitude", "PRUNING_DISTRIBUTION": "erk"},
    "owl": {"PRUNING_METHOD": "magnitude", "PRUNING_DISTRIBUTION": "owl", "OWL_THRESHOLD": "2"},
    "owl-wanda": {"PRUNING_METHOD": "wanda", "PRUNING_DISTRIBUTION": "owl", "OWL_THRESHOLD": "2"},
    "one-shot": {"PRUNING_METHOD": "magnitude", "PRUNING_SCHEDULE": "one-shot"},
    "rigl": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "rigl"},
    "set": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "set"},
    "chts": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "chts", "RIGL_DROP_FRACTION": "0.3"},
    "warm": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "rigl", "REGROW_WARMUP": "6"},
    "granet": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "granet", "REGROW_WARMUP": "3"},
    "granet-sparse": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "granet", "GRANET_START_SPARSITY": "0.3"},
    "mest": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "mest", "MEST_LAMBDA": "2", "REGROW_WARMUP": "3"},
    "mest-soft": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "mest", "MEST_SOFT_BOUND": "y"},
    "ste": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "ste"},
    "wanda-ste": {"PRUNING_METHOD": "wanda", "PRUNING_DYNAMICS": "ste"},
    "state-ste": {"PRUNING_METHOD": "state", "PRUNING_DYNAMICS": "ste"},
    "random-ste": {"PRUNING_METHOD": "random", "PRUNING_DYNAMICS": "ste"},
    "s-ste": {
        "PRUNING_METHOD": "magnitude",
        "PRUNING_DYNAMICS": "s-ste",
        "PRUNING_INTERVAL": None,
        "TARGET_SPARSITY": None,
    },
    "topkast": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "topkast"},
}


def schema(**values):
    made = Schema()
    base = {"MAX_ITERS": "40", "PRUNING_METHOD": "magnitude", "PRUNING_SCOPE": "*.weight", "PRUNING_INTERVAL": "4"}
    base |= {"WEIGHT_DECAY": "0.1", "TARGET_SPARSITY": "0.7"}
    base |= values
    for name in [name for name in base if base[name] is None]:
        del base[name]
    made.override([(name, text, "test") for name, text in base.items()])
    return made


def case(name):
    """The configuration of a case of METHODS, without the options that mean nothing for it."""
    values = METHODS[name] or {"PRUNING_METHOD": name}
    one_shot = values.get("PRUNING_DYNAMICS") == "static" or values.get("PRUNING_SCHEDULE") == "one-shot"
    return schema(**values, **({"PRUNING_INTERVAL": None} if one_shot else {}))


class Trained:
    """A small network that is trained on noise, one step at a time, as the loop does it."""

    def __init__(self, made, kind="adamw"):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))
        self.model.prunable = lambda: [self.model[0].weight, self.model[2].weight]
        made.override([("OPTIMIZER", kind, "test"), ("LEARNING_RATE", "0.01", "test")])
        self.optimizer = optim.build(self.model, made.bind)
        self.pruner = prune.build(self.model, self.optimizer, made.bind)
        self.done = 0

    def backward(self):
        generator = torch.Generator().manual_seed(self.done)
        x, y = torch.randn(20, 16, generator=generator), torch.randn(20, 8, generator=generator)
        (self.model(x) - y).square().mean().backward()

    def step(self, healthy=YES):
        self.done += 1
        self.optimizer.zero_grad()
        self.backward()
        self.pruner.step(self.done, healthy)
        self.optimizer.step()
        self.pruner.moved(self.done)

    def used(self):
        return [weight.value * weight.mask for weight in self.pruner.weights]

    def zeros(self):
        return sum(int((value == 0).sum()) for value in self.used())

    def state(self):
        model = self.pruner.model_state(self.model.state_dict())
        return {"model": model, "optimizer": self.optimizer.state_dict(), "pruner": self.pruner.state_dict()}

    def load(self, state):
        self.pruner.check(state["pruner"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pruner.load_state_dict(state["pruner"])


REWIRED = ("rigl", "set", "chts", "warm", "granet", "granet-sparse", "mest", "mest-soft")


def expected_zeros(name, pruner, step, target=0.7):
    """round(s N) at the last update, with the schedule written out."""
    last = max([s for s in range(step + 1) if pruner.plan.due(s)], default=None)
    x = ((last or 0) - pruner.plan.start) / max(1, pruner.plan.end - pruner.plan.start)
    share = 1.0 if pruner.plan.curve == "one-shot" else 1 - (1 - min(1.0, x)) ** 3
    if name == "mest-soft":  # round(0.2 x 86) weights more, half of them from step 24 on, and none at the end
        return 202 - (17 if last < 24 else 9 if last < 30 else 0)
    start = 0.3 if name == "granet-sparse" else 0.0
    return round(start * TOTAL) if last is None else round((start + (target - start) * share) * TOTAL)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "s-ste"])
def test_sparsity_is_exactly_what_was_asked_for_at_every_step(name):
    trained = Trained(case(name))
    for step in range(1, 41):
        trained.step()
        expected = expected_zeros(name, trained.pruner, step)
        assert trained.pruner.kept == TOTAL - expected
        assert sum(int((weight.mask == 0).sum()) for weight in trained.pruner.weights) == expected
        # Under a unit that is cut off, what has just grown at zero has no gradient that would move it.
        idle = sum(int(((w.value == 0) & (w.mask == 1)).sum()) for w in trained.pruner.weights)
        assert idle == 0 or name in REWIRED
        assert trained.zeros() == expected + idle, step
        assert trained.pruner.sparsity() == trained.zeros() / TOTAL
    assert TOTAL - trained.pruner.kept == 202  # round(0.7 * 288)


def test_a_large_first_update_is_exact_and_so_are_the_others():
    trained, found = Trained(schema(PRUNING_FIRST_SPARSITY="0.35")), []
    for step in range(1, 41):
        trained.step()
        if trained.pruner.plan.due(step):
            found.append(trained.zeros())
    assert found == [101, 150, 180, 195, 201, 202]  # round(288 (0.7 - 0.35 (1 - k / 5)^3))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "adamwadv", "adamwspam", "stablespam", "muon"])
@pytest.mark.parametrize("name", ["magnitude", "movement", "rigl", "gradient"])
def test_pruned_weights_and_their_moments_are_exactly_zero_under_every_optimizer(kind, name):
    if name == "movement" and kind in ("sgd", "adam"):
        with pytest.raises(ConfigError, match="PRUNING_METHOD=movement has no effect: it needs"):
            Trained(case(name), kind)
        return
    trained = Trained(case(name), kind)
    for _ in range(40):
        trained.step()
        for weight in trained.pruner.weights:
            gone = weight.mask == 0
            if name != "movement":
                assert torch.count_nonzero(weight.value[gone]) == 0
            for key, value in weight.state.items():
                if isinstance(value, torch.Tensor) and value.shape == weight.mask.shape:
                    assert torch.count_nonzero(value[gone]) == 0, key
    assert trained.pruner.sparsity() == 202 / 288


@pytest.mark.parametrize(
    "name", ["magnitude", "gradient", "state", "wanda", "random", "layer", "erk", "owl", "owl-wanda"]
)
def test_what_is_pruned_stays_pruned(name):
    trained = Trained(case(name))
    gone = [torch.zeros(shape, dtype=torch.bool) for shape in SHAPES.values()]
    for _ in range(40):
        trained.step()
        now = [weight.mask == 0 for weight in trained.pruner.weights]
        assert all((before <= after).all() for before, after in zip(gone, now, strict=True))
        gone = now


def test_movement_keeps_the_value_of_what_it_masks_and_lets_it_return():
    trained = Trained(schema(PRUNING_METHOD="movement", WEIGHT_DECAY="0"))
    returned = 0
    for step in range(1, 31):
        before = [(weight.mask.clone(), weight.value.clone()) for weight in trained.pruner.weights]
        trained.step()
        for weight, (mask, value) in zip(trained.pruner.weights, before, strict=True):
            gone = weight.mask == 0
            assert torch.equal(weight.value[gone], value[gone]), step
            returned += int(((mask == 0) & (weight.mask == 1)).sum())
    assert returned > 0


def test_ste_trains_all_weights_and_sr_ste_pulls_masked_ones_to_zero():
    groups = {"PRUNING_DISTRIBUTION": "n-m", "TARGET_SPARSITY": None}
    plain = Trained(schema(PRUNING_DYNAMICS="ste", PRUNING_WARMUP="0", **groups))
    pulled = Trained(schema(PRUNING_DYNAMICS="sr-ste", SR_STE_DECAY="0.5", **groups))
    for trained, decay in ((plain, 0.0), (pulled, 0.5)):
        trained.done = 1
        trained.backward()
        dense = [weight.grad.clone() for weight in trained.pruner.weights]
        values = [weight.value.clone() for weight in trained.pruner.weights]
        trained.pruner.step(1, YES)
        for weight, gradient, value in zip(trained.pruner.weights, dense, values, strict=True):
            assert torch.equal(weight.value, value)
            torch.testing.assert_close(weight.grad, gradient + decay * (1 - weight.mask.float()) * value)
            groups = weight.mask.view(weight.mask.shape[0], -1, 4).sum(2)
            assert (groups == 2).all()
    assert plain.pruner.sparsity() == pulled.pruner.sparsity() == 0.5


GROUPS = {"PRUNING_DISTRIBUTION": "n-m", "TARGET_SPARSITY": None}


def two_of_four(value):
    """The two of each four neighbours that are largest, 1 or 0."""
    groups = value.abs().view(-1, 4)
    return torch.zeros_like(groups).scatter_(1, groups.topk(2, dim=1).indices, 1).view_as(value)


@pytest.mark.parametrize("dynamics", ["ste", "sr-ste"])
def test_straight_through_masks_are_of_the_weights_that_they_apply_to(dynamics):
    """In every forward pass, from the first on, and after every step, where it is evaluated and saved."""
    options = {"PRUNING_WARMUP": "0"} if dynamics == "ste" else {}
    trained = Trained(schema(PRUNING_DYNAMICS=dynamics, PRUNING_INTERVAL="1", **GROUPS, **options))
    moved, before = 0, None
    for _ in range(40):
        for weight in trained.pruner.weights:
            assert torch.equal(weight.mask, two_of_four(weight.value).byte())
            assert torch.equal(trained.pruner.model_state({})[weight.name], weight.value * two_of_four(weight.value))
        now = [weight.mask.clone() for weight in trained.pruner.weights]
        moved += before is not None and not all(map(torch.equal, now, before))
        before = now
        trained.step()
    assert moved > 20


@pytest.mark.parametrize("dynamics", ["ste", "sr-ste"])
def test_wanda_listens_to_masked_layers(dynamics):
    """|W_ij| ||X_j|| of the weights when they have moved and the inputs of the step; the second layer's are masked."""
    options = {"PRUNING_WARMUP": "2"} if dynamics == "ste" else {}
    trained = Trained(
        schema(PRUNING_METHOD="wanda", PRUNING_DYNAMICS=dynamics, PRUNING_INTERVAL="1", **GROUPS, **options)
    )
    for step in range(1, 12):
        first = trained.used()[0]
        x = torch.randn(20, 16, generator=torch.Generator().manual_seed(step))
        inputs = [x, torch.tanh(x @ first.T + trained.model[0].bias)]
        trained.step()
        for weight, seen in zip(trained.pruner.weights, inputs, strict=True):
            scores = weight.value.double().abs() * torch.linalg.vector_norm(seen.detach().double(), dim=0)
            if step > 2:  # the first choice with ste counts the inputs of two steps
                assert torch.equal(weight.mask, two_of_four(scores).byte())
    assert trained.pruner.sparsity() == 0.5


@pytest.mark.parametrize(
    "name", ["static", "global static", "rigl", "set", "chts", "ste", "sr-ste", "one-shot", "topkast"]
)
def test_what_is_sparse_from_the_start_is_so_in_the_first_forward_pass(name):
    own = {
        "static": {"PRUNING_METHOD": "random", "PRUNING_DYNAMICS": "static", "PRUNING_INTERVAL": None},
        "global static": {"PRUNING_DYNAMICS": "static", "PRUNING_INTERVAL": None},
        "ste": {"PRUNING_DYNAMICS": "ste", "PRUNING_WARMUP": "0", "PRUNING_SCHEDULE": "one-shot"},
        "sr-ste": {"PRUNING_DYNAMICS": "sr-ste", **GROUPS},
        "one-shot": {"PRUNING_SCHEDULE": "one-shot", "PRUNING_WARMUP": "0", "PRUNING_INTERVAL": None},
    }
    trained = Trained(schema(**own.get(name, {"PRUNING_DYNAMICS": name})))
    gone = 144 if name == "sr-ste" else 202
    assert (trained.zeros(), trained.pruner.sparsity()) == (gone, gone / TOTAL)
    assert not trained.optimizer.state  # which tells that no step was made
    x, used = torch.randn(3, 16), trained.used()
    bias = [trained.model[0].bias, trained.model[2].bias]
    expected = torch.tanh(x @ used[0].T + bias[0]) @ used[1].T + bias[1]
    torch.testing.assert_close(trained.model(x), expected)
    for _ in range(3):
        trained.step()
    assert trained.pruner.metrics(3)["average_nonzeros"] == TOTAL - gone


@pytest.mark.parametrize("name", ["snip", "wanda"])
def test_a_criterion_that_reads_a_step_chooses_before_its_weights_move(name):
    """SNIP's mask is that of the first batch's gradients at the weights as they were initialised."""
    options = {} if name == "snip" else {"PRUNING_DISTRIBUTION": "global"}
    method = "gradient" if name == "snip" else "wanda"
    made = schema(PRUNING_METHOD=method, PRUNING_DYNAMICS="static", PRUNING_INTERVAL=None, **options)
    trained = Trained(made)
    assert trained.zeros() == 0
    first = [weight.value.clone() for weight in trained.pruner.weights]
    trained.step()
    assert trained.zeros() == 202
    if name == "snip":
        fresh = Trained(made)
        fresh.done = 1
        fresh.backward()
        worth = [(w * weight.grad).abs() for w, weight in zip(first, fresh.pruner.weights, strict=True)]
        ranked = torch.cat([(s / s.square().mean().sqrt()).flatten() for s in worth]).sort().values
        kept = [(s / s.square().mean().sqrt() > (ranked[201] + ranked[202]) / 2).byte() for s in worth]
        assert all(torch.equal(w.mask, k) for w, k in zip(trained.pruner.weights, kept, strict=True))


@pytest.mark.parametrize(("beta2", "size"), [("0.95", 0.447), ("0.999", 3.162)])
def test_the_first_step_of_a_grown_weight(beta2, size):
    """In units of the learning rate, long after the first step, as docs/methods.md says."""
    made = schema(PRUNING_DYNAMICS="rigl", PRUNING_INTERVAL="20", PRUNING_END="40", MAX_ITERS="60", WEIGHT_DECAY="0")
    made.override([("ADAM_BETA2", beta2, "test")])
    trained = Trained(made)
    for p in (weight.parameter for weight in trained.pruner.weights):
        moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        trained.optimizer.state[p] = {"step": torch.tensor(1e5), **moments}
    while trained.done < 19:
        trained.step()
    before = [weight.mask.clone() for weight in trained.pruner.weights]
    trained.step()
    grown = [w.value[(w.mask > b) & (w.grad != 0)] for w, b in zip(trained.pruner.weights, before, strict=True)]
    assert sum(map(len, grown)) > 5
    assert torch.cat(grown).abs().tolist() == pytest.approx([size * 0.01] * sum(map(len, grown)), rel=1e-2)


@pytest.mark.parametrize("dynamics", ["rigl", "set"])
def test_rewiring_replaces_the_published_share(dynamics):
    """Against a count by full sort, tensor by tensor."""
    trained = Trained(
        schema(PRUNING_DYNAMICS=dynamics, RIGL_DROP_FRACTION="0.4", PRUNING_END="30", PRUNING_INTERVAL="5")
    )
    trained.step()
    kept = [int(weight.mask.sum()) for weight in trained.pruner.weights]
    while trained.done < 40:
        before = [(weight.mask.clone().bool(), weight.value.clone()) for weight in trained.pruner.weights]
        captured = []
        observe = trained.pruner.criterion.observe
        trained.pruner.criterion.observe = lambda weights, healthy, seen=captured, then=observe: (
            seen.extend(weight.grad.clone() for weight in weights),
            then(weights, healthy),
        )
        trained.step()
        trained.pruner.criterion.observe = observe
        t = trained.done
        assert [int(weight.mask.sum()) for weight in trained.pruner.weights] == kept
        for weight, (mask, value), gradient, count in zip(trained.pruner.weights, before, captured, kept, strict=True):
            now = weight.mask.bool()
            if not (t <= 30 and t % 5 == 0):
                assert torch.equal(now, mask)
                continue
            n = int(0.4 / 2 * (1 + math.cos(math.pi * t / 30)) * count)
            alive = mask.flatten().nonzero().flatten()
            dropped = alive[value.abs().flatten()[alive].sort(stable=True).indices[:n]]
            stays = mask.clone().flatten()
            stays[dropped] = False
            assert (now.flatten() & stays).sum() == count - n  # everything else stayed
            if dynamics == "rigl":
                free = (~stays).nonzero().flatten()
                grown = free[(-gradient.abs().flatten()[free]).sort(stable=True).indices[:n]]
                stays[grown] = True
                assert torch.equal(now.flatten(), stays)


def test_a_skipped_step_changes_nothing():
    no = lambda: torch.tensor(False)  # noqa: E731
    for name in METHODS:
        trained = Trained(case(name))
        for _ in range(12):
            trained.step()
        before = [weight.mask.clone() for weight in trained.pruner.weights]
        memory = [{k: v.clone() for k, v in weight.memory.items()} for weight in trained.pruner.weights]
        values = [weight.value.clone() for weight in trained.pruner.weights]
        trained.optimizer.zero_grad()
        trained.backward()
        for weight in trained.pruner.weights:
            weight.parameter.grad.fill_(torch.nan)
        for step in range(13, 20):
            trained.pruner.step(step, no)
        for weight, mask, kept, value in zip(trained.pruner.weights, before, memory, values, strict=True):
            assert torch.equal(weight.mask, mask), name
            assert torch.equal(weight.value, value), name
            assert all(torch.equal(weight.memory[key], kept[key]) for key in kept), name


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_continues_bit_for_bit(name, tmp_path):
    whole, first, second = (Trained(case(name)) for _ in range(3))
    for _ in range(40):
        whole.step()
    for _ in range(21):
        first.step()
    path = checkpoint.save(tmp_path, 21, first.state(), ONE, {})
    second.load(checkpoint.load(path))
    second.done = 21
    assert second.pruner.sparsity() == first.pruner.sparsity()
    for _ in range(19):
        second.step()
    for a, b in zip(whole.pruner.weights, second.pruner.weights, strict=True):
        assert torch.equal(a.value, b.value)
        assert torch.equal(a.mask, b.mask)
    assert whole.pruner.metrics(40) == second.pruner.metrics(40)


@pytest.mark.parametrize("name", ["magnitude", "snip", "one-shot", "rigl", "set", "chts", "granet", "mest", "movement"])
@pytest.mark.parametrize("when", ["first", "last"])
def test_masks_that_were_due_at_a_skipped_step_are_chosen_at_the_next(name, when):
    trained = Trained(case(name))
    due = [step for step in range(1, 41) if trained.pruner.plan.due(step) and trained.pruner.plan.share(step) > 0]
    skipped = due[0] if when == "first" else due[-1]
    before = None
    for step in range(1, 41):
        trained.step((lambda: torch.tensor(False)) if step == skipped else YES)
        if step == skipped:
            before = trained.pruner.kept
        if step == skipped + 1:
            expected = round(0.7 * trained.pruner.plan.share(skipped) * TOTAL)
            assert trained.pruner.kept <= min(before, TOTAL - expected)
    assert trained.pruner.kept == TOTAL - 202


@pytest.mark.parametrize(
    "name", ["magnitude", "movement", "rigl", "granet", "mest", "mest-soft", "one-shot", "static", "topkast"]
)
def test_a_run_that_is_made_longer_keeps_what_it_has_pruned(name):
    short = Trained(case(name))
    for _ in range(40):
        short.step()
    values = METHODS[name] or {"PRUNING_METHOD": name}
    one_shot = name in ("one-shot", "static")
    longer = Trained(schema(**values, MAX_ITERS="200", **({"PRUNING_INTERVAL": None} if one_shot else {})))
    longer.load(short.state())
    longer.done = 40
    for _ in range(160):
        longer.step()
        assert longer.pruner.kept == TOTAL - 202


def test_soft_movement_prunes_what_falls_below_its_threshold():
    values = {"PRUNING_MOVEMENT": "soft", "TARGET_SPARSITY": None, "MOVEMENT_THRESHOLD": "0.2"}
    trained = Trained(schema(PRUNING_METHOD="movement", MOVEMENT_LEARNING_RATE="0.1", MOVEMENT_PENALTY="10", **values))
    for step in range(1, 41):
        trained.step()
        if trained.pruner.plan.due(step):
            threshold = 0.2 * trained.pruner.plan.share(step)
            for weight in trained.pruner.weights:
                assert torch.equal(weight.mask == 1, weight.memory["movement"].sigmoid() > threshold)
    assert 0.05 < trained.pruner.sparsity() < 0.95
    assert trained.pruner.sparsity() == 1 - trained.pruner.kept / TOTAL
    both = either = 0
    for weight in trained.pruner.weights:  # magnitude prunes as many of each tensor
        pruned = weight.mask.flatten() == 0
        lowest = torch.zeros_like(pruned)
        lowest[weight.value.abs().flatten().sort(stable=True).indices[: pruned.sum()]] = True
        both, either = both + int((pruned & lowest).sum()), either + int((pruned | lowest).sum())
    assert trained.pruner.metrics(40)["mask_overlap_magnitude"] == both / either


def test_soft_movement_makes_up_for_a_threshold_that_was_due_at_a_skipped_step():
    values = {"PRUNING_MOVEMENT": "soft", "TARGET_SPARSITY": None, "MOVEMENT_THRESHOLD": "0.2"}
    trained = Trained(schema(PRUNING_METHOD="movement", MOVEMENT_LEARNING_RATE="0.1", MOVEMENT_PENALTY="10", **values))
    assert trained.pruner.ends() == 30
    for step in range(1, 32):
        trained.step((lambda: torch.tensor(False)) if step == 30 else YES)
        if step in (30, 31):
            chosen = [w.memory["movement"].sigmoid() > 0.2 for w in trained.pruner.weights]
            assert all(torch.equal(w.mask == 1, c) for w, c in zip(trained.pruner.weights, chosen, strict=True)) == (
                step == 31
            )


def test_what_has_no_target_has_none_to_reach():
    assert Trained(schema()).pruner.ends() == math.inf
    soft = schema(PRUNING_METHOD="movement", PRUNING_MOVEMENT="soft", TARGET_SPARSITY=None)
    assert Trained(soft).pruner.goal() == Trained(schema(TARGET_SPARSITY="0")).pruner.goal() == math.inf
    assert Trained(schema()).pruner.goal() == 202 / 288
    groups = {"PRUNING_DISTRIBUTION": "n-m", "PRUNING_N": "1", "TARGET_SPARSITY": None, "PRUNING_INTERVAL": None}
    assert Trained(schema(**groups)).pruner.goal() == 0.75


@pytest.mark.parametrize("name", ["global", "global-rms", "layer", "erk", "row", "n-m", "rigl", "state", "static"])
def test_the_vocabularys_padding_is_neither_counted_nor_pruned(name):
    """A vocabulary of 200 has 256 rows, of which 56 shrink to nothing under weight decay."""
    own = {
        "rigl": {"PRUNING_DYNAMICS": "rigl"},
        "state": {"PRUNING_METHOD": "state"},
        "static": {"PRUNING_DYNAMICS": "static", "PRUNING_INTERVAL": None},
        "n-m": GROUPS | {"PRUNING_INTERVAL": None},
    }
    options = {"TARGET_SPARSITY": "0.1", "PRUNING_SCOPE": "wte.weight,h.0.mlp.*.weight"}
    made = schema(**options | own.get(name, {"PRUNING_DISTRIBUTION": name}))
    torch.manual_seed(0)
    model = GPT2(
        ModelOptions("custom", n_layer=1, n_head=1, n_embd=8, block_size=8, dropout=0.0, activation="gelu-tanh"),
        vocab_size=200,
    )
    optimizer = optim.build(model, made.bind)
    optim.set_learning_rate(optimizer, 1e-2)
    pruner = prune.build(model, optimizer, made.bind)
    with torch.no_grad():
        model.wte.weight[200:] *= 1e-6
    padding = model.wte.weight[200:].clone()
    for step in range(1, 41):
        tokens = torch.randint(200, (4, 9), generator=torch.Generator().manual_seed(step))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        pruner.step(step, YES)
        optimizer.step()
        pruner.moved(step)
        optimizer.zero_grad()
    total = 200 * 8 + 2 * 8 * 32
    gone = total // 2 if name == "n-m" else round(0.1 * total)
    assert (pruner.total, pruner.total - pruner.kept) == (total, gone)
    real = [model.wte.weight[:200], model.h[0].mlp.c_fc.weight, model.h[0].mlp.c_proj.weight]
    zeros = [int((weight == 0).sum()) for weight in real]
    assert gone <= sum(zeros) <= gone + 40 * (name == "rigl")  # what has grown may have had no gradient yet
    assert pruner.sparsity() == sum(zeros) / total
    assert pruner.layers()["sparsity/wte"] == zeros[0] / 1600
    assert torch.count_nonzero(model.wte.weight[200:]) == 56 * 8
    torch.testing.assert_close(model.wte.weight[200:], padding * (1 - 1e-2 * 0.1) ** 40)  # weight decay alone
    gone = model.wte.weight == 0
    assert all(not v[gone].any() for v in optimizer.state[model.wte.weight].values() if v.shape == gone.shape)
    assert pruner.state_dict()["shapes"]["wte.weight"] == [200, 8]


def test_state_pruning_needs_moments_of_all_weights():
    with pytest.raises(UserError, match=r"with SPAM_DENSITY=0\.5 some weights have none; set"):
        Trained(schema(PRUNING_METHOD="state", OPTIMIZER="adamwspam", SPAM_DENSITY="0.5"), "adamwspam")


def test_a_checkpoint_holds_a_bit_per_mask_and_the_weights_the_model_computes_with(tmp_path):
    trained = Trained(case("movement"))
    for _ in range(40):
        trained.step()
    state = checkpoint.load(checkpoint.save(tmp_path, 40, trained.state(), ONE, {}))
    assert {name: bits.numel() for name, bits in state["pruner"]["masks"].items()} == {"0.weight": 24, "2.weight": 12}
    zeros = sum(int((state["model"][name] == 0).sum()) for name in SHAPES)
    assert zeros == 202
    assert sum(value.numel() for value in state["pruner"]["hidden"].values()) == 202


def test_masks_of_another_model_are_refused_before_anything_changes():
    trained, other = Trained(case("magnitude")), Trained(schema(PRUNING_SCOPE="0.weight"))
    before = [weight.value.clone() for weight in trained.pruner.weights]
    with pytest.raises(
        CheckpointError,
        match=r"are of other weights .*: 2\.weight is absent in the checkpoint and \[8, 12\] in the model",
    ):
        trained.load(other.state())
    damaged = trained.state()
    damaged["pruner"]["masks"]["0.weight"] = damaged["pruner"]["masks"]["0.weight"][:-1]
    with pytest.raises(CheckpointError, match=r"the mask of 0\.weight in the checkpoint has the wrong size"):
        trained.load(damaged)
    assert all(torch.equal(w.value, b) for w, b in zip(trained.pruner.weights, before, strict=True))


def test_scores_that_are_not_numbers_stop_before_any_weight_changes():
    trained = Trained(case("magnitude"))
    for _ in range(13):
        trained.step()
    with torch.no_grad():
        trained.model[2].weight[0, 0] = torch.nan
    before = trained.model[0].weight.clone()
    trained.optimizer.zero_grad()
    trained.backward()
    with pytest.raises(UserError, match=r"2\.weight"):
        trained.pruner.step(14, YES)
    assert torch.equal(trained.model[0].weight, before)


def test_metrics_count_flips_and_average_the_weights_kept():
    trained = Trained(schema(PRUNING_SCHEDULE="one-shot", PRUNING_WARMUP="11", PRUNING_INTERVAL=None))
    for _ in range(40):
        trained.step()
    metrics = trained.pruner.metrics(40)
    counts = {"mask_flips": 202, "mask_change": 202 / 288}
    assert metrics == {"sparsity": 202 / 288, "average_nonzeros": (10 * 288 + 30 * 86) / 40, **counts}
    assert trained.pruner.metrics(40)["mask_flips"] == 0
    layers = trained.pruner.layers()
    assert list(layers) == ["sparsity/0", "sparsity/2"]
    assert sum(layers[f"sparsity/{n.split('.')[0]}"] * math.prod(s) for n, s in SHAPES.items()) == pytest.approx(202)


@pytest.mark.parametrize(("dynamics", "dense"), [("gradual", 10), ("ste", 11)])
def test_ste_counts_a_new_mask_from_the_next_steps_forward_pass_on(dynamics, dense):
    """Masks chosen at step 11: gradual zeroes weights before they move in that step, ste masks them after it."""
    options = {} if dynamics == "gradual" else {"PRUNING_DYNAMICS": dynamics}
    trained = Trained(schema(PRUNING_SCHEDULE="one-shot", PRUNING_WARMUP="11", PRUNING_INTERVAL=None, **options))
    for _ in range(11):
        trained.step()
    assert trained.pruner.metrics(11)["average_nonzeros"] == (dense * 288 + (11 - dense) * 86) / 11
    for _ in range(4):
        trained.step()
    assert trained.pruner.metrics(15)["average_nonzeros"] == (dense * 288 + (15 - dense) * 86) / 15


def test_the_overlap_exposes_magnitude_in_disguise():
    overlaps = {}
    for name, values in {
        "disguised": {"PRUNING_METHOD": "state", "PRUNING_STATE": "bitter1"},
        "random": {"PRUNING_METHOD": "random"},
        "fisher": {"PRUNING_METHOD": "state", "PRUNING_STATE": "fisher"},
    }.items():
        trained = Trained(schema(**values, PRUNING_SCHEDULE="one-shot", PRUNING_INTERVAL=None))
        for _ in range(20):
            trained.step()
        overlaps[name] = trained.pruner.metrics(20)["mask_overlap_magnitude"]
    assert overlaps["disguised"] == 1.0
    assert 0.3 < overlaps["random"] < 0.75  # by chance (0.7^2) / (1 - 0.3^2) = 0.54
    assert overlaps["random"] < overlaps["fisher"] < 1


def test_without_pruning_zeros_are_still_counted():
    trained = Trained(schema(PRUNING_METHOD="none", PRUNING_SCOPE=None, PRUNING_INTERVAL=None, TARGET_SPARSITY=None))
    trained.step()
    with torch.no_grad():
        trained.model[2].weight.zero_()
    assert trained.pruner.metrics(1) == {"sparsity": 96 / 288, "average_nonzeros": 288}
    assert trained.pruner.layers() == {}


def test_state_pruning_cannot_start_before_there_is_state():
    with pytest.raises(UserError, match=r"reads the optimizer's moments, which exist from step 2 on"):
        Trained(schema(PRUNING_METHOD="state", PRUNING_WARMUP="0"))
