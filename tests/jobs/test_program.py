"""Jobs from the user's words to the run at home: huggingface_hub itself against a stand-in for the hub."""

import importlib
import json
import os
import signal
import stat
import sys

import pytest

import lib.jobs
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Schema
from lib.jobs import api, length, record
from lib.record import run
from tests import runs
from tests.jobs.hub import TOKEN, WANDB_KEY, Job

WORDS = ("--flavor=a10g-large", "--time=2h", "TRACKER_RUN_NAME=one", "MAX_ITERS=20")

# Stands in for make in a job: the first call begins a run and is killed with the script, the second one ends it.
MAKE = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
run = Path("runs/one")
if sys.argv[1] == "train":
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text("{{}}")
    (run / "lock").write_text("")
    (run / "journal.jsonl").write_text("1\\n")
    (run / "checkpoints" / "step-1.pt").write_bytes(b"first")
    print("key", os.environ["HF_TOKEN"], flush=True)
    time.sleep(0.5)
    os.kill(os.getppid(), signal.SIGKILL)
else:
    assert sys.argv[1:3] == ["resume", "RUN=runs/one"], sys.argv
    assert (run / "checkpoints" / "step-1.pt").read_bytes() == b"first"
    assert (run / "journal.jsonl").read_text() == "1\\n"
    assert "CONFIG_MAX_ITERS=20" in Path(".config").read_text()
    with (run / "journal.jsonl").open("a") as file:
        file.write("2\\n")
    (run / "checkpoints" / "step-1.pt").rename(run / "checkpoints" / "step-2.pt")
"""


def everything(folder):
    """The content of every file that was written, but of the buckets' folders that Xet moved and of git's."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return b"\n".join(path.read_bytes() for path in paths)


def without_secrets(requests):
    """The bodies of requests, those of jobs without their secrets."""
    bodies = []
    for line, body in requests:
        if line == "POST /api/jobs/me":
            body = json.dumps({k: v for k, v in json.loads(body).items() if k != "secrets"}).encode()
        bodies.append(body)
    return b"\n".join(bodies)


