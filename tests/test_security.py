"""Nobody in who does not belong: what code may not do, names that become paths, folders and texts of strangers."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lib.base.errors import UsageError, UserError
from lib.config.kconf import Schema
from lib.record import run
from lib.track.cursor import path_of
from scripts import environment
from tests.runs import ended, evaluated, trained, write
from tests.tracking import wait_for
from tests.training import ROOT

# ---- code ------------------------------------------------------------------------------------------------------------

SOURCES = sorted(path for top in ("gpt2", "lib", "scripts", "tests") for path in (ROOT / top).rglob("*.py"))
SOURCES.remove(Path(__file__))  # whose examples are what is looked for
SOURCES.append(ROOT / "test_tracking.py")
# Modules that make objects of bytes, and so run whatever the bytes say.
UNSAFE = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("os.system", "os.popen", "tempfile.mktemp", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "code.interact"),
}
STARTS, ENDS = ("os.exec", "os.spawn"), (".read_pickle", ".create_subprocess_shell", "_object_list", "_gather_object")
# What is there all the same, and why.
EXCEPTIONS = {
    ("tests/record/test_checkpoint.py", "import pickle"),  # makes the attack that a checkpoint must withstand
    ("tests/bench/test_reference.py", "import pickle"),  # nanoGPT's meta.pkl is one: what we write for it is read back
    ("tests/bench/test_reference.py", "import pickle in a program"),  # stands for nanoGPT, as does
    ("tests/bench/test_reference.py", "exec in a program"),  # its configurator
    ("tests/scripts/test_menuconfig.py", "os.execv"),  # the child of a fork becomes the program that it tests
    ("tests/test_guides.py", "exec"),  # a program of our own page
    ("tests/gpt2/weights/test_masks.py", "exec"),  # the recipe in our own docstring
    ("tests/scripts/test_export_model.py", "compile"),  # the program in our own model card
    ("tests/scripts/test_export_model.py", "exec"),
    ("tests/gpt2/weights/test_export.py", "__import__"),  # stands in for a package that is missing
    ("tests/fuzzing/models.py", "import pickle"),  # makes attacks that files of weights must withstand
    ("gpt2/weights/pickled.py", "import pickle"),  # names the error of a file that torch refuses; unpickles nothing
    ("gpt2/finetune/rewards.py", "compile"),  # a reward of GRPO is a file of code, which the user names for this
    ("gpt2/finetune/rewards.py", "exec"),
    ("gpt2/train.py", "os.execv"),  # a run of make finetune is continued by its own program
    # Ranks tell each other small facts by torch's own channel, which pickles; who reaches that is one of the job.
    ("lib/machine/dist.py", "distributed.broadcast_object_list"),
    ("lib/machine/dist.py", "distributed.all_gather_object"),
}


def findings(tree, where=""):
    """What a source does that could run what is not code of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for name in names:  # torch.load is good or bad by its keywords, which are looked for under that name
                plain = name.removeprefix("builtins.")
                if name.split(".")[0] in UNSAFE or runs(plain) or name == "torch.load":
                    yield f"import {name}{where}"
        elif isinstance(node, ast.Call):
            yield from (f"{found}{where}" for found in calls(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:  # a program in a string
                yield from findings(ast.parse(node.value), " in a program")
            except SyntaxError:
                continue


def runs(name):
    return name in CALLS or name.startswith(STARTS) or name.endswith(ENDS)


def calls(node):
    name = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if runs(name):
        yield name
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    for keyword in ("shell", "allow_pickle", "trust_remote_code"):
        if keywords.get(keyword, "False") != "False":
            yield f"{name}({keyword}=...)"
    starts = name in ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output")
    if starts and node.args and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
        yield f"{name} of a string"


def test_no_code_runs_what_it_reads():
    found = {
        (path.relative_to(ROOT).as_posix(), finding)
        for path in SOURCES
        for finding in findings(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == EXCEPTIONS


def test_the_search_finds_what_it_is_for():
    program = "import os, pickle\nos.system('a')\neval('b')\nnumpy.load(f, allow_pickle=True)\nsubprocess.run('c')\n"
    program += (
        "torch.load(f)\nsubprocess.run(['d'], shell=True)\nt = 'import marshal'\nload_dataset(trust_remote_code=1)"
    )
    program += (
        "\nfrom os import path, system\nfrom torch import load, nn\nfrom builtins import eval\nfrom pickle import load"
    )
    program += "\npd.read_pickle(f)\nos.execvp('sh', a)\nasyncio.create_subprocess_shell('a')"
    assert sorted(findings(ast.parse(program))) == [
        "asyncio.create_subprocess_shell", "eval", "import builtins.eval", "import marshal in a program",
        "import os.system", "import pickle", "import pickle.load", "import torch.load",
        "load_dataset(trust_remote_code=...)", "numpy.load(allow_pickle=...)", "os.execvp", "os.system",
        "pd.read_pickle", "subprocess.run of a string", "subprocess.run(shell=...)",
        "torch.load without weights_only=True",
    ]  # fmt: skip


def test_nothing_is_checked_by_what_python_o_leaves_out():
    ours = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("lib", "gpt2", "scripts")]
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in ours}
    assert [name for name, tree in trees.items() if any(isinstance(n, ast.Assert) for n in ast.walk(tree))] == []


# ---- packages --------------------------------------------------------------------------------------------------------


def test_every_package_is_pinned():
    assert len(environment.pinned()) > 20
    assert [
        package for package in environment.pinned() if not re.fullmatch(r"[\w.-]+(\[\w+\])?==\d+(\.\d+)+", package)
    ] == []
    assert "build-system" not in (ROOT / "pyproject.toml").read_text()  # which would install what it names


def test_one_program_installs_packages():
    installs = re.compile(r'"pip", "install"|^\t.*pip install', re.MULTILINE)
    files = [*SOURCES, ROOT / "Makefile", ROOT / ".ci/run"]
    found = [path.relative_to(ROOT).as_posix() for path in files if installs.search(path.read_text())]
    assert [name for name in found if not name.startswith("tests/")] == ["scripts/environment.py"]


# ---- names -----------------------------------------------------------------------------------------------------------

NAMES = [
    "../../x", "/etc/passwd", "..", ".", ".hidden", "-rf", "~", "a\0b", "a\nb", "a\tb", "x" * 300, "é" * 300, " ", "a/",
    "CON", "nul.txt", "com1", "a.", "a ", "a:b", "a\\b", "\u202etxt.exe", "e\u0301", "\ud800", "\u200b",
    "\uff0e\uff0e\uff0fx",
]  # fmt: skip


def assert_plain(name):
    assert 0 < len(name.encode()) <= 110
    assert Path("/runs", name).resolve().parent == Path("/runs")
    assert name.isprintable() and not name.startswith((".", "-")) and not name.endswith(".")
    assert not re.search(r'[\s/\\:*?"<>|]', name)
    assert not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)


def test_names_of_folders_are_plain(tmp_path):
    for name in NAMES:
        assert_plain(run.folder_name(name))
        assert path_of(tmp_path, name).parent == tmp_path / "trackers"
    assert len({run.folder_name(name) for name in NAMES}) == len(NAMES)


@given(st.text(st.characters() | st.sampled_from("./\\-~:\0\n CcOoNn1\u202e\u0301\ud800"), min_size=1))
@example("\ud800/..")
def test_any_name_makes_a_plain_folder(name):
    folder = run.folder_name(name)
    assert_plain(folder)
    assert run.folder_name(folder) == folder  # so that a path that was once made is found again


def test_two_names_that_a_disk_takes_for_one_are_two_runs(tmp_path):
    made = [
        run.create(run.RunOptions(str(tmp_path), "p", name, "adamw")) for name in ("A", "a", "a", "\u00e9", "e\u0301")
    ]
    assert len({folder for folder, _ in made}) == 5


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[2J", "\ud800"])
@pytest.mark.parametrize("option", ["RUN_NAME", "PROJECT", "GROUP", "TAGS"])
def test_an_option_is_a_line_of_text(option, name):
    option, message = f"TRACKER_{option}", "must be one line of UTF-8 text without control characters"
    with pytest.raises(UsageError, match=rf"^test: {option} {message}$"):
        Schema().override([("TRACKER", "wandb", "test"), (option, name, "test")])


@pytest.mark.parametrize("name", ["../x", "/x", "accelerate:../x", "__main__", "lane", "tracker", "os.path", "csv:x"])
def test_a_tracker_is_no_path_and_no_module(name, program):
    done = program("gpt2/train.py", "--tracker", name)
    assert (done.returncode, done.stdout) == (2, "" if ":" not in name else done.stdout)
    assert re.match(r"error: (--tracker takes none, all or some|tracker .*: )", done.stderr)


# ---- what somebody sends ---------------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\x08"
IDENTITY = {"run_id": "0123456789ab", "project": "project", "name": "sent"}


@pytest.fixture
def sent(folder):
    """A run folder from a stranger, full of names and texts that would do something if they were let."""
    config = {"max_iters": 40, "tracker": ["../../out", f"csv{ESCAPE}"], "machine": ESCAPE}
    alert = ("alert", 2, {}, {"kind": f"k{ESCAPE}", "level": "error", "message": f"m{ESCAPE}\nsecond"})
    metrics = ("train", 3, {f"loss{ESCAPE}": 1.0, "../../up": 2.0}, {})
    events = [*trained(1, 2), alert, metrics, evaluated(4, 1.5)]
    made = write(folder / "sent", *events, ended(40, f"failed{ESCAPE}"), config=config)
    (made / "run.json").write_text(json.dumps(IDENTITY | {"name": f"../../{ESCAPE}", "project": f"p{ESCAPE}"}))
    (made / ".config").write_text('CONFIG_OPTIMIZER_ADAMW=y\nCONFIG_PROMPT="\\\\x1b$(touch pwned)"\n')
    (made / "trackers").mkdir()
    state = {"state": f"s{ESCAPE}", "message": f"m{ESCAPE}", "note": "n"}
    (made / f"trackers/t{ESCAPE[:9]}.json").write_text(json.dumps(state))
    changed = {"file": "../../../etc/passwd", "sha256": "0" * 64, "left_out": [], "note": ESCAPE}
    facts = {"commit": f"--output=pwned{ESCAPE}", "uncommitted_changes": changed, "packages": {"torch": ESCAPE}}
    (made / "provenance.json").write_text(json.dumps(facts | {"host": ESCAPE, "folder": "/", "options": {}}))
    (made / "summary.json").write_text(json.dumps({"tokens_per_second": 1.0}))
    return made


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        (["scripts/runs.py", "show", "sent"], {0}),
        (["scripts/runs.py", "show", "sent", "--all"], {0}),
        (["scripts/runs.py", "list", "."], {0}),
        (["scripts/runs.py", "compare", "sent", "sent"], {0}),
        (["scripts/runs.py", "tail", "sent"], {1}),
        (["scripts/runs.py", "export", "sent"], {0}),
        (["scripts/sync.py", "sent"], {2}),
        (["scripts/reproduce.py", "sent"], {1}),
        (["scripts/config.py", "diffconfig", "sent", "sent"], {0}),
        (["gpt2/sample.py", "--run", "sent"], {1, 2}),
        (["gpt2/train.py", "--resume", "sent"], {0}),
    ],
    ids=str,
)
def test_a_strangers_run_does_nothing_unasked(sent, program, words, codes):
    before = {path for path in sent.parent.rglob("*") if path != sent / "lock"}
    done = program(*words)
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    shown = done.stdout + done.stderr
    assert [c for c in shown if not c.isprintable() and c not in "\n\t"] == []
    assert set(sent.parent.rglob("*")) - before <= {sent / "steps.csv", sent / "lock"}


