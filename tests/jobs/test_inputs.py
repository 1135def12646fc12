"""Files that go with a job: a misspelt name is refused here, and not on the machine that is rented."""

from pathlib import Path

import pytest

from lib.base.errors import UsageError
from lib.config import command_line
from lib.jobs import inputs
from lib.jobs.inputs import Input

SHORT = ("gpt2",)  # models of the hub without an owner


def of(*words):
    return inputs.of(command_line.resolve("", words, {})[0], short=SHORT)


SFT = "FINETUNE_RECIPE=sft"
GRPO = "FINETUNE_RECIPE=grpo"
FILES = "DATASET=files"


@pytest.mark.parametrize(
    "words",
    [
        [SFT, "FINETUNE_DATA=typo.jsonl"],
        [SFT, "FINETUNE_DATA=data/typo.jsonl"],
        [SFT, "FINETUNE_DATA=typo"],
        [SFT, "FINETUNE_EVAL_DATA=typo.parquet"],
        [SFT, "FINETUNE_TEMPLATE_FILE=owner/chat"],
        [SFT, "INIT_FROM=pruend"],
        [SFT, "INIT_FROM=runs/old/typo"],
        [GRPO, "FINETUNE_REWARD=typo.py"],
        [GRPO, "FINETUNE_REWARD=exact,typo.py:short"],
        [FILES, "DATASET_SOURCE=nofile.txt"],
        [FILES, "DATASET_SOURCE=a/b/c"],
        [FILES, "DATASET_SOURCE=none/*.txt"],
        ["DATASET=bins", "DATA_DIR=typo"],
        ["DISTILL_FROM=typo.pt"],
        ["PRUNING_METHOD=given", "INIT_FROM=gpt2", "INIT_MASKS=typo.safetensors"],
        ["TASK_DATA=owner/tasks"],
    ],
)
def test_what_is_neither_here_nor_can_be_on_the_hub_is_refused(folder, words):
    with pytest.raises(UsageError) as caught:
        of(*words)
    wrong = words[-1].replace("exact,", "")
    assert str(caught.value) == (f"{wrong}: there is no such file or folder here to send with the job; check the name")


@pytest.mark.parametrize(
    "words",
    [
        [SFT, "FINETUNE_DATA=trl-lib/Capybara", "FINETUNE_EVAL_DATA=trl-lib/tldr@v1.0"],
        [SFT, "INIT_FROM=openai-community/gpt2@main"],
        ["INIT_FROM=gpt2", "PRUNING_METHOD=given", "INIT_MASKS=zeros"],
        [FILES, "DATASET_SOURCE=imdb"],
        [FILES, "DATASET_SOURCE=texts/*.txt"],
        ["DATASET=shakespeare"],
        ["DATASET=finewebedu"],
        [GRPO, "FINETUNE_REWARD=exact,format"],
    ],
)
def test_names_on_the_hub_and_patterns_of_the_code_are_left_as_they_are(folder, words):
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").touch()
    (folder / "gpt2").mkdir()  # as in the clone, where the hub's gpt2 is meant all the same
    assert of(*words) == []


def test_files_and_runs_that_are_here_go_along(folder):
    run = folder / "runs/old"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/step-000000005.pt").touch()
    (run / "run.json").write_text('{"run_id": "a", "project": "p", "name": "old"}')
    (run / "exported").mkdir()
    (run / "exported/config.json").touch()
    for name in ("a.jsonl", "chat.jinja", "masks.safetensors"):
        Path(name).touch()
    data, template = Input("FINETUNE_DATA", Path("a.jsonl")), Input("FINETUNE_TEMPLATE_FILE", Path("chat.jinja"))
    assert of(SFT, "FINETUNE_DATA=a.jsonl", "FINETUNE_TEMPLATE_FILE=chat.jinja") == [data, template]
    assert of("INIT_FROM=old") == of("INIT_FROM=runs/old") == [Input("INIT_FROM", Path("runs/old"))]
    for name in ("old@5", "runs/old@5", "runs/old/checkpoints/step-000000005.pt"):
        [found] = of(f"INIT_FROM={name}")
        assert (found.path, int(found.suffix.removeprefix("@"))) == (Path("runs/old"), 5)
    assert of("INIT_FROM=runs/old/exported") == [Input("INIT_FROM", Path("runs/old/exported"))]
    given = of("INIT_FROM=gpt2", "PRUNING_METHOD=given", "INIT_MASKS=masks.safetensors")
    assert given == [Input("INIT_MASKS", Path("masks.safetensors"))]
    with pytest.raises(UsageError, match=r"^runs/old: there is no checkpoint '7'"):
        of("INIT_FROM=old@7")


def test_a_pattern_of_files_elsewhere_is_refused(folder):
    (folder / "a.txt").touch()
    with pytest.raises(UsageError, match=r"files of a pattern do not go with a job; name their folder$"):
        of(FILES, f"DATASET_SOURCE={folder}/*.txt")
