"""scripts/config.py, run as the Makefile runs it: what it prints, what it writes, how it exits."""

import json
import os
import subprocess
import sys

import pytest

from lib.config import config_file
from lib.config.kconf import ROOT, Schema

CONFIG = "scripts/config.py"


@pytest.fixture
def config(program):
    """Run a command that must succeed and return what it printed."""

    def run(*arguments, **env):
        done = program(CONFIG, *arguments, **env)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture
def refused(program):
    """Run a command that must be refused and return the sentences."""

    def run(*arguments, **env):
        done = program(CONFIG, *arguments, **env)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr.removesuffix("\n").split("\n")

    return run


def saved(path):
    schema = Schema()
    schema.load(path)
    return schema


def test_defconfig_writes_a_preset_with_changes(config, folder):
    assert config("defconfig", "gpt2_tiny", "MAX_ITERS=7").startswith(".config: preset gpt2_tiny; ")
    assert saved(folder / ".config")["MAX_ITERS"] == 7
    first = (folder / ".config").read_text()
    config("defconfig")
    assert (folder / ".config.old").read_text() == first
    config("defconfig", "gpt2_tiny_defconfig", KCONFIG_CONFIG="other")
    assert (folder / "other").read_text() == (folder / ".config").read_text()


def test_defconfig_refuses_what_it_does_not_know(refused, folder):
    assert refused("defconfig", "gpt2_tin") == ["error: there is no preset gpt2_tin; did you mean gpt2_tiny?"]
    assert refused("defconfig", "zzz") == ["error: there is no preset zzz; make list-defconfigs lists them"]
    assert refused("defconfig", "a", "b") == ["error: expected NAME=value; got 'b'"]
    assert refused("defconfig", "gpt2_tiny", "SEDE=5") == ["error: SEDE=5: unknown option; did you mean SEED?"]
    assert not list(folder.iterdir())


def test_list_defconfigs_says_what_each_preset_is_for(config):
    lines = config("list-defconfigs").splitlines()
    names = sorted(path.name.removesuffix("_defconfig") for path in (ROOT / "defconfigs").glob("*_defconfig"))
    assert [line.split()[0] for line in lines] == names
    assert all(len(line.split()) > 3 for line in lines)


def test_a_saved_preset_has_a_title_or_says_what_it_sets(config, refused, folder, monkeypatch):
    config("defconfig", "gpt2_tiny", "SEED=7")
    config("savedefconfig", "titled", "--title", "Mine: with another seed. More.")
    assert (folder / "titled").read_text().startswith("# Mine: with another seed. More.\nCONFIG_")
    config("savedefconfig", "untitled")
    assert config_file.title(folder / "titled") == "Mine: with another seed."
    assert config_file.title(folder / "untitled") == ""
    assert refused("savedefconfig", "x", "--title", "a\nCONFIG_SEED=8") == [
        "error: the title must be one line of text without control characters"
    ]
    assert saved(folder / "untitled").summary() == "MODEL_NAME=custom, N_LAYER=4, N_HEAD=4, N_EMBD=160 and 11 more"


def test_olddefconfig_says_what_it_drops(config, folder):
    (folder / ".config").write_text(
        "CONFIG_SEED=5\nCONFIG_SEDE=6\nCONFIG_OPTIMIZER_SDG=y\n"
        'CONFIG_SGD_MOMENTUM="0.5"\nCONFIG_LEARNING_RATE="99"\nCONFIG_TRACKER=y\n'
    )
    assert config("olddefconfig").splitlines() == [
        "dropped .config:2: unknown option SEDE; did you mean SEED?",
        "dropped .config:3: unknown option OPTIMIZER_SDG; did you mean OPTIMIZER_SGD?",
        "dropped .config:5: LEARNING_RATE must lie between 0 and 10; got 99",
        "dropped .config:6: TRACKER=y has no effect: it follows from other options",
        "dropped .config:4: SGD_MOMENTUM=0.5 has no effect: it needs OPTIMIZER=sgd",
        ".config: up to date; 1 option differs from the defaults",
    ]
    assert saved(folder / ".config")["SEED"] == 5
    assert (folder / ".config.old").read_text().startswith("CONFIG_SEED=5\nCONFIG_SEDE=6\n")
    assert config("olddefconfig") == ".config: up to date; 1 option differs from the defaults\n"


def test_olddefconfig_drops_what_a_dropped_line_leaves_without_meaning(config, folder):
    (folder / ".config").write_text('CONFIG_OPTIMIZER_SGD=yes\nCONFIG_SGD_MOMENTUM="0.5"\nCONFIG_N_LAYER=13\n')
    config("olddefconfig")
    assert saved(folder / ".config").differing() == []


