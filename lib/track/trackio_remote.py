"""Where Trackio's rows go beside the local database: the Space or server, and whether it can be reached."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from lib.config.kconf import Options
from lib.track.tracker import Finding, bind

# Beyond the documented interface (tests/track/test_private.py guards it): `trackio.sync` sends only complete projects.
PRIVATE = ("trackio.utils.parse_trackio_server_url",)


@dataclasses.dataclass(frozen=True)
class TrackioOptions(Options):
    """The Space that also receives the run."""

    trackio_space_id: str  # name or owner/name; empty: TRACKIO_SPACE_ID or TRACKIO_SERVER_URL


def remote(config: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> str:
    """The Space, or the address of the server, that also receives the run; empty if none is configured.

    The option comes before Trackio's variables, which are read in Trackio's own order.
    """
    space = bind(TrackioOptions, config).trackio_space_id or env.get("TRACKIO_SPACE_ID")
    return space or env.get("TRACKIO_SERVER_URL") or ""


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """Whether the Hugging Face hub or the server answers within 3 seconds, and whether there is a token."""
    import httpx
    import huggingface_hub

    target = remote(config)
    if is_address(target):
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


def server(address: str) -> tuple[str, str]:
    """The address without the write token, and the token, from the address or the environment; empty if missing."""
    from trackio.utils import parse_trackio_server_url

    base, token = parse_trackio_server_url(address)
    return base, token or os.environ.get("TRACKIO_WRITE_TOKEN", "")


def is_address(target: str) -> bool:
    """Whether this is the address of a server, not the name of a Space."""
    return target.startswith(("http://", "https://"))
