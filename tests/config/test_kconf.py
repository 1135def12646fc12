"""The configuration layer: files in, values out, every problem told at once, nothing taken for something else."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.base.errors import UserError
from lib.config.config_file import ConfigError
from lib.config.kconf import ROOT, Options, Schema
from scripts.config import randomise

SCHEMA, OTHER = Schema(), Schema()  # cleared for each use: parsing takes 15 ms


def load(path, *, schema=None):
    schema = schema or Schema()
    schema.load(path)
    return schema


def problems(path, content):
    path.write_text(content) if isinstance(content, str) else path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return [problem.replace(str(path), "F") for problem in caught.value.problems]


# ---- what is wrong with a file ---------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_in_the_order_of_the_lines(tmp_path):
    content = """\
CONFIG_OPTIMIZER_SDG=y
CONFIG_SEED=-4
junk
CONFIG_TRACKER_PROJECT=n
CONFIG_LEARNING_RATE="99"
CONFIG_MIN_LR="banana"
CONFIG_SGD_MOMENTUM="0.9"
CONFIG_SEED=4
CONFIG_TRACKER_RUN_NAME="a"  # why
# CONFIG_OPTIMIZER_ADAMW is not set
CONFIG_TRACKER=y
CONFIG_OPTIMIZER=sgd
CONFIG_N_LAYER=13
CONFIG_DTYPE_FLOAT16=yes_please
CONFIG_THREADS=64  # why
CONFIG_DEVICE_CPU=y
CONFIG_DEVICE_CUDA=y
CONFIG_TRACKR_WANDB=y
 CONFIG_TOP_K=3
