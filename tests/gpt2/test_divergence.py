"""Losses and gradients that are no number, in real runs: stopped for, skipped, and tried again."""

import contextlib
import itertools
import json
import math
import os
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt2 import loop, train
from gpt2.data import prepare, windows
from gpt2.divergence import Diverged, DivergenceOptions, Guard
from gpt2.model import GPT2
from gpt2.session import Session
from lib import optim
from lib.base.errors import UserError
from lib.compare.sweep import Configuration, Run
from lib.config.kconf import Schema
from lib.machine import device
from lib.record import checkpoint, history, journal, retries
from tests import training
from tests.forked import Trainer
from tests.gpt2.test_train import assert_same
from tests.training import TEXT, Records, arguments, losses, records, schema

SKIP = {"nan_policy": "skip", "nan_skip_limit": 4}


class Poison:
    """Makes the loss NaN wherever the model sees one of some batches, in this process; `times` at most."""

    def __init__(self, folder, steps, times=math.inf, crash=0, validation=False):
        """`crash` is a step that raises an error instead; `validation`: `steps` are evaluations, of any batch."""
        made = schema(folder, data_dir=folder / "poison")
        prepare.ensure(made.bind(windows.DataOptions))
        self.data = windows.load(made.bind(windows.DataOptions))
        self.bad, self.times = {self.key(step) for step in steps}, times
        self.crash, self.validation, self.evaluations = crash and self.key(crash), validation, 0

    def key(self, step):
        return tuple(self.data.batch(step - 1, 0)[0].flatten().tolist())

    def __call__(self, module, inputs, loss):
        if not isinstance(module, GPT2) or module.training == self.validation:
            return None
        if self.validation and torch.is_grad_enabled():  # only how long a step takes is measured
            return None
        seen = tuple(inputs[0].flatten().tolist())
        if seen == self.crash:
            raise OSError("injected")
        if self.times and (self.validation or seen in self.bad):
            self.times -= 1
            return loss * math.nan
        return None


@contextlib.contextmanager
def poison(*args, **settings):
    hook = torch.nn.modules.module.register_module_forward_hook(Poison(*args, **settings))
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture
def run(folder):
    """Train in this process as the command line would: run(nan_policy="skip"); the words of `more` come after."""
    (folder / "corpus.txt").write_text(TEXT)

    def begin(*more, **changes):
        return train.train([*arguments(**changes), *more])

    return begin


def alerts(folder, *kinds):
    """(kind, step) of the alerts in a run's journal, of these kinds or of all."""
    told = [(record["kind"], record["step"]) for record in records(folder, "alert")]
    return [(kind, step) for kind, step in told if not kinds or kind in kinds]


def newest(folder):
    return checkpoint.load(checkpoint.find(folder / "checkpoints")[-1])


# ---- skip: against a loop written by hand that does not step at these batches ----------------------------------------

# Every optimizer, and every way to prune.
CASES = {
    "magnitude": {"pruning_method": "magnitude", "optimizer": "sgd"},
    "hard movement": {"pruning_method": "movement", "optimizer": "adamw"},
    "soft movement": {"pruning_method": "movement", "pruning_movement": "soft", "optimizer": "adamwadv"},
    "wanda": {"pruning_method": "wanda", "optimizer": "adamwspam"},
    "state": {"optimizer": "adamwprune"},
    "rigl": {"pruning_method": "magnitude", "pruning_dynamics": "rigl", "optimizer": "muon"},
    "granet": {"pruning_method": "magnitude", "pruning_dynamics": "granet", "granet_start_sparsity": 0.2},
    "mest": {"pruning_method": "magnitude", "pruning_dynamics": "mest", "mest_lambda": 100, "mest_soft_bound": True},
    "ste": {"pruning_method": "magnitude", "pruning_dynamics": "ste", "optimizer": "adam"},
    "topkast": {"pruning_method": "magnitude", "pruning_dynamics": "topkast", "optimizer": "adamw"},
    "str": {"pruning_method": "str", "str_init": -5, "str_decay": 0.005, "optimizer": "sgd"},
    "sr-ste": {"pruning_method": "magnitude", "pruning_dynamics": "sr-ste", "optimizer": "stablespam"},
    "s-ste": {"pruning_method": "magnitude", "pruning_dynamics": "s-ste", "optimizer": "adamw"},
}
BAD = (1, 6, 7, 12)  # the first step of all, and steps at which masks are due


