"""What a sweep is: its configurations, its runs, and the runs that these need."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.config import matters
from lib.config.kconf import Schema, present
from lib.config.matters import TUNED
from lib.record import history, lineage, retries, run

if TYPE_CHECKING:
    from lib.compare.space import Tuning

Assignment = tuple[str, str, str]  # name, text, place
Folders = Mapping[tuple[str, int], Path]  # configuration and seed -> folder

TEXT, BASE = "sweep", "base.config"  # files of a sweep's folder that repeat it, if it was begun without a file


@functools.cache
def _schema(purpose: str) -> Schema:
    """One schema for each purpose, to be filled and read at once: new ones for thousands of runs take minutes."""
    return Schema()


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One configuration of a sweep, which is trained once per seed."""

    name: str
    place: str  # file:line
    base: Path  # the preset or configuration file that it starts from
    own: tuple[Assignment, ...]  # from its line, and what else makes it another one than its neighbours
    assignments: tuple[Assignment, ...]  # all that apply; a later one replaces an earlier one
    adopted: tuple[Assignment, ...] = ()  # what follows from the weights that INIT_FROM names, and from the kind of run
    oneshot: bool = False  # prunes a finished model once, in place of training
    # Configurations of this sweep whose run with the same seed it begins from: option (of lineage.OPTIONS) ->
    # (configuration, checkpoint), such as ("dense", "") or ("dense", "@200"). `schema` has @dense as their value.
    begins: tuple[tuple[str, tuple[str, str]], ...] = ()
    matched: tuple[str, str] | None = None  # (quantity, configuration) that it is sized for
    chosen: str = ""  # what was chosen for `matched`, and how close it comes, in words

    def schema(self, *more: Assignment) -> Schema:
        """The resolved configuration; raises ConfigError with every problem."""
        return self.resolve(Schema(), *more)

    def resolve(self, schema: Schema, *more: Assignment) -> Schema:
        """The same in a schema that is there already, which takes an eighth of the time."""
        schema.clear()
        schema.load(self.base)
        schema.override([*self.assignments, *more])
        schema.override(self.adopted)
        return schema

    @functools.cached_property
    def group(self) -> str:
        """TRACKER_GROUP, which all its runs ask for."""
        return self.resolve(_schema("here"))["TRACKER_GROUP"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One configuration with one seed."""

    configuration: Configuration
    seed: int
    parent: Path  # the sweep's folder
    elsewhere: Path | None = None  # a finished run of the same that was found under another folder, and counts
    begins: tuple[tuple[str, str], ...] = ()  # those of lineage.OPTIONS that name runs of this sweep -> which

    @property
    def name(self) -> str:
        """The name of its folder, of its log and of its run in trackers."""
        return f"{self.configuration.name}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's folder, which the trainer makes."""
        return self.elsewhere or self.parent / self.name

    @property
    def log(self) -> Path:
        """The file with the output of the run's trainers. A trainer holds its lock from its start to its end.

        So a later sweep knows of a trainer that outlived an earlier one, even before that has made the run's folder.
        """
        return self.parent / f"{self.name}.log"

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end."""
        return (self.folder / "summary.json").exists()

    @property
    def begun(self) -> bool:
        """Whether there is a run, or something that is not the sweep's to touch."""
        return run.is_begun(self.folder)

    @property
    def program(self) -> str:
        """The program that makes it: a path in the repository."""
        return "scripts/oneshot.py" if self.configuration.oneshot else "gpt2/train.py"

    def before(self, plan: "Sweep") -> "list[Run]":
        """The runs that must be finished before this one can begin."""
        names = dict.fromkeys(name for _, (name, _) in self.configuration.begins)
        return [plan.run(plan.named(name), self.seed) for name in names]

    def schema(self) -> Schema:
        """The resolved configuration of this run, with its seed and the runs that it begins from."""
        return self.resolve(Schema())

    def resolve(self, schema: Schema) -> Schema:
        """The same in a schema that is there already, which takes an eighth of the time."""
        place = self.configuration.place
        begins = [(name, text, place) for name, text in self.begins]
        return self.configuration.resolve(schema, ("SEED", str(self.seed), place), *begins)

    def words(self) -> list[str]:
        """The program's arguments for a new run. TRACKER_GROUP is the sweep's name unless the sweep sets it."""
        given = dict(present(name, text) for name, text, _ in self.configuration.assignments)  # the last one counts
        if not self.configuration.group:
            given["TRACKER_GROUP"] = self.parent.name
        # The folder of a run in place of its name: OUTPUT_DIR is another.
        given |= {name: text for name, text, _ in self.configuration.adopted if name in lineage.OPTIONS.values()}
        given |= dict(self.begins)
        if self.configuration.oneshot:  # `common` may have that of trainings
            given |= {name: text for name, text, _ in self.configuration.adopted if name == "MAX_ITERS"}
        given |= {"SEED": str(self.seed), "OUTPUT_DIR": str(self.parent), "TRACKER_RUN_NAME": self.name}
        return ["--config", str(self.configuration.base), *(f"{name}={text}" for name, text in given.items())]

    def check(self) -> None:
        """Raise UsageError if its folder has a run of another configuration or seed."""
        if self.elsewhere or not self.begun:  # what is elsewhere has been checked
            return
        if not run.configuration(self.folder).exists():
            raise UserError(f"{self.folder}: its .config is missing; restore it or remove this folder")
        there, here = _schema("there"), self.resolve(_schema("here"))
        there.clear()
        there.load(self.folder / ".config")
        retries.follow(here, self.folder)
        for name, is_now in here.options.items():
            was = there.options[name].text
            if matters.group(is_now).same_when_sweep_continues and was != is_now.text:
                raise UsageError(
                    f"{self.folder}: was begun with {name}={was or 'unset'}, and the sweep has "
                    f"{is_now.text or 'unset'} now; remove this folder or give the changed sweep another name"
                )

    def check_begun(self, now: Mapping[tuple[str, str], str]) -> None:
        """Raise UsageError if the run began with other weights, masks or a teacher than those that are there `now`.

        `now` is the option and its value -> sha256.
        """
        if not (self.folder / "run.json").exists():
            return
        schema = self.resolve(_schema("here"))
        for part, about in lineage.origin(self.folder).items():
            name = lineage.OPTIONS[part]
            if about["sha256"] != now.get((name, schema[name]), about["sha256"]):
                raise UsageError(
                    f"{self.folder}: was begun with other content of {name}={schema[name]} than is there now, and runs "
                    "that are still to begin would not be comparable; restore it, remove this folder or give the sweep "
                    "another name"
                )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A checked sweep: all configurations are valid, and what must be equal in them is."""

    name: str
    folder: Path  # <OUTPUT_DIR>/<name>
    seeds: tuple[int, ...]
    configurations: tuple[Configuration, ...]
    quantity: str = "tokens"  # what configurations must have in common to be ranked; see sweep_file.QUANTITIES
    tuning: "Tuning | None" = None
    dropped: tuple[tuple[str, str], ...] = ()  # points that Kconfig forbids: name, reason
    text: str = ""  # the lines that repeat it, if it was begun without a file
    elsewhere: Folders = dataclasses.field(default_factory=dict)  # finished runs under other folders that count
    trials: Folders = dataclasses.field(default_factory=dict)  # the same of the trials of its tuning

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a sweep that is stopped early has complete comparisons."""
        return [self.run(configuration, seed) for seed in self.seeds for configuration in self.configurations]

    def run(self, configuration: Configuration, seed: int) -> Run:
        """One run of it."""
        begins = tuple(
            (option, f"{self.elsewhere.get((name, seed)) or self.folder / f'{name}-seed{seed}'}{checkpoint}")
            for option, (name, checkpoint) in configuration.begins
        )
        elsewhere = self.elsewhere.get((configuration.name, seed))
        return Run(configuration, seed, self.folder, elsewhere, begins)

    def dropped_by_reason(self) -> dict[str, list[str]]:
        """Why points were dropped -> their names."""
        found: dict[str, list[str]] = {}
        for name, reason in self.dropped:
            found.setdefault(reason, []).append(name)
        return found

    def pinned(self) -> Folders:
        """The runs that are not in the sweep's folder -> the folders of which its begun runs began in their place.

        Those that such a folder began from too. Whether they still count is not decided here.
        """
        found: dict[tuple[str, int], Path] = {}
        plan = dataclasses.replace(self, elsewhere={})
        ahead = [(one, one.folder) for one in plan.runs() if one.configuration.begins and one.begun]
        if not ahead:
            return found
        there, own = Schema(), {one.folder for one in plan.runs()}
        while ahead:
            one, folder = ahead.pop(0)
            if not (folder / ".config").exists():
                continue
            there.clear()
            there.load(folder / ".config", ranges=False)
            for option, (name, checkpoint) in one.configuration.begins:
                source, began = plan.run(plan.named(name), one.seed), there[option] or ""
                place = Path(began.removesuffix(checkpoint))
                elsewhere = began and began.endswith(checkpoint) and place not in own
                if elsewhere and not source.folder.exists() and (name, one.seed) not in found:
                    found[name, one.seed] = place
                    ahead.append((source, place))
        return found

    def check_data(self, now: Callable[[Schema], str] | None = None) -> None:
        """Raise UsageError if a run was trained on other data than the others, or than is there `now` for new ones.

        Data of one name may differ: a file or a package was changed, and prepared again. Runs of earlier versions did
        not record what it was.
        """
        known: dict[tuple[str, ...], Path] = {}
        for one in self.runs():
            if (one.folder / "run.json").exists() and (data := history.skim(one.folder).data):
                known.setdefault(data, one.folder)
        if len(known) > 1:
            (first, folder), (other, there), *_ = known.items()
            raise UsageError(
                f"{there}: was trained on other data ({_sums(other)}) than {folder} ({_sums(first)}), so they are not "
                "comparable; remove the one whose data is gone, or give the sweep another name"
            )
        if not known or not now:
            return
        [(data, folder)] = known.items()
        here = now(self.runs()[0].schema())[:12]
        if here and data != (here,):
            raise UsageError(
                f"{folder}: was trained on other data ({_sums(data)}) than is there now ({_sums((here,))}), and runs "
                "that are still to begin would not be comparable; restore it, remove this folder or give the sweep "
                "another name"
            )

    def named(self, name: str) -> Configuration:
        """The configuration of this name."""
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Configuration]:
        return {one.name: one for one in self.configurations}

    def dense(self) -> list[str]:
        """Which configurations train a dense model from random weights; the first is the reference, as in reports."""
        return [one.name for one, (is_dense, _) in zip(self.configurations, self._told, strict=True) if is_dense]

    def tuned(self) -> dict[str, list[str]]:
        """Option -> its value in each configuration, of the TUNED options that differ."""
        columns = zip(*(texts for _, texts in self._told), strict=True)
        values = dict(zip(TUNED, map(list, columns), strict=True))
        return {name: texts for name, texts in values.items() if len(set(texts)) > 1}

    @functools.cached_property
    def _told(self) -> list[tuple[bool, list[str]]]:
        """Of each configuration, whether it is dense, and its TUNED options: to resolve one takes milliseconds."""
        schema, found = Schema(), []
        for one in self.configurations:
            one.resolve(schema)
            begins = one.begins or any(schema[name] for name in lineage.OPTIONS.values())
            dense = schema["PRUNING_METHOD"] == "none" and not begins
            found.append((dense, [schema.options[name].text for name in TUNED]))
        return found

    def kept(self) -> "Sweep":
        """The same sweep; one that was begun without a file is written to its folder first, and depends on it alone."""
        if not self.text:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made: {files.reason(error, self.folder.parent)}") from None
        base = self.folder / BASE
        files.write(base, self.configurations[0].base.read_bytes())
        files.write(self.folder / TEXT, self.text.encode())
        based = tuple(dataclasses.replace(one, base=base) for one in self.configurations)
        return dataclasses.replace(self, configurations=based)


def _sums(data: tuple[str, ...]) -> str:
    return f"sha256 {' and '.join(data)}"
