"""Chooses the working folder of a resumed run, so that its relative paths lead to its data."""

import contextlib
import glob
import os
from pathlib import Path

from gpt2.data.prepared import PreparedOptions
from lib.base.errors import UserError
from lib.config import matters
from lib.config.kconf import Schema
from lib.record import history


def choose(schema: Schema, folder: Path, rank: int) -> tuple[Path, str]:
    """The folder from which relative paths of the run in `folder` start, and why training cannot continue ("": it can).

    Candidates are the present folder, if OUTPUT_DIR leads from it to the run (as in a copied clone), and those of
    `history.places`. The first that has the run's data is taken. Paths that the user gave for this session start from
    the present folder, so they are made absolute. If no candidate has the data, it may be prepared again only in
    a folder that the run knows. In any other folder, training cannot continue.
    """
    here, kept, made = Path.cwd(), Schema(), []
    kept.load(folder / ".config", ranges=False)  # an earlier version may have had wider ranges
    with contextlib.suppress(UserError):  # a run can be resumed without this record
        made = history.provenances(folder)
    trained = made[-1].get("folder", "") if made else ""
    output = Path(kept["OUTPUT_DIR"])
    at_home = not output.is_absolute() and (here / output).resolve() == folder.resolve().parent
    places = [here] * at_home + history.places(folder, kept["OUTPUT_DIR"], trained) + [here]
    options, given = kept.bind(PreparedOptions), _given(schema, kept, folder / ".config")
    there = next((place for place in places if _has_data(place, options)), None)
    foreign = not (there or at_home or str(here) == trained or "DATA_DIR" in given)
    there = there or places[0]
    if there != here:
        schema.override([(name, str(here / schema[name]), schema.sources.get(name, "default")) for name in given])
    if foreign:
        return there, _missing(folder, trained, options.folder, places)
    if rank == 0 and (there != here or (trained not in ("", str(here)) and not at_home)):
        was = f"the run was trained in {trained}; " if trained else ""
        relative = "DATA_DIR" not in given and not Path(options.data_dir).is_absolute()
        example = f", such as DATA_DIR={options.data_dir}," if relative else ""
        print(f"note: {was}relative paths{example} start from {there}")
    return there, ""


def _given(schema: Schema, kept: Schema, own: Path) -> list[str]:
    """The path options that the user gave for this session. `own` is the run's .config; `kept` has its values.

    Options that a resumed run keeps, such as INIT_FROM, stay as they are, so that they can be compared.
    """
    options = {name: option for name, option in schema.options.items() if option.is_path and schema[name]}
    names = [name for name, option in options.items() if matters.group(option).on_resume != matters.KEPT]
    given = [n for n in names if not schema.sources.get(n, f"{own}:").startswith(f"{own}:") or schema[n] != kept[n]]
    source = schema["DATASET_SOURCE"]  # may also be a URL or a name on the hub
    return [n for n in given if n != "DATASET_SOURCE" or os.path.exists(source) or glob.glob(source)]  # noqa: PTH110, PTH207


def _has_data(place: Path, options: PreparedOptions) -> bool:
    """Whether `place` has the data, if relative paths start from it."""
    with contextlib.suppress(OSError), contextlib.chdir(place):
        return options.folder.exists()
    return False


def _missing(folder: Path, trained: str, data: Path, places: list[Path]) -> str:
    """The error for a run whose data is in none of the `places`."""
    was = f"was trained in {trained}" if trained else "does not say where it was trained"
    where = "" if data.is_absolute() else f" in {' or '.join(map(str, dict.fromkeys(places)))}"
    return (
        f"{folder}: {was}, and there is no {data}{where}; say which folder has its data now, as in "
        "DATA_DIR=/path/to/data"
    )