def by_hand(made, steps, bad):
    """What training is: the same parts, and no step at the bad batches. Returns the session."""
    session = Session(made, device.choose(made.bind(device.SystemOptions)))
    training, model = session.training, session.model
    for step in range(1, steps + 1):
        if (step - 1) % 5 == 0 and step > 1:  # where the loop logs, counters begin anew
            training.pruner.metrics(step - 1), optim.metrics(training.optimizer)
        if step in bad:
            continue
        for group in training.optimizer.param_groups:
            group["lr"] = session.schedule.learning_rate(step)
        for micro in range(2):
            x, y = session.data.batch(step - 1, micro)
            (model(x, y) / 2).backward()
        training.pruner.step(step, lambda: torch.tensor(True))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        training.optimizer.step()
        training.pruner.moved(step)
        training.optimizer.zero_grad()
    training.pruner.metrics(steps), optim.metrics(training.optimizer)
    return session


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_skips_steps_is_one_that_never_made_them(tmp_path, case):
    """The loss is NaN at the first and third of them, a gradient infinite at the others; bit for bit the same."""
    own = {"dropout": 0, "max_iters": 16, "eval_interval": 0, "eval_samples": 1, "log_interval": 5}
    interval = {} if case in ("sr-ste", "s-ste", "str") else {"pruning_interval": 3}
    made = schema(tmp_path, **SKIP, **own, **interval, **CASES[case])
    expected = by_hand(made, 16, BAD)
    session, events = Session(made, expected.machine), Records()
    session.model.prunable()[-1].register_hook(
        lambda gradient: gradient * math.inf if session.training.step + 1 in BAD[1::2] else gradient
    )
    options = made.bind(loop.LoopOptions)
    with poison(tmp_path, BAD[::2]):
        loop.train(session.training, session.data, session.machine, options, session.schedule, events, lambda: False)
    mine, theirs = (one.training.state_dict() for one in (session, expected))
    for part in ("model", "optimizer", "pruner"):
        assert_same(mine[part], theirs[part])
    assert mine["skipped"] == list(BAD)
    assert [step for event, step, _ in events if event == "alert skipped"] == list(BAD)
    counts = {step: row["skipped_updates"] for event, step, row in events if event == "train"}
    assert counts == {5: 1, 10: 3, 15: 4, 16: 4}


def test_nobody_waits_for_the_device_to_learn_what_is_left_out():
    """Tensors without data can't be looked at: whatever would wait for a GPU raises."""
    with FakeTensorMode():
        guard = Guard(DivergenceOptions("skip", 3), torch.device("cpu"))
        for step in range(1, 9):
            assert guard.leave_out(step, torch.ones((), dtype=torch.bool)).shape == ()


def test_after_the_one_too_many_everything_is_left_out():
    guard, told = Guard(DivergenceOptions("skip", 2), torch.device("cpu")), []
    bad = [False, True, False, True, False, True, False, True]
    left_out = [bool(guard.leave_out(step, torch.tensor(one))) for step, one in enumerate(bad, 1)]
    assert left_out == [False, True, False, True, False, True, True, True]
    with pytest.raises(Diverged, match=r"^step 6: .*, after 2 skipped updates \(NAN_SKIP_LIMIT\); ") as error:
        guard.look(lambda *alert: told.append(alert))
    assert (error.value.step, error.value.since) == (5, 6)
    text = "the loss or its gradient is NaN or infinite; this update is skipped, number {} of 2 at most"
    assert told == [
        ("skipped", "warn", f"step 2: {text.format(1)}", 2),
        ("skipped", "warn", f"step 4: {text.format(2)}", 4),
    ]
    assert guard.left_out() == [2, 4]
    stop = Guard(DivergenceOptions("stop", None), torch.device("cpu"))
    stop.load([2, 4])  # of before, when the policy was another
    assert not stop.leave_out(5, torch.tensor(False)) and stop.leave_out(6, torch.tensor(True))


