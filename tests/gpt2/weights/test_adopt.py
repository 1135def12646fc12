"""INIT_FROM gives a configuration its shape, activation and tokenizer: what is passed over, cut, or an error."""

import re
from pathlib import Path

import pytest

from gpt2.weights.adopt import adopt, follow
from gpt2.weights.source import Shape, Source
from lib.base.errors import UsageError
from lib.config import command_line
from lib.config.config_file import presets

GPT2, MEDIUM = Shape(12, 12, 768, 1024, 50257), Shape(24, 16, 1024, 1024, 50304)
SMALL = Shape(2, 4, 32, 64, 256)


def resolve(folder, *words, config="", **env):
    """A configuration as a program gets it."""
    (folder / "config").write_text(config)
    return command_line.resolve("", ["--config", str(folder / "config"), *words, "INIT_FROM=it"], env)[0]


def finder(shape, tokenizer, activation="gelu-tanh"):
    """Stands in for `source.find`, and checks what it is asked for."""

    def find(given, output_dir):
        assert (given, output_dir) == ("it", "runs")
        return Source(given, "run", Path("it"), shape, tokenizer, activation, "", 0, {})

    return find


def shape_of(schema):
    names = ("MODEL_NAME", "N_LAYER", "N_HEAD", "N_EMBD", "BLOCK_SIZE", "TOKENIZER")
    return tuple(schema[name] for name in names)


@pytest.mark.parametrize(
    ("shape", "tokenizer", "expected"),
    [
        (GPT2, "gpt2", ("gpt2", 12, 12, 768, 1024, "gpt2")),
        (MEDIUM, "gpt2", ("gpt2-medium", 24, 16, 1024, 1024, "gpt2")),
        (SMALL, "bytes", ("custom", 2, 4, 32, 64, "bytes")),
        (Shape(24, 16, 512, 2048, 256), "bytes", ("custom", 24, 16, 512, 2048, "bytes")),  # medium's layers and heads
    ],
)
@pytest.mark.parametrize("before", ["", "CONFIG_MODEL_NAME_GPT2_MEDIUM=y\n", "CONFIG_MODEL_NAME_GPT2_XL=y\n"])
def test_the_shape_is_that_of_the_weights(folder, shape, tokenizer, expected, before):
    schema = resolve(folder, config=before)
    found = adopt(schema, finder(shape, tokenizer))
    assert found.shape == shape
    assert shape_of(schema) == expected
    schema.write(folder / "written")  # as a run keeps it: a resume reads the same values
    assert shape_of(command_line.resolve("", ["--config", "written"], {})[0]) == expected


def test_values_from_files_are_replaced_with_one_note(folder):
    config = "CONFIG_MODEL_NAME_CUSTOM=y\nCONFIG_N_LAYER=3\nCONFIG_N_HEAD=4\nCONFIG_N_EMBD=96\nCONFIG_BLOCK_SIZE=128\n"
    schema = resolve(folder, config=config)
    adopt(schema, finder(SMALL, "bytes"))
    assert shape_of(schema) == ("custom", 2, 4, 32, 64, "bytes")
    place = folder / "config"
    assert schema.warnings == [
        f"INIT_FROM=it decides shape, activation and tokenizer, so it replaces N_LAYER=3 ({place}:2), N_EMBD=96 "
        f"({place}:4), BLOCK_SIZE=128 ({place}:5)"
    ]
    assert schema.provenance()["N_EMBD"] == {"value": "32", "source": "INIT_FROM=it"}
    assert schema.provenance()["N_HEAD"] == {"value": "4", "source": f"{place}:3"}

    schema = resolve(folder, config=config)
    adopt(schema, finder(GPT2, "gpt2"))
    assert shape_of(schema) == ("gpt2", 12, 12, 768, 1024, "gpt2")
    replaced = (
        f"INIT_FROM=it decides shape, activation and tokenizer, so it replaces MODEL_NAME=custom ({place}:1), "
        f"N_LAYER=3 ({place}:2), N_HEAD=4 ({place}:3), N_EMBD=96 ({place}:4)"
    )
    assert schema.warnings == [f"{replaced}, BLOCK_SIZE=128 ({place}:5)"]

    schema = resolve(folder, "BLOCK_SIZE=256", config=config)
    adopt(schema, finder(GPT2, "gpt2"))
    assert shape_of(schema) == ("gpt2", 12, 12, 768, 256, "gpt2")
    assert schema.warnings == [f"{replaced}, and BLOCK_SIZE=256 keeps the first of its 1,024 positions"]