def test_a_strangers_link_is_not_written_through(sent, program):
    victim = sent.parent / "victim"
    victim.write_text("mine")
    for name in ("steps.csv.tmp", "journal.jsonl", "lock", "trackers/csv.lock", "checkpoints/step-000000001.pt.tmp"):
        link = sent / name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        with pytest.raises(UsageError, match=rf"{link}: is a link, which may lead to any file; put the file itself"):
            run.Identity.load(sent)
        link.unlink()
    (sent / "steps.csv.tmp").symlink_to(victim)
    assert program("scripts/runs.py", "export", "sent").returncode == 2
    (sent / "steps.csv.tmp").unlink()
    assert victim.read_text() == "mine"
    (sent.parent / "disk").mkdir()
    (sent / "wandb").symlink_to(sent.parent / "disk")  # a folder on another disk is its owner's wish
    assert run.Identity.load(sent)


def test_trackers_delete_and_write_nothing_through_a_strangers_link(sent):
    (sent.parent / "mine").mkdir()
    for name in ("tensorboard", "media", "trackers", "accelerate-tensorboard", "dvclive"):
        place = sent / name
        if place.exists():
            place.rename(sent / "kept")
        place.symlink_to(sent.parent / "mine")
        with pytest.raises(UsageError, match=rf"^{place}: is a link, and trackers delete files there; put the folder"):
            run.Identity.load(sent)
        place.unlink()
        if (sent / "kept").exists():
            (sent / "kept").rename(place)
    (sent / "wandb" / "run-1" / "logs").mkdir(parents=True)
    (sent / "wandb" / "debug.log").symlink_to("run-1/logs/debug.log")  # as the library makes it
    (sent / "wandb" / "latest-run").symlink_to("run-1")
    (sent / "wandb" / "run-2").symlink_to(sent.parent / "mine")  # a folder in $WANDB_DIR
    assert run.Identity.load(sent)
    for name, target in (("debug-cli.log", "../../mine/.bashrc"), ("run-1/run-1.wandb", "../../../mine/notes")):
        (sent / "wandb" / name).symlink_to(target)
        with pytest.raises(UsageError, match=rf"/wandb/.+{Path(name).suffix}: is a link, which may lead to any"):
            run.Identity.load(sent)
        (sent / "wandb" / name).unlink()


