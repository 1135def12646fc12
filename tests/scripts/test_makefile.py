"""The Makefile as a newcomer uses it, with this Python in place of .venv."""

import os
import re
import subprocess
import sys

import psutil
import pytest

from lib.config.kconf import Schema
from lib.record import journal
from tests.runs import trained, write
from tests.tracking import wait_for
from tests.training import ROOT, TEXT, TINY, text

TARGETS = (
    "menuconfig defconfig <name>_defconfig list-defconfigs olddefconfig savedefconfig listnewconfig diffconfig explain "
    "checkconfig randconfig train sweep resume sample data sync dashboard check test lint clean mrproper help"
).split()


@pytest.fixture
def clone(tmp_path):
    """A folder that has the repository's files by links, so that what make writes stays here."""
    for name in ("Makefile", "Kconfig", "Kconfig.renames", "pyproject.toml", "defconfigs", "gpt2", "lib", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "corpus.txt").write_text(TEXT)
    return tmp_path


def make(folder, *words, code=0, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CONFIG_", "WANDB", "MAKE"))}
    done = subprocess.run(
        ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words],
        cwd=folder, capture_output=True, text=True, timeout=120, env=clean | environment,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def overrides(**changes):
    """The tiny run as NAME=value words."""
    return [f"{name.upper()}={text(value)}" for name, value in (TINY | changes).items()]


def test_help_lists_every_target_of_the_makefile():
    text = make(ROOT, "help")
    listed = re.findall(r"^  (\S+) +\S", text, re.MULTILINE)
    assert set(TARGETS) <= set(listed)
    rules = re.findall(r"^([a-z%_-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(listed) == {rule.replace("%", "<name>") for rule in rules if not rule.startswith("env-")}
    assert text == make(ROOT)  # the default


def test_train_resume_and_sample(clone):
    prompt = "a  \"b\" 'c' ; touch pwned `touch pwned` | & > pwned \\ é"
    output = make(clone, "train", *overrides(max_iters=20), f"PROMPT={prompt}")
    assert ".config: preset gpt2_tiny" in output  # there was none, and it says so
    assert "is not read" not in output  # by what writes .config: the options are for the training
    assert "validation loss" in output
    assert [step for _, step in journal.history(clone / "runs/run") if _ == "train"] == list(range(1, 21))
    schema = Schema()  # values reach the programs untouched by the shell
    schema.load(clone / "runs/run/.config")
    assert schema["PROMPT"] == prompt
    assert not (clone / "pwned").exists()
    assert "changed: MAX_ITERS 20 -> 25" in make(clone, "resume", "MAX_ITERS=25")
    assert "7 squared" in make(clone, "sample", "PROMPT=7 squared", "RUN=runs/run")


@pytest.mark.parametrize("target", ["train", "dashboard", "sweep", "tail", "menuconfig"])
def test_kill_ends_the_program_with_make(clone, target):
    python = clone / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = scripts/environment.py ] && exit\necho $$ > pid.tmp\nmv pid.tmp pid\nexec sleep 60\n'
    )
    python.chmod(0o755)
    (clone / ".config").touch()
    process = subprocess.Popen(["make", target, "PYTHON=./python"], cwd=clone, stderr=subprocess.DEVNULL)
    wait_for((clone / "pid").exists)
    program = psutil.Process(int((clone / "pid").read_text()))
    process.terminate()
    assert process.wait(10)
    program.wait(10)


def test_a_misspelt_variable_is_an_error(clone):
    assert "LERNING_RATE=1: unknown option; did you mean LEARNING_RATE?" in make(
        clone, "train", "LERNING_RATE=1", code=2
    )


def test_an_export_of_a_model_refuses_options(clone):
    printed = make(clone, "export-model", "INIT_FROM=runs/dense", code=2)
    assert printed.startswith("error: INIT_FROM=runs/dense: export-model takes RUN=, CHECKPOINT=, OUT=, PUSH= and ")


