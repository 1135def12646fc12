"""Keys and passwords are neither printed nor kept: the tests plant some and look for them in every byte written."""

import base64
import io
import os
import secrets
import shlex
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.base import redact
from lib.config import command_line
from lib.config.config_file import ConfigError
from lib.record import provenance
from tests import forked, forking
from tests.runs import ended, trained, write
from tests.training import ROOT, TEXT, TINY, text

KEYS = (
    "WANDB_API_KEY HF_TOKEN HUGGING_FACE_HUB_TOKEN TRACKIO_WRITE_TOKEN MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN "
    "COMET_API_KEY AWS_SECRET_ACCESS_KEY"
).split()
# A tracker of another package that prints all the secrets it finds, as a failing library may.
LEAKY = """
import logging, os, sys
class Tracker:
    def open(self, identity, config, folder):
        print("using", os.environ["WANDB_API_KEY"])
        print(os.environ["HF_TOKEN"], file=sys.stderr)
        logging.warning("token %s", os.environ["COMET_API_KEY"])
        raise RuntimeError("401 at https://me:" + os.environ["HF_TOKEN"] + "@host: " + os.environ["WANDB_API_KEY"])
"""


@pytest.fixture
def planted(folder):
    """An environment with a random value for every key, a home with a netrc, and a tracker that tells them."""
    keys = {name: secrets.token_hex(20) for name in [*KEYS, "netrc", "remote"]}
    home, site = folder / "home", folder / "site"
    info = site / "leaky-1.0.dist-info"
    for one in (home, info, folder / "tmp"):
        one.mkdir(parents=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {keys['netrc']}\n")
    (home / ".netrc").chmod(0o600)
    (site / "leaky.py").write_text(LEAKY)
    (info / "METADATA").write_text("Name: leaky\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[espalier.trackers]\nleaky = leaky:Tracker\n")
    (site / "sitecustomize.py").write_text("from lib.track import lane\nlane.WAITS = (0.05,)\n")
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run(
        ["git", "-C", folder, "remote", "add", "origin", f"https://me:{keys['remote']}@host/x.git"], check=True
    )
    own = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO", "MLFLOW"))}
    paths = {
        "HOME": home,
        "TMPDIR": folder / "tmp",
        "TRACKIO_DIR": folder / "trackio",
        "XDG_CACHE_HOME": home / "cache",
    }
    environment = own | {k: v for k, v in keys.items() if k.isupper()} | {k: str(v) for k, v in paths.items()}
    return keys, environment | {"PYTHONPATH": f"{site}:{ROOT}"}


def assert_kept(keys, folder, *outputs):
    """None of the keys, as they are or as HTTP sends them, is in what was printed or in any file that we made."""
    for name, value in keys.items():
        for form in (value, *(base64.b64encode(f"{user}:{value}".encode()).decode() for user in ("api", "me"))):
            assert form not in "".join(outputs), name
            for path in (path for path in folder.rglob("*") if path.is_file()):
                theirs = path.name == ".netrc" or path.is_relative_to(folder / ".git")
                assert theirs or form.encode() not in path.read_bytes(), f"{name} is in {path}"


def open_to_all():
    """In a sweep: a umask of 0."""
    os.umask(0)
    forking.trainers()


def test_keys_stay_where_they_are(planted, folder):
    """A sweep of one run with every tracker that is a library of others, in an empty home, for a umask of 0."""
    keys, environment = planted
    (folder / "corpus.txt").write_text(TEXT)
    changes = {"max_iters": 4, "eval_interval": 0, "tracker": "trackio,wandb,csv,leaky", "wandb_offline": True}
    options = {k: text(v) for k, v in (TINY | changes).items() if k not in ("seed", "tracker_run_name")}
    words = " ".join(shlex.quote(f"{name.upper()}={value}") for name, value in options.items())
    (folder / "plan").write_text(f"defconfig gpt2_tiny\nseeds 7\ncommon {words}\none\n")
    process = forked.Program(folder, "scripts/sweep.py", ["plan"], environment, open_to_all, apart=True)
    output, errors = process.communicate()
    log = (folder / "runs/plan/one-seed7.log").read_text()
    assert process.returncode == 0, errors + log
    made = folder / "runs/plan/one-seed7"
    assert list((made / "wandb").glob("offline-run-*/*.wandb")) and (made / "metrics.csv").exists()
    assert list((folder / "trackio").glob("*.db"))
    assert "RuntimeError: 401 at https://***@host: ***" in log
    assert "using ***\n***\nWARNING:root:token ***" in (made / "trackers/leaky.log").read_text()
    assert_kept(keys, folder, output, errors)
    ours = [path for top in ("runs", "data", "trackio") for path in (folder / top).rglob("*") if not path.is_symlink()]
    assert len(ours) > 20
    assert [path for path in ours if path.stat().st_mode & 0o002] == []  # nobody else can change a result


class _Denies(BaseHTTPRequestHandler):
    """401 for everything."""

    def _deny(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_error(401)

    do_GET = do_POST = do_PUT = do_PATCH = _deny

    def log_message(self, *args):
        pass


@pytest.mark.extra("mlflow")
def test_a_server_that_refuses_a_key_does_not_get_it_into_a_log(planted, folder):
    keys, environment = planted
    write(
        folder / "runs/run",
        *trained(1, 2),
        ended(2, "finished", final_val_loss=1.0),
        config={"tracker": [], "max_iters": 2},
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Denies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    there = {"WANDB_BASE_URL": address, "WANDB_MODE": "online", "TRACKIO_SERVER_URL": address}
    there["MLFLOW_TRACKING_URI"] = address.replace("//", f"//me:{keys['MLFLOW_TRACKING_PASSWORD']}@")
    words = ["scripts/sync.py", "runs/run", "--tracker", "wandb,trackio,mlflow"]
    done = forked.run(folder, *words, environment=environment | there)
    server.shutdown()
    assert (done.returncode, "mlflow         failed" in done.stdout) == (1, True), done.stdout + done.stderr
    assert_kept(keys, folder, done.stdout, done.stderr)


REFUSED = [
    ["--wandb-api-key", "hunter22"], ["--wandb-api-key=hunter22"], ["WANDB_API_KEY=hunter22"],
    ["CONFIG_HF_TOKEN=hunter22"], ["DATASET=shakespeare", "DATASET_SOURCE=https://me:hunter22@127.0.0.1:9/x"],
    ["DATASET=shakespeare", "DATASET_SOURCE=https://hunter22@127.0.0.1:9/x"],
    ["DATASET=shakespeare", "DATASET_SOURCE=https://127.0.0.1:9/x?a=b&token=hunter22"],
    ["TRACKER=mlflow", "--mlflow-tracking-uri", "http://me:hunter22@127.0.0.1:9"],
]  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=str)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(folder, words):
    with pytest.raises(ConfigError) as caught:
        command_line.resolve("", words, {})
    assert "hunter22" not in str(caught.value)


def test_no_configuration_keeps_a_password(folder, program):
    done = program("scripts/config.py", "defconfig", "TRACKER=mlflow", "MLFLOW_TRACKING_URI=http://me:hunter22@host")
    assert (done.returncode, "hunter22" in done.stdout + done.stderr, list(folder.iterdir())) == (2, False, [])
    (folder / ".config").write_text('CONFIG_TRACKER_MLFLOW=y\nCONFIG_MLFLOW_TRACKING_URI="http://me:hunter22@host"\n')
    done = program("scripts/config.py", "checkconfig")
    sentence = "error: .config:2: MLFLOW_TRACKING_URI holds a password or token, which files would keep; "
    assert (done.returncode, done.stderr.startswith(sentence), "hunter22" in done.stderr) == (2, True, False)


COMMIT = "-c user.name=a -c user.email=a@b -c commit.gpgsign=false commit -qm".split()


def test_uncommitted_changes_with_a_key_are_not_kept(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter22")
    for words in (["init", "-q"], [*COMMIT, "x", "--allow-empty"]):
        subprocess.run(["git", *words], check=True)
    (folder / "good.py").write_text("x = 1\n")
    (folder / "bad.py").write_text("key = 'hunter22'\n")
    changes = provenance.uncommitted(folder)
    assert changes.left_out == ("bad.py",)
    assert b"x = 1" in changes.patch and b"hunter22" not in changes.patch
    for words in (["add", "bad.py"], [*COMMIT, "y"]):
        subprocess.run(["git", *words], check=True)
    (folder / "bad.py").write_text("key = ''\n")  # the patch would say what stood there
    changes = provenance.uncommitted(folder)
    assert (changes.patch, changes.failure) == (b"", "they remove a key or password of the environment from a file")


def test_what_looks_like_an_address_with_a_password_only_is_none():
    assert command_line.resolve("", ["PROMPT=for (auto &key=x; ?)"], {})[0]["PROMPT"] == "for (auto &key=x; ?)"


def test_what_is_hidden_in_texts(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine a.b login me password from-netrc\n")
    env = {"NETRC": str(tmp_path / "netrc"), "A_TOKEN": "abcde1", "B_API_KEY": "abcde1fg", "C_KEY": "short"}
    env |= {"PGPASSWORD": "of-pg-1", "GITHUB_PAT": "of-git-1", "COMET_APIKEY": "of-comet-1", "SSH_PASSPHRASE": "of ssh"}
    env |= {"TOKENIZERS_PARALLELISM": "parallel1", "SAMPLE_TOKENS": "hundred1", "MONKEY": "banana1", "PATH": "/path/1"}
    env |= {"COMPAT": "compat1", "MYSQL_PASSWORD": "password"}
    monkeypatch.setattr(os, "environ", env)
    text = "abcde1fg abcde1 of-pg-1 of-git-1 of-comet-1 of ssh from-netrc https://a:b@c/d postgres://u@h"
    text += " /x?a=b&api_key=cd&e=f Bearer 0123456789-ghijkl"
    hidden = "*** *** *** *** *** *** *** https://***@c/d postgres://***@h /x?a=b&api_key=***&e=f Bearer ***"
    assert redact.hide(text) == hidden
    plain = "short parallel1 hundred1 banana1 /path/1 compat1 the password"
    assert redact.hide(plain) == plain
    found = redact.finder()
    assert (found(b"\0abcde1"), found(b"short"), found(b"from-netrc")) == (True, False, True)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_netrc_that_others_may_read_holds_secrets_too(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine a.b login me password from-netrc\n")
    (tmp_path / ".netrc").chmod(mode)
    assert redact.hide("from-netrc") == "***"


def test_lines_are_hidden_like_texts(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter22")
    stream = io.StringIO()
    redact.Discreet(stream).writelines(["a hunter22\n", "b\n"])
    assert stream.getvalue() == "a ***\nb\n"
