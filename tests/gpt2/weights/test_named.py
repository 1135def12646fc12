"""What a name means is found without PyTorch and without a server, and what is nothing is one sentence."""

import pytest

from gpt2.weights import named
from lib.base.errors import UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run that has no checkpoint, and a folder and a file that are no runs."""
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/run.json").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "masks.safetensors").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("given", ["gpt2", "gpt2-xl@main", "owner/name", "owner/name@main", "model", "runs"])
def test_what_is_here_or_may_be_on_the_hub(here, given):
    named.check(given, "runs")
    named.check_masks(given, "runs")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("./x", "x: there is no such run, folder or file; check the name"),
        ("a/b/c", "a/b/c: there is no such run, folder or file; check the name"),
        ("runs/on", "runs/on: there is no such run, folder or file; did you mean one?"),
        ("zzz", "zzz: there is no run, folder or file of this name; check it, or give OWNER/NAME of a model on the "
         "Hugging Face hub"),
        ("@20", "@20: lacks a run before the @, as in runs/name@200"),
        ("one", "runs/one: this run has no checkpoint yet; continue with make resume RUN=runs/one"),
        ("runs/one", "runs/one: this run has no checkpoint yet; continue with make resume RUN=runs/one"),
        ("runs/one@5", "runs/one: this run has no checkpoint yet; continue with make resume RUN=runs/one"),
    ],
)  # fmt: skip
def test_what_is_nothing(here, given, sentence):
    for check in (named.check, named.check_masks):
        with pytest.raises(UsageError) as caught:
            check(given, "runs")
        assert str(caught.value) == sentence


def test_a_file_of_masks_must_be_here(here):
    named.check_masks("masks.safetensors", "runs")
    with pytest.raises(UsageError, match=r"^other\.safetensors: there is no such file; check the name$"):
        named.check_masks("other.safetensors", "runs")


def test_what_would_be_in_the_folder_of_runs_is_asked_of_no_hub(here):
    with pytest.raises(UsageError, match=r"^made/on: there is no such run, folder or file; check the name$"):
        named.check("made/on", "made")
    named.check("made/on", "runs")
