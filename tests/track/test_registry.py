"""Which trackers there are: members of the option, Accelerate's, and plug-ins, good and bad."""

import re
import subprocess
import sys
import textwrap

import pytest

from lib import track
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.track import accelerate, registry
from tests.training import ROOT


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package with trackers: entry points name -> object, and the source of its module `another`."""

    def install(source, **entries):
        (tmp_path / "another.py").write_text(textwrap.dedent(source))
        info = tmp_path / "another-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
        lines = [f"{name} = {where}" for name, where in entries.items()]
        (info / "entry_points.txt").write_text("[espalier.trackers]\n" + "\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "another", raising=False)

    return install


def names(*wanted):
    with pytest.raises(UsageError) as caught:
        track.names(wanted)
    return str(caught.value)


def test_a_plug_in_is_a_tracker_and_one_of_all(package):
    package("class Mine: pass", mine="another:Mine")
    assert track.names(["mine", "csv"]) == ["mine", "csv"]
    assert {"mine", "csv", "trackio", "wandb"} <= set(track.names(["all"]))
    assert registry.tracker_class("mine").__name__ == "Mine"


def test_a_plug_in_is_not_imported_by_the_trainer(package):
    package("raise SystemExit(0)", mine="another:Mine")
    assert track.names(["mine"]) == ["mine"]
    assert registry.along(["mine", "csv"], {}, ROOT) == ["mine", "csv"]


@pytest.mark.parametrize(
    "value",
    ["https://user:secret@host/path", "https://u:p@ss@host", "http://host/?write_token=abc", "s3://x?api_key=1"],
)
def test_an_option_that_holds_a_password_is_refused(value):
    schema = Schema()
    with pytest.raises(UsageError, match=r"^a: MLFLOW_TRACKING_URI holds a password or token, which") as caught:
        schema.override([("TRACKER", "mlflow", "a"), ("MLFLOW_TRACKING_URI", value, "a")])
    assert "secret" not in str(caught.value)


def test_addresses_and_prompts_without_a_password_are_fine():
    schema = Schema()
    given = {"TRACKER": "mlflow", "MLFLOW_TRACKING_URI": "http://host:5000/x", "PROMPT": "what? key=1: a & b"}
    schema.override([(name, value, "a") for name, value in given.items()])
    assert {name: schema.options[name].text for name in given} == given


def test_a_plug_in_does_not_take_the_place_of_a_tracker_of_ours(package):
    package("class Mine: pass", csv="another:Mine")
    assert registry.tracker_class("csv").__module__ == "lib.track.csv"


def test_what_is_no_tracker_is_one_sentence():
    assert names("tensorbard") == "tracker tensorbard does not exist; did you mean tensorboard?"
    assert names("csv:x") == "tracker csv:x: csv takes no argument after a colon"
    assert names("accelerate:cometml").startswith("tracker accelerate:cometml does not exist; write accelerate")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("comet_ml", "comet_ml"),
        ("comet", "comet_ml"),
        ("CometML", "comet_ml"),
        ("clearml", "clearml"),
        ("dvclive", "dvclive"),
        ("dvc", "dvclive"),
        ("swanlab", "swanlab"),
        ("aim", "aim"),
    ],
)
def test_a_tracker_of_accelerate_without_the_prefix_is_named_with_its_packages(given, meant):
    hint = rf"did you mean accelerate:{meant} \(pip install accelerate==1\.15\.0 {meant}\)\?$"
    with pytest.raises(UsageError, match=rf"^--tracker takes none, .*; got '{given}'; {hint}"):
        Schema().override([("TRACKER", given, "--tracker")])


def test_the_help_of_the_option_lists_every_tracker_of_accelerate_with_its_packages():
    listed = re.findall(r"^- accelerate:(\S+): pip install (.+)$", Schema().options["TRACKER"].help, re.MULTILINE)
    names = set(accelerate.ARGUMENT) - {"tensorboard"}  # the tracker tensorboard is better
    packages = " ".join(registry.requirements("accelerate", "accelerate"))
    assert dict(listed) == {name: f"{packages} {name}" for name in names}


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    """A folder with the name of the package, such as the one that wandb creates, is not the package."""
    (tmp_path / "wandb").mkdir()
    import kconfiglib

    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "kconfiglib.py").symlink_to(kconfiglib.__file__)
    code = f"import sys; sys.path.append({str(tmp_path / 'only')!r}); from lib import track; track.names(['wandb'])"
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    wanted = f"tracker wandb: package wandb is not installed; run: {sys.executable} -m pip install wandb==0.31.0"
    assert wanted in done.stderr
