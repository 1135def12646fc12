"""make train NPROC=2: the exit code of the trainer, and a sentence for a process that was killed."""

import signal
import sys

import pytest
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lib.base.errors import UsageError, UserError
from scripts import processes
from tests import runs


@pytest.fixture
def ended(monkeypatch):
    """Run the program with torchrun that ends by an error; the arguments that torchrun got are in the list."""

    def run(error=None, count="2"):
        got = []

        def started(args):
            got.append(args)
            if error:
                raise error

        monkeypatch.setattr(torchrun, "run", started)
        monkeypatch.setattr(sys, "argv", ["processes.py", count, "SEED=1", "--standalone"])
        monkeypatch.setattr(processes.logging, "disable", lambda level: None)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setenv(processes.launch.AGAIN, "")
        monkeypatch.setattr(processes.threads, "cores", lambda: 9)
        return processes.main(), *got

    return run


def test_the_processes_know_how_they_are_started_again(ended):
    ended()
    assert processes.os.environ[processes.launch.AGAIN] == "NPROC=2"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--engine=slrum"], "ENGINE=slrum: there is no such engine; use local, ray or slurm"),
        (["--partition=gpu"], "PARTITION: ENGINE=local has no such thing; give ENGINE=slurm, or leave PARTITION out"),
        (
            ["--engine=ray", "--dry-run"],
            "DRY_RUN: ENGINE=ray has no such thing; give ENGINE=slurm, or leave DRY_RUN out",
        ),
    ],
)
def test_words_that_an_engine_does_not_have_are_refused(monkeypatch, words, told):
    monkeypatch.setattr(sys, "argv", ["processes.py", *words, "2", "SEED=1"])
    with pytest.raises(UsageError) as caught:
        processes.main()
    assert str(caught.value) == told


@pytest.mark.parametrize("words", [["NO_SUCH=1"], ["--resume", "none"]])
def test_mistakes_are_told_before_a_cluster_is_asked(monkeypatch, folder, words):
    monkeypatch.setattr(sys, "argv", ["processes.py", "--engine=ray", "2", *words])
    with pytest.raises(UserError, match=r"NO_SUCH|there is no run in this folder"):
        processes.main()


@pytest.mark.parametrize(("count", "more"), [("2", " NPROC=2"), ("1", "")])
def test_a_fine_tuning_goes_on_without_an_engine(monkeypatch, folder, count, more):
    tuned = runs.write(folder / "runs/s1")
    (tuned / ".config").write_text("CONFIG_FINETUNE_RECIPE_SFT=y\n")
    monkeypatch.setattr(sys, "argv", ["processes.py", "--engine=ray", count, "--resume", "runs/s1"])
    with pytest.raises(UsageError) as caught:
        processes.main()
    assert str(caught.value) == (
        "runs/s1: is a fine-tuning, which no ENGINE trains; continue it on this machine: make resume RUN=runs/s1" + more
    )


def failure(code):
    found = ProcessFailure(local_rank=1, pid=7, exitcode=code, error_file="")
    return ChildFailedError("gpt2/train.py", {1: found})


def test_torchrun_starts_the_trainer_with_its_words(ended):
    code, args = ended()
    assert (code, args.nproc_per_node, args.standalone) == (0, "2", True)
    assert (args.training_script, args.training_script_args) == (str(processes.TRAIN), ["SEED=1", "--standalone"])
    assert processes.os.environ["OMP_NUM_THREADS"] == "4"


def test_it_ends_as_the_trainer_did(ended):
    assert ended(failure(2))[0] == 2
    assert ended(SignalException("", signal.SIGINT))[0] == 130
    with pytest.raises(UserError, match=r"^rank 1 of 2 was ended by SIGKILL; continue the run with: make resume NP"):
        ended(failure(-9))


@pytest.mark.parametrize("count", ["", "0", "-1", "two", "²", "1.5"])
def test_a_number_of_processes_that_is_none_is_one_sentence(ended, count):
    with pytest.raises(UsageError, match=f"^NPROC={count}: must be a whole number of at least 1"):
        ended(count=count)