def test_olddefconfig_without_a_configuration_writes_the_defaults(config, folder):
    assert (
        config("olddefconfig")
        == ".config: written with the defaults, because the file did not exist; 0 options differ from the defaults\n"
    )


def test_olddefconfig_with_changes(config, refused, folder):
    config("olddefconfig", "SEED=7")
    assert saved(folder / ".config")["SEED"] == 7
    assert refused("olddefconfig", "x", "SEED=y") == ["error: expected NAME=value; got 'x'"]
    assert refused("olddefconfig", "SEED=y") == ["error: SEED=y must be a whole number; got 'y'"]
    assert saved(folder / ".config")["SEED"] == 7


def test_olddefconfig_on_what_is_no_configuration(refused, folder):
    (folder / ".config").mkdir()
    assert refused("olddefconfig") == ["error: .config: cannot be read as a configuration: Is a directory"]


def test_savedefconfig(config, folder):
    (folder / ".config").write_text("CONFIG_SEED=5\nCONFIG_TOP_K=50\n")
    assert config("savedefconfig") == "defconfig: 1 option differs from the defaults\n"
    assert (folder / "defconfig").read_text().splitlines()[1:] == ["CONFIG_SEED=5"]
    config("savedefconfig", "mine_defconfig")
    assert (folder / "mine_defconfig").read_text() == (folder / "defconfig").read_text()


def test_commands_that_need_a_configuration_say_how_to_get_one(refused):
    sentence = "error: .config: the file does not exist; write it with make menuconfig or make defconfig"
    assert refused("savedefconfig") == [sentence]
    assert refused("listnewconfig") == [sentence]


def test_listnewconfig(config, folder):
    Schema().write(folder / ".config")
    assert config("listnewconfig") == ".config mentions every option\n"
    lines = (folder / ".config").read_text().splitlines()
    gone = ("CONFIG_SEED", "CONFIG_OPTIMIZER_", "# CONFIG_OPTIMIZER_", "CONFIG_PROMPT")
    (folder / ".config").write_text("\n".join(line for line in lines if not line.startswith(gone)))
    assert config("listnewconfig").splitlines() == ["OPTIMIZER=adamw", "SEED=1337", "PROMPT="]


def test_diffconfig_compares_values_of_files_presets_and_runs(config, folder):
    (folder / "run").mkdir()
    (folder / "run" / ".config").write_text('CONFIG_LEARNING_RATE="0.0006"\nCONFIG_OPTIMIZER_SGD=y\n')
    (folder / "b").write_text('CONFIG_TRACKER_WANDB=y\nCONFIG_PROMPT="hi"\n')
    assert config("diffconfig", "run", "b").splitlines() == [
        "OPTIMIZER      sgd -> adamw",
        "ADAM_BETA1     - -> 0.9",
        "ADAM_BETA2     - -> 0.95",
        "ADAM_EPSILON   - -> 1e-8",
        "SGD_MOMENTUM   0.9 -> -",
        "TRACKER        none -> wandb",
        "WANDB_OFFLINE  - -> n",
        'WANDB_ENTITY   - -> ""',
        'PROMPT         "" -> hi',
    ]
    assert config("diffconfig", "b", "b") == "no option differs between b and b\n"
    config("defconfig", "gpt2_tiny")
    assert "no option differs" in config("diffconfig", ".config", "gpt2_tiny")


def test_diffconfig_on_a_folder_without_a_configuration(refused, folder):
    assert refused("diffconfig", "", "x") == [
        "error: name two configurations, such as: make diffconfig A=gpt2_tiny B=.config"
    ]
    assert refused("diffconfig", ".", "x") == ["error: .config: there is no such configuration file"]


def test_explain(config, folder):
    (folder / ".config").write_text('\nCONFIG_LEARNING_RATE="0.002"\n')
    text = config("explain", "learning-rate")
    assert text.splitlines()[:9] == [
        "LEARNING_RATE: Peak learning rate",
        "",
        "  value    0.002",
        "  source   .config:2",
        "  type     float",
        "  values   0 .. 10",
        "  default  6e-4",
        "  menu     Training / Schedule",
        f"  defined  {Schema().place(Schema().options['LEARNING_RATE'])}",
    ]
    assert "  The learning rate at the end of warm-up." in text
    assert text.splitlines()[-4:] == [
        '    CONFIG_LEARNING_RATE="0.002" in .config',
        "    CONFIG_LEARNING_RATE=0.002 in the environment",
        "    make train LEARNING_RATE=0.002",
        "    python gpt2/train.py --learning-rate 0.002",
    ]
    for name in ("LEARNING_RATE", "CONFIG_LEARNING_RATE", "learning_rate"):
        assert config("explain", name) == text


