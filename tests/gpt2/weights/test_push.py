"""Uploading: huggingface_hub itself sends to a local stand-in for the hub, whose content is read back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.weights import push
from lib.base.errors import UsageError, UserError
from tests.gpt2.weights.upload_hub import TOKEN, Hub, serve
from tests.training import ROOT

# Pushes each folder that a line names. huggingface_hub reads its variables when it is imported, so it has a process.
PUSH = """
import json, sys
from pathlib import Path
from gpt2.weights import push
from lib.base.errors import UserError
for line in sys.stdin:
    folder, is_private = json.loads(line)
    try:
        print(json.dumps(["pushed", push.push(Path(folder), "me/model", is_private)]), flush=True)
    except UserError as error:
        print(json.dumps(["error", str(error)]), flush=True)
"""
FILES = {"README.md": b"---\nlicense: mit\n---\n", "config.json": b"{}\n", "model.safetensors": bytes(range(256)) * 40}


def start(hub: Hub, home: Path) -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= hub.environment(str(home)) | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", PUSH], env=env, text=True, **pipes)


def ask(process: subprocess.Popen, model: Path, is_private: bool = True) -> list[str]:
    process.stdin.write(json.dumps([str(model), is_private]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def end(process: subprocess.Popen) -> None:
    """The process has printed nothing else, neither a warning nor a bar nor the token."""
    assert process.communicate(timeout=60) == ("", "")


@pytest.fixture
def model(folder):
    (folder / "model").mkdir()
    for name, content in FILES.items():
        (folder / "model" / name).write_bytes(content)
    return folder / "model"


def test_all_files_come_as_one_commit_and_refusals_are_one_sentence(model):
    """In one process, because its start takes most of the time."""
    with serve() as hub:
        process = start(hub, model.parent / "home")
        for part, status, words, advice in (
            ("/repos/create", 401, "401 Unauthorized", "check the token"),
            ("/preupload/", 403, "403 Forbidden", "use a token that may write there"),
            ("/storage/", 403, "403 Forbidden", "use a token that may write there"),
            ("/commit/", 404, "404", "check the name, and that the token may write there"),
            ("/commit/", 422, "422", "try again with the same command"),
        ):
            hub.refuse = {part: status}
            how, text = ask(process, model)
            assert how == "error" and text.startswith("PUSH=me/model: not uploaded (") and words in text
            assert text.endswith(f"); {model} stays as it is; {advice}")
            assert "\n" not in text and TOKEN not in text
            assert {path.name: path.read_bytes() for path in model.iterdir()} == FILES
        assert hub.commits == []

        hub.refuse, hub.repositories = {}, {}
        assert ask(process, model) == ["pushed", f"{hub.address}/me/model"]
        assert hub.repositories == {"me/model": "private"}
        assert hub.commits == [FILES]

        # A later push replaces files, and deletes the masks of an earlier model. The repository stays private.
        (model / "masks.safetensors").write_bytes(b"masks" * 100)
        assert ask(process, model, is_private=False)[0] == "pushed"
        (model / "masks.safetensors").unlink()
        (model / "config.json").write_bytes(b"{1}\n")
        assert ask(process, model)[0] == "pushed"
        assert hub.repositories == {"me/model": "private"}
        assert hub.commits[1:] == [
            {**FILES, "masks.safetensors": b"masks" * 100},
            {**FILES, "config.json": b"{1}\n", "masks.safetensors": None},
        ]
        assert hub.tokens == {f"Bearer {TOKEN}"}
        end(process)


def test_a_hub_that_is_not_reached_is_one_sentence(model):
    with serve() as hub:
        pass  # it has gone
    process = start(hub, model.parent / "home")
    how, text = ask(process, model)
    assert (how, "\n" in text) == ("error", False)
    assert "Connection refused" in text and text.endswith("stays as it is; try again with the same command")
    end(process)


@pytest.mark.parametrize("name", ["", "me/", "a b/c", "me/model/more", "-me/model", "me/" + "x" * 200])
def test_a_name_that_no_repository_can_have_is_one_sentence(name):
    with pytest.raises(UsageError) as error:
        push.check(name)
    assert str(error.value) == f"PUSH={name!r} is no name of a repository; give user/name, as in PUSH=me/gpt2"


def test_a_name_without_a_user_and_a_missing_token_are_one_sentence_each(tmp_path, monkeypatch):
    with pytest.raises(UsageError) as error:
        push.check("model")
    assert str(error.value) == "PUSH=model does not name a user; give user/name, as in PUSH=me/model"
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError) as error:
        push.check("me/model")
    assert (
        str(error.value) == "PUSH=me/model: there is no token for the hub; set HF_TOKEN, or log in with: hf auth login"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push.check("me/model")
