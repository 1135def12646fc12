"""Half a second of bad input for every target of tests/fuzzing, and every input that once broke the promise."""

import base64
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.base.errors import UserError
from lib.compare import comparison, sweep
from lib.config.kconf import Schema
from tests.fuzzing import TARGETS, mutated
from tests.training import ROOT

# Inputs that a target handles in about half a second.
EXAMPLES = {"journal_line": 400, "text_files": 400, "json_lines": 200, "meta": 200, "checkpoints": 100, "prompts": 3}


@pytest.mark.parametrize("name", TARGETS)
def test_bad_input_is_refused_in_clear_sentences_or_keeps_its_meaning(name, folder):
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(max_examples=EXAMPLES.get(name, 12), suppress_health_check=list(HealthCheck), database=None)
    @given(st.binary(max_size=60) | st.randoms(use_true_random=False).map(lambda chance: mutated(chance, seeds)))
    def feed(data):
        target.feed(data)

    feed()


def test_seeds_are_good_input(folder):
    """Changes of invalid seeds would be far from what programs read."""
    for name in ("config", "fragments", "sweeps", "journals", "journal_line", "identity", "summary", "provenance"):
        target = TARGETS[name]
        assert target.feed(target.seeds()[0]), name


# Inputs that were once a traceback, or had another meaning when they were written and read again.
FOUND = {
    "config": [
        b'CONFIG_LEARNING_RATE="1e-999999"\n',  # taken as 0
        b"CONFIG_SEED= 5\n",  # spaces that a command line does not allow
        b"CONFIG_\x1b[2J=y\n",
    ],
    "arguments": [
        b"--config\xffa\0b",  # no path
        b"--seed=--",  # a list, says argparse
        b"--config=--",
        b"\x1b[2J=1",
        b"--temp\0=1",
        b"SEED=" + b"9" * 5000,
    ],
    "sweeps": [
        b"defconfig " + b"a" * 300 + b"\nseeds 1\ndense\n",  # too long for a file system
    ],
    "config_programs": [b"\xffrandconfig\xff" + b"9" * 5000, b"\xffrandconfig\xff" + "٣".encode()],
    "journals": [
        b'{"seq":0,"time":1,"event":"train","step":1,"metrics":{}}\n',  # nothing to show of it
        b'{"seq":0,"time":1,"event":"alert","step":1,"metrics":{}}\n',  # no message
        b'{"seq":0,"time":1,"event":"start","step":0,"metrics":{},"config":{"max_iters":"9"}}\n',
        b'{"seq":0,"time":1,"event":"start","step":0,"metrics":{},"config":[1]}\n',
        b'{"seq":0,"time":1,"event":"finish","step":1,"metrics":{"total_time_seconds":"Infinity"},"status":"finished"}\n',
        b'{"seq":0,"time":1,"event":"train","step":1,"metrics":{"\\ud800":1.5,"train_loss":1' + b"0" * 400 + b"}}\n",
        b'{"seq":9223372036854775807,"time":1,"event":"train","step":1,"metrics":{"a":1}}\n',  # hid all that followed
        b'{"seq":0,"time":1e300,"event":"train","step":1,"metrics":{"a":1}}\n',
    ],
    "journal_line": [
        b'{"seq":0,"time":1,"event":"train","step":1,"metrics":{"a":NaN}}\n',
        b'{"seq":0,"time":1,"event":"train","step":1,"metrics":{"a":1e999}}\n',
        b'{"seq":0,"time":1,"event":"resume","step":1,"metrics":{},"changed":{"SEED":NaN}}\n',
        b'{"seq":5,"time":1,"event":"train","step":-3,"metrics":{"a":1}}\n',
        b'{"seq":0,"time":1,"event":"train","step":2.5,"metrics":{"a":1}}\n',
    ],
    "identity": [b'{"run_id": 5, "project": [], "name": {}}', b"[" * 9000],
    "summary": [b'{"final_val_loss": "low"}', b'{"tokens_per_second": {}}', b"{}", b"[]", b"[" * 9000],
    "provenance": [
        b'{"options": {"SEED": {}}}',
        b'{"packages": []}',
        b'{"commit": 5}',
        b'{"commit": "' + b"a" * 40 + b'", "packages": {}, "uncommitted_changes": {"file": "../x"}}',
    ],
    "perplexity_tables": [
        base64.b64decode(  # pyarrow ended the process when the size of the damaged column was asked for
            "UEFSMRUEFSwVMEwVBBUAEgAAFlQMAAAAQSBmaXJzdCByb3cuAgAAAP/+FQAVEhUWLBUEFRAVBhUGHDYAKAL//hgMQSBmaXJzdCBy"
            "b3cuEREAAAAJIAIAAAAEAQEDAhUEGSw1ABgGc2NoZW1hFQIAFQwlAhgEdGV4dAAWBBkcGRwmABwVDBk1AAYQGRgEdGV4dBUCFgQW"
            "rAEWtAEmVCYIHDYAKAL//hgMQSBmaXJzdCByb3cuEREAGSwVBBUAFQIAFQAVEBUCADwWHBlGGSYABAAAABasARYEJggWtAEAGRwY"
            "DEFSUk9XOnNjaGVtYRigAS8vLy8vM0FBQUFBUUFBQUFBQUFLQUF3QUJnQUZBQWdBQ2dBQUFBQUJCQUFNQUFBQUNBQUlBQUFBQkFB"
            "SUFBQUFCQUFBQUFFQUFBQVVBQUFBRUFBVUFBZ0FCZ0FIQUF3QUFBQVFBQkFBQUFBQUFBRUVFQUFBQUJ3QUFBQUVBQUFBQUFBQUFB"
            "UUFBQUIwWlhoMEFBQUFBQVFBQkFBRUFBQUEAGCBwYXJxdWV0LWNwcC1hcnJvdyB2ZXJzaW9uIDI2LjAuMRkcHAAAAFwBAABQQVIx"
        )
    ],
    "tracker_state": [b'{"rows": "many"}', b'{"offset": -1}', b'{"delivered": {"train": "1"}}', b"[" * 9000],
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name, folder):
    accepted = [data for data in FOUND[name] if TARGETS[name].feed(data)]
    if name not in ("journals", "summary", "tracker_state"):  # some of these are valid
        assert accepted == []


