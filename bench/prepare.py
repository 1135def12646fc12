"""Data preparation, from documents to shards, compared with tiktoken on texts in memory."""

import json
import shutil
import tempfile
import time
from pathlib import Path

from bench import Bench, documents, process
from bench.timing import Case
from gpt2.data import encoding, prepared, tokenizer

_REPEATS = 20  # of the 5 MB of documents
_CHUNK = 500  # documents in a call of tiktoken, whose lists of numbers take 20 bytes for each byte of text


def prepare(bench: Bench) -> None:
    """Encode the standard library repeatedly: tiktoken's time over ours, and the peak of our memory.

    The time of tiktoken on one core is divided by the number of our cores.
    """
    texts, cores = documents()[: 10 if bench.size == "tiny" else None], encoding.default_threads()
    repeats = 1 if bench.size == "tiny" else _REPEATS
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as made:
        folder = Path(made)
        few, many, one = (folder / name for name in ("few.jsonl", "many.jsonl", "one.txt"))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        few.write_text(lines, encoding="utf-8")
        many.write_text(lines * repeats, encoding="utf-8")
        one.write_text("".join(texts) * repeats, encoding="utf-8")
        memory = {}
        for name, path in {"few documents": few, "many documents": many, "one document": one}.items():
            peak, size = _run(bench, path).peak_bytes / 2**20, path.stat().st_size / 1e6
            memory[name] = {"MB": size, "peak MiB": peak, "ratio": peak / 2**10, "to": "1 GiB"}
        ours = "documents to shards"
        tokens = _tokens(many)
        cases = [
            Case(ours, lambda: _run(bench, many).seconds, work=tokens, unit="tokens", reports=True),
            *(
                Case(name, lambda n=n: _tiktoken(texts, repeats, n) * n / cores, ours, tokens, "tokens",
                     reports=True)
                for name, n in {"tiktoken, all cores": cores, "tiktoken, one core": 1}.items()
            ),
        ]  # fmt: skip
        bench.measure("preparation", cases, tokens=tokens, cores=cores)
    bench.note("memory of preparation", memory)


def _run(bench: Bench, source: Path) -> process.Finished:
    """Prepare a file from the beginning."""
    data = source.with_suffix("")
    shutil.rmtree(data, ignore_errors=True)
    options = {"DATASET": "files", "DATASET_SOURCE": source, "TOKENIZER": "gpt2", "DATA_DIR": data}
    return process.ours("prepare_data.py", options, source.parent, bench.machine.device)


def _tokens(source: Path) -> int:
    (folder,) = source.with_suffix("").glob("files-*")
    splits = prepared.read_meta(folder)["splits"]
    return sum(split["tokens"] for split in splits.values())


def _tiktoken(texts: list[str], repeats: int, threads: int) -> float:
    """Seconds of tiktoken's own batches for the texts, `repeats` times."""
    encoding, began = tokenizer.load("gpt2").encoding, time.perf_counter()
    for _ in range(repeats):
        for first in range(0, len(texts), _CHUNK):
            encoding.encode_ordinary_batch(texts[first : first + _CHUNK], num_threads=threads)
    return time.perf_counter() - began
