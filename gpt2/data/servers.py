"""Servers: downloads a file by URL, and streams datasets from the Hugging Face hub without storing them."""

import http.client
import io
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from gpt2.data.local_files import DataError, opened, reason, refuse_pointers
from gpt2.data.repairs import Repairs
from lib.base.errors import UserError

_TIMEOUT_SECONDS = 20  # for a server to answer
_DOWNLOAD_SECONDS = 120  # for a complete file, of a few MB


def fetch(source: str, most: int) -> bytes:
    """Return the content of a local file or of a URL; raises DataError if it is longer than `most` bytes."""
    if re.match(r"https?://", source):
        content = _download(source, most)
    else:
        with opened(Path(source)) as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{source}: is larger than the expected {most:,} bytes; choose another DATASET_SOURCE")
    return content


def _download(url: str, most: int) -> bytes:
    """Return at most `most` + 1 bytes from a URL; raises DataError after _DOWNLOAD_SECONDS.

    The time-out of a socket starts again with every byte, so a slow server could send for ever. Therefore a thread
    downloads, and the wait for the thread is limited.
    """
    answer: list[bytes | str] = []
    thread = threading.Thread(target=lambda: answer.append(_get(url, most)), daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_SECONDS)
    content = answer[0] if answer else f"it was not complete after {_DOWNLOAD_SECONDS} seconds"
    if isinstance(content, str):
        raise DataError(
            f"{url}: cannot be downloaded: {content}; try again, or get the file elsewhere and set DATASET_SOURCE to "
            "its path"
        )
    return content


def _get(url: str, most: int) -> bytes | str:
    """Return what a server sends, or the reason of a failure as a string."""
    try:
        with urllib.request.build_opener(_Redirects).open(url, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read(most + 1)
            cut_off = len(content) <= most and getattr(response, "length", 0)
            return f"it ends {cut_off:,} bytes early" if cut_off else content
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        return reason(getattr(error, "reason", error))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, only to http, https and ftp, without reading their bodies, which may be endless."""

    def http_error_302(self, request, response, *rest):
        response.close()
        return super().http_error_302(request, io.BytesIO(), *rest)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def hub(source: str, subset: str, field: str) -> Iterator[str]:
    """Stream the documents of a dataset on the hub, or of a local copy of its repository; stores nothing."""
    local = Path(source).is_dir()
    if not local:
        _check_hub(source)
    import datasets  # here, because it takes a second

    datasets.disable_progress_bars()
    with Repairs() as repairs:
        try:
            examples = datasets.load_dataset(source, name=subset or None, split="train", streaming=True)
            for number, example in enumerate(examples, 1):
                if (text := repairs.text(example, field, f"{source}: row {number}")) is not None:
                    yield text
        except UserError:
            raise
        except Exception as error:  # a dozen libraries take part, and their errors have no common class
            if local:
                refuse_pointers(path for path in Path(source).rglob("*") if path.is_file())
            raise DataError(f"{source}: the dataset cannot be read: {reason(error)}") from None


def hub_file(dataset: str, name: str) -> tuple[Path, str]:
    """A file of a dataset's repository on the hub, in the hub's cache, and its commit.

    Offline, the cached file is used. Raises DataError if there is none.
    """
    from huggingface_hub import HfApi, errors

    hub = HfApi()
    try:
        try:
            hub.dataset_info(dataset, timeout=_TIMEOUT_SECONDS)
            offline = False
        except errors.HfHubHTTPError:
            raise
        except Exception:  # of the HTTP library or the system. hf_hub_download would retry for half a minute
            offline = True
        path = hub.hf_hub_download(dataset, name, repo_type="dataset", local_files_only=offline)
    except Exception as error:  # of the HTTP library, of the hub, of the system
        why = "it is not reached, nor does its cache have the file"
        why = why if isinstance(error, errors.LocalEntryNotFoundError) else reason(error)
        raise DataError(
            f"{dataset}: {name} cannot be had from the Hugging Face hub: {why}; check the network, or set TASK_DATA to "
            "a folder with a local copy"
        ) from None
    return Path(path), re.search(r"/snapshots/(\w+)/", path)[1]


def has_subsets(folder: Path) -> bool:
    """Whether the README.md of a hub repository's copy names several subsets."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            head = file.read(1 << 20)
    except OSError:
        return False
    described = re.match(r"---\s*\n(.*?)^---", head, re.DOTALL | re.MULTILINE)
    return described is not None and len(re.findall(r"^[ -]*config_name:", described[1], re.MULTILINE)) > 1


def _check_hub(name: str) -> None:
    """Ask the hub whether it has the dataset: without a network, load_dataset would retry for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # of the HTTP library, of the hub, of the system
        raise DataError(
            f"{name}: there is no such folder, and asking the Hugging Face hub for it failed: {reason(error)}; check "
            "the name and the network, or set DATASET_SOURCE to a local copy"
        ) from None