def test_a_form_feed_in_a_comment_begins_no_line(folder):
    (folder / "sweep").write_bytes(b"defconfig gpt2_tiny\nseeds 1\ndense # a comment\x0csparse OPTIMIZER=sgd\n")
    assert [one.name for one in sweep.read(Path("sweep")).configurations] == ["dense"]


@pytest.mark.parametrize(("path", "code"), [(".", 2), ("nowhere", 2), ("a" * 300, 2), ("/proc/self/mem", 1)])
@pytest.mark.parametrize("read", [Schema().load, sweep.read])
def test_a_file_that_was_misnamed_is_the_users_mistake_and_one_that_cannot_be_read_the_worlds(read, path, code):
    with pytest.raises(UserError) as caught:
        read(Path(path))
    assert caught.value.exit_code == code


def test_losses_that_are_no_numbers_are_in_the_table_of_a_sweep():
    """statistics.stdev raises AttributeError for them."""
    found = comparison.spread([math.inf, 2.0])
    assert (found["n"], found["mean"]) == (2, math.inf) and math.isnan(found["sd"])


def test_the_program_counts_inputs_and_repeats_one(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--target", "journal_line", "--random"]
    done = subprocess.run([*command, "--minutes", "0.01"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    found = re.fullmatch(r"journal_line +([\d,]+) inputs, ([\d,]+) accepted, \d+ s: good", done.stdout.splitlines()[-1])
    assert int(found[1].replace(",", "")) > 20
    (tmp_path / "bad").write_bytes(b"nonsense")
    done = subprocess.run([*command, "--input", "bad"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "journal_line: refused\n")
