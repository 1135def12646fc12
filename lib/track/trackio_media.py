"""A run's files in the form that Trackio stores: images, tables, texts and artifacts."""

import html
from pathlib import PurePosixPath
from typing import Any

from lib.record.run import folder_name
from lib.track import media_files
from lib.track.tracker import Media, plain_name, within_64_bits

_PAGE = (
    '<!doctype html><meta charset="utf-8"><style>:root{{color-scheme:light dark}}'
    "pre{{white-space:pre-wrap;overflow-wrap:anywhere}}</style><pre>\n{}</pre>\n"
)


def stored(item: Media, common: dict[str, str]) -> tuple[dict[str, Any], dict[PurePosixPath, bytes]]:
    """What the database holds in the place of a metric's number, and the files below Trackio's media folder.

    A text becomes a page. Trackio's Markdown loses line breaks and turns comments of Python into headings, and its
    tables cut texts off after 250 characters.
    """
    if item.kind == "table":
        return {"_type": "trackio.table", "_value": _rows(*media_files.table(item))}, {}
    if item.kind == "image":
        kind, ending, content = "image", "png", media_files.image(item)
    else:
        kind, ending = "html", "html"
        content = _PAGE.format(html.escape(item.path.read_text(encoding="utf-8", errors="replace"))).encode()
    # In <project>/<run>/<step>, as Trackio has it. Runs of one name share this folder, so the id is in the file's name.
    name = f"{common['run_id']}-{folder_name(item.name)}.{ending}"
    place = PurePosixPath(common["project"], folder_name(common["run"]), str(item.step), name)
    return {"_type": f"trackio.{kind}", "file_path": str(place), "caption": None}, {place: content}


def artifact(item: Media, digest: str, size: int, common: dict[str, str]) -> dict[str, Any]:
    """A version of an artifact. Artifacts belong to a project, so the name begins with the run's name and id.

    Content that the artifact has already is no new version. Each step is an alias of its version.
    """
    return {
        "project": common["project"],
        "name": plain_name(f"{common['run']}-{common['run_id']}-{item.name}", r"[^A-Za-z0-9._-]+", 128),
        "type": "file",
        "description": None,
        "manifest": [{"path": folder_name(item.path.name), "digest": digest, "size": size}],
        "metadata": None,
        "aliases": [f"step-{item.step}"],
        "run_name": common["run"],
        "run_id": common["run_id"],
    }


def _rows(given: list[str], rows: list[list[Any]]) -> list[dict[str, Any]]:
    columns: list[str] = []
    for name in map(str, given):
        # A browser needs distinct names, and shows whole numbers before all other names. It does not show blanks at
        # the end of a name.
        while name in columns or name.isdecimal():
            name += " "
        columns.append(name)
    return [within_64_bits(dict(zip(columns, row, strict=True))) for row in rows]
