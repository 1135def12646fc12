"""Reuse: a finished run counts exactly if nothing that matters differs, tried with every option of Kconfig."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from pathlib import Path
from types import MappingProxyType

import pytest

from gpt2.present import present
from lib.base.errors import UsageError
from lib.compare import reuse, sweep
from lib.compare.plan import Configuration, Run, Sweep
from lib.config import matters
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.record import history
from scripts import sweep as sweep_program
from tests import forked
from tests.training import TEXT, TINY
from tests.training import text as written

STEPS = 6
FREE_MENUS = ("Experiment tracking", "Output")
# Beside output and tracking: kernels, the rhythm of log lines, where the data lies, when to warn and when to stop.
FREE = {
    "DEVICE", "COMPILE", "THREADS", "KERNELS", "LOG_INTERVAL", "DATA_DIR", "LOSS_SPIKE_SIGMA", "RUN_TIME", "AUTO_BATCH",
    "DATA_CACHE_DIR",
}  # fmt: skip
# Together they make every option settable.
BASES = {
    "dense": {},
    "custom data": {"DATASET": "finewebedu", "NAN_POLICY": "skip", "LR_SCHEDULE": "wsd"},
    "adamwprune": {"OPTIMIZER": "adamwprune", "ADAMWPRUNE_BASE_OPTIMIZER_NAME": "adamwspam"},
    "adamwadv": {"OPTIMIZER": "adamwadv", "PRUNING_METHOD": "movement"},
    "sgd": {
        "OPTIMIZER": "sgd",
        "PRUNING_METHOD": "magnitude",
        "PRUNING_SCHEDULE": "polynomial",
        "LR_SCHEDULE": "restarts",
    },
    "stablespam": {"OPTIMIZER": "stablespam", "PRUNING_METHOD": "state"},
    "muon": {"OPTIMIZER": "muon", "PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "rigl"},
    "granet": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "granet"},
    "mest": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "mest"},
    "chts": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "chts"},
    "soft": {"PRUNING_METHOD": "movement", "PRUNING_MOVEMENT": "soft"},
    "topkast": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "topkast"},
    "str": {"PRUNING_METHOD": "str"},
    "sr-ste": {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "sr-ste"},
    "owl": {"PRUNING_METHOD": "wanda", "PRUNING_DYNAMICS": "oneshot", "PRUNING_DISTRIBUTION": "owl"},
    "sparsegpt": {"PRUNING_METHOD": "sparsegpt", "PRUNING_DYNAMICS": "oneshot"},
    "grasp": {"PRUNING_METHOD": "grasp"},
    "given": {"PRUNING_METHOD": "given"},
    "dpo": {"FINETUNE_RECIPE": "dpo"},
    "grpo": {"FINETUNE_RECIPE": "grpo"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a real sweep: runs/other/dense-seed7, and runs/other/wanda-seed7, which prunes it."""
    folder = tmp_path_factory.mktemp("reuse")
    (folder / "corpus.txt").write_text(TEXT)
    options = {"max_iters": STEPS, "eval_interval": 3, "checkpoint_interval": 3, "warmup_steps": 1, "tracker": "none"}
    own = ("seed", "tracker_run_name")  # what a sweep sets itself
    common = " ".join(f"{k.upper()}={written(v)}" for k, v in (TINY | options).items() if k not in own)
    lines = f"defconfig gpt2_tiny\nseeds 7\ncommon {common} SAMPLE_TOKENS=0\ndense\n"
    (folder / "other").write_text(f"{lines}wanda from=@dense oneshot PRUNING_METHOD=wanda CALIBRATION_SAMPLES=4\n")
    with contextlib.chdir(folder):  # also for words(): the paths are relative to the current folder
        for one in sweep.read(Path("other")).runs():
            done = forked.run(folder, one.program, *one.words())
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(home, tmp_path, monkeypatch):
    """An empty folder for copies of runs; the current folder has the data."""
    monkeypatch.chdir(home)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def plan(name="a", of="dense", oneshot=False, begins=(), **options):
    """A run of a sweep: the configuration of a real run, with other options."""
    seed = int(options.get("SEED", 7))
    words = tuple((option, text, "few:3") for option, text in options.items())
    base = Path("runs/other", f"{of}-seed7", ".config")
    configuration = Configuration(name, "few:3", base, (), words, oneshot=oneshot, begins=begins)
    return Run(configuration, seed, Path("runs/few"))