# ---- skip: whole runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def skipping(tmp_path_factory):
    """A whole run in which four steps are left out."""
    folder = tmp_path_factory.mktemp("skipping")
    with poison(folder, (7, 13, 14, 31)), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.train(arguments(**SKIP, log_interval=4)) == 0
    return folder / "runs/run"


def test_what_is_left_out_is_told_once_also_by_a_run_that_dies_and_goes_on(run, folder, skipping):
    with poison(folder, (7, 13, 14, 31), crash=18), pytest.raises(OSError, match="injected"):
        run(**SKIP, log_interval=4)
    with poison(folder, (7, 13, 14, 31)):
        assert train.train(["--resume", "runs/run"]) == 0
    here = folder / "runs/run"
    for place in (here, skipping):
        assert alerts(place, "skipped") == [("skipped", step) for step in (7, 13, 14, 31)]
    assert any(record["event"] == "resume" and record["step"] == 10 for record in journal.read(here))
    mine, theirs = journal.history(here), journal.history(skipping)
    assert mine.keys() == theirs.keys()
    assert all(journal.lasting(mine[key]["metrics"]) == journal.lasting(theirs[key]["metrics"]) for key in mine)
    for name in ("model", "optimizer", "random", "skipped", "step"):
        assert_same(newest(here)[name], newest(skipping)[name])
    assert newest(here)["skipped"] == [7, 13, 14, 31]


def test_too_many_left_out_end_the_run_and_a_resume_does_not_begin_to_count_anew(run, folder):
    sentence = (
        r"^the run has diverged; continue from its last good weights with: make resume RUN=runs/run LEARNING_RATE="
    )
    with poison(folder, (3, 13, 24, 25)):
        with pytest.raises(UserError, match=sentence):
            run(nan_policy="skip", nan_skip_limit=2, log_interval=7)
        with pytest.raises(UserError, match=sentence):
            train.train(["--resume", "latest"])
    here = folder / "runs/run"
    assert alerts(here) == [("skipped", 3), ("skipped", 13), ("nan", 23), ("nan", 23)]
    state = newest(here)
    assert (state["step"], state["skipped"]) == (23, [3, 13])
    ends = [(r["step"], r["status"]) for r in records(here, "finish")]
    assert ends == [(23, "diverged")] * 2
    with poison(folder, (24, 25)):
        assert train.train(["--resume", "latest", "NAN_SKIP_LIMIT=4"]) == 0
    assert newest(here)["skipped"] == [3, 13, 24, 25]


