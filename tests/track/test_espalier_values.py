"""What scripts log becomes pictures, tables and arrays, read back by Pillow, json and numpy."""

import io
import json
import math
import sys
import warnings

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from lib.base.errors import UsageError
from lib.track.espalier_values import flattened, images, large, npy, png, table

RED, GREEN, HALF = (255, 0, 0), (0, 255, 0), (128, 128, 128)


def pixels(content):
    """Mode, size (width, height) and the pixels of a PNG file, row by row."""
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return image.mode, image.size, list(image.get_flattened_data())


def test_an_array_in_either_layout_is_the_same_picture():
    rows = np.array([[RED, GREEN, HALF], [GREEN, GREEN, RED]], np.uint8)  # H x W x C
    wanted = ("RGB", (3, 2), [RED, GREEN, HALF, GREEN, GREEN, RED])
    assert pixels(png(rows, "x")) == wanted
    assert pixels(png(rows / 255.0, "x")) == wanted
    assert pixels(png(rows.astype(np.int64), "x")) == wanted
    assert pixels(png(np.moveaxis(rows, 2, 0)[:, :, :2], "x")) == ("RGB", (2, 2), [RED, GREEN, GREEN, GREEN])
    tensor = torch.tensor(rows).permute(2, 0, 1)
    assert pixels(png(tensor, "x")) == wanted
    assert pixels(png((tensor / 255).bfloat16().requires_grad_(), "x")) == wanted
    assert pixels(png(torch.tensor(rows), "x"))[:2] == ("RGB", (3, 2))  # 2 channels are none, so they are last
    assert pixels(png(rows[:, :, :1], "x")) == ("L", (3, 2), [255, 0, 128, 0, 0, 255])
    assert pixels(png(rows[:, :, 0] > 0, "x")) == ("L", (3, 2), [255, 0, 255, 0, 0, 255])
    transparent = np.dstack([rows, np.full((2, 3), 7, np.uint8)])
    assert pixels(png(transparent, "x"))[2][0] == (255, 0, 0, 7)


def test_a_square_tensor_has_its_channels_first_and_an_array_last():
    cube = np.zeros((3, 3, 3), np.uint8)
    cube[0] = 255
    assert pixels(png(torch.tensor(cube), "x"))[2] == [RED] * 9
    assert pixels(png(cube, "x"))[2] == [(255, 255, 255)] * 3 + [(0, 0, 0)] * 6


def test_values_that_no_picture_has_are_clipped_with_a_warning():
    with warnings.catch_warnings(action="error"):
        assert pixels(png(np.array([[0.0, 0.5, 1.001]]), "x"))[2] == [0, 128, 255]
    for array in ([[-1.0, math.nan, 2.0]], [[-math.inf, math.nan, math.inf]], [[-1, 0, 300]]):
        with pytest.warns(UserWarning, match="^log_images: x has values that are clipped; floats must be"):
            assert pixels(png(np.array(array), "x"))[2] == [0, 0, 255]


def test_images_of_pillow_and_figures_are_pictures():
    image = Image.new("RGB", (2, 1), RED)
    assert pixels(png(image, "x")) == ("RGB", (2, 1), [RED, RED])
    assert pixels(png(image.convert("CMYK"), "x")) == ("RGB", (2, 1), [RED, RED])
    assert pixels(png(image.convert("L"), "x")) == ("L", (2, 1), [76, 76])

    class Figure:  # what the code uses of a figure of matplotlib, which may not be installed
        def savefig(self, file, format):
            image.save(file, format)

    assert pixels(png(Figure(), "x")) == ("RGB", (2, 1), [RED, RED])


def test_one_value_can_be_several_images():
    one = np.zeros((2, 3))
    assert [image is one for image in images(one)] == [True]
    assert [image.shape for image in images(np.zeros((4, 2, 3, 3)))] == [(2, 3, 3)] * 4
    assert [image.shape for image in images(torch.zeros(2, 3, 5, 6))] == [(3, 5, 6)] * 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("a.png", "x must be an array, a tensor, an image of Pillow or a figure of matplotlib; got str"),
        (np.zeros(3), "x must have the shape H x W, H x W x C or C x H x W; its shape is 3"),
        (np.zeros((5, 6, 7)), "x must have the shape H x W, H x W x C or C x H x W; its shape is 5 x 6 x 7"),
        (np.zeros((0, 6, 3)), "x must have the shape H x W, H x W x C or C x H x W; its shape is 0 x 6 x 3"),
        (np.array([["a"]]), "x must hold numbers; its type is <U1"),
        (np.zeros((2, 2), complex), "x must hold numbers; its type is complex128"),
    ],
)
def test_what_is_no_picture_is_a_sentence(image, message):
    with pytest.raises(UsageError, match=rf"^log_images: {message}$"):
        png(image, "x")


def test_tables_keep_numbers_and_text_and_order():
    rows = [["a", 1, 2.5, True, None], [torch.tensor(3.0), np.int64(2**40), math.nan, -math.inf, [1, 2]]]
    content = {
        "columns": ["0", "1", "2", "3", "4"],
        "rows": [["a", 1, 2.5, True, None], [3.0, 2**40, "NaN", "-Infinity", "[1, 2]"]],
    }
    assert json.loads(table("t", range(5), rows, None)) == content
    assert json.loads(table("t", None, [["n", "é\ud800"], [1, "x"]], None)) == {
        "columns": ["n", "é\ud800"],
        "rows": [[1, "x"]],
    }
    assert json.loads(table("t", None, [], None)) == {"columns": [], "rows": []}
    assert json.loads(table("t", ["a", "b"], np.array([[1, 2], [3, 4]]), None))["rows"] == [[1, 2], [3, 4]]


def test_a_dataframe_is_a_table():
    frame = pandas.DataFrame(
        {"step": [1, 2], "loss": [0.5, math.inf], "when": pandas.to_datetime(["2026-01-02", None])}
    )
    assert json.loads(table("t", None, None, frame)) == {
        "columns": ["step", "loss", "when"],
        "rows": [[1, 0.5, "2026-01-02 00:00:00"], [2, "Infinity", "NaT"]],
    }
    assert json.loads(table("t", None, None, frame[:0])) == {"columns": ["step", "loss", "when"], "rows": []}


def test_what_is_no_table_is_a_sentence():
    with pytest.raises(UsageError, match=r"^log_table: t has no rows; give data or a dataframe$"):
        table("t", ["a"], None, None)
    with pytest.raises(UsageError, match=r"^log_table: t has 2 columns, but row 2 has 1 cells$"):
        table("t", ["a", "b"], [[1, 2], [3]], None)


def test_only_arrays_of_many_numbers_are_large():
    for value in (
        np.zeros(256),
        torch.zeros(16, 16),
        [0.0] * 256,
        ["a"] * 300,
        "a" * 300,
        [[1, 2], [3]] * 200,
        range(300),
    ):
        assert large(value) is None
    assert large(torch.zeros(300).to_sparse()) is None
    for value in (np.arange(257), torch.arange(257), list(range(257))):
        assert np.load(io.BytesIO(npy(large(value)))).tolist() == list(range(257))
    half = torch.full((2, 200), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert large(half).dtype == np.float32
    assert large(half).shape == (2, 200)


def test_one_element_is_a_number():
    assert flattened({"a": torch.tensor([[2.5]]), "b": {"c": np.bool_(True)}, "d": pandas.Series([7])}) == {
        "a": 2.5,
        "b/c": True,
        "d": 7,
    }


def test_without_pillow_images_are_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"^log_images: the package Pillow is missing; run: pip install pillow$"):
        png(np.zeros((2, 3)), "x")