def compact(record):
    """A line of a journal."""
    return json.dumps(record, separators=(",", ":")) + "\n"


def copy(place, name="copy", of="dense", edit=None, **start):
    """A copy of a real run without its checkpoints; `start` replaces parts of its start event."""
    folder = place / name
    folder.mkdir()
    for path in Path("runs/other", f"{of}-seed7").glob("*"):
        if path.is_file():
            shutil.copy(path, folder)
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    lines[0] = compact(json.loads(lines[0]) | start)
    (folder / "journal.jsonl").write_text("".join(edit(lines) if edit else lines))
    return folder


def start():
    """The start event of the real run."""
    return json.loads(Path("runs/other/dense-seed7/journal.jsonl").read_text().partition("\n")[0])


def search(place, *runs, baseline=None):
    configurations = {one.configuration.name: one.configuration for one in runs}
    seeds = tuple(dict.fromkeys(one.seed for one in runs))
    asked = Sweep("few", runs[0].parent, seeds, tuple(configurations.values()))
    return reuse.found(asked, place, baseline, present())


def folders(found):
    """Name of a run of the sweep -> the finished run that counts."""
    return {f"{name}-seed{seed}": folder for (name, seed), folder in found.plan.elsewhere.items()}


def refusal(place, run=None):
    """Why the only run in `place` does not count."""
    found = search(place, run or plan())
    assert folders(found) == {}
    (why,) = found.refused.values()
    return why


# ---- every option ----------------------------------------------------------------------------------------------------

SCHEMA = Schema()


def made(assignments=MappingProxyType({})):
    """The configuration of the real run with these over it; valid until the next call."""
    SCHEMA.clear()
    SCHEMA.load(Path("runs/other/dense-seed7/.config"))
    SCHEMA.override([(name, text, "test") for name, text in assignments.items()])
    return SCHEMA


def others(option):
    """Texts of other values that an option may have."""
    if option.kind == "choice":
        return [value for value in option.members if value != option.value][:2]
    if option.kind == "bool":
        return ["n" if option.value else "y"]
    if option.kind == "set":
        return ["csv" if option.name == "TRACKER" else next(iter(option.members))]
    if option.kind in ("int", "float"):
        low, high = map(float, option.range or (-9, 9))
        near = 1 if option.kind == "int" else 1e-3
        return [f"{value:g}" for value in (option.value + near, low) if low <= value <= high]
    return ["60" if option.is_wait or option.is_time else "200" if option.name == "CHECKPOINT_AT" else "elsewhere"]


def mutants(base, skip=()):
    """(option, its new text, what a start event then has) for every option that can be set beside `base`."""
    texts = {name: (option.text, others(option)) for name, option in made(base).options.items() if option.settable}
    for name, (before, candidates) in texts.items():
        for text in candidates if name not in skip else ():
            try:
                schema = made(base | {name: text})
            except ConfigError:  # other options forbid this value
                continue
            if schema.options[name].text != before:
                yield name, text, start_of(schema)


def is_free(name):
    return name in FREE or SCHEMA.options[name].menu[0] in FREE_MENUS


def start_of(schema):
    """What the start event of a run of this configuration would have."""
    found = {"config": schema.values(), "learns": matters.learns(schema)}
    part = {"from": "x", "path": "x", "sha256": "5" * 64, "ancestors": {}}
    if schema["INIT_FROM"]:
        found["init"] = part | {"kind": "run", "revision": "", "step": 1}
    if schema["INIT_MASKS"] not in (None, "zeros"):
        found["masks"] = part
    if schema["DISTILL_FROM"]:
        found["teacher"] = part | {"kind": "run", "revision": "", "step": 1}
    return found


