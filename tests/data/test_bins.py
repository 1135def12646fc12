"""Bins of others are recognised by what is in them, and what does not fit TOKENIZER is said."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.data import bins, windows
from gpt2.data.local_files import DataError
from gpt2.data.tokens import TOKEN
from lib.base.errors import UsageError
from tests.data.test_windows import options, write_raw


def write(folder, dtype, ids):
    """A folder of bins whose tokens have this type."""
    folder.mkdir(exist_ok=True)
    for split in "train", "val":
        np.asarray(ids).astype(dtype).tofile(folder / f"{split}.bin")
    return folder


def text(count, largest=64):
    return np.random.default_rng(0).integers(0, largest + 1, count)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<u8", "<i8"])
def test_tokens_of_every_width_are_read_as_what_they_are(tmp_path, capsys, dtype):
    ids = text(20_001, 255)
    found = windows.load(options(write(tmp_path, dtype, ids)))
    assert (found.train.tokens, found.val.tokens) == (20_001, 20_001)
    assert torch.cat([x.flatten() for x, _ in found.val_batches()]).tolist()[:8] == ids[:8].tolist()
    read = found.train.windows(np.array([0, 13, 19_992]))
    assert read.dtype == TOKEN
    assert read.tolist() == [ids[start : start + 9].tolist() for start in (0, 13, 19_992)]
    bits = 8 * np.dtype(dtype).itemsize
    note = f"note: {tmp_path}: 2 of 2 bins hold tokens of {bits} bits, and are read as such\n"
    assert capsys.readouterr().out == (note if bits > 16 else "")


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros(1000),
        text(1000, 0xFFFF),
        text(1000, 255),
        np.tile([7, 0], 15),  # too few to judge by
        np.where(np.arange(1000) % 40, text(1000, 255), 0),
    ],
)
def test_tokens_of_16_bits_are_not_taken_for_wider_ones(tmp_path, ids):
    files = bins.open_bins(write(tmp_path, "<u2", ids))
    assert [(file.dtype, len(file)) for file in files["train"]] == [(TOKEN, len(ids))]


@pytest.mark.parametrize("symbols", [2, 3, 4, 65])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(500, 5000), rare=st.sampled_from([0.5, 1, 4]), seed=st.integers(0, 2**32 - 1))
def test_small_alphabets_of_any_width_are_what_they_are(tmp_path, dtype, symbols, count, rare, seed):
    """With `rare` 4 nearly all are 0, with 0.5 nearly none."""
    ids = (symbols * np.random.default_rng(seed).random(count) ** rare).astype(int)
    (file,) = bins.open_bins(write(tmp_path, dtype, ids))["train"]
    assert (file.dtype, len(file)) == (np.dtype(dtype), count)


def test_wide_tokens_beyond_the_vocabulary_are_refused(tmp_path):
    folder = write(tmp_path, "<u4", [*text(1000), 128_000])
    with pytest.raises(DataError, match=r"train\.bin: holds token id 128000, beyond the 50257 ids of the tokenizer"):
        windows.load(options(folder, tokenizer="gpt2"))


def test_a_wide_token_that_has_become_too_large_is_no_other_token(tmp_path):
    files = bins.open_bins(write(tmp_path, "<u4", text(1000)))
    with (tmp_path / "train.bin").open("r+b") as file:
        file.write(np.array([0x10003], "<u4").tobytes())
    assert np.frombuffer(files["train"][0].read(0, 2), TOKEN)[0] == 0xFFFF


def test_a_wide_file_that_is_cut_off_is_one_sentence(tmp_path):
    folder = write(tmp_path, "<u4", text(1000))
    with (folder / "val.bin").open("ab") as file:
        file.write(b"\1\0")
    with pytest.raises(DataError, match=r"val\.bin: is cut off: its size, 4002 bytes, is not a multiple of 4, "):
        windows.load(options(folder))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.array([20240801, 7, 1000], "<i4").tobytes().ljust(1024, b"\0"), "holds tokens of Llama 3; tokenise"),
        (np.array([20240801, 9, 1000], "<i4").tobytes().ljust(1024, b"\0"), "has version 9 of llm.c's format; only"),
        (b"\x93NUMPY\1\0", "is a NumPy file; write only its tokens: numpy.load"),
    ],
)
def test_what_holds_no_tokens_of_gpt2_says_what_it_is(tmp_path, start, message):
    write(tmp_path, "<u2", text(1000))
    (tmp_path / "val.bin").write_bytes(start + bytes(2000))
    with pytest.raises(DataError) as caught:
        windows.load(options(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}/val.bin: {message}")


def test_a_folder_of_numpys_files_is_told(tmp_path):
    np.save(tmp_path / "edufineweb_train_000001.npy", text(10))
    with pytest.raises(UsageError, match=r"holds no \*train\*\.bin; DATA_DIR must name .*; \.npy files are not read"):
        windows.load(options(tmp_path))


def test_a_vocabulary_beside_bins_is_told_and_never_unpickled(tmp_path, capsys):
    folder = write(tmp_path, "<u2", text(1000))
    # A pickle that calls open(".../sprung", "w") when it is read.
    (folder / "meta.pkl").write_text(f"cbuiltins\nopen\n(S'{tmp_path}/sprung'\nS'w'\ntR.")
    windows.load(options(folder, tokenizer="gpt2"))
    assert not (tmp_path / "sprung").exists()
    assert capsys.readouterr().out == (
        f"note: {folder}/meta.pkl: these bins have their own vocabulary; it is not read, because unpickling can run "
        "any program; the largest token id is 64, and the model has 50,257 rows of embeddings; with TOKENIZER=bytes it "
        "has 256 rows; samples would be wrong text, so set SAMPLE_TOKENS=0, or train on the text itself with "
        "DATASET=files TOKENIZER=bytes\n"
    )


def test_a_small_largest_id_is_told(tmp_path, capsys):
    windows.load(options(write(tmp_path, "<u2", text(1000, 31_999)), tokenizer="gpt2"))
    assert capsys.readouterr().out.startswith(f"note: {tmp_path}: the largest token id is 31,")
    windows.load(options(write(tmp_path, "<u2", text(1000, 127))))  # ASCII
    windows.load(options(write(tmp_path, "<u2", text(100_000, 50_256)), tokenizer="gpt2"))
    write_raw(tmp_path / "val.bin", range(100))  # one of both is enough
    windows.load(options(tmp_path, tokenizer="gpt2"))
    assert capsys.readouterr().out == ""
