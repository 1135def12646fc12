"""What Accelerate's trackers can show or keep besides metrics: images, texts, tables and files, each in its own way.

`tracker` is a tracker of Accelerate, and `tracker.tracker` the library's own object for the run.
"""

import json
from collections.abc import Callable
from typing import Any

from lib.record.run import folder_name
from lib.track.tracker import Media

Show = Callable[[Any, Media], object]


def _key(item: Media) -> str:
    """A name that no metric has: some libraries keep one type of values under a name."""
    return f"{item.kind}/{item.name}"


def _file_name(item: Media) -> str:
    return f"{item.name}-{item.step}{item.path.suffix}"


def _text(item: Media) -> str:
    return item.path.read_text(encoding="utf-8")


def _table(item: Media) -> tuple[list[Any], list[list[Any]]]:
    table = json.loads(item.path.read_bytes())
    return table["columns"], table["rows"]


def _lines(item: Media) -> str:
    """A table as text, for libraries without tables: tabs between cells."""
    columns, rows = _table(item)
    return "\n".join("\t".join(map(str, row)) for row in (columns, *rows))


def _pixels(item: Media) -> Any:
    """A batch of one image (1, height, width, 3), uint8."""
    import numpy as np
    from PIL import Image

    with Image.open(item.path) as image:
        return np.asarray(image.convert("RGB"))[None]


def _aim_text(tracker: Any, item: Media, text: str) -> None:
    from aim import Text

    tracker.tracker.track(Text(text), name=_key(item), step=item.step)


_AIM: dict[str, Show] = {
    "image": lambda tracker, item: tracker.log_images({_key(item): str(item.path)}, step=item.step),
    "text": lambda tracker, item: _aim_text(tracker, item, _text(item)),
    "table": lambda tracker, item: _aim_text(tracker, item, _lines(item)),
}
_CLEARML: dict[str, Show] = {
    "image": lambda tracker, item: tracker.log_images({item.name: None}, step=item.step, local_path=str(item.path)),
    "text": lambda tracker, item: tracker.tracker.get_logger().report_media(
        item.name, "text", iteration=item.step, local_path=str(item.path)
    ),
    "table": lambda tracker, item: tracker.log_table(item.name, *_table(item), step=item.step),
    "artifact": lambda tracker, item: tracker.tracker.upload_artifact(
        f"{item.name}-{item.step}", str(item.path), wait_on_upload=True
    ),
}
_COMET_ML: dict[str, Show] = {
    "image": lambda tracker, item: tracker.tracker.log_image(str(item.path), name=item.name, step=item.step),
    "text": lambda tracker, item: tracker.tracker.log_text(_text(item), step=item.step, metadata={"name": item.name}),
    "table": lambda tracker, item: tracker.tracker.log_table(
        f"{item.name}-{item.step}.csv", _table(item)[1], headers=_table(item)[0]
    ),
    "artifact": lambda tracker, item: tracker.tracker.log_asset(
        str(item.path), file_name=_file_name(item), step=item.step
    ),
}
_DVCLIVE: dict[str, Show] = {  # files in such a folder get a slider
    "image": lambda tracker, item: tracker.tracker.log_image(f"{folder_name(item.name)}/{item.step}.png", item.path),
}
_SWANLAB: dict[str, Show] = {
    "image": lambda tracker, item: tracker.log_images({_key(item): [str(item.path)]}, step=item.step),
    "text": lambda tracker, item: tracker.tracker.log_text(key=_key(item), data=_text(item), step=item.step),
    "table": lambda tracker, item: tracker.tracker.log_text(key=_key(item), data=_lines(item), step=item.step),
    "artifact": lambda tracker, item: tracker.tracker.save(
        str(item.path), base_path=str(item.path.parent), policy="now"
    ),
}
_TENSORBOARD: dict[str, Show] = {
    "image": lambda tracker, item: tracker.log_images({_key(item): _pixels(item)}, step=item.step, dataformats="NHWC"),
    "text": lambda tracker, item: tracker.log({_key(item): _text(item)}, step=item.step),
    "table": lambda tracker, item: tracker.log({_key(item): _lines(item)}, step=item.step),
}
# library -> kind -> the function that hands over an item
SHOW = {
    "aim": _AIM,
    "clearml": _CLEARML,
    "comet_ml": _COMET_ML,
    "dvclive": _DVCLIVE,
    "swanlab": _SWANLAB,
    "tensorboard": _TENSORBOARD,
}