def test_no_run_counts_that_differs_in_one_option_that_matters(place):
    tried = set()
    for label, base in BASES.items():
        folder, one = place / label, plan(**base)
        sound = copy(place, label, **start_of(made(base)))
        if made(base)["DATASET"] == "files":  # the others have no data here
            assert folders(search(folder, one)) == {"a-seed7": sound}
        some = [found for found in mutants(base, tried) if not is_free(found[0])]
        tried |= {name for name, _, _ in some}
        # A plan that differs from the run.
        alone = [{name: text} for name, text, _ in some if name not in ("SEED", "INIT_FROM")]
        plans = [plan(f"p{number}", **base | one) for number, one in enumerate(alone)]
        assert folders(search(folder, *plans)) == {}
        # A run that differs from the plan.
        there = place / f"{label} mutants"
        there.mkdir()
        for number, (name, text, start) in enumerate(some):
            copy(there, f"{number} {name}={text}", **start)
        assert folders(search(there, one)) == {}
    assert folders(search(place / "dense", plan(SEED="8"))) == {}
    assert tried == {name for name in SCHEMA.options if not is_free(name)}


def test_a_run_counts_that_differs_in_output_or_tracking_only(place):
    free = [found for base in ({}, {"TRACKER": "all"}) for found in mutants(base) if is_free(found[0])]
    assert {name for name, _, _ in free} == {name for name in SCHEMA.options if is_free(name)}
    together = {name: text for name, text, _ in free} | {"TRACKER": "all"}
    starts = [start for _, _, start in free] + [start_of(made(together))]
    copies = {copy(place, f"free {number}", **start) for number, start in enumerate(starts)}
    # As many runs ask for the same as there are copies, and each copy counts once.
    asked = [plan(f"p{number}") for number in range(len(copies))]
    assert set(folders(search(place, *asked)).values()) == copies


# ---- everything else that must be the same ---------------------------------------------------------------------------


def test_a_changed_number_data_or_version_is_named(place):
    copy(place, learns={"training": 1, "OPTIMIZER=adamw": 2, "LR_SCHEDULE=cosine": 1})
    why = "its code learns something else: the number of OPTIMIZER=adamw is 2 there and 1 here"
    assert refusal(place) == why
    shutil.rmtree(place / "copy")
    copy(place, data="f" * 64)
    assert refusal(place).startswith("differs in its data: ffffffffffff there and ")
    shutil.rmtree(place / "copy")
    copy(place, edit=lambda lines: [compact({k: v for k, v in start().items() if k != "learns"}), *lines[1:]])
    assert refusal(place).startswith("an earlier version made it, which did not record ")


def test_data_that_is_not_prepared_here_is_not_the_same(place, tmp_path):
    folder = copy(place)
    assert refusal(place, plan(DATA_DIR=str(tmp_path / "none"))).startswith("the data is not prepared here yet")
    shutil.copytree("data", tmp_path / "moved")
    assert folders(search(place, plan(DATA_DIR=str(tmp_path / "moved")))) == {"a-seed7": folder}


def test_an_option_that_is_newer_than_the_run_must_have_its_default(place):
    config = made().values()
    del config["retry_lr_factor"]
    folder = copy(place, config=config)
    assert folders(search(place, plan())) == {"a-seed7": folder}
    assert folders(search(place, plan(RETRY_LR_FACTOR="0.25"))) == {}
    shutil.rmtree(folder)
    copy(place, config=made().values() | {"some_option_of_another_version": 1})
    assert folders(search(place, plan())) == {}


def test_automatic_arithmetic_must_be_what_this_machine_would_choose(place):
    config = made({"DTYPE": "auto"}).values()
    machine = start()["machine"]
    here = present().dtype(made({"DTYPE": "auto"}))
    folder = copy(place, config=config, machine=machine | {"dtype": here})
    assert folders(search(place, plan(DTYPE="auto"))) == {"a-seed7": folder}
    shutil.rmtree(folder)
    copy(place, config=config, machine=machine | {"dtype": "float16"})
    expected = f"DTYPE=auto was float16 there and is {here} here; name one of them with DTYPE="
    assert refusal(place, plan(DTYPE="auto")) == expected


