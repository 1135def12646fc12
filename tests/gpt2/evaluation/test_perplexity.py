"""Perplexity as the papers on pruning compute it, against plain loops in float64; where its text comes from."""

import gzip
import hashlib
import http.server
import json
import math
import threading

import numpy as np
import pyarrow
import pytest
import torch
from huggingface_hub import constants
from pyarrow import parquet

from gpt2.data import tokenizer
from gpt2.data.local_files import DataError
from gpt2.evaluation import perplexity
from lib.base.errors import UsageError
from tests.gpt2.evaluation.models import tiny

BYTES, GPT2 = tokenizer.load("bytes"), tokenizer.load("gpt2")
ROWS = ["", " = A title = \n", "", " It is été .\n", "", " The end <|endoftext|> is text .\n"]


def rows(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def reference(model, tokens, size):
    """SparseGPT's and Wanda's figure: a window predicts size - 1 tokens, and its mean loss counts size times."""
    model, windows = model.double(), torch.tensor(tokens[: len(tokens) // size * size]).view(-1, size)
    logits = model(windows)[:, :-1].detach().numpy()
    model.float()
    logs = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    total = 0.0
    for window, log in zip(windows.tolist(), logs, strict=True):
        losses = [-log[t, window[t + 1]] for t in range(size - 1)]
        total += sum(losses) / (size - 1) * size
    return math.exp(total / (len(windows) * size)), len(windows)


def measured(names, model, machine, which=BYTES, local="", batch_size=3):
    perplexity.check(names, local)
    return list(perplexity.measure(names, local, model, which, machine, batch_size))


def test_half_of_a_pair_of_surrogates_is_one_unknown_character(tmp_path):
    model, machine = tiny(256, 8)
    (tmp_path / "half.jsonl").write_text('{"text": "A text with \\ud800 in it."}\n')
    (tmp_path / "whole.txt").write_text("A text with \ufffd in it.")
    [half] = measured(str(tmp_path / "half.jsonl"), model, machine)
    [whole] = measured(str(tmp_path / "whole.txt"), model, machine)
    assert half.metrics["perplexity/half.jsonl/loss"] == whole.metrics["perplexity/whole.txt/loss"]
    assert half.details["sha256_text"] == whole.details["sha256_text"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("which", [BYTES, GPT2])
def test_wikitext_is_its_rows_with_empty_lines_between(tmp_path, which, ending):
    model, machine = tiny(which.vocab_size, 8)
    path = rows(tmp_path / f"Salesforce/wikitext/wikitext-2-raw-v1/test.{ending}", ROWS)
    [result] = measured("wikitext2", model, machine, which, str(tmp_path))
    text = "\n\n = A title = \n\n\n\n\n It is été .\n\n\n\n\n The end <|endoftext|> is text .\n"
    expected, windows = reference(model, which.encode_batch([text])[0].tolist(), 8)
    assert windows >= 3
    assert (result.name, result.n) == ("perplexity/wikitext2", windows)
    assert result.metrics["perplexity/wikitext2/perplexity"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["perplexity/wikitext2/loss"] == pytest.approx(math.log(expected), rel=1e-5)
    assert result.details["source"] == str(path)
    assert result.details["sha256_text"] == hashlib.sha256(text.encode()).hexdigest()
    kind = "bytes" if which is BYTES else "GPT-2's tokens"
    assert result.details["notes"] == [
        f"wikitext2: this perplexity is per token, of {kind} in windows of 8; it stands beside published figures of "
        "GPT-2 only with GPT-2's tokens in windows of 1,024"
    ]


def test_c4_is_the_first_1100_documents_and_256_windows(tmp_path):
    model, machine = tiny(256, 8)
    texts = [f"{n:04d}" for n in range(1200)]
    rows(tmp_path / "allenai/c4/en/validation.jsonl", texts)
    [result] = measured("c4", model, machine, local=str(tmp_path), batch_size=64)
    tokens = list(" ".join(texts).encode())
    assert result.n == 256
    assert result.metrics["perplexity/c4/perplexity"] == pytest.approx(
        reference(model, tokens[: 256 * 8], 8)[0], rel=1e-5
    )
    long, machine = tiny(256, 1024)
    [result] = measured("c4", long, machine, local=str(tmp_path))
    assert result.n == 1100 * 5 // 1024  # the text has 5,499 bytes
    assert result.details["sha256_text"] == hashlib.sha256(" ".join(texts[:1100]).encode()).hexdigest()


def test_a_file_of_ones_own(tmp_path):
    model, machine = tiny(256, 8)
    path, other = tmp_path / "my.txt", rows(tmp_path / "rows.jsonl", ["one text", "another text"])
    path.write_text("A text of my own, naïve and long enough.")
    first, second = measured(f"{path}, {other}", model, machine)
    tokens = list(path.read_bytes())
    assert first.metrics["perplexity/my.txt/perplexity"] == pytest.approx(reference(model, tokens, 8)[0], rel=1e-5)
    assert (first.n, first.details["notes"]) == (len(tokens) // 8, [])
    assert second.metrics["perplexity/rows.jsonl/loss"] == pytest.approx(
        math.log(reference(model, list(b"one text\n\nanother text"), 8)[0]), rel=1e-5
    )
    predicted = first.n * 7  # the windows' first tokens are not predicted, and each byte is a token
    assert predicted == 35
    assert first.metrics["perplexity/my.txt/bits_per_byte"] == pytest.approx(
        first.metrics["perplexity/my.txt/loss"] / math.log(2)
    )


@pytest.mark.parametrize(
    ("content", "ending", "sentence"),
    [
        ("", "txt", "has no text; use another file"),
        ("short", "txt", r"has 5 tokens, and a window takes BLOCK_SIZE = 8; use a longer text"),
        ('{"content": "a"}\n', "jsonl", r":1: has no field 'text'; PERPLEXITY reads the field 'text' of each row"),
        ('{"text": 3}\n', "jsonl", r":1: field 'text' holds no text; PERPLEXITY reads the field 'text' of each row"),
        ("not JSON\n", "jsonl", r":1: is not a JSON object"),
    ],
)
def test_a_text_that_cannot_be_measured_is_one_sentence(tmp_path, content, ending, sentence):
    model, machine = tiny(256, 8)
    path = tmp_path / f"text.{ending}"
    path.write_text(content)
    with pytest.raises((DataError, UsageError), match=sentence):
        measured(str(path), model, machine)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("none.txt", r"PERPLEXITY=none.txt: there is no such file; name a file or one of wikitext2 and c4"),
        ("wikitext3", r"PERPLEXITY=wikitext3: is neither a .txt, .jsonl or .parquet file nor one of wikitext2 and c4"),
        (",", r"PERPLEXITY=,: names no text; use a file or wikitext2 and c4"),
        ("c4", r"allenai/c4/en/validation.jsonl: is missing, and so is .parquet"),
        ("a/x.txt,b/x.txt", r"PERPLEXITY names x.txt twice"),
        ("a/od\nd.txt", r"PERPLEXITY: the name 'od\\nd.txt' has characters that cannot be printed; rename the file"),
    ],
)
def test_a_wrong_name_is_one_sentence_before_anything_is_loaded(tmp_path, monkeypatch, names, sentence):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.txt", "b/x.txt", "a/od\nd.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(UsageError, match=sentence):
        perplexity.check(names, str(tmp_path))


def test_a_context_of_one_token_predicts_nothing(tmp_path):
    model, machine = tiny(256, 1)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"^BLOCK_SIZE=1: "):
        measured(str(tmp_path / "a.txt"), model, machine)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = gzip.compress(b"".join(json.dumps({"text": f"document {n}"}).encode() + b"\n" for n in range(5)))


class Hub(http.server.BaseHTTPRequestHandler):
    """Has the validation file of C4."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        found = {
            "/api/datasets/allenai/c4": json.dumps({"id": "allenai/c4", "sha": COMMIT}).encode(),
            "/datasets/allenai/c4/resolve/main/en/c4-validation.00000-of-00008.json.gz": CONTENT,
        }.get(self.path)
        self.send_response(404 if found is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(found or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(found)

    def log_message(self, *_):
        pass


def test_a_known_text_comes_from_the_hub_with_its_commit(tmp_path, monkeypatch):
    """This hub has C4, and not WikiText."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{here}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model, machine = tiny(256, 8)
    try:
        [result] = measured("c4", model, machine)
        with pytest.raises(DataError) as missing:
            perplexity.check("c4,wikitext2", "")
    finally:
        server.shutdown()
        server.server_close()
    [again] = measured("c4", model, machine)  # from the cache
    with pytest.raises(DataError, match=r"the Hugging Face hub: it is not reached, nor does its cache have the file; "):
        measured("wikitext2", model, machine)
    text = " ".join(f"document {n}" for n in range(5))
    assert result.details["source"] == f"allenai/c4@{COMMIT}"
    assert result.details["sha256_text"] == hashlib.sha256(text.encode()).hexdigest()
    assert again == result
    [message] = str(missing.value).splitlines()
    assert message.startswith("Salesforce/wikitext: wikitext-2-raw-v1/test-00000-of-00001.parquet cannot be had from ")
    assert message.endswith("; check the network, or set TASK_DATA to a folder with a local copy")
