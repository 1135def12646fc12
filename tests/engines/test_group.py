"""The processes of one run: the same command has the same job, and what the user changes meanwhile changes nothing."""

from pathlib import Path

import pytest

from lib.base.errors import UsageError
from lib.config import command_line
from lib.config.kconf import Schema
from lib.engines import group
from lib.record import run


@pytest.fixture
def of(folder):
    """The group of a new run with these words, or of a run to resume: of("SEED=1", engine="ray", count=2)."""

    def made(*words, engine="slurm", count=2, resumed=None):
        schema = Schema()
        given = [word for word in words if "=" in word and not word.startswith("--")]
        schema.override(command_line.assignments(given)[1])
        return group.of(schema, resumed, engine, count, words)

    return made


def test_the_same_command_has_the_same_job_whatever_only_the_machine_changes(of):
    one = of("SEED=1")
    assert one.job == of("SEED=1", "DATA_DIR=elsewhere", "TRACKER=none", "RUN_TIME=1h", count=4, engine="ray").job
    assert one.job.startswith("gpt2_adamw-") and one.folder == Path("runs/.jobs", one.job)
    assert one.job != of("SEED=2").job
    assert one.run_id == of("SEED=1", count=4).run_id != of("SEED=1", engine="ray").run_id
    named = of("SEED=1", "TRACKER_RUN_NAME=mine")
    assert named.job == of("SEED=2", "TRACKER_RUN_NAME=mine").job == "mine"


def test_what_an_engine_must_know_comes_from_the_configuration(of):
    one = of("THREADS=3", "DEVICE=cpu", "RUN_TIME=2h", "OUTPUT_DIR=out", "DATA_DIR=in")
    assert (one.threads, one.device, one.run_time, one.runs, one.data) == (
        3,
        "cpu",
        7200,
        Path("out"),
        Path("in"),
    )
    wishes = one.wishes()
    assert (wishes.jobs, wishes.together, wishes.gpus, wishes.threads) == (2, True, False, 3)


def test_a_run_is_found_again_and_resumed_by_its_folder(of):
    one = of("SEED=1")
    assert one.begun is None
    made, _ = run.create(run.RunOptions("runs", "", "a", "adamw"), one.run_id)
    assert of("SEED=1").begun == made
    other = of("--resume", "latest", "MAX_ITERS=9", resumed=Path("runs/a"))
    assert (other.job, other.run_id, other.begun) == ("a", one.run_id, Path("runs/a"))
    assert other.words == ("--resume", "runs/a", "MAX_ITERS=9")
    assert of("--resume=a", resumed=Path("runs/a")).words == ("--resume", "runs/a")
    with pytest.raises(UsageError, match="there is no run in this folder"):
        of("--resume=b", resumed=Path("runs/b"))


def test_a_job_keeps_the_configuration_that_it_was_given(of, folder):
    one = of("SEED=1")
    one.folder.mkdir(parents=True)
    given = {"CONFIG_MAX_ITERS": "7", "CONFIG_SITE": "x", "HOME": "/"}
    assert group.frozen(one, given) == ["MAX_ITERS=7", "SEED=1"]
    (folder / ".config").write_text("CONFIG_MAX_ITERS=5\n")
    copy = one.folder / "config"
    assert group.frozen(one, given) == ["--config", str(copy), "MAX_ITERS=7", "SEED=1"]
    (folder / ".config").write_text("CONFIG_MAX_ITERS=6\n")
    assert copy.read_text() == "CONFIG_MAX_ITERS=5\n"
    assert group.frozen(one._replace(words=("--config", "mine", "SEED=1")), {}) == ["--config", "mine", "SEED=1"]
    assert group.frozen(one._replace(words=("--resume", "runs/a")), {}) == ["--resume", "runs/a"]


def test_the_words_that_continue_a_run_are_those_that_began_it(of):
    one = of()._replace(partition="gpu", sbatch="--account=me --mem=2G")
    assert one.again == "NPROC=2 ENGINE=slurm PARTITION=gpu SBATCH='--account=me --mem=2G'"


def test_new_output_is_shown_once(folder, capsys):
    path = folder / "output.log"
    path.write_text("before\n")
    output = group.Output(path)
    output.show()
    with path.open("ab") as file:
        file.write("é".encode()[:1])
        file.flush()
        output.show()
        file.write("é".encode()[1:] + b"\n")
    output.show()
    assert capsys.readouterr().out == "é\n"
    group.Output(folder / "none").show()
