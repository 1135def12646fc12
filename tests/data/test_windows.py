"""Batches are a pure function of seed and step, evaluation never changes, and bad files are one sentence."""

import json
import math
import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import prepare, windows
from gpt2.data.local_files import DataError
from gpt2.data.tokens import TokenFile
from lib.base.errors import UsageError
from lib.config.kconf import Schema


def options(folder, **named):
    schema = Schema()
    named = {"data_dir": folder, "dataset": "bins", "tokenizer": "bytes", "block_size": 8, "batch_size": 4, **named}
    schema.override([(name.upper(), str(value), "test") for name, value in named.items()])
    return schema.bind(windows.DataOptions)


def write_raw(path, tokens):
    """A bin as nanoGPT writes it."""
    path.write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))


def written(path, tokens):
    """A file of tokens, open."""
    write_raw(path, tokens)
    return TokenFile(path, 0, len(tokens))


def write_llmc(path, tokens, magic=20240520, version=1, count=None):
    """A bin as llm.c and modded-nanogpt write it: 256 int32 of header, then uint16."""
    header = struct.pack("<3i", magic, version, len(tokens) if count is None else count).ljust(1024, b"\0")
    path.write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))


@pytest.fixture
def bins(tmp_path):
    """100 tokens 0 1 2 ... for training and 60 from 100 on for validation, so that a token is its own place."""
    write_raw(tmp_path / "train.bin", range(100))
    write_raw(tmp_path / "val.bin", range(100, 160))
    return tmp_path


def firsts(batch):
    return batch[0][:, 0].tolist()


# ---- the order of training


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 5000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**6))
def test_the_permutation_hits_everything_once(count, seed, epoch):
    places = windows.permute(np.arange(count), count, windows._keys(seed, epoch)[:-1])
    assert sorted(places.tolist()) == list(range(count))


def test_the_permutation_is_not_visibly_regular():
    """Neighbours in the order are as far apart as in a random one, for any size: a third of the range on average."""
    for count in 1000, 1024, 1025, 50_000:
        places = windows.permute(np.arange(count), count, windows._keys(1337, 0)[:-1])
        assert abs(np.abs(np.diff(places)).mean() / count - 1 / 3) < 0.03
        assert (places == np.arange(count)).sum() < 8
    others = [
        windows.permute(np.arange(1000), 1000, windows._keys(seed, epoch)[:-1]) for seed in (1, 2) for epoch in (0, 1)
    ]
    assert max(int((a == b).sum()) for n, a in enumerate(others) for b in others[:n]) < 10


def test_large_ranges_are_quick():
    began = time.process_time()
    places = windows.permute(np.arange(1000), 10**12, windows._keys(0, 0)[:-1])
    assert len(set(places.tolist())) == 1000
    assert time.process_time() - began < 5  # some milliseconds; a pass over the range would take an hour


# Computed by a second, scalar implementation of the order.
GOLDEN = [[79, 31, 23, 15], [63, 47, 71, 87], [7, 39, 55, 56], [80, 24, 72, 64]]


