"""Kill training runs at arbitrary points, resume them, and compare them with uninterrupted runs.

For every combination of optimizer and pruning that the menu allows, a tiny model is trained once without interruption
and then with kills: at random times, and before or half-way through a change of a file or a mask. After all
combinations, one of them is killed at each of its points. Data that are lost, twice, damaged or different at the end
are a failure, with the command that repeats it. Ctrl-C shows the results so far.
"""

import argparse
import functools
import itertools
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from gpt2.weights import masks
from lib.base.errors import UserError, run_program
from lib.config.kconf import Schema
from tests import training
from tests.forked import Trainer
from tests.killpoints import Point, arm, reached
from tests.wholeness import begun, damages, differences, journal_lines, leftovers

CHOICES = "OPTIMIZER ADAMWPRUNE_BASE_OPTIMIZER_NAME PRUNING_METHOD PRUNING_DYNAMICS PRUNING_MOVEMENT".split()
SMALL = {
    "n_layer": 1, "n_embd": 16, "block_size": 16, "gradient_accumulation": 1, "batch_size": 2, "max_iters": 12,
    "warmup_steps": 2, "eval_interval": 6, "eval_samples": 4, "checkpoint_interval": 4, "checkpoint_best": True,
    "sample_tokens": 2, "sample_at_eval": True, "tracker_artifacts": "last",
}  # fmt: skip
# Options for the combinations that have them.
WHERE_POSSIBLE = {
    "pruning_interval": 2, "spam_interval": 5, "spam_warmup_steps": 2, "spam_clip_free_steps": 2,
    "init_masks": "some.safetensors", "pruning_passes": 3,
}  # fmt: skip
SECONDS = 60.0  # time limit of a session of 12 steps

Options = dict[str, object]
Kill = Point | float  # where in the process, or how many seconds after its start


def combinations() -> dict[str, Options]:
    """Name -> options of every valid combination of optimizer and pruning that trains."""
    schema = Schema()
    found: list[dict[str, str]] = [{}]
    for choice in CHOICES:
        members = [{choice: value} for value in schema.options[choice].members]
        found = [
            one for given in found for one in ([given | m for m in members if _allowed(schema, given | m)] or [given])
        ]
    trained = (given for given in found if given.get("PRUNING_DYNAMICS") != "oneshot")
    return {"+".join(given.values()): _options(schema, given) for given in trained}


def _options(schema: Schema, given: dict[str, str]) -> Options:
    extra = {n: v for n, v in WHERE_POSSIBLE.items() if _allowed(schema, given | {n.upper(): str(v)})}
    return SMALL | extra | {name.lower(): value for name, value in given.items()}


def _allowed(schema: Schema, given: dict[str, str]) -> bool:
    schema.clear()
    try:
        schema.override([(name, value, "torture") for name, value in given.items()])
    except UserError:
        return False
    return True


# ---- one run ---------------------------------------------------------------------------------------------------------


def session(place: Path, options: Options, point: Point | None = None) -> Trainer:
    """Start a run in `place`, or resume the one that is there; the trainer kills itself at `point`."""
    run = begun(place)
    words = ["--resume", str(run.relative_to(place))] if run else training.arguments(**options)
    return Trainer(place, words, training.environment(), functools.partial(arm, point))


def new_place(folder: Path) -> Path:
    """A new folder in `folder` with the corpus, and with masks of which every second weight is kept."""
    place = Path(tempfile.mkdtemp(dir=folder))
    (place / "corpus.txt").write_text(training.TEXT[:20_000])
    masks.write(place / "some.safetensors", {"h.0.mlp.c_fc.weight": torch.tensor([[0, 1] * 8] * 64).byte()})
    return place


def finish(place: Path, options: Options) -> Counter[str]:
    """Train to the end; returns how many points there were by label. Raises RuntimeError if it fails."""
    process = session(place, options)
    output = process.communicate(SECONDS)[0]
    if process.returncode or "Traceback" in output:
        raise RuntimeError(f"the last session ended with {process.returncode}: {output[-2000:]}")
    return Counter(reached(place))