CONFIG_DATA_DIR=corpus
"""
    # Not line 7, whose only fault is that of line 1.
    assert problems(tmp_path / "c", content) == [
        "F:1: unknown option OPTIMIZER_SDG; did you mean OPTIMIZER_SGD?",
        "F:2: SEED must lie between 0 and 2147483647; got -4",
        "F:3: cannot be understood; expected CONFIG_NAME=value; got 'junk'",
        'F:4: TRACKER_PROJECT must be quoted: "n"',
        "F:5: LEARNING_RATE must lie between 0 and 10; got 99",
        "F:6: MIN_LR must be a number; got 'banana'",
        "F:8: SEED is assigned for the second time; the first was F:2",
        "F:9: TRACKER_RUN_NAME must be one quoted text with nothing around it; got '\"a\"  # why'",
        "F:10: OPTIMIZER_ADAMW=n has no effect: it follows from other options",
        "F:11: TRACKER=y has no effect: it follows from other options",
        "F:12: OPTIMIZER is a choice; write CONFIG_OPTIMIZER_<VALUE>=y",
        "F:13: N_LAYER=13 has no effect: it needs MODEL_NAME=custom",
        "F:14: DTYPE_FLOAT16 must be y or n; got 'yes_please'",
        "F:15: THREADS must be a whole number; got '64  # why'",
        "F:17: DEVICE_CUDA is assigned for the second time; the first was F:16",
        "F:18: unknown option TRACKR_WANDB; did you mean TRACKER_WANDB?",
        "F:19: cannot be understood; expected CONFIG_NAME=value; got ' CONFIG_TOP_K=3'",
        'F:20: DATA_DIR must be quoted: "corpus"',
    ]


def test_the_lines_that_are_to_blame_are_named_and_can_be_left_out(tmp_path):
    (tmp_path / "c").write_text("CONFIG_SEED=5\nCONFIG_SEDE=6\nCONFIG_TOP_K=7\nCONFIG_TOP_K=x\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "c")
    assert caught.value.lines == {2, 4}
    schema = Schema()
    schema.load(tmp_path / "c", skip={2, 4})
    assert (schema["SEED"], schema["TOP_K"]) == (5, 7)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe", ["F: cannot be read as a configuration: it is not UTF-8 text"]),
        (b"CONFIG_SEED=5\0\n", ["F:1: SEED must be a whole number; got '5\\x00'"]),
        (b"CONFIG_DECAY_LR=\n", ["F:1: DECAY_LR must be y or n; got ''"]),
        (b"CONFIG_=y\n", ["F:1: cannot be understood; expected CONFIG_NAME=value; got 'CONFIG_=y'"]),
        (b"SEED=5\n", ["F:1: cannot be understood; expected CONFIG_NAME=value; got 'SEED=5'"]),
        (b"# CONFIG_SEED is not set\n", ["F:1: SEED must be a whole number; got 'n'"]),
        (b"# CONFIG_DATA_DIR is not set\n", ['F:1: DATA_DIR must be quoted: "n"']),
        (b"# CONFIG_NEVER_SEEN is not set \n", ["F:1: unknown option NEVER_SEEN"]),
        (b"CONFIG_TRACKER_WANDB=y\nCONFIG_TRACKER_WANDB=n\n",
         ["F:2: TRACKER_WANDB is assigned for the second time; the first was F:1"]),
        (b'CONFIG_PROMPT="a"b"\n', ["F:1: PROMPT must be one quoted text with nothing around it; got '\"a\"b\"'"]),
        (b'CONFIG_PROMPT="a\\"\n', ["F:1: PROMPT must be one quoted text with nothing around it; got '\"a\\\\\"'"]),
        (b'CONFIG_PROMPT="a\tb"\n', ["F:1: PROMPT must be one line of UTF-8 text without control characters"]),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be(tmp_path, content, expected):
    assert problems(tmp_path / "c", content) == expected


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"missing: there is no such configuration file$"):
        load(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"cannot be read as a configuration: Is a directory$"):
        load(tmp_path)


def test_line_endings_of_windows_comments_and_blank_lines(tmp_path):
    (tmp_path / "c").write_bytes(b'# a comment\r\n\r\nCONFIG_SEED=5\r\nCONFIG_PROMPT="a # b"\r\nCONFIG_TOP_K=3 \r\n')
    schema = load(tmp_path / "c")
    assert (schema["SEED"], schema["PROMPT"], schema["TOP_K"]) == (5, "a # b", 3)
    assert schema.sources["SEED"] == f"{tmp_path / 'c'}:3"


# ---- dependencies and overrides --------------------------------------------------------------------------------------


def test_a_complete_file_does_not_pin_defaults(tmp_path):
    Schema().write(tmp_path / "c")
    schema = load(tmp_path / "c")
    assert schema.sources == {}
    assert schema["N_LAYER"] == 12
    schema.override([("MODEL_NAME", "gpt2-xl", "--model-name")])
    assert schema["N_LAYER"] == 48
    assert schema.provenance()["N_LAYER"] == {"value": "48", "source": "default"}


def test_an_override_may_take_the_meaning_from_a_file_but_not_from_another_override(tmp_path):
    (tmp_path / "c").write_text('CONFIG_OPTIMIZER_SGD=y\nCONFIG_SGD_MOMENTUM="0.5"\n')
    schema = load(tmp_path / "c")
    schema.override([("OPTIMIZER", "adam", "--optimizer")])
    assert schema["SGD_MOMENTUM"] is None
    schema = load(tmp_path / "c")
    with pytest.raises(ConfigError) as caught:
        schema.override([("OPTIMIZER", "adam", "--optimizer"), ("SGD_MOMENTUM", "0.6", "--sgd-momentum")])
    assert caught.value.problems == ["--sgd-momentum=0.6 has no effect: it needs OPTIMIZER=sgd"]


def test_the_order_of_overrides_does_not_matter(tmp_path):
    schema = Schema()
    schema.override([("SGD_MOMENTUM", "0.6", "a"), ("OPTIMIZER", "sgd", "b")])
    assert (schema["OPTIMIZER"], schema["SGD_MOMENTUM"]) == ("sgd", 0.6)


def test_overrides_that_name_no_option():
    with pytest.raises(ConfigError) as caught:
        Schema().override([("SEDE", "1", "SEDE=1"), ("seed", "1", "seed=1"), ("OPTIMIZER_SGD", "y", "OPTIMIZER_SGD=y")])
    assert caught.value.problems == [
        "SEDE=1: unknown option; did you mean SEED?",
        "seed=1: unknown option; did you mean SEED?",
        "OPTIMIZER_SGD=y is a value of OPTIMIZER; write OPTIMIZER=sgd",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["PRUNING_METHOD=magnitud", "TARGET_SPARSITY=0.5", "PRUNING_END=0.5"],
            "PRUNING_METHOD=magnitud must be one of none, magnitude, movement, state, gradient, wanda, random, "
            "str, grasp, synflow, sparsegpt, given, shrink; got 'magnitud'; did you mean magnitude?",
        ),
        (
            ["TARGET_SPARSITY=0.5", "PRUNING_METOD=magnitude"],
            "PRUNING_METOD=magnitude: unknown option; did you mean PRUNING_METHOD?",
        ),
        (
            ["PRUNING_METHOD_MAGNITUDE=y", "TARGET_SPARSITY=0.5"],
            "PRUNING_METHOD_MAGNITUDE=y is a value of PRUNING_METHOD; write PRUNING_METHOD=magnitude",
        ),
        (
            ["TARGET_SPARSITY=0.5", "PRUNING_METHOD=movement", "OPTIMIZER=sgd"],
            "PRUNING_METHOD=movement has no effect: it needs OPTIMIZER other than sgd or adam",
        ),
        (
            ["TARGET_SPARSITY=0.7", "PRUNING_METHOD=magnitude", "PRUNING_DISTRIBUTION=n-m"],
            "TARGET_SPARSITY=0.7 has no effect: it needs PRUNING_DISTRIBUTION other than n-m",
        ),
        (
            ["TARGET_SPARSITY=0.7"],
            "TARGET_SPARSITY=0.7 has no effect: it needs PRUNING_METHOD other than none, str, given or shrink",
        ),
    ],
    ids=["bad value", "unknown name", "name of a value", "without effect", "one of four", "without a method"],
)
def test_a_cause_and_what_follows_from_it_are_one_error(given, expected):
    with pytest.raises(ConfigError) as caught:
        Schema().override([(*word.split("="), word) for word in given])
    assert caught.value.problems == [expected]


def test_the_cause_may_be_in_a_file_and_what_follows_in_the_environment(tmp_path):
    (tmp_path / "c").write_text("CONFIG_PRUNING_METHOD_MAGNITUD=y\n")
    schema = Schema()
    with pytest.raises(ConfigError, match="unknown option PRUNING_METHOD_MAGNITUD"):
        schema.load(tmp_path / "c")
    schema.override([("TARGET_SPARSITY", "0.5", "environment CONFIG_TARGET_SPARSITY")])
    message = r"^environment CONFIG_MIN_LR=0.1 has no effect: it needs LR_SCHEDULE=cosine, linear, wsd or restarts$"
    with pytest.raises(ConfigError, match=message):
        schema.override([("LR_SCHEDULE", "constant", "x"), ("MIN_LR", "0.1", "environment CONFIG_MIN_LR")])


MOVING = """\
config SMALL
	bool "Small"