def test_the_first_batches_are_these(bins):
    """Fixed for all time: a change here changes every run."""
    found = windows.load(options(bins, seed=1337))
    assert [firsts(found.batch(step, 0)) for step in range(4)] == GOLDEN
    x, y = found.batch(0, 0)
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape == (4, 8)
    assert x[0].tolist() == list(range(GOLDEN[0][0], GOLDEN[0][0] + 8))
    assert torch.equal(y, x + 1)
    assert x.is_contiguous() and y.is_contiguous()


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(9, 400), block_size=st.integers(1, 8), seed=st.integers(0, 100))
def test_an_epoch_shows_every_window_once(tmp_path_factory, tokens, block_size, seed):
    path = tmp_path_factory.getbasetemp() / "epoch.bin"
    split = windows.Split("training", [written(path, range(tokens))], block_size)
    count = windows.windows_per_epoch(split)
    assert count == max(tokens // block_size - 1, 1)
    for epoch in range(3):
        starts = windows.training_starts(np.arange(count) + epoch * count, split, seed)
        offset = starts.min()
        assert sorted(starts.tolist()) == [offset + n * block_size for n in range(count)]
        assert split.windows(starts).shape == (count, block_size + 1)  # the last window has a token to predict


def test_epochs_differ_in_order_and_cut(bins):
    split = windows.load(options(bins)).train
    starts = [windows.training_starts(np.arange(11) + epoch * 11, split, 1337).tolist() for epoch in range(60)]
    assert len({tuple(np.argsort(s)) for s in starts}) == 60
    assert {min(s) for s in starts} == set(range(8))


def test_a_batch_across_epochs_is_made_of_both(bins):
    whole = windows.load(options(bins, batch_size=22))
    found = [start for step in range(6) for start in firsts(windows.load(options(bins, batch_size=4)).batch(step, 0))]
    assert found[:22] == firsts(whole.batch(0, 0))


def test_the_global_batch_does_not_depend_on_how_it_is_divided(bins):
    expected = None
    for batch_size, accumulation in (1, 8), (2, 4), (4, 2), (8, 1):
        found = windows.load(options(bins, batch_size=batch_size, gradient_accumulation=accumulation))
        assert found.tokens_per_step == 64
        steps = [
            torch.cat([torch.stack(found.batch(step, micro), 1) for micro in range(accumulation)]) for step in range(5)
        ]
        expected = expected or steps
        assert all(torch.equal(*pair) for pair in zip(steps, expected, strict=True))


def test_seeds_differ_and_nothing_else_matters(bins):
    one, two = windows.load(options(bins, seed=1)), windows.load(options(bins, seed=2))
    assert firsts(one.batch(3, 0)) != firsts(two.batch(3, 0))
    before = firsts(one.batch(3, 0))
    list(one.val_batches())
    one.batch(7, 0)
    assert firsts(one.batch(3, 0)) == before


# ---- validation


def test_calibration_windows_are_the_first_of_training(bins):
    found = windows.load(options(bins, seed=1337))
    windowed = found.calibration(11)
    assert (windowed.dtype, windowed.shape) == (torch.int64, (11, 8))
    assert windowed[:, 0].tolist() == [*GOLDEN[0], *GOLDEN[1], *GOLDEN[2][:3]]
    assert len(set(windowed.flatten().tolist())) == 88  # a token is its own place, so no window overlaps another
    with pytest.raises(UsageError) as refused:
        found.calibration(12)
    assert str(refused.value) == (
        "CALIBRATION_SAMPLES=12: the training split has 11 windows of BLOCK_SIZE=8 tokens; lower CALIBRATION_SAMPLES "
        "or BLOCK_SIZE, or choose a larger dataset"
    )


def test_validation_windows_are_spread_and_stay(bins):
    found = windows.load(options(bins, eval_samples=3, batch_size=2))
    assert found.val_bytes == 3 * 8
    for _ in range(2):
        batches = list(found.val_batches())
        assert [firsts(batch) for batch in batches] == [[100, 116], [132]]  # of 100, 108 ... 148
        assert all(torch.equal(y, x + 1) for x, y in batches)


def test_a_small_validation_split_is_read_whole(bins):
    for seed in 1, 2:
        found = windows.load(options(bins, eval_samples=200, batch_size=5, seed=seed))
        assert [firsts(batch) for batch in found.val_batches()] == [[100, 108, 116, 124, 132], [140, 148]]


def test_bytes_of_text_are_those_of_the_targets(tmp_path):
    """The first token is no target, and the last one is beyond the windows."""
    write_raw(tmp_path / "train.bin", range(9))
    write_raw(tmp_path / "val.bin", [15496, 995, 0, 0, 995, 15496, 50256, 50256, 50256, 995])
    found = windows.load(options(tmp_path, tokenizer="gpt2", block_size=4))
    assert found.val_bytes == (6 + 1 + 1 + 6) + (5 + 0 + 0 + 0)  # " world!! world", "Hello"
    assert found.bits_per_byte(math.log(2)) == pytest.approx(8 / 19)  # one bit for each of 8 tokens


def test_without_a_byte_of_text_bits_per_byte_are_infinite(tmp_path):
    write_raw(tmp_path / "train.bin", [0] * 9)
    write_raw(tmp_path / "val.bin", [0] * 9)
    assert windows.load(options(tmp_path)).bits_per_byte(1.0) == math.inf


@pytest.mark.parametrize("spoil", [lambda val: val.unlink(), lambda val: val.write_bytes(b"odd")])
def test_without_evaluation_bins_for_validation_are_neither_needed_nor_read(bins, spoil):
    sums = windows.load(options(bins)).sums()
    spoil(bins / "val.bin")
    found = windows.load(options(bins, seed=1337, evaluate="n"))
    assert [firsts(found.batch(step, 0)) for step in range(4)] == GOLDEN
    assert (found.val, found.val_windows) == (None, 0)
    assert found.description == "bins-bytes: 100 training tokens, no validation"
    assert found.sums() == {"train": sums["train"], "val": {}}


# ---- files


def test_llm_c_bins(tmp_path):
    write_llmc(tmp_path / "fineweb_val_000000.bin", range(50, 80))
    write_llmc(tmp_path / "fineweb_train_000001.bin", range(20))
    write_llmc(tmp_path / "fineweb_train_000002.bin", range(20, 100))
    found = windows.load(options(tmp_path, batch_size=11))
    assert (found.train.tokens, found.val.tokens) == (100, 30)
    assert found.description == "bins-bytes: 100 training and 30 validation tokens"
    write_raw(tmp_path / "one_train.bin", range(100))
    for name in "fineweb_train_000001.bin", "fineweb_train_000002.bin":
        (tmp_path / name).unlink()
    assert torch.equal(windows.load(options(tmp_path, batch_size=11)).batch(0, 0)[0], found.batch(0, 0)[0])


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), block_size=st.integers(1, 9))
def test_shards_read_like_one_file(tmp_path_factory, sizes, block_size):
    tokens, folder = np.arange(sum(sizes) + block_size + 1), tmp_path_factory.getbasetemp()
    split = np.split(tokens, np.cumsum(sizes))
    parts = [written(folder / f"shard-{n}.bin", part.tolist()) for n, part in enumerate(split)]
    starts = np.arange(len(tokens) - block_size)
    split = windows.Split("training", parts, block_size)
    assert split.windows(starts).tolist() == [list(range(s, s + block_size + 1)) for s in starts]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda d: (d / "val.bin").unlink(),
            "HERE: holds no *val*.bin; DATA_DIR must name the folder of the bins, or set EVALUATE=n to train without "
            "validation",
        ),
        (lambda d: (d / "train.bin").unlink(), "HERE: holds no *train*.bin; DATA_DIR must name the folder of the bins"),
        (
            lambda d: cut(d / "train.bin", 33),
            "HERE/train.bin: is cut off: its size, 33 bytes, is not a multiple of 2, the size of a uint16 token; copy "
            "it again",
        ),
        *(
            (
                lambda d, end=end: (d / "val.bin").write_text(
                    f"version https://git-lfs.github.com/spec/v1\noid x{end}"
                ),
                "HERE/val.bin: is a Git LFS pointer, not the data; run `git lfs pull` in that folder to get the data",
            )
            for end in ("", "\n")  # an odd and an even number of bytes
        ),
        (
            lambda d: write_raw(d / "val.bin", [5, 256, 3] * 4),
            "HERE/val.bin: holds token id 256, beyond the 256 ids of the tokenizer; choose the TOKENIZER that it was "
            "made with",
        ),
        (
            lambda d: write_llmc(d / "train.bin", range(20), count=21),
            "HERE/train.bin: is cut off or damaged: it holds 20 tokens, and its header says 21; copy it again",
        ),
        (
            lambda d: write_llmc(d / "train.bin", range(20)) or cut(d / "train.bin", 500),
            "HERE/train.bin: is cut off or damaged: it holds 0 tokens, and its header says 20; copy it again",
        ),
        (
            lambda d: write_llmc(d / "train.bin", range(20)) or cut(d / "train.bin", 1063),
            "HERE/train.bin: is cut off or damaged: it holds 19.5 tokens, and its header says 20; copy it again",
        ),
        (
            lambda d: write_llmc(d / "train.bin", range(20), version=7),
            "HERE/train.bin: has version 7 of llm.c's format; only version 1 holds GPT-2 tokens",
        ),
        (
            lambda d: write_raw(d / "val.bin", []),
            "the validation split has 0 tokens, and a window takes BLOCK_SIZE + 1 = 9; choose a smaller BLOCK_SIZE or "
            "a larger dataset, or set EVALUATE=n to train without validation",
        ),
        (
            lambda d: write_raw(d / "train.bin", range(8)),
            "the training split has 8 tokens, and a window takes BLOCK_SIZE + 1 = 9; choose a smaller BLOCK_SIZE or "
            "a larger dataset",
        ),
    ],
)
def test_bad_bins_are_one_sentence(bins, spoil, message):
    spoil(bins)
    mistake = "DATA_DIR must name" in message or "BLOCK_SIZE" in message  # else the world's fault
    with pytest.raises(UsageError if mistake else DataError) as caught:
        windows.load(options(bins))
    assert str(caught.value) == message.replace("HERE", str(bins))


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "a.txt").write_text("It was the best of times, it was the worst of times. " * 10)
    wanted = options(tmp_path / "data", dataset="files", dataset_source=tmp_path / "a.txt")
    prepare.prepare(wanted)
    return wanted