@pytest.mark.parametrize("wrong", [{"run_id": "../x"}, {"run_id": "*"}, {"run_id": ""}, {"name": 5}, {"project": None}])
def test_an_identity_is_what_it_says(sent, wrong):
    (sent / "run.json").write_text(json.dumps(IDENTITY | wrong))
    with pytest.raises(UserError, match=r"run.json: the run's identity cannot be read: a value is not text"):
        run.Identity.load(sent)


def test_the_summary_goes_over_no_other_file(tmp_path):
    from gpt2 import ending

    (tmp_path / "mine").write_text("mine")
    (tmp_path / "other.json").write_text('{"mine": 1}')
    (tmp_path / "summary.json").write_text('{"total_time_seconds": 1.0}')
    (tmp_path / "empty").touch()
    for name in ("summary.json", "empty", "new"):
        ending.check_output(tmp_path / name)
    for name in ("mine", "other.json"):
        with pytest.raises(UsageError, match=r"exists and is not a summary of a run; name another file$"):
            ending.check_output(tmp_path / name)


# ---- the dashboard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "host"), [((), "127.0.0.1"), (("--host", "127.0.0.2"), "127.0.0.2")])
def test_the_dashboard_is_for_this_machine(tmp_path, words, host):
    (tmp_path / "demo.db").touch()
    # What other programs' settings and Hugging Face's machines have in the environment.
    told = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "true", "SYSTEM": "spaces", "TRACKIO_DIR": str(tmp_path)}
    command = [sys.executable, ROOT / "scripts/dashboard.py", "demo", *words]
    process = subprocess.Popen(command, env=os.environ | told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: process.poll() is not None or psutil.Process(process.pid).net_connections())
        assert process.poll() is None, process.stdout.read()
        found = {c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN}
        assert found == {host}
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
