"""Trackio elsewhere: a Space of Hugging Face or a server of yours gets the rows too, in a lane beside the local one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.record.run import Identity
from lib.track import trackio
from lib.track.cursor import path_of
from lib.track.tracker import Finding

MODULE = "trackio"
_ENDPOINTS = {
    "metric": ("/bulk_log", "logs"),
    "system_metric": ("/bulk_log_system", "logs"),
    "alert": ("/bulk_alert", "alerts"),
}


class Tracker(trackio.Tracker):
    """Sends the records of the local database through Trackio's client, with the same ids, so that none comes twice.

    The server stamps training rows with the time they arrive, since its protocol has no other; system metrics and
    alerts keep theirs. A server that cannot write its database acknowledges rows and holds them in memory for a while.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Connect, after making the Space if it is missing; raises what keeps it from being reached."""
        note = self.begin(identity, config)
        target = trackio.remote(config)
        self.token = None
        if not target:
            raise UserError(
                "no Space and no server is named, but the run had one: set TRACKIO_SPACE_ID or TRACKIO_SERVER_URL "
                f"again, or delete {path_of(folder, 'trackio-space')}"
            )
        where = self._connect_server(target) if _is_address(target) else self._connect_space(target)
        return "; ".join(filter(None, [f"see {where}", note]))

    def store(self, records: list[trackio.Record]) -> None:
        """Send records, a request for each kind; they are stored when it is answered."""
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

    def _connect_space(self, name: str) -> str:
        import huggingface_hub
        from trackio import deploy, utils

        self.token = huggingface_hub.get_token()
        if not self.token:
            raise UserError(f"{name}: there is no token of the Hugging Face hub; run: hf auth login, or set HF_TOKEN")
        huggingface_hub.login = _refused  # which Trackio calls, to ask someone who is not there
        space, _, bucket = utils.preprocess_space_and_dataset_ids(name, None, None)
        deploy.raise_if_space_is_frozen_for_logging(space)
        os.environ.setdefault(trackio.PLOT_ORDER, trackio.FIRST)  # which a new Space takes over
        deploy.create_space_if_not_exists(space, bucket_id=deploy.resolve_auto_bucket_id(space, bucket))
        self.client = deploy._build_remote_client_with_retry(space)  # a new Space takes minutes to build
        return deploy.SPACE_URL.format(space_id=space)


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """Whether the Space's hub or the server answers within 3 seconds, and whether there is a token for it."""
    import httpx
    import huggingface_hub

    target = trackio.remote(config)
    if _is_address(target):
        what, (base, token), missing = "server", server(target), "set TRACKIO_WRITE_TOKEN"
        address = f"{base.rstrip('/')}/version"
    else:
        what, base, token, missing = "Space", target, huggingface_hub.get_token(), "run hf auth login, or set HF_TOKEN"
        address = huggingface_hub.constants.ENDPOINT
    try:
        httpx.get(address, timeout=3)
        answer = f"{base}: {address} answers"
        good = True
    except httpx.HTTPError as error:
        answer, good = f"{base}: {address} does not answer: {error}", False
    return [
        Finding(what, answer, good),
        Finding(f"{what}'s token", "there" if token else f"missing; {missing}", bool(token)),
    ]


def server(address: str, env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """A server's address without the write token, and the token: from the address or the environment, or empty."""
    from trackio.utils import parse_trackio_server_url

    base, token = parse_trackio_server_url(address)
    return base, token or env.get("TRACKIO_WRITE_TOKEN", "")


def _is_address(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _refused(**_: Any) -> None:
    raise UserError("the Hugging Face hub refuses to make the Space with this token; use one that may write")
