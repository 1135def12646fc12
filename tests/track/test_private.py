"""What trackers use of their libraries beyond the documented interfaces: the lists are complete, and hold today."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from lib.track import accelerate, registry, wandb_private
from lib.track.registry import installed
from tests.tracking import ROOT, wait_for

FOLDER = ROOT / "lib" / "track"
DOCUMENTED = {
    "accelerate": {"accelerate.PartialState", "accelerate.tracking", "accelerate.tracking.GeneralTracker"}
    | {"accelerate.Accelerator", "accelerate.tracking.on_main_process"},
    "trackio": {"trackio.Api"},
    "mlflow": {"mlflow.MlflowClient", "mlflow.entities.Metric", "mlflow.entities.Param", "mlflow.entities.RunTag"},
    "wandb": {"wandb", "wandb.Settings", "wandb.init", "wandb.teardown"}
    | {"wandb.errors.AuthenticationError", "wandb.errors.CommError"}
    | {"wandb.Api", "wandb.Artifact", "wandb.Html", "wandb.Image", "wandb.Table"},
}
# How the private functions are called: positional arguments and names.
CALLS = {
    "mlflow.telemetry.set_telemetry_client": (0, ()),
    "tensorboard.compat.tensorflow_stub.pywrap_tensorflow.PyRecordReader_New": (1, ()),
    "tensorboard.plugins.hparams.summary_v2.hparams_pb": (3, ()),
    "tensorboard.plugins.scalar.summary_v2.scalar_pb": (2, ()),
    "tensorboard.plugins.text.summary_v2.text_pb": (2, ()),
    "tensorboard.summary.writer.record_writer.RecordWriter": (1, ()),
    "trackio.cas.blob_path": (2, ()),
    "trackio.deploy.create_space_if_not_exists": (3, ()),
    "trackio.deploy.raise_if_space_is_frozen_for_logging": (1, ()),
    "trackio.deploy.resolve_auto_bucket_id": (2, ()),
    "trackio.fragments.FragmentWriter": (0, ()),
    "trackio.fragments.alert_record": (1, ()),
    "trackio.fragments.import_records": (1, ()),
    "trackio.fragments.metric_record": (1, ()),
    "trackio.fragments.system_metric_record": (1, ()),
    "trackio.remote_client.RemoteClient": (1, ("hf_token", "httpx_kwargs", "write_token")),
    "trackio.sqlite_storage.SQLiteStorage.commit_artifact_version": (
        0,
        ("project", "name", "type", "description", "manifest", "metadata", "aliases", "run_name", "run_id"),
    ),
    "trackio.sqlite_storage.SQLiteStorage.get_project_db_path": (1, ()),
    "trackio.sqlite_storage.SQLiteStorage.init_db": (1, ()),
    "trackio.sqlite_storage.SQLiteStorage.validate_project_name": (1, ()),
    "trackio.utils.get_storage_mode": (0, ()),
    "trackio.utils.parse_trackio_server_url": (1, ()),
    "trackio.utils.preprocess_space_and_dataset_ids": (3, ()),
    "trackio.utils.serialize_values": (1, ()),
    "wandb.sdk.lib.wbauth.authenticate_session": (0, ("host", "source", "prompt", "update_session")),
    "wandb.sdk.wandb_setup.singleton": (0, ()),
}
MODULES = {
    name: found
    for name in sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("__"))
    if name != "espalier_tracker" and hasattr(found := importlib.import_module(f"lib.track.{name}"), "PRIVATE")
}


def used(path):
    """The names of trackers' libraries that a file uses, with their modules; attributes of modules count as names."""
    tree = ast.parse(path.read_text())
    found, modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("trackio", "tensorboard", *DOCUMENTED):
            for name in node.names:
                full = f"{node.module}.{name.name}"
                modules[name.asname or name.name] = full
                found.add(full)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name in ("trackio", "tensorboard", *DOCUMENTED):
                    modules[name.name] = name.name
                    found.add(name.name)
    attributes = {
        (modules[node.value.id], f"{modules[node.value.id]}.{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    inside = {full for module, full in attributes if is_namespace(module)}
    return (found - {module for module, full in attributes if full in inside}) | inside


def is_namespace(name):
    """Whether a dotted name is a module whose parts are listed one by one."""
    if name.endswith(("_stub.errors", "hparams.metadata", "_pb2")) or not installed(name.partition(".")[0]):
        return False
    return inspect.ismodule(resolved(name))


def resolved(name):
    first, *parts = name.split(".")
    found = importlib.import_module(first)
    for part in parts:
        found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_is_not_documented_is_listed_at_the_top_of_the_module(path):
    documented = {name for names in DOCUMENTED.values() for name in names}
    private = getattr(MODULES.get(path.stem), "PRIVATE", ())
    assert sorted(used(path) - documented) == sorted(private)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_is_listed_exists_in_the_installed_version(module):
    name = MODULES[module].__name__.rpartition(".")[2]
    library = name.partition("_")[0]
    if registry.problem(library):
        pytest.skip(registry.problem(library))
    for private in MODULES[module].PRIVATE:
        assert resolved(private) is not None


@pytest.mark.parametrize("name", sorted(CALLS))
def test_functions_still_take_the_arguments_that_trackers_give(name):
    library = name.partition(".")[0]
    if registry.problem(library):
        pytest.skip(registry.problem(library))
    positional, named = CALLS[name]
    inspect.signature(resolved(name)).bind(*range(positional), **dict.fromkeys(named))


def test_wandb_still_has_the_settings_that_it_calls_experimental():
    import wandb

    given = wandb_private.settings(0.5)
    assert given == {"x_transaction_log_flush_interval": 0.5, "x_disable_stats": True}
    stored = wandb.Settings(**given)
    assert (stored.x_transaction_log_flush_interval, stored.x_disable_stats) == (0.5, True)
    assert {"sync_file", "log_internal", "base_url", "api_key"} <= set(dir(stored))


def test_a_wandb_file_has_the_format_that_is_read(tmp_path):
    """A small file that wandb writes, read by our reader; tests/track/test_wandb.py compares with wandb's own."""
    import wandb

    settings = wandb.Settings(silent=True, console="off", **wandb_private.settings(0.1))
    contents = wandb_private.Contents("a run")
    with wandb.init(mode="offline", dir=tmp_path, id="abc", settings=settings) as run:
        run.log({"step": 3, "loss": 0.5})
        run.alert("sparsity", "text")
        [path] = wandb_private.files_of(tmp_path, "abc")
        log = wandb_private.TransactionLog(path)
        wait_for(lambda: contents.read(log) or (contents.history and contents.alerts))
    assert contents.history == {(3, "loss")}
    assert contents.alerts == {("sparsity", "text")}


def test_the_classes_of_accelerate_are_there():
    pytest.importorskip("accelerate")
    from accelerate import tracking

    names = [library.tracker for library in accelerate._LIBRARIES.values()]
    assert [name for name in names if not issubclass(getattr(tracking, name), tracking.GeneralTracker)] == []


def test_every_member_of_the_option_is_a_file_here_and_no_other_file_is_a_tracker():
    from lib.config.kconf import Schema

    members = set(Schema().options["TRACKER"].members) - {"all"}
    assert set(registry.known()) - set(registry.plugins()) == members
    assert Path(registry.__file__).parent == FOLDER
    assert registry.problem("tracker") == "tracker tracker does not exist; did you mean trackio?"
