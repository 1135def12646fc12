"""The rewards that ship, and functions in a user's file."""

import hashlib

import pytest

from gpt2.finetune import rewards
from lib.base.errors import UserError

COMPLETIONS = [
    " 42\n",
    "is <answer>42</answer>",
    "<answer>41</answer> or <answer>42</answer>",
    "<answer></answer>",
    "4",
]


def test_exact_and_format():
    assert rewards.exact(COMPLETIONS, ["42"] * 4 + [4]) == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert rewards.format(COMPLETIONS) == [0.0, 1.0, 0.0, 0.0, 0.0]
    messages = [[{"role": "assistant", "content": "<answer>7</answer> "}]]
    assert (rewards.exact(messages, ["7"]), rewards.format(messages)) == ([1.0], [1.0])


def test_a_file_has_one_function_or_its_name_is_given(folder):
    source = b"import math\ndef short(completions, **k):\n    return [1.0 / len(c) for c in completions]\n"
    (folder / "one.py").write_bytes(source)
    loaded = rewards.load("exact, one.py")
    assert [one.__name__ for one in loaded.functions] == ["exact", "short"]
    assert loaded.functions[1](completions=["ab"]) == [0.5]
    assert loaded.sha256 == {"one.py": hashlib.sha256(source).hexdigest()}
    (folder / "two.py").write_bytes(source + b"def _hidden(): 0\ndef other(completions): return completions\n")
    assert rewards.load("two.py:other").functions[0]([3.0]) == [3.0]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "FINETUNE_REWARD is empty; choose exact, format, or FILE.py:FUNCTION"),
        ("exat", "FINETUNE_REWARD=exat: is no reward; choose exact, format, or FILE.py:FUNCTION"),
        ("gone.py", "FINETUNE_REWARD: gone.py: cannot be read: No such file or directory; check the name"),
        ("bad.py", "bad.py: ZeroDivisionError when it is executed: division by zero; correct it"),
        ("end.py", "end.py: SystemExit when it is executed: 0; correct it"),
        ("two.py", "two.py: has 2 functions without _ at their beginning; say which one is the reward, as in two.py:a"),
        ("two.py:c", "two.py: has no function 'c' (it has a, b); name one of these"),
        ("two.py:b", "two.py: b takes no completions; a reward is called with completions=[...]"),
    ],
)
def test_what_is_no_reward_is_one_sentence(folder, given, sentence):
    (folder / "bad.py").write_text("1 / 0\n")
    (folder / "end.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "two.py").write_text("def a(completions): ...\ndef b(texts): ...\n")
    with pytest.raises(UserError) as error:
        rewards.load(given)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("{}['x']", "a.py:2: KeyError in r: 'x'; correct it"),
        ("[1.0]", "a.py: r must return a list of 2 finite numbers, one for each completion, and returned [1.0]; "),
        ("[0, float('nan')]", "a.py: r must return a list of 2 finite numbers, one for each completion, and returned "),
        ("['a', 'b']", "a.py: r must return a list of 2 finite numbers, one for each completion, and returned ['a',"),
        ("None", "a.py: r must return a list of 2 finite numbers, one for each completion, and returned None; "),
    ],
)
def test_a_reward_that_fails_is_one_sentence(folder, body, sentence):
    (folder / "a.py").write_text(f"def r(completions, answer):\n    return {body}\n")
    with pytest.raises(UserError) as error:
        rewards.load("a.py").functions[0](completions=["a", "b"], answer=["c", "d"])
    assert str(error.value).startswith(sentence)


def test_a_reward_may_not_apply(folder):
    (folder / "a.py").write_text("def r(completions, **columns): return [None, True, 2]\n")
    assert rewards.load("a.py").functions[0](["a", "b", "c"]) == [None, 1.0, 2.0]


def test_a_run_that_goes_on_executes_only_what_it_began_with(folder):
    path = folder / "reward.py"
    path.write_text("def short(completions): return [0.0]\n")
    before = rewards.load("reward.py").sha256
    assert rewards.load("reward.py", folder / "runs/one", before).sha256 == before
    with pytest.raises(UserError, match=r"^reward\.py: lies in the folder of its run; move it elsewhere"):
        rewards.load("reward.py", folder, before)
    path.write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"^reward\.py: this reward has changed since the run began; restore it"):
        rewards.load("reward.py", folder / "runs/one", before)
