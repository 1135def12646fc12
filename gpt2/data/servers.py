"""Servers: a file by URL, and datasets from the Hugging Face hub as streams that store nothing."""

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
_DOWNLOAD_SECONDS = 120  # for a whole file, of a few MB


def fetch(source: str, most: int) -> bytes:
    """The content of a local file or of a URL; raises DataError for one of more than `most` bytes, or without end."""
    if re.match(r"https?://", source):
        content = _download(source, most)
    else:
        with opened(Path(source)) as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{source}: holds more than the {most:,} bytes that belong there; name another DATASET_SOURCE")
    return content


def _download(url: str, most: int) -> bytes:
    """Up to `most` + 1 bytes from a URL, in _DOWNLOAD_SECONDS at most.

    A socket's time-out is for each piece that arrives, and a server may send a byte a second for ever. So a thread
    waits for the server, and this waits for the thread no longer than that.
    """
    answer: list[bytes | str] = []
    thread = threading.Thread(target=lambda: answer.append(_get(url, most)), daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_SECONDS)
    content = answer[0] if answer else f"it was not there after {_DOWNLOAD_SECONDS} seconds"
    if isinstance(content, str):
        raise DataError(
            f"{url}: cannot be downloaded: {content}; try again, or get the file elsewhere and name it as "
            "DATASET_SOURCE"
        )
    return content


def _get(url: str, most: int) -> bytes | str:
    """What a server sends, or why it cannot be had."""
    try:
        with urllib.request.build_opener(_Redirects).open(url, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read(most + 1)
            cut_off = len(content) <= most and getattr(response, "length", 0)
            return f"it ends {cut_off:,} bytes early" if cut_off else content
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        return reason(getattr(error, "reason", error))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, to http, https and ftp alone, without reading what comes with them, which may have no end."""

    def http_error_302(self, request, response, *rest):
        response.close()
        return super().http_error_302(request, io.BytesIO(), *rest)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def hub(source: str, subset: str, field: str) -> Iterator[str]:
    """Documents of a dataset on the hub, or of a local copy of its repository, as a stream that stores nothing."""
    local = Path(source).is_dir()
    if not local:
        _check_hub(source)
    import datasets  # here: it takes a second

    datasets.disable_progress_bars()
    with Repairs() as repairs:
        try:
            examples = datasets.load_dataset(source, name=subset or None, split="train", streaming=True)
            for number, example in enumerate(examples, 1):
                if (text := repairs.text(example, field, f"{source}: row {number}")) is not None:
                    yield text
        except UserError:
            raise
        except Exception as error:  # the libraries behind it raise errors of a dozen families
            if local:
                refuse_pointers(path for path in Path(source).rglob("*") if path.is_file())
            raise DataError(f"{source}: the dataset cannot be read: {reason(error)}") from None


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
    """Ask for the dataset first: load_dataset retries for half a minute before it admits that there is no network."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # of the HTTP library, of the hub, of the system
        raise DataError(
            f"{name}: there is no such folder, and the Hugging Face hub cannot be asked for it: {reason(error)}; "
            "check the name and the network, or name a local copy as DATASET_SOURCE"
        ) from None