def test_a_job_is_submitted_followed_and_kept(hub, make, folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")

    def works(job: Job) -> None:
        job.say("===== Job started =====", f"step 1 {TOKEN}", "step 2")
        job.end("COMPLETED")

    hub.works = works
    code, out, err = make("submit", *WORDS, "TRACKER=trackio,wandb")
    assert (code, err) == (0, "")
    assert "price      $1.50 an hour, at most $3.00" in out
    assert "secrets    HF_TOKEN, WANDB_API_KEY" in out
    assert "variables  WANDB_BASE_URL=https://wandb.example.org, ESPALIER_PROJECT=" in out
    assert "metrics    the Space me/trackio" in out
    assert "step 1 ***\nstep 2\njob job1 is finished; bring its output home: make fetch RUN=runs/one\n" in out
    [job] = hub.jobs
    assert job.asked["secrets"] == {"HF_TOKEN": TOKEN, "WANDB_API_KEY": WANDB_KEY}
    assert job.asked["environment"] == {
        "WANDB_BASE_URL": "https://wandb.example.org", "ESPALIER_PROJECT": run.project_name(),
    }  # fmt: skip
    assert (job.asked["flavor"], job.asked["timeoutSeconds"]) == ("a10g-large", 7200)
    labels = {"espalier": "train", "espalier-run": "one", "espalier-seconds": "7200", "name": "one"}
    assert job.asked["labels"] == labels
    assert job.asked["command"][:3] == ["uv", "run", "/data/job.py"]
    assert job.asked["command"][3:] == ["--code", "/data/code.tar.gz", "--output", "/output"]
    output, data = sorted(job.asked["volumes"], key=lambda one: one["mountPath"], reverse=True)
    assert (output["type"], output["source"], output["path"]) == ("bucket", "me/espalier", "one")
    assert data["source"] == "me/jobs-artifacts"
    kept = (folder / "runs/one/job/job.py").read_bytes()
    assert (folder / "buckets/me/espalier/one/job/job.py").read_bytes() == kept
    assert (folder / "buckets" / data["source"] / data["path"] / "job.py").read_bytes() == kept
    assert record.load(folder / "runs/one").ids == ["job1"]
    for secret in (TOKEN, WANDB_KEY):
        assert secret.encode() not in everything(folder)
        assert secret.encode() not in without_secrets(hub.requests)
        assert secret not in out
    code, out, _ = make("list")
    assert code is None and out.splitlines()[1].split()[:5] == ["job1", "one", "train", "a10g-large", "completed"]


def test_a_job_that_dies_is_resumed_and_its_run_comes_home(hub, make, folder, monkeypatch):
    programs = folder / "programs"
    programs.mkdir()
    (programs / "make").write_text(MAKE.format(python=sys.executable))
    (programs / "make").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def works(job: Job) -> None:
        path = folder / "buckets" / job.asked["volumes"][-1]["source"] / job.asked["volumes"][-1]["path"] / "job.py"
        path.write_text(path.read_text().replace("EVERY = 30.0", "EVERY = 0.1"))
        hub.run(job, folder / f"machine-{job.id}")

    hub.works = works
    code, out, err = make("submit", *WORDS)
    assert code == 1 and "$ make train PYTHON=" in out and "key ***" in out
    assert err.startswith("error: job job1 failed")
    assert err.endswith("bring its output home: make fetch RUN=runs/one; go on with it: make job RUN=runs/one\n")
    there = folder / "buckets/me/espalier/one"
    assert (there / "checkpoints/step-1.pt").read_bytes() == b"first"
    assert not (there / "lock").exists()
    code, out, err = make("submit", "--run=runs/one")
    assert (code, err) == (0, "")
    assert "$ make resume RUN=runs/one PYTHON=" in out
    assert (there / "journal.jsonl").read_text() == "1\n2\n"
    assert [path.name for path in (there / "checkpoints").iterdir()] == ["step-2.pt"]
    assert record.load(folder / "runs/one").ids == ["job1", "job2"]
    assert TOKEN.encode() not in everything(folder)

    _, out, _ = make("fetch", "--run=one")
    assert out.endswith("runs/one: 3 files came\n")
    assert (folder / "runs/one/journal.jsonl").read_text() == "1\n2\n"
    assert make("fetch", "--run=runs/one")[1] == "runs/one: has all that the bucket has\n"


@pytest.mark.parametrize(
    ("stage", "message", "code", "words"),
    [
        ("ERROR", "Exit code 2", 1, "error: job job1 failed: Exit code 2: no room; bring its output home: "),
        ("ERROR", "Job timeout", 124, "error: the time of job job1 is over (2:00:00); bring its output home: "),
        ("CANCELED", None, 1, "error: job job1 was cancelled; bring its output home: "),
    ],
)
def test_a_job_that_fails_is_a_sentence(hub, make, stage, message, code, words):
    def works(job: Job) -> None:
        job.say("step 1", "error: no room")
        job.end(stage, message)

    hub.works = works
    found, _, err = make("submit", *WORDS)
    assert found == code and err.startswith(words) and err.count("\n") == 1
    assert make("logs", "--id=job1")[0] == code


def test_ctrl_c_leaves_the_job_running(hub, make, monkeypatch):
    hub.works = lambda job: job.say("step 1")

    def say(text):
        print(text)
        if text == "step 1":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("lib.jobs.follow.say", say)
    code, out, _ = make("submit", *WORDS)
    assert code == 130
    follow, cancel = "make job-logs ID=job1", "make job-cancel ID=job1"
    assert out.endswith(f"job job1 goes on; follow it again: {follow}; cancel it: {cancel}\n")
    with pytest.raises(UserError, match=r"^runs/one: job job1 works on it; follow it with: make job-logs ID=job1$"):
        make("submit", *WORDS)
    assert make("cancel", "--id=job1")[1] == "job job1 is cancelled\n"
    assert make("submit", *WORDS, "--detach")[1].endswith("follow it: make job-logs ID=job2 JOB_OWNER=me\n")


def test_a_dry_run_asks_nothing(hub, make, folder):
    code, out, err = make("submit", *WORDS, "--dry-run")
    assert code == 0 and hub.requests == [] and not (folder / "runs").exists()
    assert out.startswith("# /// script\n") and '#     "torch==' in out and "'CONFIG_MAX_ITERS=20\\n'" in out
    assert "nothing was asked or sent" in err and TOKEN not in out + err


def test_what_would_be_lost_is_a_warning(hub, make):
    code, _, err = make("submit", *WORDS, "--bucket=none", "TRACKER=none")
    assert code == 0 and err.startswith(
        "warning: there is no bucket and no Space: the model and the metrics are lost with the job"
    )
    assert "--output" not in hub.jobs[0].asked["command"]


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("whoami", 401, "asking who owns the token failed: the hub does not know the token; check HF_TOKEN"),
        ("/jobs/me", 402, "submitting the job failed: the hub asks for payment; add credits or a payment method at "),
        ("/buckets", 403, "the token may not do this; it needs the right to start jobs and to write, for me"),
        ("/hardware", 500, "asking for the machines failed: try again (500: "),
    ],
)
def test_refusals_are_a_sentence(hub, make, monkeypatch, part, status, words):
    hub.refuse = {part: status}
    monkeypatch.setattr("lib.jobs.api.Jobs.alive", lambda *_: "")
    with pytest.raises(UserError) as error:
        make("submit", *WORDS)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_is_missing_is_a_sentence(hub, make, folder, monkeypatch):
    def wrong(words, sentence, kind=UsageError):
        with pytest.raises(kind) as error:
            make(*words)
        assert sentence in str(error.value) and "\n" not in str(error.value)

    wrong(
        ("submit", "--flavor=a10g-lrge", *WORDS[1:]), "the hub rents no such machine; did you mean a10g-large?; it has"
    )
    wrong(("submit",), "FLAVOR=... is needed: the machine to rent, such as cpu-basic")
    wrong(
        ("submit", WORDS[0]), "JOB_TIME=2h is needed, or TOKENS_PER_SECOND=...: no finished run in runs tells how fast"
    )
    wrong(("submit", *WORDS, "--job=tran"), "JOB=tran: must be one of train, finetune, sweep; did you mean train?")
    tune = ("submit", *WORDS, "--job=finetune", "INIT_FROM=openai-community/gpt2")
    wrong(tune, "make finetune needs a recipe: name one, as in FINETUNE_RECIPE=sft")
    wrong((*tune, "FINETUNE_RECIPE=sft"), "JOB=finetune needs examples: name them, as in FINETUNE_DATA=examples.jsonl")
    wrong(
        ("submit", *WORDS, "--pass=JOBS=2"), "JOBS=2: make train, which the job calls, has no such word; leave it out"
    )
    wrong(("submit", *WORDS, "--sweep=few"), "SWEEP=few: is for a sweep; give JOB=sweep too")
    wrong(("submit", *WORDS, "INIT_FROM=none"), "INIT_FROM=none: there is no such file or folder here to send")
    wrong(("submit", "--run=gone"), "runs/gone: no job was started for this run here")
    wrong(("logs",), "ID=... is needed")
    wrong(("logs", "--id=none"), "following job none (which goes on) failed: check the name (404", UserError)
    wrong(("fetch", "--run=gone"), "me/espalier: has nothing of gone yet", UserError)
    hub.public = {"me/espalier"}
    wrong(("submit", *WORDS), "me/espalier: this bucket is public", UserError)
    assert hub.jobs == []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    wrong(("list",), "http://127.0.0.1:9 is not reached; check the network", UserError)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    wrong(("list",), "there is no token for the Hugging Face hub; set HF_TOKEN", UserError)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(28, "No space left on device", "/x"),
            "fetching failed: the disk of this machine is full; make room (",
        ),
        (RuntimeError("No space left on device (os error 28)"), "fetching failed: the disk of this machine is full"),
        (OSError(13, "Permission denied", "/x"), "fetching failed: a file of this machine cannot be used ([Errno 13] "),
        (OSError(111, "Connection refused"), "fetching failed: http://127.0.0.1:"),
    ],
)
def test_trouble_with_files_here_is_not_blamed_on_the_network(hub, error, sentence):
    with pytest.raises(UserError) as told, api.Jobs().told("fetching"):
        raise error
    assert str(told.value).startswith(sentence)