def resumed(**more):
    """Puts a resume after step 3 into a journal; `more` replaces parts of what its start has."""

    def edit(lines):
        start, at = json.loads(lines[0]), next(n for n, line in enumerate(lines) if '"step":4' in line)
        lines.insert(at, compact(start | {"event": "resume", "step": 3, "changed": {}} | more))
        return [compact(json.loads(line) | {"seq": number}) for number, line in enumerate(lines)]

    return edit


def test_a_run_that_was_resumed_counts_if_nothing_changed(place):
    folder = copy(place, edit=resumed())
    assert folders(search(place, plan())) == {"a-seed7": folder}
    shutil.rmtree(folder)
    other = {"TRACKER": "csv", "THREADS": "3", "CHECKPOINT_INTERVAL": "2"}
    folder = copy(place, edit=resumed(config=made(other).values()))
    assert folders(search(place, plan())) == {"a-seed7": folder}


@pytest.mark.parametrize(
    ("name", "text", "was"), [("MAX_ITERS", "5", "6"), ("LEARNING_RATE", "0.001", "0.003"), ("EVAL_INTERVAL", "2", "3")]
)
def test_a_run_that_was_resumed_with_other_options_does_not_count(place, name, text, was):
    copy(place, edit=resumed(config=made({name: text}).values()))
    assert refusal(place) == f"was resumed after step 3 with {name} {was} -> {text}"


def test_code_that_changed_at_a_resume_does_not_count(place):
    copy(place, edit=resumed(learns={"training": 2}))
    assert refusal(place) == "its code learns something else: the number of training is 2 there and 1 here"


def test_retries_are_shown(place):
    config = made({"LEARNING_RATE": "0.0015", "MIN_LR": "5e-05"}).values()
    folder = copy(place, edit=resumed(config=config, retry=1, changed={"LEARNING_RATE": ["0.003", "0.0015"]}))
    found = search(place, plan())
    assert folders(found) == {"a-seed7": folder}
    assert found.words["a-seed7"].endswith("; 1 retry")


def test_code_machine_and_kernels_are_shown(place):
    machine = start()["machine"] | {"ranks": 2}
    folder = copy(place, config=made({"THREADS": "3"}).values(), machine=machine)
    made_with = json.loads((folder / "provenance.json").read_text())
    made_with |= {"commit": "5" * 40, "cpu": "Abacus"}
    (folder / "provenance.json").write_text(json.dumps(made_with))
    (folder / "provenance-9.json").write_text(json.dumps(made_with | {"packages": {"torch": "1.0"}}))  # a resume
    words = search(place, plan()).words["a-seed7"]
    code = history.code(made_with)  # with uncommitted changes, if there are some now
    assert words == f"{folder}; code {code}; cpu Abacus; torch 1.0; 2 processes; THREADS=3"


def test_other_uncommitted_changes_of_the_code_do_not_count(place):
    """A number of a part that is to be raised in the next commit is not raised yet."""
    folder = copy(place)
    made_with = json.loads((folder / "provenance.json").read_text())
    before = Path(folder, "changes.patch").read_bytes() if made_with["uncommitted_changes"] else b""
    for more, counts in ((b"docs/sweeps.md", True), (b"lib/optim/new.py", False)):
        patch = before + b"diff --git a/%b b/%b\n+new\n" % (more, more)
        (folder / "changes.patch").write_bytes(patch)
        sha256 = hashlib.sha256(patch).hexdigest()
        kept = {"file": "changes.patch", "sha256": sha256, "left_out": [], "note": ""}
        (folder / "provenance.json").write_text(json.dumps(made_with | {"uncommitted_changes": kept}))
        found = search(place, plan())
        assert bool(folders(found)) == counts
    why = "its code and the present one have different uncommitted changes, in lib/optim/new.py"
    assert found.refused == {folder: why}


# ---- the end ---------------------------------------------------------------------------------------------------------


def summary(folder, **changes):
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_end(lines):
    return [*lines[:-1], compact(json.loads(lines[-1]) | {"status": "interrupted"})]


