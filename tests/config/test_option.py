"""Options: what they accept, what they say of what they refuse, and how they describe themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UsageError
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.config.option import nearest, split_set

SCHEMA = Schema()
TIME = "must be empty or a duration (90s, 20m, 1h30m, 2d or a number of seconds)"
WAIT = "must be auto, all or a duration (90s, 20m, 1h30m, 2d or a number of seconds)"


@pytest.fixture
def options():
    return SCHEMA.options


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("LEARNING_RATE", "1e-3", None),
        ("LEARNING_RATE", ".5", None),
        ("LEARNING_RATE", "10", None),
        ("LEARNING_RATE", "10.1", "must lie between 0 and 10; got 10.1"),
        ("LEARNING_RATE", "-1e-9", "must lie between 0 and 10; got -1e-9"),
        ("LEARNING_RATE", "inf", "must lie between 0 and 10; got inf"),
        ("LEARNING_RATE", "banana", "must be a number; got 'banana'"),
        ("LEARNING_RATE", "nan", "must be a number; got 'nan'"),
        ("LEARNING_RATE", "1_0", "must be a number; got '1_0'"),
        ("LEARNING_RATE", " 1", "must be a number; got ' 1'"),
        ("LEARNING_RATE", "١", "must be a number; got '١'"),
        ("LEARNING_RATE", "", "must be a number; got ''"),
        ("SEED", "7", None),
        ("SEED", "1e3", "must be a whole number; got '1e3'"),
        ("SEED", "-1", "must lie between 0 and 2147483647; got -1"),
        ("SEED", "9" * 30, f"must be a whole number; got '{'9' * 30}'"),
        ("CHECKPOINT_BEST", "y", None),
        ("CHECKPOINT_BEST", "yes", "must be y or n; got 'yes'"),
        ("OPTIMIZER", "adamw", None),
        (
            "OPTIMIZER",
            "adamv",
            "must be one of "
            "sgd, adam, adamw, adamwadv, adamwspam, stablespam, adamwprune, muon; got 'adamv'; did you mean adam?",
        ),
        (
            "OPTIMIZER",
            "between",
            "must be one of sgd, adam, adamw, adamwadv, adamwspam, stablespam, adamwprune, muon; got 'between'",
        ),
        ("TRACKER", "wandb, trackio", None),
        ("TRACKER", "all", None),
        ("TRACKER", "", None),
        (
            "TRACKER",
            "trackio,wandbb",
            "takes none, all or some of trackio, wandb, tensorboard, mlflow, csv; got 'wandbb'; did you mean wandb?",
        ),
        (
            "TRACKER",
            "Comet",
            "takes none, all or some of trackio, wandb, tensorboard, mlflow, csv; got 'Comet'; did you mean "
            "accelerate:comet_ml (pip install accelerate==1.15.0 comet_ml)?",
        ),
        (
            "TRACKER",
            "neptune",
            "takes none, all or some of trackio, wandb, tensorboard, mlflow, csv; got 'neptune'; Neptune's service was "
            "shut down on 5 March 2026; use mlflow with a server of your own, or wandb or accelerate:comet_ml",
        ),
        ("TRACKER", "none,trackio", "takes none or all only by themselves; got 'none,trackio'"),
        ("PROMPT", "Once upon a time, “so”", None),
        ("TRACKER_WAIT", "all", None),
        ("TRACKER_WAIT", "0", None),
        ("TRACKER_WAIT", "20m", None),
        ("RUN_TIME", "", None),
        ("RUN_TIME", "1h30m", None),
        ("RUN_TIME", "0s", TIME + "; got '0s'"),
        (
            "TRACKER_WAIT",
            "forever",
            WAIT + "; got 'forever'",
        ),
        (
            "TRACKER_WAIT",
            "-1",
            WAIT + "; got '-1'",
        ),
        (
            "TRACKER_WAIT",
            "2.5",
            WAIT + "; got '2.5'",
        ),
        ("TRACKER_WAIT", "", WAIT + "; got ''"),
        ("PROMPT", "two\nlines", "must be one line of UTF-8 text without control characters"),
        ("PROMPT", "\udcff", "must be one line of UTF-8 text without control characters"),
    ],
)
def test_complaints(options, name, text, complaint):
    assert options[name].complaint(text) == complaint


@given(st.floats(0, 10))
def test_every_float_in_range_is_accepted_as_python_writes_it(number):
    assert SCHEMA.options["LEARNING_RATE"].complaint(repr(number)) is None


@given(st.text(max_size=12))
def test_a_number_is_accepted_only_if_it_means_the_same_everywhere(text):
    option = SCHEMA.options["LEARNING_RATE"]
    if option.complaint(text) is None:
        assert 0 <= float(text) <= 10
        assert text == text.strip()
        assert text.isascii()
        assert "_" not in text


def test_values_have_python_types(options):
    values = {
        name: options[name].value for name in ("SEED", "DROPOUT", "CHECKPOINT_BEST", "DATA_DIR", "OPTIMIZER", "TRACKER")
    }
    assert values == {
        "SEED": 1337,
        "DROPOUT": 0.0,
        "CHECKPOINT_BEST": True,
        "DATA_DIR": "data",
        "OPTIMIZER": "adamw",
        "TRACKER": (),
    }
    assert [type(value) for value in values.values()] == [int, float, bool, str, str, tuple]
    assert options["SGD_MOMENTUM"].value is None


def test_an_option_is_listed_under_its_menu_and_not_under_the_option_that_it_depends_on(options):
    assert options["MIN_LR"].menu == ("Training", "Schedule")
    assert options["TRACKER"].menu == ("Experiment tracking",)


def test_needs_and_defaults_in_words(options):
    assert options["SGD_MOMENTUM"].needs == "OPTIMIZER=sgd"
    assert options["SPAM_INTERVAL"].needs == "OPTIMIZER=adamwspam or ADAMWPRUNE_BASE_OPTIMIZER_NAME=adamwspam"
    assert options["VAL_FRACTION"].needs == "DATASET other than bins"
    assert options["SEED"].needs == ""
    assert options["SEED"].default == "1337"
    assert options["SGD_MOMENTUM"].default == "0.9"
    assert options["OPTIMIZER"].default == "adamw"
    assert options["TRACKER"].default == "none"
    assert options["PROMPT"].default == '""'
    assert options["DATASET_SUBSET"].default == 'sample-10BT if DATASET=finewebedu, else ""'


def test_what_an_option_takes_is_known_while_it_is_inactive(options):
    assert not options["SGD_MOMENTUM"].active
    assert options["SGD_MOMENTUM"].restrict() == "0 .. 0.999999"
    assert options["OPTIMIZER"].restrict() == "{sgd,adam,adamw,adamwadv,adamwspam,stablespam,adamwprune,muon}"
    assert options["TRACKER"].restrict() == "none | all | trackio,wandb,tensorboard,mlflow,csv"


def test_set_and_nearest():
    assert split_set(" a, b,,c ") == ["a", "b", "c"]
    assert nearest("adamv", ["sgd", "adamw"]) == "; did you mean adamw?"
    assert nearest("zzz", ["sgd", "adamw"]) == ""


def kconfig(folder, text):
    (folder / "Kconfig").write_text(text)
    return Schema(folder / "Kconfig")


def test_a_kind_that_we_do_not_have_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"Kconfig:1: MASK must be a bool, an int or a string$"):
        kconfig(tmp_path, 'config MASK\n\thex "Mask"\n')


def test_a_member_of_a_choice_carries_its_name(tmp_path):
    with pytest.raises(UsageError, match=r"Kconfig:3: SGD must be called OPTIMIZER_<VALUE>$"):
        kconfig(tmp_path, 'choice OPTIMIZER\n\tprompt "Optimizer"\nconfig SGD\n\tbool "SGD"\nendchoice\n')


def test_a_mistake_in_kconfig_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"Kconfig:1: error: couldn't parse 'banana'"):
        kconfig(tmp_path, "banana\n")
    with pytest.raises(ConfigError, match="No such file"):
        Schema(tmp_path / "missing")


def test_the_options_that_may_be_paths_are_known(options):
    texts = {name: option.is_path for name, option in options.items() if option.kind == "str"}
    assert [name for name, is_path in texts.items() if is_path] == [
        "INIT_FROM",
        "DATA_DIR",
        "DATA_CACHE_DIR",
        "DATASET_SOURCE",
        "DISTILL_FROM",
        "INIT_MASKS",
        "FINETUNE_DATA",
        "FINETUNE_EVAL_DATA",
        "FINETUNE_TEMPLATE_FILE",
        "OUTPUT_DIR",
        "JSON_OUTPUT",
        "TASK_DATA",
    ]
    assert [name for name, is_path in texts.items() if not is_path] == [
        "MLP_WIDTHS",
        "HEAD_COUNTS",
        "DATASET_SUBSET",
        "DATASET_TEXT_FIELD",
        "RUN_TIME",
        "PRUNING_SCOPE",
        "FINETUNE_REWARD",
        "TRACKER_PROJECT",
        "TRACKER_RUN_NAME",
        "TRACKER_GROUP",
        "TRACKER_TAGS",
        "TRACKER_WAIT",
        "TRACKIO_SPACE_ID",
        "WANDB_ENTITY",
        "MLFLOW_TRACKING_URI",
        "CHECKPOINT_AT",
        "EVAL_TASKS",
        "PROMPT",
    ]


def test_a_home_is_expanded_in_paths_alone_and_kept_as_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    schema = Schema()
    given = {"OUTPUT_DIR": "~/runs", "DATA_DIR": "~", "DATASET_SOURCE": "~/books/*.txt", "PROMPT": "~/x"}
    schema.override([("DATASET", "files", "test"), *((name, text, "test") for name, text in given.items())])
    assert {name: schema[name] for name in given} == {
        "OUTPUT_DIR": "/home/me/runs",
        "DATA_DIR": "/home/me",
        "DATASET_SOURCE": "/home/me/books/*.txt",
        "PROMPT": "~/x",
    }
    schema.write(tmp_path / "saved")
    again = Schema()
    again.load(tmp_path / "saved")
    assert {name: again.options[name].text for name in given} == given
    assert again["OUTPUT_DIR"] == "/home/me/runs"


@pytest.mark.parametrize("text", ["a~", "./~", "./~/x", "a/~/b", "https://x/~me/text.txt", "owner/~name"])
def test_another_tilde_is_a_part_of_a_name(options, text):
    assert options["DATASET_SOURCE"].complaint(text) is None
    assert options["DATASET_SOURCE"]._convert(text) == text


def test_the_home_of_nobody_is_refused(options):
    assert options["OUTPUT_DIR"].complaint("~nobody-is-called-so/x") == (
        "names the home of an unknown user; got '~nobody-is-called-so/x'; "
        "write ./~nobody-is-called-so/x for a file of that name"
    )