def test_prepared_data_round_trips(prepared):
    found = windows.load(prepared)
    assert (found.vocab_size, found.train.tokens, found.val.tokens) == (256, 504, 28)
    text = b"It was the best of times, it was the worst of times. " * 10
    for row in found.batch(0, 0)[0]:
        assert found.tokenizer.decode(row) in text + b"\0"


def test_one_folder_serves_runs_with_and_without_evaluation(prepared, tmp_path):
    named = {"dataset": "files", "dataset_source": tmp_path / "a.txt", "evaluate": "n"}
    (prepared.folder / "val-00000.bin").unlink()  # not opened
    found = windows.load(options(tmp_path / "data", **named))
    assert (found.folder, found.train.tokens, found.val) == (prepared.folder, 504, None)
    with pytest.raises(DataError, match=r"val-00000\.bin: cannot be read"):
        windows.load(prepared)


def test_prepared_data_that_does_not_fit_is_one_sentence(prepared, tmp_path):
    folder, named = prepared.folder, {"dataset": "files", "dataset_source": tmp_path / "a.txt"}
    with pytest.raises(UsageError) as caught:
        windows.load(options(tmp_path / "data", **named, val_fraction="0.2"))
    assert str(caught.value) == (
        f"{folder}: was prepared differently: VAL_FRACTION was 0.05 and is 0.2; undo that change, choose another "
        "DATA_DIR, or delete the folder to prepare it again"
    )
    other = options(tmp_path / "data", **named, tokenizer="gpt2")
    with pytest.raises(DataError) as caught:
        windows.load(other)
    assert str(caught.value) == (
        f"{other.folder}: this dataset is not prepared; prepare it with the same options: python "
        f"gpt2/prepare_data.py --dataset files --tokenizer gpt2 --data-dir {tmp_path}/data"
    )