def test_a_run_that_did_not_end_as_planned_does_not_count(place):
    copy(place, edit=without_end)
    assert refusal(place) == "is interrupted after step 6 of 6"
    (place / "copy/summary.json").unlink()
    assert refusal(place) == "is not finished"


def test_a_summary_that_contradicts_the_journal_does_not_count(place):
    folder = copy(place)
    summary(folder, final_val_loss=1.0)
    assert refusal(place) == "its summary and its journal differ in final_val_loss"
    summary(folder, final_val_loss="text")
    assert "summary.json: is damaged" in refusal(place)


def test_a_journal_that_lacks_lines_does_not_count(place):
    folder = copy(place, edit=lambda lines: lines[:3] + lines[4:])
    assert refusal(place) == "its journal is not whole: lines are missing or damaged"
    shutil.rmtree(folder)
    folder = copy(place, edit=lambda lines: [*lines[:-1], lines[-1].rstrip("\n")])
    assert refusal(place) == "its journal is not whole: lines are missing or damaged"
    shutil.rmtree(folder)
    folder = copy(place)
    (folder / "provenance.json").unlink()
    assert refusal(place) == "its provenance.json is missing"


# ---- other machines --------------------------------------------------------------------------------------------------


def test_a_baseline_is_checked_before_it_counts(place, tmp_path):
    there = tmp_path / "baseline"
    there.mkdir()
    whole = copy(there, "whole")
    assert folders(search(place, plan(), baseline=there)) == {"a-seed7": whole}
    assert folders(search(place, plan(), baseline=whole)) == {"a-seed7": whole}
    shutil.copytree("runs/other/dense-seed7/checkpoints", whole / "checkpoints")
    assert folders(search(place, plan(), baseline=there)) == {"a-seed7": whole}
    path = whole / "checkpoints/step-000000006.pt"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    copy(there, "cut", edit=lambda lines: [*lines[:4], "{\n", *lines[5:]])
    copy(there, "other", config=made({"WEIGHT_DECAY": "0.05", "TRACKER": "csv"}).values())
    copy(there, "far", config=made({"WEIGHT_DECAY": "0.05", "ADAM_BETA1": "0.8"}).values())
    found = search(place, plan(), baseline=there)
    assert folders(found) == {}
    assert found.refused == {
        whole: f"{path}: the checkpoint is damaged: its content does not match its checksum",
        there / "cut": "lines 5 of its journal are damaged",
        there / "other": "differs from a-seed7 in WEIGHT_DECAY: 0.05 and 0.1",
        there / "far": "differs from a-seed7 in ADAM_BETA1: 0.8 and 0.9, and 1 more",
    }


def test_a_baseline_without_runs_is_one_sentence(place):
    with pytest.raises(UsageError, match=r"^BASELINE=\S+: there is no run in this folder or its sweeps; "):
        search(place, plan(), baseline=place)


# ---- several runs ----------------------------------------------------------------------------------------------------


def later(lines):
    return [compact(record | {"time": record["time"] + 60}) for record in map(json.loads, lines)]


def test_the_newest_counts_and_each_only_once(place):
    first, second = copy(place, "1", edit=later), copy(place, "2")
    assert folders(search(place, plan())) == {"a-seed7": first}
    found = search(place, plan("a"), plan("b"), plan("c"))
    assert folders(found) == {"a-seed7": first, "b-seed7": second}


def test_runs_of_sweeps_and_trials_are_found_and_those_of_the_plan_are_not(place):
    (place / "few/tuning").mkdir(parents=True)
    trial = copy(place, "few/tuning/x")
    assert folders(search(place, plan())) == {"a-seed7": trial}
    own = dataclasses.replace(plan(), parent=place / "few")
    copy(place, "few/a-seed7")
    assert folders(search(place, own)) == {}  # begun in its own folder


# ---- chains ----------------------------------------------------------------------------------------------------------


def chain(place):
    """The search for the real sweep under another name."""
    shutil.copy("other", "again")
    again = sweep.read(Path("again"))
    return reuse.found(again, place, None, present())