def kill(place: Path, options: Options, where: Kill) -> bool:
    """Start a session and kill it; False if it finished before the kill. Raises RuntimeError for any other end."""
    process = session(place, options, where if isinstance(where, Point) else None)
    try:
        output = process.communicate(SECONDS if isinstance(where, Point) else where)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate(SECONDS)[0]
    if process.returncode not in (0, -9):
        raise RuntimeError(f"a session ended with {process.returncode}: {output[-2000:]}")
    return process.returncode == -9


def torture(place: Path, options: Options, kills: Iterable[Kill], reference: Path) -> tuple[list[Kill], list[str]]:
    """Kill the run in `place` at each of `kills` and finish it; returns the kills that were made, and what is wrong.

    `reference` is the folder of an uninterrupted run with the same options.
    """
    made: list[Kill] = []
    wrong: list[str] = []
    lines: list[bytes] = []
    try:
        for where in kills:
            if not kill(place, options, where):
                break
            made.append(where)
            wrong += damages(place)
            before, lines = lines, journal_lines(begun(place))
            wrong += [f"the journal lost lines at the kill {where}"] * (lines[: len(before)] != before)
        finish(place, options)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return made, [*wrong, str(error)]
    run = begun(place)
    wrong += ["the journal lost lines after the last kill"] * (journal_lines(run)[: len(lines)] != lines)
    return made, wrong + damages(place) + leftovers(place, reference) + differences(run, reference)


# ---- which kills -----------------------------------------------------------------------------------------------------


def points(counts: Counter[str]) -> list[Point]:
    """Every point of a session that was counted."""
    numbers = ((label, number) for label, count in sorted(counts.items()) for number in range(1, count + 1))
    return [Point(label, number, half) for label, number in numbers for half in (False, True)[: 1 + halves(label)]]


def halves(label: str) -> bool:
    """Whether this kind of change can be interrupted half-way."""
    return label.startswith(("write", "update"))


def some(counts: Counter[str], seconds: float, chance: random.Random) -> list[Kill]:
    """A kill at a random time and up to three at random points, every kind of point equally likely."""
    kills: list[Kill] = [chance.uniform(0, seconds)]
    for _ in range(chance.randint(1, 3)):
        label = chance.choice(sorted(counts))
        kills.append(Point(label, chance.randint(1, counts[label]), halves(label) and chance.random() < 0.5))
    return chance.sample(kills, len(kills))


class Reference:
    """The uninterrupted run of a combination."""

    def __init__(self, folder: Path, options: Options):
        place, began = new_place(folder), time.monotonic()
        self.options, self.counts = options, finish(place, options)
        self.run, self.seconds = begun(place), time.monotonic() - began

    def resumed(self, folder: Path, first: Kill) -> Counter[str]:
        """How many points the session after a kill has, by label."""
        place = new_place(folder)
        kill(place, self.options, first)
        return finish(place, self.options)


HALF_WAY = Point("rename checkpoints/step-#.pt", 2)


def plans(folder: Path, chosen: dict[str, Options], seed: int) -> Iterator[tuple[str, Reference, list[Kill]]]:
    """Endless: random kills for each combination, then each point of one of them, in a new and in a resumed run."""
    reference = functools.cache(lambda name: Reference(folder, chosen[name]))
    for turn in itertools.count(seed):
        for name in chosen:
            made = reference(name)
            yield name, made, some(made.counts, made.seconds, random.Random(f"{turn} {name}"))
        name = random.Random(turn).choice(sorted(chosen))
        made = reference(name)
        yield from ((name, made, [point]) for point in points(made.counts))
        yield from ((name, made, [HALF_WAY, point]) for point in points(made.resumed(folder, HALF_WAY)))


