"""Uploads an exported folder to the Hugging Face hub, as one commit."""

import os
import sys
from pathlib import Path

from lib.base.errors import UsageError, UserError

_ADVICE = {  # status of HTTP -> what to do
    401: "check the token",
    403: "use a token that may write there",
    404: "check the name, and that the token may write there",
}


def check(name: str) -> None:
    """Raise UserError if no repository can be called `name`, or if there is no token. Needs no network."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"PUSH={name!r} is no name of a repository; give user/name, as in PUSH=me/gpt2") from None
    if name.count("/") != 1:
        raise UsageError(f"PUSH={name} does not name a user; give user/name, as in PUSH=me/{name}")
    if not get_token():
        raise UserError(f"PUSH={name}: there is no token for the hub; set HF_TOKEN, or log in with: hf auth login")


def push(folder: Path, name: str, is_private: bool) -> str:
    """Upload the files in `folder` as one commit to `name`, which is made if it is missing; returns its address.

    An existing repository stays private or public as it is. Raises UserError; the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    if "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True  # the tests try uploads without Xet, so these are the ones that work
    api = HfApi()
    try:
        api.create_repo(name, private=is_private, exist_ok=True)
        there = sorted(path for path in folder.iterdir() if path.is_file())
        # upload_folder would make several commits of large files. Nobody may see half of a model.
        operations = [CommitOperationAdd(path.name, path) for path in there]
        if not (folder / "masks.safetensors").exists() and api.file_exists(name, "masks.safetensors"):
            operations.append(CommitOperationDelete("masks.safetensors"))  # of an earlier model, which was pruned
        done = api.create_commit(name, operations, commit_message="Upload a model from Espalier")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        response, words = getattr(cause, "response", None), getattr(cause, "server_message", None) or str(cause)
        if response is not None:
            words = f"{response.status_code} {response.reason_phrase}: {words}"
        advice = _ADVICE.get(getattr(response, "status_code", None), "try again with the same command")
        words = " ".join(words.replace(get_token() or "\0", "***").split())[:300]
        raise UserError(f"PUSH={name}: not uploaded ({words}); {folder} stays as it is; {advice}") from None
    return done.repo_url.url