def test_a_chain_is_found_from_its_first_run(place):
    found = chain(Path("runs"))
    assert found.refused == {}
    assert folders(found) == {name: Path("runs/other", name) for name in ("dense-seed7", "wanda-seed7")}


def test_a_run_whose_beginning_is_not_there_does_not_count(place):
    copy(place, "wanda", of="wanda")
    found = chain(place)
    assert folders(found) == {}
    assert found.refused == {place / "wanda": "wanda-seed7 begins from dense-seed7, which is still to be trained"}


def test_a_run_without_the_checkpoint_that_others_need_does_not_count(place):
    dense = copy(place, "dense")
    assert folders(search(place, plan("dense"))) == {"dense-seed7": dense}
    assert "this run has no checkpoint yet" in chain(place).refused[dense]


def test_other_first_weights_are_named(place):
    text = Path("other").read_text()
    Path("from-step-3").write_text(text.replace("@dense", "@dense@3"))
    found = reuse.found(sweep.read(Path("from-step-3")), Path("runs"), None, present())
    assert folders(found) == {"dense-seed7": Path("runs/other/dense-seed7")}
    checkpoints = Path("runs/other/dense-seed7/checkpoints")
    began, asked = (
        hashlib.sha256((checkpoints / f"step-00000000{n}.pt").read_bytes()).hexdigest()[:12] for n in (6, 3)
    )
    why = f"differs in its first weights: {began} there and {asked} here (sha256)"
    assert found.refused == {Path("runs/other/wanda-seed7"): why}


def test_another_teacher_is_named(place):
    path = "runs/other/dense-seed7"
    known = hashlib.sha256(Path(path, "checkpoints/step-000000006.pt").read_bytes()).hexdigest()
    taught, one = start_of(made({"DISTILL_FROM": path})), plan(DISTILL_FROM=path)
    folder = copy(place, **taught | {"teacher": taught["teacher"] | {"sha256": known}})
    assert folders(search(place, one)) == {"a-seed7": folder}
    shutil.rmtree(folder)
    copy(place, **taught)
    assert refusal(place, one) == f"differs in its teacher: 555555555555 there and {known[:12]} here (sha256)"


def continued(place, source="runs/other/dense-seed7", **start):
    """The sweep `few`, whose run of wanda began with a run of another folder."""
    Path("few").write_text(Path("other").read_text())
    (place / "few").mkdir(exist_ok=True)
    config = copy(place, "few/wanda-seed7", of="wanda", **start) / ".config"
    assert '"runs/other/dense-seed7"' in config.read_text()
    config.write_text(config.read_text().replace("runs/other/dense-seed7", str(source)))
    return sweep.read(Path("few"), [f"OUTPUT_DIR={place}"])


def test_a_begun_run_keeps_the_source_with_which_it_began(place):
    asked, newer = continued(place), copy(place, "newer", edit=later)
    assert folders(search(place, plan("dense"))) == {"dense-seed7": newer}
    assert folders(reuse.found(asked, place, None, present())) == {"dense-seed7": Path("runs/other/dense-seed7")}
    kept = reuse.pinned(asked, present())
    assert kept.elsewhere == {("dense", 7): Path("runs/other/dense-seed7")}
    for one in kept.runs():
        one.check()
    # It is found again with what was found before.
    assert reuse.found(kept, place, None, present()).plan.elsewhere == kept.elsewhere


def test_the_source_of_a_source_is_kept_too(place):
    Path("few").write_text(Path("other").read_text() + "more from=@wanda PRUNING_METHOD=given\n")
    (place / "few/more-seed7").mkdir(parents=True)
    (place / "few/more-seed7/.config").write_text('CONFIG_INIT_FROM="runs/other/wanda-seed7"\n')
    asked = sweep.read(Path("few"), [f"OUTPUT_DIR={place}"])
    copy(place, "newer", edit=later)
    assert folders(reuse.found(asked, place, None, present())) == {
        name: Path("runs/other", name) for name in ("dense-seed7", "wanda-seed7")
    }


