"""The command line: a flag for every option, the same value from every form, and one order of precedence."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.config import command_line
from lib.config.config_file import ConfigError
from lib.config.kconf import ROOT, Schema

SCHEMA = Schema()
GOLDEN = ROOT / "tests" / "golden" / "cli_flags.txt"


def resolve(*argv, **env):
    return command_line.resolve("A program.", list(argv), env)[0]


def problems(*argv, **env):
    with pytest.raises(ConfigError) as caught:
        resolve(*argv, **env)
    return caught.value.problems


# Another value than the default for every option, and what must be chosen for the option to have a meaning.
EXAMPLES = {
    "MODEL_NAME": "gpt2-xl",
    "N_LAYER": "3",
    "N_HEAD": "4",
    "N_EMBD": "256",
    "MLP_WIDTHS": "1000",
    "HEAD_COUNTS": "3",
    "BLOCK_SIZE": "128",
    "DROPOUT": "0.25",
    "ACTIVATION": "gelu",
    "INIT_FROM": "runs/dense@200",
    "DATASET": "shakespeare",
    "TOKENIZER": "bytes",
    "DATA_DIR": "my data",
    "DATA_CACHE_DIR": "/scratch/my data",
    "DATASET_SOURCE": "corpus/*.txt",
    "DATASET_SUBSET": "sample-100BT",
    "DATASET_TEXT_FIELD": "body",
    "DATASET_END_OF_TEXT": "y",
    "TEXT_ERRORS": "skip",
    "DATASET_MAX_TOKENS": "5000000",
    "VAL_FRACTION": "0.02",
    "MAX_ITERS": "77",
    "RUN_TIME": "2h",
    "LEARNING_RATE": "2.5e-3",
    "WARMUP_STEPS": "0",
    "LR_SCHEDULE": "wsd",
    "MIN_LR": "1e-6",
    "LR_DECAY_SHARE": "0.15",
    "LR_DECAY_SHAPE": "1-sqrt",
    "LR_CYCLE": "25",
    "LR_FIRST_RESTART": "0.1",
    "LR_LAST_RESTART": "60",
    "BATCH_SIZE": "3",
    "GRADIENT_ACCUMULATION": "8",
    "AUTO_BATCH": "y",
    "GRAD_CLIP": "0",
    "DISTILL_FROM": "runs/dense@best",
    "DISTILL_WEIGHT": "0.5",
    "DISTILL_TEMPERATURE": "2",
    "NAN_POLICY": "skip",
    "NAN_SKIP_LIMIT": "3",
    "LOSS_SPIKE_SIGMA": "4.5",
    "RETRIES": "2",
    "RETRY_LR_FACTOR": "0.1",
    "EVALUATE": "n",
    "EVAL_INTERVAL": "50",
    "EVAL_SAMPLES": "20",
    "LOG_INTERVAL": "1",
    "OPTIMIZER": "sgd",
    "ADAMWPRUNE_BASE_OPTIMIZER_NAME": "adamwspam",
    "WEIGHT_DECAY": "0.01",
    "ADAM_BETA1": "0.8",
    "ADAM_BETA2": "0.99",
    "ADAM_EPSILON": "1e-7",
    "SGD_MOMENTUM": "0",
    "ADAMWADV_AMSGRAD": "n",
    "SPAM_INTERVAL": "1000",
    "SPAM_WARMUP_STEPS": "100",
    "SPAM_ENABLE_CLIP": "n",
    "SPAM_THETA": "50",
    "SPAM_CLIP_FREE_STEPS": "10",
    "SPAM_DENSITY": "0.5",
    "SPAM_COMPAT": "official",
    "STABLESPAM_GAMMA1": "0.85",
    "STABLESPAM_GAMMA2": "0.99999",
    "STABLESPAM_THETA": "0.99",
    "STABLESPAM_INTERVAL": "500",
    "STABLESPAM_TOTAL_STEPS": "20000",
    "MUON_MOMENTUM": "0.9",
    "MUON_SCALE": "original",
    "PRUNING_METHOD": "wanda",
    "INIT_MASKS": "runs/pruned",
    "PRUNING_STATE": "fisher",
    "PRUNING_MOVEMENT": "soft",
    "MOVEMENT_THRESHOLD": "0.2",
    "MOVEMENT_PENALTY": "125",
    "MOVEMENT_LEARNING_RATE": "0.001",
    "STR_INIT": "-5",
    "STR_DECAY": "0.01",
    "STR_LEARNING_RATE": "0.1",
    "PRUNING_STRUCTURE": "both",
    "PRUNING_DYNAMICS": "ste",
    "PRUNING_PASSES": "5",
    "PRUNING_BATCHES": "2",
    "RIGL_DROP_FRACTION": "0.5",
    "GRANET_START_SPARSITY": "0.4",
    "MEST_LAMBDA": "100",
    "MEST_SOFT_BOUND": "y",
    "REGROW_WARMUP": "10",
    "CHTS_IMPORTANCE": "relative",
    "CHTS_POWER": "0.5",
    "CHTS_FINAL_POWER": "3",
    "SR_STE_DECAY": "6e-5",
    "TOPKAST_BACKWARD": "1.5",
    "TOPKAST_PENALTY": "0.001",
    "PRUNING_DISTRIBUTION": "layer",
    "PRUNING_N": "1",
    "PRUNING_M": "8",
    "TARGET_SPARSITY": "0.8",
    "PRUNING_LAYER_CAP": "0.9",
    "OWL_THRESHOLD": "7",
    "OWL_LAMBDA": "0.05",
    "PRUNING_SCOPE": "h.*.mlp.*.weight",
    "CALIBRATION_SAMPLES": "8",
    "SPARSEGPT_DAMPING": "0.1",
    "SPARSEGPT_BLOCK": "64",
    "PRUNING_SCHEDULE": "late-cubic",
    "PRUNING_POWER": "2",
    "PRUNING_FIRST_SPARSITY": "0.2",
    "PRUNING_WARMUP": "100",
    "PRUNING_END": "1",
    "PRUNING_INTERVAL": "10",
    "FINETUNE_RECIPE": "dpo",
    "FINETUNE_DATA": "examples/train.jsonl",
    "FINETUNE_EVAL_DATA": "examples/test.jsonl",
    "FINETUNE_TEST_FRACTION": "0.05",
    "FINETUNE_TEMPLATE_FILE": "chat.jinja",
    "FINETUNE_LEARNING_RATE": "3e-4",
    "FINETUNE_EPOCHS": "2.5",
    "FINETUNE_STEPS": "30",
    "FINETUNE_BATCH_SIZE": "4",
    "FINETUNE_ACCUMULATION": "2",
    "FINETUNE_LENGTH": "128",
    "FINETUNE_BETA": "0.2",
    "FINETUNE_GENERATIONS": "4",
    "FINETUNE_COMPLETION": "32",
    "FINETUNE_REWARD": "rewards.py:short",
    "FINETUNE_LORA_RANK": "8",
    "TRACKER": "trackio,wandb",
    "TRACKER_PROJECT": 'a "quoted" name',
    "TRACKER_RUN_NAME": "back\\slash",
    "TRACKER_GROUP": "lr sweep",
    "TRACKER_TAGS": "baseline,old",
    "TRACKER_CONFIG": "full",
    "TRACKER_ARTIFACTS": "best",
    "TRACKER_WAIT": "600",
    "TRACKIO_SPACE_ID": "me/metrics",
    "WANDB_OFFLINE": "y",
    "WANDB_ENTITY": "team",
    "MLFLOW_TRACKING_URI": "sqlite:///here.db",
    "SYSTEM_METRICS_INTERVAL": "0.5",
    "DEVICE": "cpu",
    "DTYPE": "bfloat16",
    "COMPILE": "y",
    "SUM_DTYPE": "bfloat16",
    "THREADS": "2",
    "KERNELS": "onednn",
    "SEED": "42",
    "DETERMINISTIC": "y",
    "OUTPUT_DIR": "/somewhere/else",
    "CHECKPOINT_INTERVAL": "0",
    "CHECKPOINT_KEEP": "5",
    "CHECKPOINT_AT": "200,1000",
    "CHECKPOINT_BEST": "n",
    "JSON_OUTPUT": "summary.json",
    "EVAL_TASKS": "hellaswag,piqa",
    "TASK_DATA": "my tasks",
    "EVAL_LIMIT": "10",
    "PROMPT": "--dashes = and #",
    "SAMPLE_TOKENS": "0",
    "SAMPLE_AT_EVAL": "y",
    "TEMPERATURE": "1.5",
    "TOP_K": "0",
}
MAGNITUDE = "PRUNING_METHOD=magnitude"
NEEDS = {
    "NAN_SKIP_LIMIT": "NAN_POLICY=skip",
    **dict.fromkeys(["N_LAYER", "N_HEAD", "N_EMBD"], "MODEL_NAME=custom"),
    **dict.fromkeys(
        ["DATASET_SOURCE", "DATASET_SUBSET", "DATASET_TEXT_FIELD", "DATASET_MAX_TOKENS"], "DATASET=finewebedu"
    ),
    **dict.fromkeys(["DATASET_END_OF_TEXT", "TEXT_ERRORS"], "DATASET=files"),
    **dict.fromkeys(["LR_DECAY_SHARE", "LR_DECAY_SHAPE"], "LR_SCHEDULE=wsd"),
    **dict.fromkeys(["LR_CYCLE", "LR_FIRST_RESTART", "LR_LAST_RESTART"], "LR_SCHEDULE=restarts"),
    "SGD_MOMENTUM": "OPTIMIZER=sgd",
    "ADAMWPRUNE_BASE_OPTIMIZER_NAME": "OPTIMIZER=adamwprune",
    "ADAMWADV_AMSGRAD": "OPTIMIZER=adamwadv",
    **{name: "OPTIMIZER=adamwspam" for name in EXAMPLES if name.startswith("SPAM_")},
    **{name: "OPTIMIZER=stablespam" for name in EXAMPLES if name.startswith("STABLESPAM_")},
    **{name: "OPTIMIZER=muon" for name in EXAMPLES if name.startswith("MUON_")},
    "PRUNING_STATE": "PRUNING_METHOD=state",
    "PRUNING_MOVEMENT": "PRUNING_METHOD=movement",
    **{
        name: "PRUNING_METHOD=movement PRUNING_MOVEMENT=soft" for name in EXAMPLES if name.startswith("MOVEMENT_")
    },
    **{name: "PRUNING_METHOD=str" for name in EXAMPLES if name.startswith("STR_")},
    **dict.fromkeys(
        ["PRUNING_STRUCTURE", "PRUNING_DYNAMICS", "PRUNING_DISTRIBUTION", "TARGET_SPARSITY", "PRUNING_LAYER_CAP",
         "PRUNING_SCOPE", "PRUNING_SCHEDULE", "PRUNING_FIRST_SPARSITY", "PRUNING_WARMUP", "PRUNING_END",
         "PRUNING_INTERVAL"],
        MAGNITUDE,
    ),
    "INIT_MASKS": "PRUNING_METHOD=given",
    **dict.fromkeys(["CALIBRATION_SAMPLES", "SPARSEGPT_DAMPING", "SPARSEGPT_BLOCK"], "PRUNING_METHOD=sparsegpt"),
    **dict.fromkeys(["OWL_THRESHOLD", "OWL_LAMBDA"], "PRUNING_METHOD=sparsegpt PRUNING_DISTRIBUTION=owl"),
    **dict.fromkeys(["PRUNING_PASSES", "PRUNING_BATCHES"], "PRUNING_METHOD=grasp"),
    **dict.fromkeys(["RIGL_DROP_FRACTION", "REGROW_WARMUP"], f"{MAGNITUDE} PRUNING_DYNAMICS=rigl"),
    "GRANET_START_SPARSITY": f"{MAGNITUDE} PRUNING_DYNAMICS=granet",
    **dict.fromkeys(["MEST_LAMBDA", "MEST_SOFT_BOUND"], f"{MAGNITUDE} PRUNING_DYNAMICS=mest"),
    **{name: f"{MAGNITUDE} PRUNING_DYNAMICS=chts" for name in EXAMPLES if name.startswith("CHTS_")},
    "SR_STE_DECAY": f"{MAGNITUDE} PRUNING_DYNAMICS=sr-ste",
    **dict.fromkeys(["TOPKAST_BACKWARD", "TOPKAST_PENALTY"], f"{MAGNITUDE} PRUNING_DYNAMICS=topkast"),
    **dict.fromkeys(["PRUNING_N", "PRUNING_M"], f"{MAGNITUDE} PRUNING_DISTRIBUTION=n-m"),
    "PRUNING_POWER": f"{MAGNITUDE} PRUNING_SCHEDULE=polynomial",
    **{name: "FINETUNE_RECIPE=sft" for name in EXAMPLES if name.startswith("FINETUNE_") and name != "FINETUNE_RECIPE"},
    "FINETUNE_BETA": "FINETUNE_RECIPE=dpo",
    **dict.fromkeys(["FINETUNE_GENERATIONS", "FINETUNE_COMPLETION", "FINETUNE_REWARD"], "FINETUNE_RECIPE=grpo"),
    "WANDB_OFFLINE": "TRACKER=wandb",
    "WANDB_ENTITY": "TRACKER=wandb",
    "TRACKIO_SPACE_ID": "TRACKER=trackio",
    "MLFLOW_TRACKING_URI": "TRACKER=mlflow",
}  # fmt: skip


def in_file(name, text):
    """The lines of a configuration file that give an option a value, as Kconfig itself writes them."""
    option = SCHEMA.options[name]
    if option.members:
        return "".join(f"CONFIG_{option.members[value].name}=y\n" for value in text.split(","))
    if option.kind in ("str", "float"):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"CONFIG_{name}={text}\n"


def test_every_option_has_an_example():
    assert list(EXAMPLES) == list(SCHEMA.options)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_form_of_an_assignment_gives_the_same_value(folder, name):
    option, text = SCHEMA.options[name], EXAMPLES[name]
    first = NEEDS.get(name, "").split()
    (folder / "full").write_text(in_file(name, text) + "".join(in_file(*word.split("=")) for word in first))
    if option.switch:
        flag = [option.flag if text == "y" else f"--no-{option.flag[2:]}"]
    else:
        flag = [f"{option.flag}={text}"] if text.startswith("-") else [option.flag, text]
    results = [
        resolve("--config", "full"),
        resolve(*first, **{f"CONFIG_{name}": text}),
        resolve(*first, f"{name}={text}"),
        resolve(*first, f"CONFIG_{name}={text}"),
        resolve(*first, *flag),
    ]
    assert [schema.values() for schema in results] == [results[0].values()] * 5
    assert results[0][name] != resolve(*first)[name]
    expected = {"int": int, "float": float, "bool": "y".__eq__, "set": lambda t: tuple(t.split(","))}
    assert results[0][name] == expected.get(option.kind, str)(text)
    assert [schema.sources[name] for schema in results] == [
        f"full:{in_file(name, text).count(chr(10))}",
        f"environment CONFIG_{name}",
        f"{name}={text}",
        f"CONFIG_{name}={text}",
        flag[0].split("=")[0],
    ]


@pytest.mark.parametrize(
    ("argv", "env", "value", "source"),
    [
        ([], {}, 1, ".config:1"),
        (["--config", "a"], {}, 2, "a:1"),
        (["--config", "a", "--config", "b"], {}, 3, "b:1"),
        (["--config", "b", "--config", "a"], {}, 2, "a:1"),
        ([], {"KCONFIG_CONFIG": "b"}, 3, "b:1"),
        (["--config", "a"], {"KCONFIG_CONFIG": "b"}, 2, "a:1"),
        ([], {"KCONFIG_CONFIG": ""}, 1, ".config:1"),
        (["--config", "a"], {"CONFIG_SEED": "4"}, 4, "environment CONFIG_SEED"),
        (["SEED=5"], {"CONFIG_SEED": "4"}, 5, "SEED=5"),
        (["SEED=5", "SEED=6"], {}, 6, "SEED=6"),
        (["--seed", "7", "SEED=5"], {"CONFIG_SEED": "4"}, 7, "--seed"),
        (["--seed", "7", "--seed=8"], {}, 8, "--seed"),
        (["--seed", "7"], {"CONFIG_SEED": "not even a number"}, 7, "--seed"),
    ],
)
def test_precedence(folder, argv, env, value, source):
    for number, name in enumerate((".config", "a", "b"), 1):
        (folder / name).write_text(f"CONFIG_SEED={number}\n")
    schema = resolve(*argv, **env)
    assert (schema["SEED"], schema.sources["SEED"]) == (value, source)


def test_without_a_file_everything_has_its_default(folder):
    assert resolve().sources == {}
    assert resolve()["SEED"] == 1337


def test_a_file_that_was_asked_for_must_exist(folder):
    assert problems("--config", "x") == ["x: there is no such configuration file"]
    assert problems(KCONFIG_CONFIG="y") == ["y: there is no such configuration file"]


def test_a_program_may_start_from_a_file_of_its_own(folder):
    (folder / ".config").write_text("CONFIG_SEED=1\n")
    (folder / "own").write_text("CONFIG_SEED=2\nCONFIG_TOP_K=2\n")
    (folder / "more").write_text("CONFIG_TOP_K=3\n")
    argv = ["--run", "own", "--config", "more"]
    schema, args = command_line.resolve(
        "d", argv, {}, arguments=lambda parser: parser.add_argument("--run"), base=lambda args: Path(args.run)
    )
    assert (schema["SEED"], schema["TOP_K"], args.run) == (2, 3, "own")


def test_all_problems_of_files_environment_and_arguments_at_once(folder):
    (folder / ".config").write_text('CONFIG_SEDE=1\nCONFIG_LEARNING_RATE="99"\n')
    assert problems(
        "--optimizr", "sgd", "word", "--no-decay-lr", "--min-lr", "1e-5", "OPTIMIZER=between", "TOPK=3",
        "--tracker=wand", CONFIG_TEMPERATURE="hot",
    ) == [
        "unknown flag --optimizr; did you mean --optimizer?",
        "expected --flag or NAME=value; got 'word'",
        ".config:1: unknown option SEDE; did you mean SEED?",
        ".config:2: LEARNING_RATE must lie between 0 and 10; got 99",
        "TOPK=3: unknown option; did you mean TOP_K?",
        "environment CONFIG_TEMPERATURE must be a number; got 'hot'",
        "OPTIMIZER=between must be one of "
        "sgd, adam, adamw, adamwadv, adamwspam, stablespam, adamwprune, muon; got 'between'",
        "--tracker takes none, all or some of trackio, wandb, tensorboard, mlflow, csv; got 'wand'; "
        "did you mean wandb?",
        "--min-lr=1e-5 has no effect: it needs LR_SCHEDULE=cosine, linear, wsd or restarts",
    ]  # fmt: skip


def test_a_value_that_is_replaced_may_be_out_of_range(folder):
    (folder / ".config").write_text('CONFIG_ADAM_EPSILON="0"\nCONFIG_LEARNING_RATE="99"\n')
    (folder / "later").write_text('CONFIG_LEARNING_RATE="0.5"\n')
    both = ["--config", ".config", "--config", "later"]
    made = resolve(*both, "ADAM_EPSILON=1e-8")
    assert (made["ADAM_EPSILON"], made["LEARNING_RATE"]) == (1e-8, 0.5)
    assert problems(*both) == [".config:1: ADAM_EPSILON must lie between 1e-20 and 1; got 0"]
    assert problems("ADAM_EPSILON=2", "SEDE=1") == [
        ".config:2: LEARNING_RATE must lie between 0 and 10; got 99",
        "SEDE=1: unknown option; did you mean SEED?",
        "ADAM_EPSILON=2 must lie between 1e-20 and 1; got 2",
    ]


def test_a_runs_own_value_that_is_out_of_range_can_be_replaced(folder):
    (folder / "own").write_text('CONFIG_ADAM_EPSILON="0"\n')
    base = lambda args: Path("own")  # noqa: E731
    with pytest.raises(ConfigError) as caught:
        command_line.resolve("A program.", [], {}, base=base)
    assert caught.value.problems == [
        "own:1: ADAM_EPSILON must lie between 1e-20 and 1; got 0; to replace it, give another value beside the run, as "
        "in ADAM_EPSILON=..."
    ]
    assert command_line.resolve("A program.", ["ADAM_EPSILON=1e-8"], {}, base=base)[0]["ADAM_EPSILON"] == 1e-8


def test_a_switch_names_itself_as_it_was_written(folder):
    assert resolve("--no-dataset-end-of-text", "--dataset=files", "--dataset-source=x").sources == {
        "DATASET": "--dataset", "DATASET_SOURCE": "--dataset-source", "DATASET_END_OF_TEXT": "--no-dataset-end-of-text",
    }  # fmt: skip
    assert resolve("--compile").sources == {"COMPILE": "--compile"}


def test_a_flag_of_an_earlier_name_is_read_as_the_present_option(folder):
    schema = resolve("--no-decay-lr")
    assert (schema["LR_SCHEDULE"], schema.sources) == ("constant", {"LR_SCHEDULE": "--no-decay-lr"})
    assert schema.warnings == ["--no-decay-lr: DECAY_LR is now called LR_SCHEDULE; its value is read as constant"]
    assert resolve("--decay-lr", CONFIG_DECAY_LR="n")["LR_SCHEDULE"] == "cosine"
    assert resolve("DECAY_LR=n")["LR_SCHEDULE"] == "constant"


@pytest.mark.parametrize(
    "words",
    [
        ("DECAY_LR=n", "LR_SCHEDULE=linear"),
        ("LR_SCHEDULE=linear", "DECAY_LR=n"),
        ("--no-decay-lr", "--lr-schedule", "linear"),
        ("--lr-schedule", "linear", "--no-decay-lr"),
    ],
)
def test_beside_an_old_name_the_present_one_counts(folder, words):
    """In any order: make sorts its words."""
    assert resolve(*words)["LR_SCHEDULE"] == "linear"


def test_sets(folder):
    assert resolve("--tracker", "all")["TRACKER"] == ("all",)
    assert resolve("--tracker", "wandb , trackio")["TRACKER"] == ("trackio", "wandb")
    (folder / ".config").write_text("CONFIG_TRACKER_WANDB=y\n")
    assert resolve()["TRACKER"] == ("wandb",)
    assert resolve("TRACKER=none")["TRACKER"] == ()
    both = resolve("TRACKER=csv,accelerate:comet_ml,accelerate:aim")["TRACKER"]
    assert both == ("csv", "accelerate:comet_ml", "accelerate:aim")
    (folder / ".config").write_text('CONFIG_TRACKER_WANDB=y\nCONFIG_TRACKER_OTHER="accelerate:aim"\n')
    assert resolve()["TRACKER"] == ("wandb", "accelerate:aim")
    assert resolve("TRACKER=csv")["TRACKER"] == ("csv",)
    assert problems("TRACKER=all,csv") == ["TRACKER=all,csv takes none or all only by themselves; got 'all,csv'"]
    assert problems("TRACKER_OTHER=a:b") == ["TRACKER_OTHER=a:b is a value of TRACKER; write TRACKER=name"]


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("OPTIMIZER", "AdamW", "adamw"),
        ("MODEL_NAME", "GPT2_Medium", "gpt2-medium"),
        ("TRACKER", "WandB,CSV", ("wandb", "csv")),
        ("TRACKER", "None", ()),
        ("TRACKER", "CSV,accelerate:Comet_ML", ("csv", "accelerate:Comet_ML")),
        ("COMPILE", "Y", "y"),
        ("CHECKPOINT_BEST", "N", False),
    ],
)
def test_values_that_have_names_are_known_in_any_case(folder, name, given, value):
    flag = [] if name in ("COMPILE", "CHECKPOINT_BEST") else [[SCHEMA.options[name].flag, given]]
    for words in [[f"{name}={given}"], *flag]:
        schema = resolve(*words)
        assert schema[name] == value
        schema.write(folder / "saved")
        assert resolve("--config", "saved")[name] == value
    assert problems(f"{name}=Adamv,x")


def test_variables_of_others_are_left_alone_and_a_misspelt_one_is_told(folder):
    schema = resolve(CONFIG_SITE="/etc/site", CONFIG_="x", CONFIG_SEEED="3", PATH="/bin")
    assert schema.sources == {}
    assert schema.warnings == ["environment CONFIG_SEEED is not an option and has no effect; did you mean SEED?"]


def test_the_flags_of_the_published_usage_exist():
    published = """--model-name --block-size --dropout --dataset --data-dir --batch-size --gradient-accumulation
        --max-iters --learning-rate --weight-decay --warmup-steps --min-lr --decay-lr --no-decay-lr --optimizer
        --eval-interval --eval-samples --log-interval --device --dtype --compile --output-dir --tracker
        --tracker-project --tracker-run-name --json-output --config --n-layer --n-head --n-embd --tokenizer
        --checkpoint-interval --seed --resume"""
    published = published.replace("--decay-lr --no-decay-lr", "")  # of an earlier version: read, but no longer shown
    assert not set(published.split()) - set(re.findall(r"--[\w-]+", GOLDEN.read_text()))


def test_the_command_line_of_training_is_the_committed_one(program):
    done = program("gpt2/train.py", "--help", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    found = [re.split(r"\s{2,}", line.strip())[0] for line in done.stdout.splitlines() if re.match(r"  -", line)]
    assert found == GOLDEN.read_text().splitlines(), "an intended change? write the new list to tests/golden/"


def test_help_shows_defaults_and_escapes_percent(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        resolve("--help")
    assert caught.value.code == 0
    assert "Peak learning rate. The learning rate at the end of warm-up." in " ".join(capsys.readouterr().out.split())


WORDS = st.one_of(
    st.sampled_from([option.flag for option in SCHEMA.options.values()]),
    st.sampled_from(["--no-decay-lr", "--config", "-x", "--", "-", "", "=", "y", "n", "sgd", "all", "1", "-1", "0.5"]),
    st.builds("{}={}".format, st.sampled_from([*SCHEMA.options, "nope", "CONFIG_SEED"]), st.text(max_size=6)),
    st.builds("{}={}".format, st.sampled_from([o.flag for o in SCHEMA.options.values()]), st.text(max_size=6)),
    st.text(max_size=8),
)


@given(st.lists(WORDS, max_size=5))
def test_any_arguments_are_understood_or_refused(argv):
    if any(word.startswith("--config=") or "\0" in word for word in argv):
        return  # a system call takes no NUL, so no program gets one
    try:
        schema = resolve(*argv, KCONFIG_CONFIG=os.devnull)
    except (ConfigError, SystemExit):
        return
    for word in argv:  # what was accepted as NAME=value and not overridden is in force, letter by letter
        name, _, text = word.removeprefix("CONFIG_").partition("=")
        if schema.sources.get(name) == word and schema.options[name].kind != "set":
            assert schema.options[name].text == text


def test_a_variable_named_like_an_option_is_warned_of_if_it_would_change_something(folder):
    (folder / ".config").write_text("CONFIG_TOP_K=3\n")
    env = {
        "MAX_ITERS": "3", "PROMPT": "say `x`", "OPTIMIZER": "AdamW", "TOP_K": "3", "SEED": "", "DEVICE": "cpu",
        "max_iters": "4", "N": "1",
    }  # fmt: skip
    assert resolve("--device", "cpu", **env).warnings == [
        "environment MAX_ITERS is not read; say make train MAX_ITERS=3, or set CONFIG_MAX_ITERS=3",
        "environment PROMPT is not read; say make train PROMPT=..., or set CONFIG_PROMPT=...",
    ]
    assert resolve("MAX_ITERS=5", MAX_ITERS="3").warnings == []  # make exports what it is given
    assert resolve(MAX_ITERS="3", CONFIG_MAX_ITERS="4").warnings == []


def test_a_variable_that_a_trackers_library_reads_is_not_called_unread(folder):
    assert resolve(MLFLOW_TRACKING_URI="http://host", TRACKIO_SPACE_ID="me/x", WANDB_ENTITY="team").warnings == []
    assert resolve(SEED="3").warnings == ["environment SEED is not read; say make train SEED=3, or set CONFIG_SEED=3"]
