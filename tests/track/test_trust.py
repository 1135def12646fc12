"""`make sync` of a run that somebody else made: whose server gets the user's secrets."""

import pytest

from lib.base.errors import UsageError
from lib.record import journal
from lib.track import trust
from tests.tracking import run, sync

__all__ = ["run"]  # a fixture

SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "TRACKIO_WRITE_TOKEN")
SERVERS = {
    "mlflow": ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_TOKEN"),
    "trackio": ("TRACKIO_SPACE_ID", "stranger/space", "HF_TOKEN", "the Hugging Face token"),
}


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """A user without secrets and without a configuration."""
    for name in (*SECRETS, "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "KCONFIG_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)


def received(folder, **config):
    """A run with these options, as somebody else may have made it."""
    book = journal.Journal(folder)
    book.write("start", 0, config=config)
    book.write("finish", 0, {"loss": 1.0}, status="finished")
    book.close()


@pytest.mark.parametrize("tracker", SERVERS)
def test_a_server_that_only_the_run_names_gets_no_secret(run, tmp_path, monkeypatch, tracker):
    option, server, variable, secret = SERVERS[tracker]
    received(run, tracker=[tracker], **{option.lower(): server})
    trust.check(run, [tracker])  # without a secret
    monkeypatch.setenv(variable, "a-secret")
    monkeypatch.setenv(option, "https://my-own.example")
    with pytest.raises(UsageError) as refusal:
        trust.check(run, [tracker])
    assert str(refusal.value) == (
        f"{run}: the run names the server {server}, which would get {secret} of this user; if you trust it, "
        f"say: make sync RUN={run} {option}={server}"
    )
    monkeypatch.setenv(option, server)
    trust.check(run, [tracker])
    monkeypatch.delenv(option)
    (tmp_path / ".config").write_text(f'CONFIG_TRACKER_{tracker.upper()}=y\nCONFIG_{option}="{server}"\n')
    trust.check(run, [tracker])


def test_secrets_of_the_address_itself_and_variables_are_trusted(run, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "a-secret")
    received(run, mlflow_tracking_uri="https://me:secret@host", trackio_space_id="http://host?write_token=abc")
    trust.check(run, ["mlflow", "trackio", "csv"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://my-own.example")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    trust.check(run, ["mlflow", "trackio", "csv"])


@pytest.mark.parametrize(
    "uri", ["http://:pw@host", "http://me:@host", "http://host:80?@b", "http://[", "postgresql://h/x"]
)
def test_an_address_without_user_and_password_would_get_the_token(run, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-secret")
    received(run, mlflow_tracking_uri=uri)
    with pytest.raises(UsageError, match="would get MLFLOW_TRACKING_TOKEN of this user"):
        trust.check(run, ["mlflow"])


def test_a_sync_to_such_a_server_sends_nothing(run, monkeypatch):
    received(run, tracker=["trackio"], trackio_space_id="stranger/space")
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    done = sync(run)
    assert done.returncode == 2 and "would get the Hugging Face token" in done.stderr
    assert not (run / "trackers").exists()