def test_two_ranks_leave_out_the_same_steps(folder):
    """With weights that grow until the loss is no number, at which they stay: the next steps are no better."""
    (folder / "corpus.txt").write_text(TEXT)
    words = arguments(**SKIP, optimizer="sgd", learning_rate=10, grad_clip=0, warmup_steps=0, min_lr=10, log_interval=7)
    common = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {**training.environment(), "SLURM_STEP_NODELIST": "localhost"}
    tasks = [Trainer(folder, words, {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]
    outputs = [task.communicate(60)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1], outputs
    [(_, first), *more] = alerts(folder / "runs/run", "skipped", "nan")
    assert more == [("skipped", first + 1), ("skipped", first + 2), ("skipped", first + 3), ("nan", first + 3)]
    assert all(weight.isfinite().all() for weight in newest(folder / "runs/run")["model"].values())
    assert all("the run has diverged; since step 7 its losses are worse than guessing" in output for output in outputs)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_float16_leaves_out_losses_and_lets_its_scaler_do_the_gradients(run, folder, policy):
    """Where it stops 16 steps pass before anybody looks, each of which halves the scale, so that none would be left."""
    options = {"dtype": "float16", "log_interval": 20, "max_iters": 21, "eval_interval": 0, "nan_policy": policy}
    expected = range(3, 7) if policy == "skip" else range(3, 20)
    with poison(folder, expected):
        if policy == "skip":
            assert run(**options, nan_skip_limit=4) == 0
            assert alerts(folder / "runs/run", "skipped") == [("skipped", step) for step in expected]
            return
        with pytest.raises(UserError, match=r"^the run has diverged"):
            run(**options, checkpoint_interval=0)
    state = newest(folder / "runs/run")
    assert (state["step"], state["scaler"]["scale"], alerts(folder / "runs/run")) == (2, 65536.0, [("nan", 2)])
    assert train.train(["--resume", "latest", "LEARNING_RATE=0.001"]) == 0


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_validation_loss_that_is_no_number_is_told_and_stops_a_run_that_stops(run, folder, policy):
    with poison(folder, (), times=2, validation=True):  # two batches: those of the evaluation at step 0
        if policy == "skip":
            assert run(**SKIP) == 0
        else:
            with pytest.raises(UserError, match=r"^the run has diverged"):
                run()
    here = folder / "runs/run"
    assert journal.history(here)["eval", 0]["metrics"]["val_loss"] == "NaN"
    assert alerts(here) == [("divergence", 0), ("nan", 0) if policy == "stop" else ("finished", 40)]
    if policy == "stop":
        assert train.train(["--resume", "latest"]) == 0
    best = json.loads((here / "summary.json").read_text())["best_val_loss"]
    assert best == min(r["metrics"]["val_loss"] for r in records(here, "eval")[1:])


# ---- weights that are no number --------------------------------------------------------------------------------------


@contextlib.contextmanager
def broken_weights(step, times=math.inf):
    """In this process an optimizer's update number `step` makes a weight infinite, though its gradient is finite."""
    build, left = optim.build, [times]

    def build_broken(model, made):
        optimizer = build(model, made)
        update, count = optimizer.step, itertools.count(1)

        def update_and_break():
            update()
            if next(count) == step and left[0]:
                left[0] -= 1
                model.wte.weight.data[3, 4] = math.inf

        optimizer.step = update_and_break
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "build", build_broken)
        yield


LOST = "the weights after step {} are NaN or infinite, so they are not saved; {}"
GO_ON = r"continue from its last checkpoint, step-0+{}\.pt, with: make resume RUN=runs/run LEARNING_RATE="


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("step", [14, 20])  # between two checkpoints, and when one is due
def test_weights_that_are_no_number_are_not_saved_and_the_advice_works(run, folder, policy, step):
    with broken_weights(step), pytest.raises(UserError, match="diverged, and " + LOST.format(r"\d+", GO_ON.format(10))):
        run(nan_policy=policy, log_interval=20)
    here = folder / "runs/run"
    assert [path.name for path in checkpoint.find(here / "checkpoints")] == ["step-000000010.pt"]
    assert all(weight.isfinite().all() for weight in newest(here)["model"].values())
    assert train.train(["--resume", "runs/run", "LEARNING_RATE=0.001"]) == 0
    assert newest(here)["step"] == 40


def test_without_a_checkpoint_there_is_none_to_go_on_from(run):
    sentence = LOST.format(1, "it has no checkpoint; start a new run with a lower LEARNING_RATE")
    with broken_weights(1), pytest.raises(UserError, match=sentence):
        run()


def test_a_retry_begins_before_the_weights_that_are_no_number(run, folder):
    with broken_weights(20, times=1):
        assert run(retries=1, retry_lr_factor=1) == 0
    assert sessions(folder / "runs/run") == [("start", 0, None, None), ("resume", 10, 1, {})]


def test_a_checkpoint_of_such_weights_is_refused_and_the_one_before_offered(run, folder):
    """As versions before this one could write it."""
    assert run() == 0
    last = checkpoint.find(folder / "runs/run/checkpoints")[-1]
    state = checkpoint.load(last)
    state["model"]["h.0.mlp.c_fc.weight"][1, 2] = math.nan
    training.rewrite(last, state)
    with pytest.raises(
        UserError, match=r"step-000000040\.pt: weights .* are NaN or infinite; to continue from step-000000030\.pt"
    ):
        train.train(["--resume", "runs/run", "MAX_ITERS=50"])


# ---- retries ---------------------------------------------------------------------------------------------------------

WILD = {"optimizer": "sgd", "learning_rate": 10, "grad_clip": 0, "warmup_steps": 0, "min_lr": 10, "log_interval": 7}


def sessions(folder):
    """(event, step, retry, changed) of what began in a run's journal."""
    found = [record for record in journal.read(folder) if record["event"] in ("start", "resume")]
    return [(r["event"], r["step"], r.get("retry"), r.get("changed")) for r in found]


def test_a_retry_lowers_the_learning_rate_and_the_run_keeps_it(run, folder, monkeypatch):
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "1"), monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")  # a job that may be started again
    assert run(**WILD, retries=3, retry_lr_factor=0.1) == 0
    here = folder / "runs/run"
    rates = [{"LEARNING_RATE": [was, now], "MIN_LR": [was, now]} for was, now in (("10", "1"), ("1", "0.1"))]
    assert sessions(here) == [("start", 0, None, None), ("resume", 0, 1, rates[0]), ("resume", 0, 2, rates[1])]
    assert alerts(here, "retry-1", "retry-2", "finished") == [("retry-1", 0), ("retry-2", 0), ("finished", 40)]
    assert len(alerts(here, "nan")) == 2
    assert [record["status"] for record in records(here, "finish")] == ["finished"]
    rows = journal.history(here)
    assert rows["train", 7]["metrics"]["learning_rate"] == 0.1 and ("train", 40) in rows
    lines = (here / ".config").read_text().splitlines()
    assert {'CONFIG_LEARNING_RATE="0.1"', 'CONFIG_MIN_LR="0.1"'} <= set(lines)
    assert history.options(here)["LEARNING_RATE"] == ("0.1", "retry 2")

    assert run(**WILD, retries=3, retry_lr_factor=0.1) == 0  # the job again: it is finished
    assert len(sessions(here)) == 3
    with pytest.raises(UserError, match=r"with other options \(LEARNING_RATE 0.1 -> 9, MIN_LR 0.1 -> 9\)"):
        run(**WILD | {"learning_rate": 9, "min_lr": 9}, retries=3, retry_lr_factor=0.1)
    assert train.train(["--resume", "runs/run", "--max-iters", "41"]) == 0
    assert sessions(here)[3:] == [("resume", 40, None, {"MAX_ITERS": ["40", "41"]})]