def test_a_missing_library_is_a_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: .* lacks the package huggingface_hub; `make train` installs it$"):
        importlib.reload(lib.jobs)


def test_fetching_never_replaces_a_whole_file_by_a_part(hub, make, folder):
    there, here = folder / "buckets/me/espalier/one", folder / "runs/one"
    (there / "checkpoints").mkdir(parents=True)
    here.mkdir(parents=True)
    (here / "journal.jsonl").write_text("1\n")
    (there / "journal.jsonl").write_text("1\n2\n")
    hub.breaks = True
    with pytest.raises(UserError, match="the connection broke"):
        make("fetch", "--run=one")
    assert (here / "journal.jsonl").read_text() == "1\n"
    assert [path.name for path in here.iterdir() if path.name != "lock"] == ["journal.jsonl"]
    hub.breaks = False
    (here / "journal.jsonl").write_text("1\nmine\n")
    with pytest.raises(UserError, match=r"^runs/one: this run was continued here too"):
        make("fetch", "--run=one")
    (here / "journal.jsonl").write_text("1\n")
    (there / "x").mkdir()
    (there / "x" / "%2E%2E").mkdir()
    (there / "x" / "%2E%2E" / "out").write_text("out")
    with pytest.raises(UserError, match=r"has a file whose path leads out of the run's folder: one/x/\.\./out$"):
        make("fetch", "--run=one")


