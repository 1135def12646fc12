"""A model on a hub, here a local server, is downloaded once, at a commit that is recorded; errors are one sentence."""

import json

import pytest
import safetensors.torch
import torch

from gpt2.weights.form import Shape
from tests.gpt2.weights.hub_server import COMMIT, TOKEN, Hub

NAME = "someone/tiny-gpt2"
SHAPE = Shape(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=256)
# A program, because huggingface_hub reads the environment when it is imported.
PROGRAM = """
import sys
from gpt2.weights.source import find, read
from lib.base.errors import UserError
for name in sys.argv[1:]:
    try:
        source = find(name)
        state = read(source, 8, 256).state
        print(source.path, source.revision, *source.ancestors, float(state["wpe.weight"][0, 0]))
    except UserError as error:
        print(error)
"""


@pytest.fixture
def repository(tmp_path):
    """The files of a model, and others that nobody needs."""
    folder = tmp_path / "repository"
    folder.mkdir()
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 8, "vocab_size": 256}
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: torch.full(shape, 0.25) for name, shape in SHAPE.tensors().items()}
    for name, tensor in state.items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            state[name] = tensor.t().contiguous()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "rust_model.ot").write_bytes(b"large")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"another model")
    return folder


@pytest.fixture
def ask(program, tmp_path):
    """Find and read models in a new process: ask(hub, *names, **environment)."""
    (tmp_path / "ask.py").write_text(PROGRAM)

    def start(hub, *names, **env):
        clean = {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
        place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        return program(str(tmp_path / "ask.py"), *names, **clean | place | env)

    return start


def downloads(hub):
    return sorted(line.split("/")[-1] for line in hub.requests if line.startswith("GET") and "/resolve/" in line)


def test_a_model_is_downloaded_once_at_the_commit_that_main_is(repository, ask, tmp_path):
    folder = tmp_path / "home" / "hub" / "models--someone--tiny-gpt2" / "snapshots" / COMMIT
    with Hub(NAME, repository) as hub:
        first = ask(hub, NAME)
        assert first.stdout == f"{folder} {COMMIT} {NAME}@{COMMIT} 0.25\n"
        assert "Fetching 2 files" in first.stderr  # the library's progress bar
        assert downloads(hub) == ["config.json", "model.safetensors"]
        again = ask(hub, f"{NAME}@{COMMIT}", NAME)
        assert again.stdout == 2 * first.stdout
        assert downloads(hub) == ["config.json", "model.safetensors"]
        asked = len(hub.requests)
        assert ask(hub, NAME, HF_HUB_OFFLINE="1").stdout == first.stdout
        assert len(hub.requests) == asked
    assert ask(hub, NAME).stdout == first.stdout  # it is no longer reached


def test_pickles_are_downloaded_if_there_are_no_safetensors(repository, ask):
    (repository / "model.safetensors").unlink()
    with Hub(NAME, repository) as hub:
        assert ask(hub, NAME).stdout.endswith(f"{COMMIT} {NAME}@{COMMIT} 0.25\n")
        assert downloads(hub) == ["config.json", "pytorch_model.bin"]


def test_the_first_names_of_gpt2_have_their_owner_of_today(repository, ask, tmp_path):
    (tmp_path / "gpt2").mkdir()  # as in a clone of this repository
    with Hub("openai-community/gpt2", repository) as hub:
        assert ask(hub, "gpt2").stdout.endswith(f"{COMMIT} openai-community/gpt2@{COMMIT} 0.25\n")


def test_a_gated_model_needs_a_token(repository, ask):
    with Hub(NAME, repository, gated=True) as hub:
        refused = f"the hub's repository is gated; accept its terms at {hub.url}/{NAME}, and set HF_TOKEN\n"
        assert ask(hub, NAME).stdout == f"{NAME}: {refused}"
        assert ask(hub, NAME, HF_TOKEN=TOKEN).stdout.endswith(f"{COMMIT} {NAME}@{COMMIT} 0.25\n")


def test_a_repository_a_revision_or_a_name_that_does_not_exist(repository, ask):
    with Hub(NAME, repository) as hub:
        other, revision, invalid = ask(hub, "some/other", f"{NAME}@v2", "so me/one").stdout.splitlines()
        assert other == (
            f"some/other: there is no such run or folder here, and {hub.url} has no such repository; check the name, "
            "and set HF_TOKEN if it is private"
        )
        assert revision == f"{NAME}: the hub's repository has no revision 'v2'; check it"
        assert invalid.startswith(
            "so me/one: there is no such run or folder here, and it is no valid name on the hub ("
        )
        assert not any("so me" in request for request in hub.requests)


def test_a_hub_that_is_not_reached_or_broken(repository, ask):
    with Hub(NAME, repository, broken=True) as hub:
        sentence = ask(hub, NAME).stdout
        assert f"{hub.url} does not give it (Server error '503 Service Unavailable'" in sentence
        assert sentence.endswith("nor does the hub's cache; check the network, or name a folder\n")
    where = f"{NAME}: there is no such run or folder here, and"
    assert ask(hub, NAME).stdout == (
        f"{where} {hub.url} does not give it, nor does the hub's cache; check the network, or name a folder\n"
    )
    assert ask(hub, NAME, HF_HUB_OFFLINE="1").stdout == (
        f"{where} the hub's cache does not have it; unset HF_HUB_OFFLINE to download it, or name a folder\n"
    )