config LAYERS
	int "Layers"
	default 2
	range 1 4 if SMALL
	range 1 100
choice METHOD
	prompt "Method"
	default METHOD_NONE
config METHOD_NONE
	bool "none"
config METHOD_STATE
	bool "state"
	depends on !SMALL
endchoice
config SINK
	bool
menu "Sinks"
config SINK_FILE
	bool "file"
	select SINK
config SINK_NET
	bool "net"
	depends on !SMALL
	select SINK
endmenu
"""


@pytest.fixture
def moving(tmp_path):
    """A schema in which options move the ranges and members of others."""
    (tmp_path / "Kconfig").write_text(MOVING)
    return Schema(tmp_path / "Kconfig")


def test_a_value_that_an_override_makes_impossible_is_not_replaced_in_silence(moving, tmp_path):
    (tmp_path / "c").write_text("CONFIG_LAYERS=50\nCONFIG_METHOD_STATE=y\nCONFIG_SINK_NET=y\n")
    moving.load(tmp_path / "c")
    assert (moving["LAYERS"], moving["METHOD"], moving["SINK"]) == (50, "state", ("net",))
    with pytest.raises(ConfigError) as caught:
        moving.override([("SMALL", "y", "--small")])
    assert [problem.replace(str(tmp_path), "") for problem in caught.value.problems] == [
        "/c:1: LAYERS must lie between 1 and 4; got 50",
        "/c:2: METHOD=state has no effect: it needs not SMALL",
        "/c:3: SINK=net has no effect: it needs not SMALL",
    ]


def test_a_fragment_that_makes_a_value_impossible_is_told_too(moving, tmp_path):
    (tmp_path / "a").write_text("CONFIG_LAYERS=50\n")
    (tmp_path / "b").write_text("CONFIG_SMALL=y\n")
    moving.load(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"a:1: LAYERS must lie between 1 and 4; got 50$"):
        moving.load(tmp_path / "b")


def test_fragments_merge_and_the_last_one_wins(tmp_path):
    (tmp_path / "a").write_text("CONFIG_SEED=1\nCONFIG_TRACKER_WANDB=y\nCONFIG_TOP_K=9\n")
    (tmp_path / "b").write_text("CONFIG_SEED=2\nCONFIG_TRACKER_TRACKIO=y\n")
    schema = load(tmp_path / "b", schema=load(tmp_path / "a"))
    assert (schema["SEED"], schema["TRACKER"], schema["TOP_K"]) == (2, ("trackio", "wandb"), 9)


def test_an_old_name_is_read_as_the_new_one_and_said(moving, tmp_path):
    (tmp_path / "Kconfig.renames").write_text("# why\n\nDEPTH LAYERS\nSINK_WEB SINK_NET\n")
    schema = Schema(tmp_path / "Kconfig")
    (tmp_path / "c").write_text("CONFIG_DEPTH=5\nCONFIG_SINK_WEB=y\n")
    schema.load(tmp_path / "c")
    assert (schema["LAYERS"], schema["SINK"]) == (5, ("net",))
    assert schema.warnings == [
        f"{tmp_path / 'c'}:1: DEPTH is now called LAYERS",
        f"{tmp_path / 'c'}:2: SINK_WEB is now called SINK_NET",
    ]
    schema.override([("DEPTH", "6", "DEPTH=6")])
    assert schema["LAYERS"] == 6


def test_the_bool_that_became_a_choice_is_read_as_its_value_and_said(tmp_path):
    for line, value in (("CONFIG_DECAY_LR=y", "cosine"), ("# CONFIG_DECAY_LR is not set", "constant")):
        (tmp_path / "c").write_text(f"{line}\n")
        schema = load(tmp_path / "c")
        assert schema["LR_SCHEDULE"] == value
        note = f"{tmp_path / 'c'}:1: DECAY_LR is now called LR_SCHEDULE; its value is read as {value}"
        assert schema.warnings == [note]
        schema.write(tmp_path / "c")
        assert load(tmp_path / "c")["LR_SCHEDULE"] == value
    schema.override([("DECAY_LR", "Y", "DECAY_LR=Y")])
    assert schema["LR_SCHEDULE"] == "cosine"
    with pytest.raises(ConfigError, match=r"^DECAY_LR=1: DECAY_LR must be y or n; got '1'$"):
        schema.override([("DECAY_LR", "1", "DECAY_LR=1")])


def test_no_old_name_is_still_an_option():
    assert not [old for old in SCHEMA.renames if old in SCHEMA.options or old in SCHEMA.parts]
    assert not [new for new, _ in SCHEMA.renames.values() if new not in SCHEMA.options and new not in SCHEMA.parts]


# ---- reading and writing ---------------------------------------------------------------------------------------------


def test_bind_gives_a_dataclass_its_values():
    @dataclass(frozen=True)
    class Small(Options):
        seed: int
        optimizer: str
        sgd_momentum: float | None

    assert Schema().bind(Small) == Small(seed=1337, optimizer="adamw", sgd_momentum=None)


def test_written_files(tmp_path):
    schema = Schema()
    schema.override([("OPTIMIZER", "sgd", "a"), ("TRACKER", "all", "b"), ("PROMPT", 'say "hi" \\ bye', "c")])
    schema.write(tmp_path / "min", minimal=True)
    assert (tmp_path / "min").read_text() == (
        "# Espalier configuration, what differs from the defaults\n"
        "CONFIG_OPTIMIZER_SGD=y\nCONFIG_TRACKER_ALL=y\n"
        'CONFIG_PROMPT="say \\"hi\\" \\\\ bye"\n'
    )
    assert load(tmp_path / "min").values() == schema.values()
    assert [path.name for path in tmp_path.iterdir()] == ["min"]


def test_the_old_file_is_kept_when_it_changes(tmp_path):
    path, schema = tmp_path / "c", Schema()
    schema.write(path, keep_old=True)
    schema.write(path, keep_old=True)
    assert not (tmp_path / "c.old").exists()
    before = path.read_text()
    schema.override([("SEED", "5", "a")])
    schema.write(path, keep_old=True)
    assert (tmp_path / "c.old").read_text() == before
    assert "CONFIG_SEED=5\n" in path.read_text()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"x/c: cannot be written: No such file or directory$"):
        Schema().write(tmp_path / "x" / "c")
    with pytest.raises(UserError, match=r"cannot be written: Is a directory$"):
        Schema().write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("variable", ["srctree", "CONFIG_", "KCONFIG_STRICT", "KCONFIG_CONFIG_HEADER"])
def test_the_environment_of_kconfig_does_not_reach_us(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, {"srctree": str(ROOT), "KCONFIG_STRICT": "y"}.get(variable, "X_"))
    schema = Schema()
    schema.override([("SEED", "5", "a")])
    schema.write(tmp_path / "c")
    assert "CONFIG_SEED=5\n" in (tmp_path / "c").read_text()
    assert (tmp_path / "c").read_text().startswith("# Espalier configuration, complete\n\n")
    assert load(tmp_path / "c")["SEED"] == 5
    assert schema.place(schema.options["BLOCK_SIZE"]).startswith("gpt2/Kconfig:")


@pytest.mark.parametrize("minimal", [False, True])
def test_300_random_configurations_are_read_back_as_they_were_written(tmp_path, minimal):
    for seed in range(300):
        SCHEMA.clear(), OTHER.clear()
        randomise(SCHEMA, random.Random(seed))
        SCHEMA.write(tmp_path / "c", minimal=minimal)
        OTHER.load(tmp_path / "c")
        assert OTHER.values() == SCHEMA.values(), f"seed {seed}"


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


@given(TEXTS, TEXTS)
def test_texts_are_read_back_as_they_were_written(tmp_path_factory, prompt, project):
    path = tmp_path_factory.getbasetemp() / "texts"
    SCHEMA.clear(), OTHER.clear()
    SCHEMA.override([("PROMPT", prompt, "a"), ("TRACKER_PROJECT", project, "b")])
    SCHEMA.write(path)
    OTHER.load(path)
    assert (OTHER["PROMPT"], OTHER["TRACKER_PROJECT"]) == (prompt, project)


# ---- anything at all -------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([*SCHEMA.options, *SCHEMA.parts, "TRACKER", "NOPE"])
VALUES = st.one_of(
    st.sampled_from(["y", "n", "0", "1", "12", '"0.5"', '"0"', '"a b"', '""', "m", "-1", "1e-3", '"sgd"']),
    st.text(max_size=8),
    st.floats().map(lambda number: f'"{number!r}"'),
    st.integers().map(str),
)
ASSIGNMENTS = st.tuples(NAMES, VALUES)
LINES = st.one_of(
    ASSIGNMENTS.map(lambda pair: f"CONFIG_{pair[0]}={pair[1]}"),
    NAMES.map(lambda name: f"# CONFIG_{name} is not set"),
    st.text(max_size=30),
)


def meant(name, raw):
    """What a line that was accepted says, read independently of the code under test."""
    option = SCHEMA.options[name]
    if option.kind == "bool":
        return raw.strip() == "y"
    if option.kind == "int":
        return int(raw)
    text = raw.strip()[1:-1]
    return float(text) if option.kind == "float" else text.replace('\\"', '"').replace("\\\\", "\\")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_mean_nothing(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    OTHER.clear()
    try:
        OTHER.load(path)
    except ConfigError:
        return
    assert not OTHER.differing()


@settings(max_examples=400)
@given(st.lists(LINES, max_size=6))
def test_an_accepted_file_means_what_it_says(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    OTHER.clear()
    try:
        OTHER.load(path)
    except ConfigError as error:
        assert error.problems
        return
    for line in path.read_text().split("\n"):
        name, equals, raw = line.rstrip().removeprefix("CONFIG_").partition("=")
        if not line.startswith("CONFIG_") or not equals:
            continue
        if name in OTHER.parts:
            option, member = OTHER.parts[name]
            assert (member in (option.value if option.kind == "set" else (option.value,))) == (raw == "y")
        elif name != "TRACKER":
            assert OTHER[name] == meant(name, raw)


def test_the_repository_may_lie_in_a_folder_whose_name_is_a_pattern(tmp_path):
    root = tmp_path / "a [b]* c?"
    for path in (ROOT / "Kconfig", *ROOT.glob("*/Kconfig"), *ROOT.glob("*/*/Kconfig")):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    schema = Schema(root / "Kconfig")
    assert list(schema.options) == list(Schema().options)
    assert schema.place(schema.options["OPTIMIZER"]).startswith("lib/optim/Kconfig:")


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfCONFIG_MAX_ITERS=30\r\nCONFIG_SEED=3\r\n")
    schema = load(tmp_path / "bom")
    assert (schema["MAX_ITERS"], schema["SEED"]) == (30, 3)
    schema.write(tmp_path / "bom", keep_old=True)
    assert (tmp_path / "bom").read_bytes().startswith(b"# Espalier")