@pytest.mark.parametrize(("target", "word"), [("finetune", "NPROC"), ("oneshot", "DRY_RUN"), ("shrink", "ENGINE")])
def test_what_one_process_does_refuses_words_of_several(clone, target, word):
    printed = make(clone, target, f"{word}=2", code=2)
    assert printed.startswith(f"error: {word}: make {target} has no such word; leave it out\n")


def test_the_environment_chooses_no_file_to_export_to(clone):
    write(clone / "runs/run", *trained(1))
    assert (
        make(clone, "export", "RUN=runs/run", OUT="/nowhere/out", FORMAT="elf")
        == "runs/run/steps.csv: 1 steps, 7 columns\n"
    )
    assert make(clone, "export", "RUN=runs/run", "FORMAT=json", "OUT=mine") == "mine: 1 steps, 7 columns\n"
    assert (clone / "mine").read_bytes().startswith(b'[\n{"step": 1, ')


def test_configuration_needs_kconfiglib_alone(clone):
    assert requirements("config") == ["kconfiglib==14.1.0"]
    assert "OK" in make(clone, "checkconfig")


def test_an_environment_that_lacks_a_package_is_one_sentence(clone, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    done = subprocess.run(
        ["make", f"PYTHON={bare}/bin/python", "checkconfig"], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode == 2
    sentence = f"error: {bare}/bin/python lacks kconfiglib==14.1.0 (missing); run: {bare}/bin/python -m pip install"
    assert done.stderr.startswith(sentence)


def test_a_python_that_is_too_old_is_one_sentence(tmp_path):
    old = tmp_path / "python"
    program = "import runpy, sys; sys.version_info = (3, 10); sys.argv.pop(0); runpy.run_path(sys.argv[0])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n')
    old.chmod(0o755)
    done = subprocess.run([old, ROOT / "scripts/environment.py", "check", "config"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: Espalier needs Python 3.11 or newer; this is 3.10 \(.*\)\n", done.stderr)


def requirements(level):
    program = f"from scripts import environment; print(*environment.requirements({level!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_each_level_has_the_packages_that_it_needs():
    assert re.fullmatch(r"pip-audit==[\d.]+", " ".join(requirements("audit")))
    train, test, extras = (set(requirements(level)) for level in ("train", "test", "extras"))
    assert train < test < extras
    report, sweep = (set(requirements(level)) for level in ("report", "sweep"))
    assert {package.partition("==")[0] for package in sweep - report} == {"optuna"}
    assert report < sweep < extras and len(requirements("sweep")) == len(sweep)
    assert "torch==2.13.0" in train  # pip takes the build for the CPU under exactly this name
    assert {package.partition("==")[0] for package in extras - test} >= {"tensorboard", "accelerate", "ray[train]"}


def test_the_first_sweep_installs_what_tuning_needs(clone):
    done = subprocess.run(["make", "-n", "sweep"], cwd=clone, capture_output=True, text=True, check=True)
    installs = [line for line in done.stdout.splitlines() if " install " in line]
    assert [line.partition(".py ")[2] for line in installs] == ["install config .venv", "install sweep .venv"]


def test_words_of_the_environment_do_not_count(clone):
    """Nor do they reach the programs, with `make -e` neither."""
    shows = clone / "shows.mk"
    shows.write_text("shown:\n\t@env\n")
    [line] = re.findall(r"^override OURS +:= (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = set(line.split())
    assert words & Schema().options.keys() == set()
    for flags in ([], ["-e"]):
        command = ["make", "-f", "Makefile", "-f", "shows.mk", "shown", "B=given", *flags]
        bare = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        environment = bare | dict.fromkeys(words, "meant for another program")
        output = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=True).stdout
        found = dict(entry for row in output.splitlines() if len(entry := row.split("=", 1)) == 2)
        assert {word: found[word] for word in words & found.keys()} == {"B": "given", "PYTHON": ".venv/bin/python"}
    for word in words - {"PYTHON"}:  # each is read by a recipe
        assert re.search(rf"^\t.*\$(\$|\(if \$\(){word}\b", (ROOT / "Makefile").read_text(), re.MULTILINE), word
