"""The pictures of a run: what is drawn, read back from the PNG, and what is said without matplotlib."""

import io
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from lib.record import history, pictures
from tests.runs import evaluated, trained, write
from tests.training import ROOT

TRAIN, VAL, SPARSITY = (108, 155, 208), (11, 61, 145), (179, 84, 30)
BLUES = {0.0: (247, 251, 255), 0.5: (106, 174, 214), 1.0: (8, 48, 107)}  # ColorBrewer's scale, as matplotlib has it
needs_matplotlib = pytest.mark.extra("report")


def step(number, loss, sparsity=0.0):
    return "train", number, {"train_loss": loss, "sparsity": sparsity}, {}


def layers(number, **sparsity):
    return "eval", number, {"val_loss": 3.0} | {f"sparsity/{n}": v for n, v in sparsity.items()}, {}


def pixels(png):
    """The colours of a picture, height x width x 3."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        assert (image.size, image.format, set(image.info)) == ((800, 500), "PNG", {"dpi"})
        return np.array(image.convert("RGB"))


def there(picture, colour):
    """The columns of a picture that have a pixel of this colour."""
    return np.flatnonzero((picture == colour).all(axis=2).any(axis=0))


@needs_matplotlib
def test_the_loss_curve_has_both_losses_over_all_steps(tmp_path):
    run = write(tmp_path / "a", evaluated(0, 9.0), *trained(*range(1, 41)), evaluated(40, 1.5))
    picture = pixels(pictures.loss_curve(history.load(run)))
    for colour in (TRAIN, VAL):
        columns = there(picture, colour)
        assert columns.min() < 90 and columns.max() > 700  # from the left end to the name at the right end
    assert not there(picture, SPARSITY).size  # nothing was pruned


@needs_matplotlib
def test_the_sparsity_has_its_own_axes_if_weights_were_pruned(tmp_path):
    run = write(tmp_path / "a", step(1, 3.0), step(2, 2.5, 0.25), step(3, 2.0, 0.5))
    picture = pixels(pictures.loss_curve(history.load(run)))
    rows = {name: np.flatnonzero((picture == colour).all(axis=2).any(axis=1)) for name, colour in
            (("loss", TRAIN), ("sparsity", SPARSITY))}  # fmt: skip
    assert rows["loss"].max() < 340 < rows["sparsity"].min()
    assert not there(picture, VAL).size  # nothing was evaluated


@needs_matplotlib
def test_the_heat_map_has_a_row_for_each_tensor_and_a_column_for_each_evaluation(tmp_path):
    evaluations = [
        layers(0, **{"h.0.a": 0.0, "h.0.b": 0.5, "h.1.a": 1.0}),
        layers(10, **{"h.0.a": 0.5, "h.0.b": 1.0, "h.1.a": 1.0}),
        layers(20, **{"h.0.a": 1.0}),
    ]
    picture = pixels(pictures.layer_sparsity(history.load(write(tmp_path / "a", *evaluations))))
    cells = [[tuple(map(int, picture[y, x])) for x in (100, 300, 500)] for y in (80, 240, 400)]
    none = (204, 204, 204)
    assert cells == [
        [BLUES[0], BLUES[0.5], BLUES[1]],  # h.0.a
        [BLUES[1], BLUES[1], none],  # h.1.a
        [BLUES[0.5], BLUES[1], none],  # h.0.b
    ]


@needs_matplotlib
def test_the_same_history_is_the_same_bytes_whatever_the_settings(tmp_path):
    run = write(tmp_path / "a", layers(0, **{"$h.0_{": 0.5}), *trained(1, 2), layers(2, **{"$h.0_{": math.nan}))
    code = (
        "import hashlib, sys; from pathlib import Path; from lib.record import history, pictures\n"
        "seen = history.load(Path(sys.argv[1]))\n"
        "for draw in (pictures.loss_curve, pictures.layer_sparsity): print(hashlib.sha256(draw(seen)).hexdigest())\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nsavefig.dpi: 10\nfont.size: 30\naxes.facecolor: red\n")

    def digests(**environment):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(run)],
            cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    plain = digests()
    assert plain[2] == "False"
    assert digests(MATPLOTLIBRC=str(tmp_path / "matplotlibrc")) == plain


@needs_matplotlib
@pytest.mark.parametrize(
    "events",
    [
        [step(1, 3.0)],  # a single point
        [step(1, 3.0), step(2, 1e30), step(3, 3.0), evaluated(3, math.nan)],
        [step(1, 1e-300), step(2, 1e29), step(3, -1.0), evaluated(3, math.inf)],
        [step(10**9, 0.0, 1.0), step(10**9 + 1, 0.0, math.nan)],
        [step(number, 2 + 1 / number, 0.5) for number in range(1, 900)],
        [layers(n, **{f"h.{layer}.{'x' * 40}": 1 / layer for layer in range(1, 99)}) for n in range(99)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_unusual_runs_can_be_drawn(tmp_path, events):
    seen = history.load(write(tmp_path / "a", *events))
    assert pixels(pictures.loss_curve(seen)).std() > 5
    heat = pictures.layer_sparsity(seen)
    assert heat is None or pixels(heat).std() > 5
    assert (heat is not None) == (events[0][0] == "eval")


def test_without_measurements_there_is_no_picture(tmp_path):
    for events in ([], [step(1, math.nan), evaluated(1, math.inf)]):
        seen = history.load(write(tmp_path / str(len(events)), *events))
        assert (pictures.loss_curve(seen), pictures.layer_sparsity(seen)) == (None, None)


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert pictures.problem() == (
        f"no pictures: package matplotlib is not installed; run: {sys.executable} -m pip install matplotlib==3.11.2 "
        "scipy==1.17.1"
    )


@needs_matplotlib
def test_with_matplotlib_there_is_no_problem():
    assert pictures.problem() == ""