def test_a_sweep_knows_its_run_after_a_retry(run, folder):
    (folder / "base").write_text("".join(f"CONFIG_{line}\n" for line in ("MODEL_NAME_CUSTOM=y", "DATASET_FILES=y")))
    words = {name: training.text(value) for name, value in (training.TINY | WILD | {"retries": 1}).items()}
    assert run(**WILD, retries=1, retry_lr_factor=0.01, tracker_run_name="wild-seed7") == 0
    given = tuple((name.upper(), text, "sweep:3") for name, text in words.items() if name != "seed")
    for factor, right in (("0.01", True), ("0.02", False)):
        assignments = (*given, ("RETRY_LR_FACTOR", factor, "sweep:3"))
        one = Run(Configuration("wild", "sweep:3", folder / "base", (), assignments), 7, folder / "runs")
        assert one.folder.name == "wild-seed7"
        sentence = r"was begun with RETRY_LR_FACTOR=0.01, and the sweep has 0.02 now"
        with contextlib.nullcontext() if right else pytest.raises(UserError, match=sentence):
            one.check()
    changed = tuple((name, "9" if name == "LEARNING_RATE" else text, place) for name, text, place in assignments)
    with pytest.raises(UserError, match=r"was begun with LEARNING_RATE=0\.1, and the sweep has 9 now"):
        Run(Configuration("wild", "sweep:3", folder / "base", (), changed), 7, folder / "runs").check()