def test_explain_an_option_without_effect_a_value_and_an_override(config):
    text = config("explain", "sgd_momentum")
    assert "value    none: it has no effect in this configuration" in text
    assert "needs    OPTIMIZER=sgd" in text
    assert "--sgd-momentum 0.9" in text
    assert config("explain", "OPTIMIZER_SGD").startswith("OPTIMIZER: Optimizer\n")
    assert "source   environment CONFIG_SEED" in config("explain", "seed", CONFIG_SEED="4")
    assert "CONFIG_TRACKER_TRACKIO=y, CONFIG_TRACKER_WANDB=y in .config" in config(
        "explain", "tracker", CONFIG_TRACKER="trackio,wandb"
    )


def test_explain_and_docs_have_the_help_of_single_values(config):
    learned = "\n\n  learned: what decides the result\n    The options in use of the menus Model,"
    assert learned in config("explain", "tracker_config")
    assert "- `full`: every option, and the machine.\n  Every option by its own name. Weights" in config("docs")
    assert "- `rigl`: sparse at once" in config("docs")


def test_explain_an_option_of_one_shot_pruning(config):
    for name, value in (("SPARSEGPT_DAMPING", "0.01"), ("SPARSEGPT_BLOCK", "128"), ("CALIBRATION_SAMPLES", "128")):
        assert config("explain", name).splitlines()[-2:] == [
            f"    make oneshot {name}={value}",
            f"    python scripts/oneshot.py --{name.lower().replace('_', '-')} {value}",
        ]


def test_explain_works_while_the_configuration_is_broken(config, folder):
    (folder / ".config").write_text("CONFIG_SEED=x\n")
    assert "value    unknown, because the configuration has problems; make checkconfig" in config("explain", "seed")


def test_explain_an_unknown_option(refused):
    assert refused("explain", "") == ["error: name an option, such as: make explain X=LEARNING_RATE"]
    assert refused("explain", "sede") == ["error: unknown option sede; did you mean SEED?"]
    assert refused("explain", "zzz") == ["error: unknown option zzz; docs/config.md lists all"]


@pytest.mark.parametrize("name", Schema().options)
def test_every_option_can_be_explained(name, folder, capsys):
    from scripts import config

    config._parser().parse_args(["explain", name]).run(config._parser().parse_args(["explain", name]))
    assert capsys.readouterr().out.startswith(f"{name}: ")


def test_checkconfig(config, refused, folder):
    sentence = "OK: .config does not exist, so the defaults are valid: 0 options differ from the defaults\n"
    assert config("checkconfig") == sentence
    (folder / ".config").write_text("CONFIG_SEED=5\n")
    assert config("checkconfig") == "OK: .config: 1 option differs from the defaults\n"
    assert config("checkconfig", "TOP_K=3") == "OK: .config: 2 options differ from the defaults\n"
    (folder / ".config").write_text("CONFIG_SEDE=5\nCONFIG_TOP_K=x\n")
    assert refused("checkconfig", "THREADS=many", CONFIG_OPTIMIZER="sdg") == [
        "error: .config:1: unknown option SEDE; did you mean SEED?",
        "error: .config:2: TOP_K must be a whole number; got 'x'",
        "error: environment CONFIG_OPTIMIZER must be one of "
        "sgd, adam, adamw, adamwadv, adamwspam, stablespam, adamwprune, muon; got 'sdg'; did you mean sgd?",
        "error: THREADS=many must be a whole number; got 'many'",
    ]


def test_checkconfig_finds_what_needs_no_torch_to_be_found(refused):
    assert refused("checkconfig", "N_HEAD=5", "MODEL_NAME=custom", "N_EMBD=32", "MIN_LR=1") == [
        "error: N_EMBD=32 cannot be divided among N_HEAD=5 heads; choose a multiple",
        "error: MIN_LR=1 exceeds LEARNING_RATE=0.0006; lower it or use LR_SCHEDULE=constant",
    ]


def test_checkconfig_finds_pruning_that_cannot_be(refused):
    words = ["PRUNING_METHOD=magnitude", "PRUNING_WARMUP=0.8", "PRUNING_END=0.3", "PRUNING_LAYER_CAP=0.4"]
    assert refused("checkconfig", *words) == [
        "error: PRUNING_END=0.3 is step 3000, before pruning starts at step 8000 (PRUNING_WARMUP=0.8); end it later or "
        "start it sooner",
        "error: PRUNING_LAYER_CAP=0.4 of every tensor does not allow a sparsity of 0.5; raise PRUNING_LAYER_CAP or "
        "lower TARGET_SPARSITY",
    ]


