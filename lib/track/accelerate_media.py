"""What Accelerate's trackers can show or keep besides metrics: images, texts, tables and files, each in its own way.

`tracker` is a tracker of Accelerate, and `tracker.tracker` the library's own object for the run.
"""

import io
from collections.abc import Callable
from typing import Any

from lib.record.run import folder_name
from lib.track.media_files import image, table, text
from lib.track.tracker import Media

Show = Callable[[Any, Media], object]


def _key(item: Media) -> str:
    """A name that no metric has: some libraries keep one type of values under a name."""
    return f"{item.kind}/{item.name}"


def _file_name(item: Media) -> str:
    return f"{item.name}-{item.step}{item.path.suffix}"


def _lines(item: Media) -> str:
    """A table as text, for libraries without tables: tabs between cells."""
    columns, rows = table(item)
    return "\n".join("\t".join(map(str, row)) for row in (columns, *rows))


def _pixels(item: Media) -> Any:
    """A batch of one image (1, height, width, 3), uint8."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(image(item))) as picture:
        return np.asarray(picture.convert("RGB"))[None]


def _picture(item: Media) -> str:
    """The path of an image that is whole: some libraries only copy the file."""
    image(item)
    return str(item.path)


def _tensorboard_image(tracker: Any, item: Media) -> None:
    tracker.log_images({_key(item): _pixels(item)}, step=item.step, dataformats="NHWC")
    tracker.tracker.flush()  # `log_images` does not, and a kill would lose the image


def _clearml_text(tracker: Any, item: Media) -> object:
    text(item)  # ClearML only copies the file
    logger = tracker.tracker.get_logger()
    return logger.report_media(item.name, "text", iteration=item.step, local_path=str(item.path))


def _aim_text(tracker: Any, item: Media, content: str) -> None:
    from aim import Text

    tracker.tracker.track(Text(content), name=_key(item), step=item.step)


_AIM: dict[str, Show] = {
    "image": lambda tracker, item: tracker.log_images({_key(item): _picture(item)}, step=item.step),
    "text": lambda tracker, item: _aim_text(tracker, item, text(item)),
    "table": lambda tracker, item: _aim_text(tracker, item, _lines(item)),
}
_CLEARML: dict[str, Show] = {
    "image": lambda tracker, item: tracker.log_images({item.name: None}, step=item.step, local_path=_picture(item)),
    "text": _clearml_text,
    "table": lambda tracker, item: tracker.log_table(item.name, *table(item), step=item.step),
    "artifact": lambda tracker, item: tracker.tracker.upload_artifact(
        f"{item.name}-{item.step}", str(item.path), wait_on_upload=True
    ),
}
_COMET_ML: dict[str, Show] = {
    "image": lambda tracker, item: tracker.tracker.log_image(_picture(item), name=item.name, step=item.step),
    "text": lambda tracker, item: tracker.tracker.log_text(text(item), step=item.step, metadata={"name": item.name}),
    "table": lambda tracker, item: tracker.tracker.log_table(
        f"{item.name}-{item.step}.csv", table(item)[1], headers=table(item)[0]
    ),
    "artifact": lambda tracker, item: tracker.tracker.log_asset(
        str(item.path), file_name=_file_name(item), step=item.step
    ),
}
_DVCLIVE: dict[str, Show] = {  # files in such a folder get a slider
    "image": lambda tracker, item: tracker.tracker.log_image(
        f"{folder_name(item.name)}/{item.step}.png", _picture(item)
    ),
}
_SWANLAB: dict[str, Show] = {
    "image": lambda tracker, item: tracker.log_images({_key(item): [_picture(item)]}, step=item.step),
    "text": lambda tracker, item: tracker.tracker.log_text(key=_key(item), data=text(item), step=item.step),
    "table": lambda tracker, item: tracker.tracker.log_text(key=_key(item), data=_lines(item), step=item.step),
    "artifact": lambda tracker, item: tracker.tracker.save(
        str(item.path), base_path=str(item.path.parent), policy="now"
    ),
}
_TENSORBOARD: dict[str, Show] = {
    "image": _tensorboard_image,
    "text": lambda tracker, item: tracker.log({_key(item): text(item)}, step=item.step),
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