def test_the_files_that_a_job_needs_go_with_it(hub, make, folder):
    (folder / "corpus.txt").write_text("text\n")
    (folder / "runs/old/checkpoints").mkdir(parents=True)
    (folder / "runs/old/checkpoints/step-000000005.pt").touch()
    (folder / "runs/old/run.json").write_text('{"run_id": "a", "project": "p", "name": "old"}')
    words = ("DATASET=files", "DATASET_SOURCE=corpus.txt", "INIT_FROM=old@5")
    code, out, _ = make("submit", *WORDS, *words)
    assert code == 0 and "inputs     INIT_FROM=runs/old@5, DATASET_SOURCE=corpus.txt" in out
    job = hub.jobs[0]
    given = job.asked["command"][job.asked["command"].index("--input") :]
    assert given[:8] == [
        "--input", "INIT_FROM", "/input/INIT_FROM/old", "@5",
        "--input", "DATASET_SOURCE", "/data/corpus.txt", "--output",
    ]  # fmt: skip
    [old] = [one for one in job.asked["volumes"] if one["mountPath"] == "/input/INIT_FROM/old"]
    assert old["readOnly"] and (folder / "buckets" / old["source"] / old["path"] / "run.json").exists()
    assert "corpus.txt" not in (folder / "runs/one/job/job.py").read_text()
    assert 'CONFIG_DATASET_SOURCE="corpus.txt"' in (folder / "runs/one/job/config").read_text()


def test_a_fine_tuning_needs_other_packages_and_goes_on_with_resume(hub, make, folder):
    tune = ("FINETUNE_RECIPE=sft", "FINETUNE_DATA=trl-lib/Capybara", "INIT_FROM=openai-community/gpt2")
    code, _, _ = make("submit", "--job=finetune", *WORDS[:-1], *tune)
    text = (folder / "runs/one/job/job.py").read_text()
    assert code == 0 and "begins=('finetune', 'FINETUNE_RECIPE=sft', 'FINETUNE_DATA=trl-lib/Capybara', " in text
    assert "goes_on=('resume', 'RUN=runs/one', " in text and '#     "trl==' in text
    assert record.load(folder / "runs/one").words == ["TRACKER_RUN_NAME=one", *tune]


