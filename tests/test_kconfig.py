"""Kconfig and the code agree: each option is read, each field is an option, each preset says what it really sets."""

import ast
import importlib
import importlib.util
import pkgutil
import re
import typing

import kconfiglib
import pytest

import gpt2
import lib
from lib.config.kconf import ROOT, Options, Schema

SCHEMA = Schema()
KCONFIG_FILES = sorted(
    path for path in ROOT.rglob("Kconfig") if path.relative_to(ROOT).parts[0] in ("Kconfig", "gpt2", "lib")
)
PRESETS = sorted((ROOT / "defconfigs").glob("gpt2_*_defconfig"))  # a user may have added others
SOURCES = sorted(path for package in ("lib", "gpt2", "scripts", "bench") for path in (ROOT / package).rglob("*.py"))
PLUGINS = (
    "lib.optim.",
    "lib.prune.score.",
    "lib.schedule.",
    "lib.track.",
)  # bound only when chosen: their options are never None
PROGRAMS = {"lib.track.__main__"}  # a module that is run, not imported


# These import Accelerate at their top: scripts that use Accelerate import them.
OPTIONAL = set() if importlib.util.find_spec("accelerate") else {"lib.espalier_tracker", "lib.track.espalier_tracker"}
if not importlib.util.find_spec("trl"):
    OPTIONAL |= {f"gpt2.finetune.{name}" for name in ("trainers", "run", "start")}


