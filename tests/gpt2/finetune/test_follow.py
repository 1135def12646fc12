"""What Follow records of the logs of a trainer."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.extra("trl")


class Book:
    """A recorder that keeps what it is told."""

    def __init__(self):
        self.rows, self.alerts = [], []

    def write(self, event, step, metrics, **details):
        self.rows.append((event, step, metrics))

    def alert(self, kind, level, message, step):
        self.alerts.append((kind, step))


@pytest.fixture
def follow():
    from gpt2.finetune.follow import Follow

    made = Follow(
        SimpleNamespace(note=lambda loss: None), None, evaluates=True, merges=False, perplexity=False,
        tokens_before=0, keep=1,
    )  # fmt: skip
    made.recorder, made.sparsity = Book(), lambda: 0.5
    return made


def log(follow, step, **logs):
    follow.on_log(None, SimpleNamespace(global_step=step), None, logs)


def test_rewards_that_are_all_equal_are_an_alert_once(follow):
    log(follow, 10, loss=0.0, frac_reward_zero_std=0.9)
    assert follow.recorder.alerts == []
    log(follow, 20, loss=0.0, frac_reward_zero_std=1.0)
    log(follow, 30, loss=0.0, frac_reward_zero_std=1.0)
    assert follow.recorder.alerts == [("rewards", 20)]


def test_the_line_in_the_terminal_has_what_the_loss_of_a_recipe_does_not_say(follow):
    log(follow, 10, loss=0.0, **{"reward": 0.25, "rewards/accuracies": 0.5, "kl": 1.0})
    [(_, _, metrics)] = follow.recorder.rows
    assert [name.text(metrics[name]) for name in metrics if getattr(name, "label", "")][:3] == [
        "loss 0.0000", "reward 0.2500", "accuracy 0.50",
    ]  # fmt: skip


@pytest.mark.parametrize(("reward", "loss"), [(0.0, "0.0"), (0.25, "-0.25")])
def test_the_validation_loss_of_rewards_is_minus_their_mean(follow, reward, loss):
    log(follow, 10, eval_loss=0.1, eval_reward=reward)
    [(event, step, metrics)] = follow.recorder.rows
    assert (event, step, str(metrics["val_loss"])) == ("eval", 10, loss)


@pytest.mark.parametrize(
    ("merges", "trained", "evaluated"),
    [(False, {"sparsity": 0.5}, {}), (True, {"adapted_sparsity": 0.5}, {"sparsity": 0.5})],
)
def test_only_a_model_that_is_saved_so_has_a_sparsity(follow, merges, trained, evaluated):
    follow.merges = merges
    log(follow, 10, loss=2.0, sparsity=0.5)  # HoldMasks has added it
    log(follow, 10, eval_loss=2.0, sparsity=0.5)
    found = [metrics.items() for _, _, metrics in follow.recorder.rows]
    assert [{name: value for name, value in one if "sparsity" in name} for one in found] == [trained, evaluated]