def test_a_fine_tuning_begins_with_the_checkpoint_that_make_finetune_takes(hub, make, folder):
    old = runs.write(folder / "runs/old", runs.ended(40))
    schema = Schema()
    schema.override([("DATASET", "files", ""), ("DATASET_SOURCE", "gone.txt", ""), ("OUTPUT_DIR", "out", "")])
    schema.write(old / ".config")
    (old / "checkpoints").mkdir()
    for step in (20, 40):
        (old / f"checkpoints/step-{step:09}.pt").touch()
    (folder / "a.jsonl").touch()
    words = ("--job=finetune", *WORDS[:2], "--run=runs/old", "FINETUNE_RECIPE=sft", "FINETUNE_DATA=a.jsonl")
    _, _, err = make("submit", *words, "--dry-run")
    assert "FINETUNE_DATA=a.jsonl, RUN=runs/old@40\n" in err
    out, _, err = make("submit", *words, "--dry-run", "--pass=CHECKPOINT=20")
    assert out == 0 and "FINETUNE_DATA=a.jsonl, RUN=runs/old@20\n" in err
    with pytest.raises(UsageError, match=r"^runs/old: there is no checkpoint '30'"):
        make("submit", *words, "--pass=CHECKPOINT=30")
    code, out, _ = make("submit", *words, "--pass=CHECKPOINT=20", "TRACKER_RUN_NAME=tuned")
    given = hub.jobs[0].asked["command"][hub.jobs[0].asked["command"].index("--input") :]
    assert code == 0 and given[:8] == [
        "--input", "FINETUNE_DATA", "/data/a.jsonl", "--input", "RUN", "/input/RUN/old", "@20", "--output",
    ]  # fmt: skip
    text = (folder / "out/tuned/job/job.py").read_text()
    assert "'OUTPUT_DIR=runs'" in text and "gone.txt" not in text.partition("begins=")[2].partition("\n")[0]
    make("submit", "--run=out/tuned")
    assert record.load(folder / "out/tuned").source == "runs/old@20"
    assert "@20" in hub.jobs[1].asked["command"]


def test_a_sweep_is_make_sweep(hub, make, folder):
    (folder / "small").write_text("defconfig gpt2_tiny\nseeds 1..2\nbase\nother OPTIMIZER=adam\n")
    code, _, _ = make("submit", "--job=sweep", "--sweep=small", *WORDS[:2], "--pass=JOBS=2", "MAX_ITERS=5")
    assert code == 0
    text = (folder / "runs/small/job/job.py").read_text()
    assert "begins=('sweep', 'JOBS=2', 'MAX_ITERS=5', 'OUTPUT_DIR=runs')" in text and '#     "optuna==' in text
    assert hub.jobs[0].asked["command"][5:8] == ["--input", "SWEEP", "/data/small"]
    with pytest.raises(UsageError, match=r"^JOB_TIME=2h is needed: the time of JOB=sweep is not estimated$"):
        make("submit", "--job=sweep", "--sweep=small", "--flavor=cpu-basic")


def test_the_time_of_a_job_is_estimated(folder, make, hub):
    _, out, _ = make("submit", "--flavor=cpu-basic", "--tokens-per-second=1000", *WORDS[2:], "--detach")
    tokens = 20 * of_a_step()
    minutes = -(-(15 * 60 + 1.3 * tokens / 1000) // 60)
    assert hub.jobs[0].asked["timeoutSeconds"] == minutes * 60
    assert f"{tokens:,} tokens at 1,000 tokens/s, 30 % more, and 15 minutes to start" in out


def of_a_step():
    """Tokens of a step with the default configuration."""
    schema = Schema()
    return schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"] * schema["BLOCK_SIZE"]


def test_a_measured_run_of_the_same_shape_tells_the_time(folder):
    schema = Schema()
    place = folder / "runs/measured"
    place.mkdir(parents=True)
    (place / "run.json").write_text("{}")
    schema.write(place / ".config")
    (place / "summary.json").write_text('{"tokens": 6000, "total_time_seconds": 2.0}')
    record.Record("train", "measured", "t4-small", 60, "me", "", "", ["1"]).save(place, "", "")
    tokens = schema["MAX_ITERS"] * of_a_step()
    seconds, why = length.estimate(schema, folder / "runs", "t4-small", None)
    assert seconds == -(-(900 + 1.3 * tokens / 3000) // 60) * 60
    assert f"3,000 tokens/s of {place}" in why
    assert length.estimate(schema, folder / "runs", "a10g-small", None) is None
    record.Record("finetune", "measured", "t4-small", 60, "me", "", "", ["1"]).save(place, "", "")
    assert length.estimate(schema, folder / "runs", "t4-small", None) is None  # by TRL, whose speed is another
    record.Record("train", "measured", "t4-small", 60, "me", "", "", ["1"]).save(place, "", "")
    schema.override([("BATCH_SIZE", "3", "test")])
    assert length.estimate(schema, folder / "runs", "t4-small", None) is None