def modules():
    """Every module of the packages lib and gpt2 that can be imported here."""
    names = [m.name for p in (lib, gpt2) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    return [importlib.import_module(name) for name in names if name not in PROGRAMS | OPTIONAL]


@pytest.fixture(scope="module")
def classes():
    """Every dataclass in which a module declares the options that it reads."""
    modules()
    found, waiting = [], [Options]
    while waiting:
        waiting += (subclasses := waiting.pop().__subclasses__())
        found += [cls for cls in subclasses if cls.__module__.split(".")[0] in ("lib", "gpt2")]
    return found


# ---- options and fields ----------------------------------------------------------------------------------------------


def test_every_option_is_read_by_a_field(classes):
    fields = {name for cls in classes for name in typing.get_type_hints(cls)}
    assert sorted(name for name in SCHEMA.options if name.lower() not in fields) == []


def test_every_field_is_an_option_of_its_type(classes):
    types = {"bool": bool, "int": int, "float": float, "str": str, "choice": str, "set": tuple[str, ...]}
    wrong = []
    for cls in classes:
        for name, declared in typing.get_type_hints(cls).items():
            option = SCHEMA.options.get(name.upper())
            if option is None:
                wrong.append(f"{cls.__name__}.{name} is no option")
                continue
            expected = types[option.kind]
            if option.item.direct_dep is not SCHEMA.kconf.y:
                expected |= None  # while what it depends on is not chosen
            if cls.__module__.startswith(PLUGINS) and declared == types[option.kind]:
                continue
            if declared != expected:
                wrong.append(f"{cls.__name__}.{name} is declared {declared}, the option is {expected}")
    assert wrong == []


def test_defaults_are_only_in_kconfig(classes):
    assert [
        f"{cls.__name__}.{name}" for cls in classes for name in typing.get_type_hints(cls) if name in vars(cls)
    ] == []
    assert [cls.__name__ for cls in classes if not cls.__dataclass_params__.frozen] == []


def test_every_field_is_used(classes):
    """By an attribute access of its name outside of the class that declares it (a class body only annotates it)."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    used = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert sorted({name for cls in classes for name in typing.get_type_hints(cls)} - used) == []


def test_every_value_of_a_choice_has_its_code():
    for value in SCHEMA.options["OPTIMIZER"].members:
        importlib.import_module(f"lib.optim.{value.replace('-', '_')}")
    models = importlib.import_module("gpt2.model")
    assert models.ACTIVATIONS.keys() == SCHEMA.options["ACTIVATION"].members.keys()
    for value in SCHEMA.options["LR_SCHEDULE"].members:
        importlib.import_module(f"lib.schedule.{value.replace('-', '_')}")
    # Not criteria of training: none, masks that exist already, and what only make oneshot does.
    for value in SCHEMA.options["PRUNING_METHOD"].members.keys() - {"none", "given", "shrink", "sparsegpt"}:
        importlib.import_module(f"lib.prune.score.{value.replace('-', '_')}")
    for value in SCHEMA.options["TRACKER"].members.keys() - {"all"}:
        importlib.import_module(f"lib.track.{value.replace('-', '_')}")
    corpora = importlib.import_module("gpt2.data.corpora")
    for value in SCHEMA.options["DATASET"].members:
        assert value == "bins" or callable(getattr(corpora, value.replace("-", "_"), None)), value


# ---- Kconfig ---------------------------------------------------------------------------------------------------------


def test_kconfig_parses_without_warnings_but_for_the_floats():
    kconf = kconfiglib.Kconfig(str(ROOT / "Kconfig"), warn_to_stderr=False)
    floats = [option.name for option in SCHEMA.options.values() if option.kind == "float"]
    assert len(kconf.warnings) == len(floats)
    assert all("has ranges, but is not int or hex" in warning for warning in kconf.warnings)


def test_every_option_has_one_definition_a_prompt_and_a_help_text():
    for option in SCHEMA.options.values():
        assert len(option.item.nodes) == 1, f"{option.name} is defined twice"
        assert option.help.strip(), f"{option.name} has no help"
        assert len(option.help) > 20, f"{option.name}: {option.help}"
        prompts = [option.prompt, *(symbol.nodes[0].prompt[0] for symbol in option.members.values())]
        assert all(0 < len(prompt) <= 70 for prompt in prompts), option.name
    for symbol in SCHEMA.kconf.unique_defined_syms:
        assert len(symbol.nodes) == 1, f"{symbol.name} is defined twice"
        known = symbol.name in SCHEMA.options or symbol.name in SCHEMA.parts
        assert known, f"{symbol.name} is neither an option nor a value of one"


def test_every_default_is_allowed():
    for option in SCHEMA.options.values():
        if option.kind in ("choice", "set"):
            continue
        assert option.node.orig_defaults, f"{option.name} has no default"
        for value, _ in option.node.orig_defaults:
            assert option.complaint(value.str_value) is None, option.name


def test_the_last_default_of_an_option_is_unconditional():
    for option in SCHEMA.options.values():
        if option.kind not in ("choice", "set"):
            assert option.node.orig_defaults[-1][1] is SCHEMA.kconf.y, option.name


def test_no_expression_compares_a_number_or_a_text():
    """Kconfig compares strings letter by letter: "6e-4" < "1e-3" is false."""
    compared = {kconfiglib.EQUAL, kconfiglib.UNEQUAL, kconfiglib.LESS, kconfiglib.LESS_EQUAL}
    compared |= {kconfiglib.GREATER, kconfiglib.GREATER_EQUAL}

    def walk(expression):
        if isinstance(expression, tuple):
            assert expression[0] not in compared, kconfiglib.expr_str(expression)
            for part in expression[1:]:
                walk(part)
        elif isinstance(expression, kconfiglib.Symbol) and not expression.is_constant:
            assert expression.orig_type == kconfiglib.BOOL, expression.name

    for node in SCHEMA.kconf.node_iter():
        walk(node.dep)
        for _, condition in (*node.orig_defaults, *node.orig_selects, *(r[1:] for r in node.orig_ranges)):
            walk(condition)


def test_kconfig_runs_no_programs():
    assert [path.name for path in KCONFIG_FILES if "$(" in path.read_text(encoding="utf-8")] == []


# ---- presets ---------------------------------------------------------------------------------------------------------


def assignments(text):
    return [line for line in text.splitlines() if line.strip() and not re.match(r"#(?! CONFIG_\w+ is not set)", line)]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_is_clean_and_minimal(path, tmp_path):
    schema = Schema()
    schema.load(path)
    assert schema.warnings == []
    schema.write(tmp_path / "minimal", minimal=True)
    assert assignments(path.read_text()) == assignments((tmp_path / "minimal").read_text())
    assert 0 < len(assignments(path.read_text())) <= 15


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_says_how_to_run_it_and_what_to_expect(path):
    header = re.match(r"(#.*\n)*", path.read_text())[0]
    facts = dict(re.findall(r"^# (command|device|time|val loss): (.+)$", header, re.MULTILINE))
    assert list(facts) == ["command", "device", "time", "val loss"]
    assert facts["command"].startswith(f"make {path.name} && make train")
    assert re.search(r"GPU|CPU", facts["device"])
    assert re.search(r"\d", facts["time"])
    assert re.fullmatch(r"\d\.\d+ nats per (byte|token).*|not measured.*", facts["val loss"])


def test_the_presets_exist():
    expected = {"gpt2_tiny", "gpt2_shakespeare", "gpt2_124m_finewebedu", "gpt2_124m_openwebtext"}
    assert expected <= {path.name.removesuffix("_defconfig") for path in PRESETS}