def test_prepared_data_that_was_damaged_is_one_sentence(prepared):
    folder = prepared.folder
    cut(folder / "train-00000.bin", 100)
    with pytest.raises(DataError) as caught:
        windows.load(prepared)
    assert str(caught.value) == (
        f"{folder}/train-00000.bin: has 100 bytes, and meta.json says 1008; delete {folder} and prepare it again"
    )
    (folder / "train-00000.bin").unlink()
    with pytest.raises(DataError, match=r"train-00000\.bin: cannot be read: No such file or directory"):
        windows.load(prepared)
    for content in "{", "[]", "{}", '{"tokenizer": "bytes", "settings": {}, "splits": 3}':
        (folder / "meta.json").write_text(content)
        with pytest.raises(DataError, match=r"meta\.json: is damaged; delete .* and prepare it again"):
            windows.load(prepared)


def test_a_meta_that_contradicts_the_tokenizer_or_its_version(prepared):
    path = prepared.folder / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "tokenizer": "gpt2"}))
    with pytest.raises(UsageError, match="was prepared differently: TOKENIZER was 'gpt2' and is 'bytes'; undo that"):
        windows.load(prepared)
    path.write_text(json.dumps({**meta, "version": 9}))
    with pytest.raises(DataError, match=r"meta\.json: has version 9, not 1; delete .* to prepare it again"):
        windows.load(prepared)


def test_a_batch_takes_a_fraction_of_a_millisecond(tmp_path):
    write_raw(tmp_path / "val.bin", range(1000))
    np.random.default_rng(0).integers(0, 256, 10_000_000).astype("<u2").tofile(tmp_path / "train.bin")
    (tmp_path / "val.bin").write_bytes(bytes(2000))
    found = windows.load(options(tmp_path, block_size=256, batch_size=16))
    found.batch(0, 0)
    times = []
    for step in range(50):
        began = time.process_time()
        found.batch(step, 0)
        times.append(time.process_time() - began)
    assert sorted(times)[25] < 0.01  # a pass over the tokens would take longer
