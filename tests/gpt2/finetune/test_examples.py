"""Which examples are read from files, how they are split, and what is refused, each with one sentence."""

import hashlib
import json

import pyarrow
import pytest
from pyarrow import parquet

from gpt2.finetune import examples
from gpt2.finetune.examples import ExampleOptions
from lib.base.errors import UserError
from lib.config.kconf import Schema

TEXTS = [{"text": f"{n} is a number."} for n in range(10)]
MESSAGES = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def options(recipe="sft", data="a.jsonl", **more):
    schema, words = Schema(), {"FINETUNE_RECIPE": recipe, "FINETUNE_DATA": data, **more}
    schema.override([(name, text, "test") for name, text in words.items()])
    return schema.bind(ExampleOptions)


def read(*args, **more):
    return examples.read(options(*args, **more))


def test_a_share_is_kept_for_evaluation_which_the_seed_chooses(folder):
    lines(folder / "a.jsonl", TEXTS)
    found = read(FINETUNE_TEST_FRACTION="0.2")
    assert sorted(map(str, found.train + found.evaluation)) == sorted(map(str, TEXTS))
    assert found.words() == "8 examples, 2 for evaluation (FINETUNE_TEST_FRACTION=0.2)"
    assert read(FINETUNE_TEST_FRACTION="0.2") == found
    assert read(FINETUNE_TEST_FRACTION="0.2", SEED="8").evaluation != found.evaluation
    assert (read(EVALUATE="n").words(), read(EVALUATE="n").facts("").keys()) == ("10 examples", {"train"})


def test_names_and_the_option_say_what_is_for_evaluation(folder):
    lines(folder / "data/train.jsonl", TEXTS[:7])
    lines(folder / "data/test.jsonl", TEXTS[7:])
    found = read(data="data")
    assert (found.train, found.evaluation, found.words()) == (
        TEXTS[:7], TEXTS[7:], "7 examples, 3 for evaluation (by name)",
    )  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(TEXTS[:2]), folder / "other.parquet")
    assert read(data="data", FINETUNE_EVAL_DATA="other.parquet").evaluation == TEXTS[:2]
    assert read(data="other.parquet", EVALUATE="n").train == TEXTS[:2]


def test_conversations_are_told_from_text(folder):
    lines(folder / "a.jsonl", [{"messages": MESSAGES}] * 4)
    assert read().conversational
    (folder / "chat.jinja").write_text("{{ messages }}")
    templates = [read().facts(name)["template"]["sha256"][:8] for name in ("", "chat.jinja")]
    assert templates == [hashlib.sha256(t.encode()).hexdigest()[:8] for t in (examples.TEMPLATE, "{{ messages }}")]
    lines(folder / "a.jsonl", [{"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]}] * 4)
    assert read("dpo").conversational
    lines(folder / "a.jsonl", [{"prompt": "1", "answer": ["a list"]}] * 4)
    assert not read("grpo").conversational
    assert read("grpo").fingerprint != read("grpo", FINETUNE_REWARD="format", FINETUNE_TEST_FRACTION="0.5").fingerprint


SFT = "sft's columns text, or prompt and completion, or messages"
DPO = "dpo's columns prompt and chosen and rejected, or chosen and rejected"
GRPO = "prompt and answer for the reward exact"
ALL = {"EVALUATE": "n"}
REFUSED = [
    (
        [{"prompt": "a", "answer": "b"}] * 2,
        {},
        f"a.jsonl:1: has the columns prompt, answer, and TRL wants {SFT}; rename",
    ),
    ([{"question": "a"}], ALL | {"recipe": "dpo"}, f"a.jsonl:1: has the columns question, and TRL wants {DPO}; rename"),
    ([{"prompt": "a"}], ALL | {"recipe": "grpo"}, f"a.jsonl:1: has the columns prompt, and TRL wants {GRPO}; rename"),
    ([{"text": "a"}, {"text": 3}], ALL, "a.jsonl:2: text is int; TRL wants text, or a list of messages with role and"),
    ([{"text": "a"}, {"texts": "b"}], ALL, "a.jsonl:2: has other columns than a.jsonl:1; give all examples the same"),
    ([{"prompt": "a", "completion": MESSAGES}], ALL, "a.jsonl:1: has text and messages; use one kind for prompt and"),
    ([{"text": ""}] * 3, ALL, "FINETUNE_DATA: all texts in text are empty; name examples that have some"),
    (
        [{"prompt": "a", "completions": "b"}],
        ALL | {"recipe": "grpo", "FINETUNE_REWARD": "format"},
        "a.jsonl:1: has the column completions, which TRL gives to rewards itself; rename the column",
    ),
    ([["a"]], ALL, f"a.jsonl:1: is list, not an object of columns; {SFT} are wanted"),
    ([], ALL, "FINETUNE_DATA: has no examples; name a file that has some"),
    (
        TEXTS[:1],
        {},
        "a.jsonl: has 1 examples, too few to keep some for evaluation; set FINETUNE_EVAL_DATA or EVALUATE=n",
    ),
    (TEXTS, {"data": "b.jsonl"}, "FINETUNE_DATA=b.jsonl: there is no such file or folder; check the name"),
    (
        TEXTS,
        {"data": "notes.txt"},
        "FINETUNE_DATA=notes.txt: is no .jsonl or .parquet file and has none; name examples",
    ),
    (TEXTS, {"data": ""}, f"FINETUNE_DATA is empty; name a file or folder of JSON lines or parquet with {SFT}, or a"),
]


@pytest.mark.parametrize(("content", "words", "sentence"), REFUSED)
def test_what_cannot_be_used_is_one_sentence(folder, content, words, sentence):
    lines(folder / "a.jsonl", content)
    (folder / "notes.txt").write_text("a")
    with pytest.raises(UserError) as error:
        read(**words)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_trl_reads_the_columns_of_the_recipe_only():
    row = {"text": "a", "prompt": "b", "completion": "c", "input_ids": [1], "label": 1}
    assert examples.used("sft", [row, row]) == [{"text": "a"}] * 2
    pair = {"chosen": "a", "rejected": "b", "score": 2, "tools": []}
    assert examples.used("dpo", [pair]) == [{"chosen": "a", "rejected": "b", "tools": []}]
    asked = {"prompt": "a", "answer": "b", "level": 3}
    assert examples.used("grpo", [asked]) == [asked]


def test_evaluation_without_examples_is_refused_before_any_is_read(folder):
    (folder / "a.jsonl").write_text("this is no JSON")
    with pytest.raises(UserError) as error:
        read(FINETUNE_TEST_FRACTION="0")
    assert str(error.value) == (
        "a.jsonl: has no examples for evaluation; set FINETUNE_EVAL_DATA, raise FINETUNE_TEST_FRACTION above 0, or set "
        "EVALUATE=n"
    )
    with pytest.raises(UserError, match=r"^a\.jsonl:1: is not valid JSON \(.*\); every line must be an object$"):
        read()


def test_a_template_is_a_file_that_uses_messages(folder):
    (folder / "chat.jinja").write_text("{{ messages }}")
    assert examples.template("chat.jinja") == "{{ messages }}"
    assert examples.template("") == examples.TEMPLATE
    (folder / "other.jinja").write_text("hello")
    with pytest.raises(UserError, match="does not use messages, so it is no chat template; name one"):
        examples.template("other.jinja")
    with pytest.raises(UserError, match="FINETUNE_TEMPLATE_FILE=gone: cannot be read: No such file or directory"):
        examples.template("gone")
