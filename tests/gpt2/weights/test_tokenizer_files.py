"""The tokenizer of an export: transformers' AutoTokenizer gives our ids and our text.

It is tried on 2,000 random strings here; TOKENIZER_STRINGS=10000 tries more.
"""

import json
import os
import random

import pytest
import tokenizers as library
from transformers import AutoTokenizer

from gpt2.data import tokenizer as tokenizers
from gpt2.weights import tokenizer_files

STRINGS = int(os.environ.get("TOKENIZER_STRINGS", "2000"))
PIECES = (
    ["'s", "'LL", "'re", "’s", " can't", "I'm", "n't", " ", "don", "'"],
    ["👩", "\u200d", "🏽", "e", "\u0301", "\u0308", "🇩", "🇪", "\ufe0f", "é", " "],
    [" ", "\t", "\n", "\r\n", "\x0b", "\x85", "\xa0", "\u2003", "\u3000", "\u1680", "\x1c", "a"],
    ["<|endoftext|>", "Ā", "\0", "<|", "|>", "a", " "],
    [*"the cat sat on 123 mats, def f(x):\n    return 0x1F\t"],
)


def text(draw: random.Random) -> str:
    """Any characters, bytes, control characters, or pieces that tokenizers are known to differ in."""
    kind, length = draw.randrange(8), draw.randrange(60)
    if kind == 0:  # of all planes; surrogates are no characters
        return "".join(chr(draw.randrange(0x110000)) for _ in range(length)).encode("utf-8", "ignore").decode()
    if kind == 1:
        return draw.randbytes(length).decode("latin-1")
    if kind == 2:
        return "".join(chr(draw.randrange(0x20)) for _ in range(length))
    return "".join(draw.choice(PIECES[kind - 3]) for _ in range(length))


@pytest.fixture(params=["gpt2", "bytes"])
def both(request, tmp_path):
    """Our tokenizer, transformers' and the file of the package tokenizers."""
    tokenizer_files.write(tmp_path, request.param, 32)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    return tokenizers.load(request.param), theirs, tmp_path / "tokenizer.json"


def test_random_strings_have_the_same_ids_and_come_back(both):
    ours, theirs, file = both
    draw = random.Random(2026)
    texts = [text(draw) for _ in range(STRINGS)]
    ids = [found.tolist() for found in ours.encode_batch(texts)]
    assert theirs(texts)["input_ids"] == ids
    assert theirs.batch_decode(ids) == texts
    assert [found.ids for found in library.Tokenizer.from_file(str(file)).encode_batch(texts[:1000])] == ids[:1000]


def test_end_of_text_is_a_token_for_generate_and_ordinary_text_in_a_text(both):
    ours, theirs, _ = both
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
    assert theirs.decode([ours.end_of_text, *theirs("a")["input_ids"]], skip_special_tokens=True) == "a"
    assert theirs.tokenize("") == []
    assert len(theirs) == ours.vocab_size


def test_literal_ids(tmp_path):
    tokenizer_files.write(tmp_path, "gpt2", 1024)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert theirs("Hello world")["input_ids"] == [15496, 995]
    assert theirs("<|endoftext|>")["input_ids"] == [27, 91, 437, 1659, 5239, 91, 29]
    assert (theirs.eos_token_id, theirs.model_max_length, theirs.clean_up_tokenization_spaces) == (50256, 1024, False)
    assert theirs.decode(theirs("a , b . n't")["input_ids"]) == "a , b . n't"
    tokenizer_files.write(tmp_path, "bytes", 8)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert theirs("é\0A")["input_ids"] == [0xC3, 0xA9, 0, 0x41]


def test_the_vocabulary_is_the_published_one(tmp_path):
    tokenizer_files.write(tmp_path, "gpt2", 1024)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert (len(model["vocab"]), len(model["merges"])) == (50257, 50000)
    assert (model["merges"][0], model["vocab"]["Ġt"], model["vocab"]["<|endoftext|>"]) == ("Ġ t", 256, 50256)