def unpinned(asked):
    with pytest.raises(UsageError) as caught:
        reuse.pinned(asked, present())
    return str(caught.value)


def test_a_source_that_does_not_count_any_more_is_told_with_the_reason(place):
    told = f"runs of {place}/few began with it, and it does not count as dense-seed7 now"
    advice = "restore it, or remove the runs that began with it"
    old = place / "old"
    asked = continued(place, old)
    assert unpinned(asked) == f"{old}: {told}: it is gone; {advice}"
    copy(place, "old", config=made({"WEIGHT_DECAY": "0.05"}).values())
    assert unpinned(asked) == f"{old}: {told}: differs from dense-seed7 in WEIGHT_DECAY: 0.05 and 0.1; {advice}"
    shutil.rmtree(place / "few")
    journal = Path("runs/other/wanda-seed7/journal.jsonl").read_text()
    init = json.loads(journal.partition("\n")[0])["init"] | {"sha256": "5" * 64}
    why = f"its checkpoint is another one than that with which {place}/few/wanda-seed7 began"
    assert unpinned(continued(place, init=init)) == f"runs/other/dense-seed7: {told}: {why}; {advice}"


# ---- the program -----------------------------------------------------------------------------------------------------


def test_make_sweep_trains_no_run_that_counts(place):
    Path("more").write_text(Path("other").read_text().partition("wanda")[0])
    done = forked.run(Path(), "scripts/sweep.py", "more", f"OUTPUT_DIR={place}", "--baseline", "runs/other")
    assert done.returncode == 0, done.stderr
    assert "dense-seed7 is finished already: runs/other/dense-seed7" in done.stdout
    assert "note: runs/other/wanda-seed7 does not count: differs from " in done.stdout
    assert not (place / "more/dense-seed7").exists()
    table = (place / "more/table.md").read_text()
    assert "- Not trained for this sweep, because finished runs count: runs/other/dense-seed7.\n" in table
    (row,) = json.loads((place / "more/results.json").read_text())["configurations"]
    assert row["runs"][0]["reused"] is True


def test_a_chain_whose_source_was_reused_is_continued_and_shown(place):
    continued(place)
    for words in ([], ["--table-only"]):
        done = forked.run(Path(), "scripts/sweep.py", "few", f"OUTPUT_DIR={place}", *words)
        assert done.returncode == 0, done.stderr
        rows = (place / "few/table.md").read_text().splitlines()[2:4]
        assert [row.split()[1] for row in rows] == ["dense", "wanda"]
    assert not (place / "few/dense-seed7").exists()


@pytest.mark.parametrize("words", [(), ("--fresh",)])
def test_a_sweep_does_not_go_on_with_other_data(place, words):
    (place / "other").mkdir()
    copy(place, "other/dense-seed7", data="0" * 64)
    done = forked.run(Path(), "scripts/sweep.py", "other", f"OUTPUT_DIR={place}", *words)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {place}/other/dense-seed7: was trained on other data (sha256 000000000000) than is there now (sha256 "
        f"{start()['data'][:12]}), and runs that are still to begin would not be comparable; restore it, remove this "
        "folder or give the sweep another name\n",
    )
    assert not (place / "other/wanda-seed7").exists()


def test_with_fresh_no_run_counts(place):
    asked = sweep.read(Path("other"), ["OUTPUT_DIR=elsewhere"])
    for fresh, names in ((False, {"dense-seed7", "wanda-seed7"}), (True, set())):
        found = sweep_program.counting(asked, argparse.Namespace(fresh=fresh, baseline="runs"))
        assert {one.name for one in found.runs() if one.finished} == names


# ---- speed -----------------------------------------------------------------------------------------------------------


def test_200_runs_take_less_than_seconds(place):
    for number in range(200):
        copy(place, f"{number}", config=made({"SEED": str(number % 50)}).values())
    runs = [plan(SEED=str(seed)) for seed in range(20)]
    began = time.process_time()
    found = search(place, *runs)
    assert len(folders(found)) == 20
    assert time.process_time() - began < 10  # well below 2 s on a server CPU