# ---- the program -----------------------------------------------------------------------------------------------------


class Tally:
    """Counts kills, runs and failures."""

    def __init__(self, chosen: dict[str, Options]):
        self.chosen, self.began = chosen, time.monotonic()
        self.kills: Counter[str] = Counter()  # by kind of point
        self.turns: Counter[str] = Counter()  # by combination
        self.failures: list[str] = []

    def trial(self, folder: Path, name: str, reference: Reference, kills: list[Kill]) -> None:
        """Torture one run."""
        place = new_place(folder)
        made, wrong = torture(place, reference.options, kills, reference.run)
        self.kills.update(kind(where) for where in made)
        self.turns[name] += 1
        if wrong:
            words = ["--combinations", name, "--kills", ",".join(map(written, kills))]
            again = f"python tests/torture.py {shlex.join(words)}"
            self.failures.append("\n  ".join([f"FAILED: {again}", *wrong]))
            say(self.failures[-1])
        shutil.rmtree(place)

    def line(self) -> str:
        """The line of progress."""
        return (
            f"{(time.monotonic() - self.began) / 60:.1f} minutes: {self.kills.total():,} kills in "
            f"{self.turns.total():,} runs of {len(self.turns)} of {len(self.chosen)} combinations, "
            f"{len(self.failures)} failures"
        )

    def table(self) -> str:
        """How many kills there were of each kind, and the failures."""
        rows = [f"{count:6,}  {kind}" for kind, count in sorted(self.kills.items())]
        return "\n".join(["", *rows, self.line(), *self.failures])


def kind(where: Kill) -> str:
    """What a kill hits, for the table."""
    if not isinstance(where, Point):
        return "at a random time"
    return f"{'half-way through' if where.half else 'before'} {where.label}"


def written(where: Kill) -> str:
    """A kill in the format of --kills."""
    return f"{where.label}:{where.number}{':half' * where.half}" if isinstance(where, Point) else f"{where:.3f}"


def read(word: str) -> Kill:
    """The kill that `written` wrote."""
    label, *rest = word.split(":")
    return Point(label, int(rest[0]), rest[1:] == ["half"]) if rest else float(label)


def read_all(text: str) -> list[Kill]:
    """The kills in `A,B`; raises ArgumentTypeError."""
    try:
        return [read(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of LABEL:NUMBER, LABEL:NUMBER:half or seconds"
        ) from None


def say(text: str) -> None:
    """Print a text in place of the line of progress."""
    print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, flush=True)


def main() -> int:
    """Torture for as long as the command line says; returns 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=10, help="at least so long [10]; each combination runs at least once"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random kills [0]")
    parser.add_argument(
        "--combinations", metavar="A,B", help="only combinations whose names contain one of these words"
    )
    parser.add_argument(
        "--kills",
        metavar="A,B",
        type=read_all,
        help="""
        these kills: LABEL:NUMBER, LABEL:NUMBER:half or seconds, as a failure prints them""",
    )
    args = parser.parse_args()
    words = (args.combinations or "").split(",")
    chosen = {name: options for name, options in combinations().items() if any(word in name for word in words)}
    if not chosen:
        parser.error(f"--combinations: none has one of {args.combinations!r} in its name")
    tally, said = Tally(chosen), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        folder = Path(temporary)
        try:
            for count, (name, reference, kills) in enumerate(plans(folder, chosen, args.seed), 1):
                tally.trial(folder, name, reference, args.kills or kills)
                if sys.stdout.isatty():
                    print(f"\r\x1b[K{tally.line()}", end="", flush=True)
                elif time.monotonic() - said > 30:
                    said = time.monotonic()
                    say(tally.line())
                if time.monotonic() - tally.began > 60 * args.minutes and count >= len(chosen):
                    break
        except KeyboardInterrupt:
            say("interrupted")
    say(tally.table())
    return 1 if tally.failures else 0


if __name__ == "__main__":
    run_program(main)
