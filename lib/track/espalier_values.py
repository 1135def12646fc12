"""What training scripts give to EspalierTracker, in forms that a journal, a picture, a table or an array's file has."""

import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lib.base.errors import UsageError
from lib.track import clean

LARGE = 256  # elements: a larger array gets its own file, because readers go through the whole journal
_CHANNELS = (1, 3, 4)  # grey, RGB and RGBA
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of Pillow; other modes become RGB


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """name -> value: nested dictionaries become `a/b`, and arrays and tensors of one element a number."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}/")
        else:
            flat[clean.text(f"{prefix}{name}")] = _single(value)
    return flat


def plain(value: Any) -> Any:
    """A value for JSON: NaN and infinities become text, arrays become lists, and other objects str(value)."""
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    finite = isinstance(value, float) and value - value == 0
    return value if value is None or finite or isinstance(value, bool | int | str) else str(value)


def large(value: Any) -> np.ndarray | None:
    """The array in an array, tensor or list of more than LARGE numbers; None for any other value."""
    if not (isinstance(value, list | tuple) or hasattr(value, "tolist")):  # numpy would read other collections too
        return None
    try:
        array = _array(value)
    except (ValueError, TypeError, RuntimeError):  # such as lists of different lengths, or a sparse tensor
        return None
    return array if array.size > LARGE and array.dtype.kind in "biufc" else None


def npy(array: np.ndarray) -> bytes:
    """The content of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


# ---- images ----------------------------------------------------------------------------------------------------------


def images(value: Any) -> Iterable[Any]:
    """The images in one image, in a list of images, or in an array of four dimensions."""
    return value if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 4 else [value]


def png(image: Any, name: str) -> bytes:
    """An image as a PNG file: a numpy array, a tensor, an image of Pillow or a figure of matplotlib.

    The shape of an array is H x W, H x W x C or C x H x W; see `_channels_last`. Its values are integers from 0 to 255
    or floats from 0 to 1; other values are clipped, with a warning. Raises UsageError for anything else.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise UsageError("log_images: the package Pillow is missing; run: pip install pillow") from None
    file = io.BytesIO()
    if hasattr(image, "savefig"):
        image.savefig(file, format="png")
        return file.getvalue()
    if not isinstance(image, Image.Image):
        if not hasattr(image, "ndim"):
            kinds = "an array, a tensor, an image of Pillow or a figure of matplotlib"
            raise UsageError(f"log_images: {name} must be {kinds}; got {type(image).__name__}")
        image = Image.fromarray(_levels(_channels_last(image, name), name))
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG")
    return file.getvalue()


def _channels_last(image: Any, name: str) -> np.ndarray:
    """H x W, or H x W x C. If both readings of a shape are possible, a tensor has its channels first, an array last."""
    array, axes = _array(image), (0, 2) if torch.is_tensor(image) else (2, 0)
    if array.ndim == 2 and array.size:
        return array
    if array.ndim == 3 and array.size:
        for axis in axes:
            if array.shape[axis] in _CHANNELS:
                array = np.moveaxis(array, axis, 2)
                return array[:, :, 0] if array.shape[2] == 1 else array
    shape = " x ".join(map(str, array.shape))
    raise UsageError(f"log_images: {name} must have the shape H x W, H x W x C or C x H x W; its shape is {shape}")


def _levels(array: np.ndarray, name: str) -> np.ndarray:
    """An image's values as integers from 0 to 255, of 8 bits."""
    if array.dtype.kind not in "biuf":
        raise UsageError(f"log_images: {name} must hold numbers; its type is {array.dtype}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    levels = np.rint(array * np.float64(255 if array.dtype.kind in "bf" else 1))
    if not ((levels >= 0) & (levels <= 255)).all():  # NaN too
        wanted = "floats must be from 0 to 1, integers from 0 to 255"
        warnings.warn(f"log_images: {name} has values that are clipped; {wanted}", stacklevel=2)
    return np.clip(np.nan_to_num(levels, nan=0.0), 0, 255).astype(np.uint8, order="C")


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(name: str, columns: Iterable[Any] | None, data: Iterable[Iterable[Any]] | None, dataframe: Any) -> bytes:
    """A table as JSON: {"columns": [...], "rows": [[...], ...]}; a cell that is no number, bool or None becomes text.

    `dataframe` is of pandas or polars. Without `columns`, the first row of `data` has their names. Raises UsageError.
    """
    if dataframe is not None:
        columns = list(dataframe.columns)
        rows = [list(row) for row in zip(*(dataframe[column] for column in columns), strict=True)]
    elif data is not None:
        try:
            rows = [list(row) for row in data]
        except TypeError:
            raise UsageError(f"log_table: {name}: each row of data must be a list of cells") from None
        columns = list(columns) if columns is not None else rows.pop(0) if rows else []
    else:
        raise UsageError(f"log_table: {name} has no rows; give data or a dataframe")
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise UsageError(f"log_table: {name} has {len(columns)} columns, but row {number} has {len(row)} cells")
    content = {"columns": [str(column) for column in columns], "rows": [list(_cells(row)) for row in rows]}
    return json.dumps(content, allow_nan=False, ensure_ascii=False).encode(errors="backslashreplace")


def _cells(row: Iterable[Any]) -> Iterator[Any]:
    for value in map(_single, row):
        if isinstance(value, float) and value - value != 0:
            yield "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        else:
            yield value if value is None or isinstance(value, bool | int | float | str) else str(value)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _single(value: Any) -> Any:
    """The number in an array or tensor of one element; any other value as it is."""
    if not hasattr(value, "item"):
        return value
    size = value.numel() if hasattr(value, "numel") else value.size
    return value.item() if size == 1 else value


def _array(value: Any) -> np.ndarray:
    """An array, tensor or list as an array of numpy."""
    if not torch.is_tensor(value):
        return np.asarray(value)
    value = value.detach().cpu()
    try:
        return value.numpy()
    except TypeError:  # numpy has neither bfloat16 nor floats of 8 bits
        return value.float().numpy()
