"""What `make checkpoint-info` says of whole, damaged and crafted checkpoints."""

import json
import re

import pytest
import torch

from lib.record import checkpoint, checkpoint_file

THREE = checkpoint.Keeping(checkpoint_keep=3, checkpoint_best=True, checkpoint_at="")


@pytest.fixture
def run(folder):
    """A run with three checkpoints, of which the second is the best."""
    made = folder / "runs" / "one"
    (made / "checkpoints").mkdir(parents=True)
    (made / "run.json").write_text('{"run_id": "1a2b", "project": "demo", "name": "one"}')
    about = {"run": "one", "run_id": "1a2b", "model": "custom, 0.01 M parameters"}
    for step in (10, 20, 30):
        state = {
            "model": {"w": torch.zeros(1000, 3)}, "optimizer": {0: {"exp_avg": torch.zeros(1000, 3)}},
            "best": {"step": min(step, 20), "val_loss": 2.5, "sparsity": 0.0}, "total_seconds": 4.25,
        }  # fmt: skip
        checkpoint.save(made / "checkpoints", step, state, THREE, about)
    return made


def test_it_tells_what_is_in_a_checkpoint(run, program):
    done = program("scripts/checkpoint_info.py", "runs/one")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"step-0000000{n}.pt  0.0 MB  intact: the checksum matches" for n in (10, 20, 30)]
    facts = dict(line.split(maxsplit=1) for line in lines[5:] if line.startswith(("step ", "run", "model ", "total")))
    assert facts["step"].split(maxsplit=1) == ["30", "last completed step"]
    assert facts["run_id"].split(maxsplit=1)[0] == "1a2b"
    assert facts["total_seconds"].split(maxsplit=1) == ["4.25", "including evaluations and checkpoints"]
    assert re.search(r"^best step      20 +lowest loss since the sparsity changed$", done.stdout, re.MULTILINE)
    assert [line.split(maxsplit=4) for line in lines[-3:]] == [
        ["part", "tensors", "numbers", "MB"],
        ["model", "1", "3,000", "0.012", "weights"],
        ["optimizer", "1", "3,000", "0.012", "moments and step counts of each weight"],
    ]
    assert max(map(len, lines)) <= 80
    best = program("scripts/checkpoint_info.py", "runs/one", "--checkpoint", "best")
    assert "runs/one/checkpoints/step-000000020.pt" in best.stdout.splitlines()


def test_it_tells_which_one_is_damaged(run, program):
    path = run / "checkpoints" / "step-000000020.pt"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    done = program("scripts/checkpoint_info.py", "runs/one")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:3] == [
        "step-000000010.pt  0.0 MB  intact: the checksum matches",
        "step-000000020.pt  0.0 MB  is damaged: its content does not match its checksum",
        "step-000000030.pt  0.0 MB  intact: the checksum matches",
    ]


def test_a_crafted_header_reaches_no_terminal_raw(run, program):
    with (run / "checkpoints" / "step-000000040.pt").open("wb") as file:
        sealer = checkpoint_file.Sealer(file)
        sealer.seal(
            {"step": 40, "run": "\x1b[2J", "nest": [{"\x1b": "\x9b"}], "best": {}, "values": {}, "sections": {}}
        )
    done = program("scripts/checkpoint_info.py", "runs/one")
    assert done.returncode == 0
    assert "\\u001b[2J" in done.stdout
    assert not {"\x1b", "\x9b"} & set(done.stdout)


@pytest.mark.parametrize(
    "header",
    [
        {}, {"step": "40"}, {"step": 40}, {"step": 40, "best": [], "values": {}, "sections": {}},
        {"step": 40, "best": {}, "values": {}, "sections": {"model": {"tensors": 1}}},
        {"step": 40, "best": {}, "values": {}, "sections": {"model": 3}},
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_damage(run, header):
    path = run / "checkpoints" / "step-000000040.pt"
    with path.open("wb") as file:
        checkpoint_file.Sealer(file).seal(header)
    with pytest.raises(checkpoint.CheckpointError, match="the checkpoint is damaged: its header is not valid"):
        checkpoint_file.header(path)


def test_the_header_is_the_line_before_the_last(run):
    line = (run / "checkpoints" / "step-000000030.pt").read_bytes().splitlines()[-2]
    assert json.loads(line)["step"] == 30
