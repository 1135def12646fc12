"""Downloads a GPT-2 from the Hugging Face hub into the hub's cache, at a commit that is recorded."""

from pathlib import Path
from typing import NamedTuple

from lib.base.errors import UsageError, UserError

PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # names without an owner, as the hub had them first
_ABOUT = ["config.json", "espalier.json", "masks.safetensors"]
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]
_TIMEOUT_SECONDS = 20  # for the hub to answer


class Downloaded(NamedTuple):
    """A repository in the cache."""

    name: str  # OWNER/NAME
    folder: Path  # its name is the commit


def download(given: str) -> Downloaded:
    """Fetch the files of OWNER/NAME or OWNER/NAME@REVISION that are needed; raises UserError.

    Files that are in the cache are not fetched again. Offline, the cached commit is used. The library takes HF_TOKEN,
    HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE from the environment, and shows progress bars.
    """
    name, revision = repository(given)
    folder = _snapshot(name, revision or None, [*_ABOUT, *_SAFETENSORS])
    if not any(folder.glob("model*.safetensors")):
        _snapshot(name, folder.name, [*_ABOUT, *_PICKLES])
    return Downloaded(name, folder)


def repository(given: str) -> tuple[str, str]:
    """The repository and the revision ("" if none) that OWNER/NAME@REVISION names; UsageError for other names."""
    name, _, revision = given.partition("@")
    if name in PUBLISHED:
        name = f"openai-community/{name}"
    if name.count("/") != 1:
        raise UsageError(
            f"{given}: there is no run, folder or file of this name; check it, or give OWNER/NAME of a model on the "
            "Hugging Face hub"
        )
    return name, revision


def _answers(name: str, revision: str | None) -> bool:
    """Whether the hub answers in time. The library's own questions would wait without an end."""
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS)
    except errors.HfHubHTTPError:
        return True
    except Exception:  # of the HTTP library or the system: the cache may still have the files
        return False
    return True


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{name}{f'@{revision}' if revision else ''}: there is no such run or folder here, and"
    try:
        offline = not _answers(name, revision)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except errors.GatedRepoError:
        raise UserError(
            f"{name}: the hub's repository is gated; accept its terms at {constants.ENDPOINT}/{name}, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{where} {constants.ENDPOINT} has no such repository; check the name, and set HF_TOKEN if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: the hub's repository has no revision {revision!r}; check it") from None
    except errors.HFValidationError as error:
        raise UsageError(f"{where} it is no valid name on the hub ({_first_line(error)}); check the name") from None
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            why = "the hub's cache does not have it; unset HF_HUB_OFFLINE to download it"
        else:
            cause = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""  # such as an answer of 503
            why = f"{constants.ENDPOINT} does not give it{cause}, nor does the hub's cache; check the network"
        raise UserError(f"{where} {why}, or name a folder") from None
    except Exception as error:  # of the HTTP library, of the hub, of the system
        raise UserError(
            f"{name}: downloading from {constants.ENDPOINT} failed: {_first_line(error)}; check the network and the "
            "disk, then try again"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