def test_retries_are_used_up_and_what_remains_is_a_run_that_has_diverged(run, folder):
    with pytest.raises(
        UserError, match=r"^the run has diverged, retries made: 2; since step 7 its losses are worse than"
    ):
        run(**WILD, retries=2, retry_lr_factor=0.9)
    here = folder / "runs/run"
    assert [(step, retry) for _, step, retry, _ in sessions(here)] == [(0, None), (0, 1), (0, 2)]
    assert [record["status"] for record in records(here, "finish")] == ["diverged"]
    assert all(weight.isfinite().all() for weight in newest(here)["model"].values())
    with pytest.raises(UserError, match=r"^the run has diverged, retries made: 2"):  # none is left after a resume
        train.train(["--resume", "latest"])
    assert 'CONFIG_LEARNING_RATE="8.1"' in (here / ".config").read_text()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_retry_at_the_same_rate_repeats_what_was_from_the_last_checkpoint_before(run, folder, policy):
    """What made the loss NaN is gone then, as a fault of a machine is: the run ends as if it had never been.

    Where four steps in a row were left out before, the checkpoint at step 30 among them is not gone back to.
    """
    bad, limit = (range(24, 25), {}) if policy == "stop" else (range(28, 33), SKIP)
    with poison(folder, bad, times=len(bad)):
        assert run(**limit, retries=1, retry_lr_factor=1) == 0
    assert run(**limit, tracker_run_name="whole") == 0
    here, whole = folder / "runs/run", folder / "runs/whole"
    assert sessions(here) == [("start", 0, None, None), ("resume", 20, 1, {})]
    told = [("skipped", step) for step in (28, 29, 30, 31)] if policy == "skip" else []
    at = 31 if policy == "skip" else 23
    assert alerts(here) == [*told, ("nan", at), ("retry-1", 20), ("finished", 40)]
    if policy == "stop":
        assert Counter(record["step"] for record in records(here, "train")) == Counter(range(1, 41))
    assert losses(here) == losses(whole)
    for name in ("model", "optimizer", "random", "skipped"):
        assert_same(newest(here)[name], newest(whole)[name])


def test_rates_of_retries_have_six_digits_and_a_factor_of_one_leaves_them():
    made = Schema()
    made.override(
        [("LEARNING_RATE", "0.00012345678", ""), ("RETRY_LR_FACTOR", "1", ""), ("LR_SCHEDULE", "constant", "")]
    )
    retries.lower(made, 1)
    assert made.options["LEARNING_RATE"].text == "0.00012345678"
    made.override([("RETRY_LR_FACTOR", "0.7", "")])
    retries.lower(made, 2)
    assert (made.options["LEARNING_RATE"].text, made.sources["LEARNING_RATE"]) == ("8.64197e-05", "retry 2")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_advice_is_something_that_the_run_does_not_do_already(run, folder, dtype):
    with poison(folder, (3,)), pytest.raises(UserError):
        run(dtype=dtype)
    [message] = [record["message"] for record in records(folder / "runs/run", "alert") if record["kind"] == "nan"]
    assert "; lower LEARNING_RATE or lengthen WARMUP_STEPS" in message
    assert message.endswith(", or use DTYPE=float32") == (dtype != "float32")
