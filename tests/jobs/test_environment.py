"""What a job gets of the environment: addresses go with keys, secrets as secrets, and nothing stays on its disk."""

import pytest

from lib.base.errors import UsageError
from lib.config import command_line
from lib.jobs import environment, plan
from lib.record import run
from tests.jobs.hub import WANDB_KEY

PLAIN = {
    "WANDB_BASE_URL": "https://wandb.example.org", "WANDB_ENTITY": "team", "WANDB_PROJECT": "gpt2",
    "WANDB_MODE": "online", "MLFLOW_TRACKING_URI": "https://mlflow.example.org", "MLFLOW_EXPERIMENT_NAME": "pruning",
    "TRACKIO_SERVER_URL": "https://trackio.example.org", "COMET_WORKSPACE": "lab",
}  # fmt: skip


def schema(*words):
    return command_line.resolve("", words, {})[0]


@pytest.fixture
def here(monkeypatch):
    """Set variables in place of those of trackers that are set; None removes one."""
    for names in environment._OF.values():
        for name in (*names.keys, *names.plain):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    monkeypatch.setenv("HF_TOKEN", "")

    def use(**variables):
        for name, text in variables.items():
            monkeypatch.setenv(name, text)

    return use


def test_addresses_go_with_the_keys_of_the_trackers_that_are_chosen(here, folder):
    here(**PLAIN, WANDB_API_KEY=WANDB_KEY, WANDB_DIR="/home/me/wandb")
    mine = {name: text for name, text in PLAIN.items() if name.startswith("WANDB")}
    made = plan.of_training("train", schema("TRACKER=wandb"), [])
    assert made.environment == mine | {"ESPALIER_PROJECT": run.project_name()}
    assert environment.secrets(["wandb"])["WANDB_API_KEY"] == WANDB_KEY
    found = environment.plain(["trackio", "wandb", "mlflow", "accelerate:comet_ml"])
    assert found == PLAIN | {"ESPALIER_PROJECT": run.project_name()}
    assert environment.plain([]) == {}
    assert environment.plain(["all"]) == mine | {"TRACKIO_SERVER_URL": PLAIN["TRACKIO_SERVER_URL"]} | {
        "ESPALIER_PROJECT": run.project_name()
    }


def test_the_project_in_a_job_is_that_of_the_clone_here(here, folder, monkeypatch):
    here(WANDB_PROJECT="gpt2")  # which TRACKER_PROJECT would overrule
    made = plan.of_training("train", schema("TRACKER=wandb"), [])
    assert "TRACKER_PROJECT" not in made.sent
    monkeypatch.setenv("ESPALIER_PROJECT", made.environment["ESPALIER_PROJECT"])
    name = run.project_name()
    monkeypatch.delenv("ESPALIER_PROJECT")
    assert name == run.project_name()
    assert run.project_name(folder) != name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WANDB_BASE_URL", "https://me:planted-password@wandb.example.org"),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example.org/?token=planted-password"),
        ("TRACKIO_SERVER_URL", "https://trackio.example.org/?write_token=planted-password"),
        ("WANDB_PROJECT", f"of {WANDB_KEY}"),
    ],
)
def test_an_address_with_a_password_is_a_secret(here, folder, name, text):
    here(**{name: text}, WANDB_API_KEY=WANDB_KEY)
    trackers = ["trackio", "wandb", "mlflow"]
    assert name not in environment.plain(trackers) and environment.secrets(trackers)[name] == text
    made = plan.of_training("train", schema("TRACKER=trackio,wandb"), [])
    assert "planted" not in repr(made)


def test_a_server_of_trackio_takes_the_place_of_the_usual_space(here, folder):
    here(TRACKIO_SERVER_URL="https://trackio.example.org/?write_token=planted-password")
    made = plan.of_training("train", schema("TRACKER=trackio"), [])
    assert (made.space, made.server) == ("", "https://trackio.example.org")
    assert "TRACKIO_SPACE_ID" not in made.sent
    made = plan.of_training("train", schema("TRACKER=trackio", "TRACKIO_SPACE_ID=a/b"), [])
    assert (made.space, made.server) == ("a/b", "")


HERE = "is on this machine, where a job does not reach it; name a server that it reaches, or leave {} out of TRACKER"
LOST = (
    "a job reaches only a server of MLflow, http:// or https://, and what is on its own disk is lost; name a server, "
)


@pytest.mark.parametrize(
    ("tracker", "variable", "told"),
    [
        ("mlflow", "MLFLOW_TRACKING_URI=", f"MLFLOW_TRACKING_URI is empty: {LOST}"),
        ("mlflow", "MLFLOW_TRACKING_URI=sqlite:///mlflow.db", LOST),
        ("mlflow", "MLFLOW_TRACKING_URI=file:/tmp/mlruns", LOST),
        ("mlflow", "MLFLOW_TRACKING_URI=./mlruns", LOST),
        ("mlflow", "MLFLOW_TRACKING_URI=http://localhost:5000", HERE),
        ("trackio", "TRACKIO_SERVER_URL=http://127.0.0.1:7860", HERE),
        ("wandb", "WANDB_BASE_URL=http://[::1]:8080", HERE),
        ("wandb", "WANDB_MODE=disabled", "wandb would discard all rows; unset it, or remove wandb from TRACKER"),
    ],
)
def test_a_tracker_that_would_lose_its_rows_is_one_sentence(here, folder, tracker, variable, told):
    name, _, text = variable.partition("=")
    here(**{name: text})
    for ask in (
        lambda: plan.of_training("train", schema(f"TRACKER={tracker}"), []),
        lambda: plan.of_sweep(None, [f"TRACKER={tracker}", "OPTIMIZER=adam,adamw"]),
    ):
        with pytest.raises(UsageError) as caught:
            ask()
        sentence = str(caught.value).removeprefix("tracker wandb: ")
        assert sentence.startswith(told if "empty" in told else f"{variable}: {told.format(tracker)}")
        assert "\n" not in str(caught.value)


def test_an_option_counts_before_the_variable(here, folder):
    here(MLFLOW_TRACKING_URI="https://mlflow.example.org")
    environment.check(schema("TRACKER=mlflow"))
    with pytest.raises(UsageError, match=r"^MLFLOW_TRACKING_URI=sqlite:///a.db: a job reaches only a server"):
        environment.check(schema("TRACKER=mlflow", "MLFLOW_TRACKING_URI=sqlite:///a.db"))


def test_addresses_that_nobody_uses_may_be_anywhere(here, folder):
    here(TRACKIO_SERVER_URL="http://localhost:7860", WANDB_BASE_URL="http://localhost:8080", WANDB_MODE="offline")
    environment.check(schema("TRACKER=trackio,wandb", "TRACKIO_SPACE_ID=me/trackio"))
    environment.check(schema("TRACKER=csv"))
