"""Sends the rows to a Hugging Face Space or your own Trackio server, in a lane beside that of the local database."""

import os
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.record.run import Identity
from lib.track import trackio
from lib.track.cursor import path_of
from lib.track.trackio_remote import is_address, remote, server

MODULE = "trackio"
# Beyond the documented interface (tests/track/test_private.py guards it): `trackio.sync` sends only complete projects.
PRIVATE = (
    "trackio.deploy.SPACE_URL",
    "trackio.deploy._build_remote_client_with_retry",
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


class Tracker(trackio.Tracker):
    """Sends records through Trackio's client, with the ids that they have in the local database: none is stored twice.

    The server gives training rows the time of arrival, because its protocol has no field for their time. System metrics
    and alerts keep their times. A server that cannot write its database acknowledges rows and keeps them in memory for
    a while.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Connect; creates the Space if it is missing."""
        note = self.begin(identity, config)
        target = remote(config)
        self.token = None
        if not target:
            raise UserError(
                "the run used a Space or server, but none is configured now: set TRACKIO_SPACE_ID or "
                f"TRACKIO_SERVER_URL again, or delete {path_of(folder, 'trackio-space')}"
            )
        where = self._connect_server(target) if is_address(target) else self._connect_space(target, folder)
        return "; ".join(filter(None, [f"see {where}", note]))

    def store(self, records: list[trackio.Record]) -> None:
        """Send records, one request for each kind; the server answers when they are stored."""
        import httpx

        for kind, (endpoint, parameter) in _ENDPOINTS.items():
            if some := [record for record in records if record["kind"] == kind]:
                try:
                    self.client.predict(api_name=endpoint, hf_token=self.token, **{parameter: some})
                except httpx.HTTPStatusError as error:
                    reason = error.response.text
                    raise UserError(f"{error.request.url.host} refuses the run: {reason[:300]}") from None

    def _connect_server(self, address: str) -> str:
        from trackio.remote_client import RemoteClient

        base, token = server(address)
        if not token:
            raise UserError(f"{base}: its write token is missing; set TRACKIO_WRITE_TOKEN, as `trackio show` prints it")
        self.client = RemoteClient(base, write_token=token)
        return base

    def _connect_space(self, name: str, folder: Path) -> str:
        import huggingface_hub
        from trackio import deploy, utils

        self.token = huggingface_hub.get_token()
        if not self.token:
            raise UserError(f"{name}: there is no token of the Hugging Face hub; run: hf auth login, or set HF_TOKEN")
        huggingface_hub.login = _refused  # Trackio calls it to ask for a token, which nobody can type here
        space, _, bucket = utils.preprocess_space_and_dataset_ids(name, None, None)
        deploy.raise_if_space_is_frozen_for_logging(space)
        os.environ.setdefault(trackio.PLOT_ORDER, trackio.first_charts(folder))  # a new Space copies this setting
        deploy.create_space_if_not_exists(space, bucket_id=deploy.resolve_auto_bucket_id(space, bucket))
        self.client = deploy._build_remote_client_with_retry(space)  # a new Space takes minutes to build
        return deploy.SPACE_URL.format(space_id=space)


def _refused(**_: Any) -> None:
    raise UserError(
        "the Hugging Face hub does not allow this token to create the Space; use a token with write permission"
    )
