"""Media in MLflow: artifacts of a run, at places where MLflow's pages show pictures, tables and texts."""

import csv
import io
import json
import struct
import tempfile
import uuid
from pathlib import Path
from typing import Any

from lib.track import media_files
from lib.track.tracker import Media, plain_name

PICTURES = "mlflow.loggedImages"  # the tag with which MLflow looks for pictures of steps
STORED = "espalier.media"  # the tag of a run that has files, because to list them takes a request for each folder
SMALL = 256  # pixels: the longest side of the copy that MLflow shows in a grid
PIXELS = 50_000_000  # of the largest picture with a small copy, for which Pillow needs 200 MB


def store(client: Any, run_id: str, items: list[Media]) -> None:
    """Store files, each at a place of its own, where a second delivery replaces it. A damaged one raises UserError."""
    for item in items:
        _STORE[item.kind](client, run_id, item)
    client.set_tag(run_id, STORED, "True")


def _image(client: Any, run_id: str, item: Media) -> None:
    """As MLflow's `log_image` does, whose names have a random part: a second delivery would be a second picture.

    A picture that Pillow cannot read, or that would fill its memory, has no small copy.
    """
    width, height = struct.unpack_from(">II", media_files.image(item), 16)
    same = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{item.name}/{item.step}")
    name = f"{_plain(item.name)}+step+{item.step}+timestamp+{int(item.time * 1000)}+{same}"
    _copy(client, run_id, item.path, "images", f"{name}.png")
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / f"{name}+compressed.webp"
        if width * height <= PIXELS and _shrink(item.path, small):
            client.log_artifact(run_id, str(small), "images")
    client.set_tag(run_id, PICTURES, "True")


def _shrink(path: Path, small: Path) -> bool:
    """Make the small copy of a picture; returns whether that was possible."""
    from PIL import Image  # trackio needs it too, so it is installed

    try:
        with Image.open(path) as picture:
            picture.thumbnail((SMALL, SMALL))
            picture.save(small)
    except (
        OSError,
        EOFError,
        ValueError,
        SyntaxError,
        struct.error,
    ) as error:  # as Pillow says that it does not know a form of PNG
        print(f"{path}: MLflow gets no small copy, because Pillow cannot read it: {error}", flush=True)
        return False
    return True


def _table(client: Any, run_id: str, item: Media) -> None:
    """As CSV, which MLflow shows as a table. Its own `log_table` appends, so that a second delivery would double rows.

    Booleans are `true` and `false`, and null is empty.
    """
    columns, rows = media_files.table(item)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *([_cell(cell) for cell in row] for row in rows)])
    client.log_text(run_id, text.getvalue(), f"tables/{_plain(item.name)}/{_step(item)}.csv")


def _text(client: Any, run_id: str, item: Media) -> None:
    _copy(client, run_id, item.path, f"texts/{_plain(item.name)}", f"{_step(item)}.txt")


def _artifact(client: Any, run_id: str, item: Media) -> None:
    client.log_artifact(run_id, str(item.path), f"artifacts/{_plain(item.name)}/{_step(item)}")


_STORE = {"image": _image, "table": _table, "text": _text, "artifact": _artifact}


def _copy(client: Any, run_id: str, path: Path, folder: str, name: str) -> None:
    """Store a file under another name, which MLflow takes from the path: a link."""
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary) / name
        link.symlink_to(path.resolve())
        client.log_artifact(run_id, str(link), folder)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool) else value


def _plain(name: str) -> str:
    """A name that MLflow allows for pictures. It has no folders, and MLflow shows `~` as `/`."""
    plain = plain_name(name, r"[^a-zA-Z0-9_\-./ ]+", 100, lambda text: text.startswith("."))
    return plain.replace("/", "~")


def _step(item: Media) -> str:
    return f"step-{item.step:08}"
