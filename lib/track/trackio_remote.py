"""Where Trackio's rows go beside the local database: the Space or server, and whether it can be reached."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from lib.base import redact
from lib.config.kconf import Options
from lib.track.tracker import Finding, bind

# Beyond the documented interface (tests/track/test_private.py guards it): `trackio.sync` sends only complete projects.
PRIVATE = ("trackio.utils.parse_trackio_server_url",)
SPACE, SERVER, BUCKET, DATASET = "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID"
VARIABLES = ("TRACKIO_DIR", SPACE, SERVER, BUCKET, DATASET)


@dataclasses.dataclass(frozen=True)
class TrackioOptions(Options):
    """The Space that also receives the run."""

    trackio_space_id: str  # name or owner/name; empty: TRACKIO_SPACE_ID or TRACKIO_SERVER_URL


def remote(config: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> str:
    """The Space, or the address of the server, that also receives the run; empty if none is configured.

    The option comes before Trackio's variables, which are read in Trackio's own order.
    """
    space = bind(TrackioOptions, config).trackio_space_id or env.get(SPACE)
    return space or env.get(SERVER) or ""


def kept_in(env: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """The dataset and the bucket in which a Space keeps its data; at most one, and None if Trackio chooses a bucket."""
    bucket = env.get(BUCKET) or None
    return None if bucket else env.get(DATASET) or None, bucket


def notes(config: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> list[str]:
    """Which settings win over others, and which have no effect; each a part of a sentence."""
    found, target, option = [], remote(config, env), bind(TrackioOptions, config).trackio_space_id
    if option and env.get(SPACE, option) != option:
        found.append(f"the option {SPACE}={option} wins over the environment variable, which is {env[SPACE]}")
    if env.get(SERVER) and target != env[SERVER]:
        found.append(f"the Space {target} wins over {SERVER}")
    kept = [name for name in (BUCKET, DATASET) if env.get(name)]
    if kept and (not target or is_address(target)):
        found += [f"{name} has no effect without a Space" for name in kept]
    elif kept == [BUCKET, DATASET]:
        found.append(f"{BUCKET} wins over {DATASET}")
    elif DATASET in kept:
        found.append(f"{DATASET} is deprecated, and Trackio will remove it; use {BUCKET}")
    return found


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """The variables in force; and whether the Space's hub or the server answers in 3 seconds and takes the token."""
    target, known = remote(config), {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    shown = ", ".join(f"{name}={redact.hide(text)}" for name, text in known.items())
    return [
        *([Finding("environment", shown, True)] if shown else []),
        *(Finding("settings", note, True) for note in notes(config)),
        *(_examine_server(target) if is_address(target) else _examine_hub(target) if target else []),
    ]


def _examine_server(address: str) -> list[Finding]:
    base, token = server(address)
    request = {
        "method": "POST",
        "url": f"{base.rstrip('/')}/api/bulk_log",
        "json": {"kwargs": {"logs": [], "hf_token": None}},  # only the token is checked
        "headers": {"X-Trackio-Write-Token": token},
    }
    source = "TRACKIO_WRITE_TOKEN" if token == os.environ.get("TRACKIO_WRITE_TOKEN") else SERVER
    return _ask("server", public(base), request, token and source, "set TRACKIO_WRITE_TOKEN")


def _examine_hub(space: str) -> list[Finding]:
    import huggingface_hub

    token, hub = huggingface_hub.get_token() or "", huggingface_hub.constants.ENDPOINT
    request = {"method": "GET", "url": f"{hub}/api/whoami-v2", "headers": {"Authorization": f"Bearer {token}"}}
    source = "HF_TOKEN" if token == os.environ.get("HF_TOKEN") else "hf auth login"
    return _ask("Space", f"{space}: {hub}", request, token and source, "run hf auth login, or set HF_TOKEN")


def _ask(what: str, where: str, request: dict[str, Any], source: str, remedy: str) -> list[Finding]:
    """Findings about an address and its token; `source` of the token is empty if there is none."""
    import httpx

    try:
        status = httpx.request(**request, timeout=3).status_code
        refuses = status in (400, 401, 403)
        good = status == 200 or refuses
        answer = "answers" if good else f"answers with HTTP {status}"
    except httpx.HTTPError as error:
        answer, good, refuses = f"does not answer: {error}", False, False
    state = "refused" if refuses else "accepted" if good else "there"
    token = f"{state}, from {source}" if source else "missing"
    trusted = bool(source) and not refuses
    return [
        Finding(what, f"{where} {answer}", good),
        Finding(f"{what}'s token", token if trusted else f"{token}; {remedy}", trusted),
    ]


def server(address: str) -> tuple[str, str]:
    """The address without the write token, and the token, from the address or the environment; empty if missing."""
    from trackio.utils import parse_trackio_server_url

    base, token = parse_trackio_server_url(address)
    return base, token or os.environ.get("TRACKIO_WRITE_TOKEN", "")


def public(address: str) -> str:
    """An address without a user, password or parameters."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def is_address(target: str) -> bool:
    """Whether this is the address of a server, not the name of a Space."""
    return target.startswith(("http://", "https://"))
