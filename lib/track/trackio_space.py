"""Sends the run to a Hugging Face Space or your own Trackio server, in a lane beside that of the local database."""

import os
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lib.base.errors import UserError
from lib.record.run import Identity
from lib.track import trackio, trackio_remote
from lib.track.cursor import path_of
from lib.track.tracker import Refused

MODULE = "trackio"
SERVER_OPTION = trackio_remote.SPACE
# Beyond the documented interface (tests/track/test_private.py guards it): `trackio.sync` sends only complete projects.
PRIVATE = (
    "trackio.deploy.SPACE_URL",
    "trackio.deploy.create_space_if_not_exists",
    "trackio.deploy.raise_if_space_is_frozen_for_logging",
    "trackio.deploy.resolve_auto_bucket_id",
    "trackio.remote_client.RemoteClient",
    "trackio.utils.preprocess_space_and_dataset_ids",
)
_ENDPOINTS = {
    "metric": ("/bulk_log", "logs"),
    "system_metric": ("/bulk_log_system", "logs"),
    "alert": ("/bulk_alert", "alerts"),
}
_BUILDING = ("BUILDING", "APP_STARTING")  # stages of a Space, in the hub's words
_BROKEN = ("NO_APP_FILE", "CONFIG_ERROR", "BUILD_ERROR", "RUNTIME_ERROR", "PAUSED", "STOPPED", "DELETING")
_PATIENCE = 120.0  # seconds that one delivery waits for a Space; the lane repeats it six times after training
_POLL = 5.0  # seconds