def test_checkconfig_says_which_program_takes_what_training_refuses(program, folder):
    (folder / ".config").write_text("CONFIG_PRUNING_METHOD_SPARSEGPT=y\n")
    done = program(CONFIG, "checkconfig")
    assert (done.returncode, done.stdout) == (
        0, "OK, but not for make train: .config: 1 option differs from the defaults\n"
    )  # fmt: skip
    assert done.stderr == (
        "warning: PRUNING_METHOD=sparsegpt prunes a finished model and trains nothing; run it with make oneshot "
        "RUN=... PRUNING_METHOD=sparsegpt\n"
    )


def test_checkconfig_is_quick(folder):
    """Started as a user starts it, by processor time, which a busy machine hardly changes."""
    times = []
    for _ in range(4):
        before = os.times()
        subprocess.run([sys.executable, ROOT / CONFIG, "checkconfig"], capture_output=True, check=False)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert 0 < min(times) < 0.3


@pytest.mark.parametrize(
    "arguments",
    [
        ["scripts/config.py", "checkconfig"],
        ["scripts/config.py", "checkconfig", "PRUNING_METHOD=state", "PRUNING_STRUCTURE=both", "INIT_FROM=gpt2"],
        ["scripts/config.py", "--help"],
        ["gpt2/train.py", "--help"],
    ],
    ids=" ".join,
)
def test_configuring_imports_no_torch(folder, arguments):
    code = (
        "import json, runpy, sys\n"
        f"sys.argv = {[str(ROOT / arguments[0]), *arguments[1:]]!r}\n"
        "sys.path.insert(0, '')\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout.splitlines()[-1])
    assert "kconfiglib" in modules
    others = {"torch", "numpy", "safetensors", "huggingface_hub", "datasets", "trackio", "wandb", "tiktoken"}
    assert sorted(others & set(modules)) == []


def test_randconfig(config, refused, folder):
    assert config("randconfig", "7").startswith(".config: random, seed 7; ")
    first = (folder / ".config").read_text()
    config("randconfig", "7")
    assert (folder / ".config").read_text() == first
    config("randconfig", "8", "SEED=3")
    assert saved(folder / ".config")["SEED"] == 3
    assert (folder / ".config").read_text() != first
    assert refused("randconfig", "many") == ["error: the seed must be a whole number; got 'many'"]
    said = config("randconfig")
    config("randconfig", said.split("seed ")[1].split(";")[0], KCONFIG_CONFIG="again")
    assert (folder / "again").read_text() == (folder / ".config").read_text()


def test_the_committed_reference_is_the_generated_one(config, folder):
    (folder / ".config").write_text("CONFIG_SEED=x\n")  # has no part in it
    assert config("docs", CONFIG_SEED="9", COLUMNS="40") == (ROOT / "docs/config.md").read_text(encoding="utf-8")


def test_an_old_name_is_said_and_arguments_are_checked(program, folder):
    assert program(CONFIG).returncode == 2
    assert program(CONFIG, "nope").returncode == 2
    done = program(CONFIG, "checkconfig", CONFIG_SEEED="5")
    assert done.stderr == "warning: environment CONFIG_SEEED is not an option and has no effect; did you mean SEED?\n"


def test_a_folder_that_cannot_be_written_is_one_sentence(program):
    done = program(CONFIG, "defconfig", KCONFIG_CONFIG="no/such/folder/.config")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no/such/folder/.config: cannot be written: No such file or directory\n"


def test_a_home_is_expanded_where_a_file_is_named(config, folder):
    home = folder / "home"
    home.mkdir()
    config("defconfig", "OUTPUT_DIR=~/runs")
    config("savedefconfig", "~/mine", HOME=str(home))
    assert 'CONFIG_OUTPUT_DIR="~/runs"\n' in (home / "mine").read_text()
    assert config("diffconfig", "~/mine", ".config", HOME=str(home)).startswith("no option differs")
    assert not (folder / "~").exists()


def test_a_variable_that_no_program_reads_is_warned_of(program):
    sentence = "warning: environment SEED is not read; say make train SEED=3, or set CONFIG_SEED=3\n"
    for words in (["defconfig"], ["checkconfig"], ["olddefconfig"], ["randconfig", "1"]):
        done = program(CONFIG, *words, SEED="3")
        assert (done.returncode, done.stderr) == (0, sentence)
    assert program(CONFIG, "defconfig", "SEED=4", SEED="4").stderr == ""