def test_values_that_the_user_gave_and_that_differ_are_errors_with_both(folder):
    words = ["MODEL_NAME=custom", "N_LAYER=3", "--n-embd", "96", "BLOCK_SIZE=128", "N_HEAD=4"]
    schema = resolve(folder, *words, CONFIG_TOKENIZER="gpt2")
    with pytest.raises(UsageError) as caught:
        adopt(schema, finder(SMALL, "bytes"))
    assert list(caught.value.args) == [
        "N_LAYER=3 does not fit INIT_FROM=it, which has 2; leave it out",
        "--n-embd=96 does not fit INIT_FROM=it, which has 32; leave it out",
        "BLOCK_SIZE=128 does not fit INIT_FROM=it, which has 64; leave it out, or give at most that number",
        "environment CONFIG_TOKENIZER=gpt2 does not fit INIT_FROM=it, which has bytes; leave it out",
    ]
    with pytest.raises(
        UsageError, match=r"^MODEL_NAME=gpt2-xl does not fit INIT_FROM=it, which has gpt2; leave it out"
    ):
        adopt(resolve(folder, "MODEL_NAME=gpt2-xl"), finder(GPT2, "gpt2"))


def test_equal_values_and_custom_are_no_errors(folder):
    words = ["MODEL_NAME=custom", "N_LAYER=12", "N_HEAD=12", "N_EMBD=768", "TOKENIZER=gpt2"]
    schema = resolve(folder, *words)
    adopt(schema, finder(GPT2, "gpt2"))
    assert shape_of(schema) == ("custom", 12, 12, 768, 1024, "gpt2")
    assert schema.warnings == []


@pytest.mark.parametrize(
    ("words", "env"), [(["BLOCK_SIZE=16"], {}), (["--block-size", "16"], {}), ([], {"CONFIG_BLOCK_SIZE": "16"})]
)
def test_a_smaller_block_size_that_the_user_gave_cuts_positions(folder, words, env):
    schema = resolve(folder, *words, config="CONFIG_BLOCK_SIZE=32\n", **env)
    adopt(schema, finder(SMALL, "bytes"))
    assert shape_of(schema) == ("custom", 2, 4, 32, 16, "bytes")
    assert schema.warnings == ["INIT_FROM=it: BLOCK_SIZE=16 keeps the first of its 64 positions"]


def test_the_default_cuts_if_the_user_gave_it(folder):
    schema = resolve(folder, "BLOCK_SIZE=1024")
    adopt(schema, finder(Shape(2, 4, 32, 2048, 256), "bytes"))
    assert shape_of(schema) == ("custom", 2, 4, 32, 1024, "bytes")


@pytest.mark.parametrize("preset", ["gpt2_tiny", "gpt2_shakespeare"])
def test_a_block_size_of_a_file_cuts_nothing(folder, preset):
    """Presets have 64 and 128 positions."""
    schema = resolve(folder, config=presets()[preset].read_text())
    adopt(schema, finder(GPT2, "gpt2"))
    assert shape_of(schema) == ("gpt2", 12, 12, 768, 1024, "gpt2")
    [note] = schema.warnings
    assert re.search(rf"BLOCK_SIZE=(64|128) \({folder / 'config'}:\d+\)", note) and "keeps the first" not in note


def test_the_activation_is_that_of_the_weights(folder):
    schema = resolve(folder)
    adopt(schema, finder(SMALL, "bytes", "gelu"))
    assert schema["ACTIVATION"] == "gelu"
    assert schema.warnings == []

    schema = resolve(folder, config="CONFIG_ACTIVATION_GELU=y\n")
    adopt(schema, finder(SMALL, "bytes", "gelu-tanh"))
    assert schema["ACTIVATION"] == "gelu-tanh"
    assert schema.warnings == [
        f"INIT_FROM=it decides shape, activation and tokenizer, so it replaces ACTIVATION=gelu ({folder / 'config'}:1)"
    ]
    with pytest.raises(UsageError, match=r"^--activation=gelu-tanh does not fit INIT_FROM=it, which has gelu; leave"):
        adopt(resolve(folder, "--activation", "gelu-tanh"), finder(SMALL, "bytes", "gelu"))


def test_a_vocabulary_of_no_tokenizer_is_an_error(folder):
    sentence = (
        "^it: its vocabulary of 32,000 tokens fits no tokenizer here: gpt2 has 50,257 and bytes has 256; start from "
        "other weights$"
    )
    with pytest.raises(UsageError, match=sentence):
        adopt(resolve(folder), finder(Shape(2, 4, 32, 64, 32000), ""))


def test_without_init_from_nothing_changes(folder):
    schema = resolve(folder)
    schema.override([("INIT_FROM", "", "test")])
    before = schema.provenance()
    assert adopt(schema) is None
    assert schema.provenance() == before


def test_a_job_that_began_a_run_follows_it_without_the_weights(folder):
    schema = resolve(folder)
    adopt(schema, finder(SMALL, "bytes"))
    schema.write(folder / ".config")
    again = resolve(folder, "N_HEAD=2", config="CONFIG_MODEL_NAME_CUSTOM=y\n")
    follow(again, folder)
    assert shape_of(again) == ("custom", 2, 2, 32, 64, "bytes")  # N_HEAD is the user's, so that it is compared
    other = resolve(folder, "INIT_FROM=other")
    other.override([("INIT_FROM", "other", "test")])
    follow(other, folder)
    assert shape_of(other) == ("gpt2", 12, 12, 768, 1024, "gpt2")