class Tracker(trackio.Tracker):
    """Sends records through Trackio's client, with the ids that they have in the local database: none is stored twice.

    The server gives training rows the time of arrival, because its protocol has no field for their time. System metrics
    and alerts keep their times. A server that cannot write its database acknowledges rows and keeps them in memory for
    a while.

    A new Space takes minutes to build. The run is opened before that, and the first delivery waits for the Space.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Connect; creates the Space if it is missing. Raises Refused if the token is wrong."""
        notes = [self.begin(identity, config), *trackio_remote.notes(config)]
        target = trackio_remote.remote(config)
        self.client = self.token = None
        self.is_new = False
        if not target:
            raise UserError(
                "the run used a Space or server, but none is configured now: set TRACKIO_SPACE_ID or "
                f"TRACKIO_SERVER_URL again, or delete {path_of(folder, 'trackio-space')}"
            )
        if trackio_remote.is_address(target):
            self._connect_server(target)
        else:
            notes.insert(0, self._prepare_space(target, folder))
        return "; ".join(filter(None, [f"see {self.where}", *notes]))

    def destination(self) -> str:
        """The address of the Space or server, without its token."""
        return self.where

    def holds(self) -> bool:
        """Whether the Space or server has rows of the run."""
        if self.is_new:  # it takes minutes until it can be asked
            return False
        runs = self._call("/get_runs_for_project", project=self.common["project"])
        return any(run["id"] == self.common["run_id"] for run in runs)

    def store(self, records: list[trackio.Record]) -> None:
        """Send records, one request for each kind; the server answers when they are stored."""
        for kind, (endpoint, parameter) in _ENDPOINTS.items():
            if some := [record for record in records if record["kind"] == kind]:
                self._call(endpoint, hf_token=self.token, **{parameter: some})

    def put(self, content: bytes, place: PurePosixPath) -> None:
        """Upload a file to the media folder, where the server replaces a file of this name."""
        from gradio_client import handle_file

        project, run, step, name = place.parts
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            where = {"project": project, "run": run, "step": int(step), "relative_path": None}
            upload = {**where, "uploaded_file": handle_file(path)}
            self._call("/bulk_upload_media", uploads=[upload], hf_token=self.token)

    def put_blob(self, file: IO[bytes], digest: str) -> None:
        """Upload the file of an artifact, unless the project has its content; the server checks the digest."""
        from gradio_client import handle_file

        project = {"project": self.common["project"], "hf_token": self.token}
        if not self._call("/check_artifact_blobs", digests=[digest], **project)["present"]:
            upload = {"project": self.common["project"], "digest": digest, "uploaded_file": handle_file(file.name)}
            self._call("/bulk_upload_artifact_blob", uploads=[upload], **project)

    def put_version(self, version: dict[str, Any]) -> None:
        """Add a version of an artifact, unless it has one with this content."""
        self._call("/artifact_log", hf_token=self.token, **version)

    def _call(self, endpoint: str, **arguments: Any) -> Any:
        import httpx

        if not self.client:
            self._connect_space()
        try:
            return self.client.predict(api_name=endpoint, **arguments)
        except httpx.HTTPStatusError as error:
            where, status, reason = error.request.url.host, error.response.status_code, error.response.text[:300]
            if status in (401, 403) or "write_token" in reason or "write access" in reason:
                raise Refused(f"{where} refuses the token: {reason}") from None
            if status == 413:
                limit = "raise the limit of the server or of the proxy before it"
                raise UserError(f"{where} refuses what it gets as too large (HTTP 413); {limit}") from None
            raise UserError(f"{where} refuses the run: {reason}") from None

    def _connect_server(self, address: str) -> None:
        from trackio.remote_client import RemoteClient

        base, token = trackio_remote.server(address)
        self.where = trackio_remote.public(base)
        if not token:
            raise Refused(
                f"{self.where}: its write token is missing; set TRACKIO_WRITE_TOKEN, as `trackio show` prints it"
            )
        self.client = RemoteClient(base, write_token=token)
        self._call("/bulk_log", logs=[], hf_token=None)  # checks the token

    def _prepare_space(self, name: str, folder: Path) -> str:
        """Create the Space if it is missing; returns a note if it must be built first."""
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
        from trackio import deploy, utils

        self.token = huggingface_hub.get_token()
        if not self.token:
            raise Refused(f"{name}: there is no token of the Hugging Face hub; run: hf auth login, or set HF_TOKEN")
        huggingface_hub.login = _refused  # Trackio calls it to ask for a token, which nobody can type here
        kept = trackio_remote.kept_in()
        try:
            self.space, dataset, bucket = utils.preprocess_space_and_dataset_ids(name, *kept)
            self.where = deploy.SPACE_URL.format(space_id=self.space)
            deploy.raise_if_space_is_frozen_for_logging(self.space)
            os.environ.setdefault(trackio.PLOT_ORDER, trackio.first_charts(folder))  # a new Space copies this setting
            if not any(kept):
                bucket = deploy.resolve_auto_bucket_id(self.space, bucket)
            self.is_new = deploy.create_space_if_not_exists(self.space, dataset, bucket)
            building = self._stage() in _BUILDING
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                _refused()
            raise
        if building:
            return "the Space is built first, which takes minutes"
        self._connect_space()
        return ""

    def _connect_space(self) -> None:
        """Connect, as soon as the Space is built; raises UserError if that takes longer than _PATIENCE."""
        from trackio.remote_client import RemoteClient

        deadline = time.monotonic() + _PATIENCE
        while (stage := self._stage()) in _BUILDING:
            if time.monotonic() > deadline:
                raise UserError(f"{self.where}: the Space is being built, which takes minutes")
            time.sleep(_POLL)
        if stage in _BROKEN:
            raise UserError(f"{self.where}: the Space does not run ({stage}); see its logs there, and restart it")
        self.client = RemoteClient(self.space, hf_token=self.token, httpx_kwargs={"timeout": 90})
        self._call("/bulk_log", logs=[], hf_token=self.token)  # checks the token

    def _stage(self) -> str:
        """The state of the Space, in the hub's words."""
        import huggingface_hub

        runtime = huggingface_hub.space_info(self.space, timeout=30).runtime
        return str(runtime.stage) if runtime else _BUILDING[0]


def secret(config: dict[str, Any]) -> str:
    """The token that the Space or server gets, which may do more than the Space needs."""
    if trackio_remote.is_address(target := trackio_remote.remote(config)):
        token = trackio_remote.server(target)[1]
        return "TRACKIO_WRITE_TOKEN" if token and token == os.environ.get("TRACKIO_WRITE_TOKEN") else ""
    import huggingface_hub

    return "the Hugging Face token" if huggingface_hub.get_token() else ""


def _refused(**_: Any) -> None:
    raise Refused(
        "the Hugging Face hub refuses this token: it is wrong, or may not write to the Space or create it; see "
        "https://huggingface.co/settings/tokens"
    )
