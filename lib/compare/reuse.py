"""Which finished runs a sweep counts as its own, so that they are not trained again, and why it refuses the others.

A run counts if it has the same options (`same_in_reuse` in lib/config/matters.py), data, beginning and arithmetic,
if the present code learns the same (`matters.learns`), and if it reached its planned end without other options on the
way. Its commit, machine and choice of kernels are shown, and not compared. Uncommitted changes of the code must be the
same, because numbers of parts speak of commits. Runs of versions that recorded neither data nor these numbers never
count: nobody knows whether they learned the same.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.compare.candidate import Candidate, Refused, Values, check_code, compared, text
from lib.compare.plan import Configuration, Run, Sweep
from lib.config import matters
from lib.config.kconf import Schema
from lib.record import checkpoint_file, history, lineage, run

_LOWERED = ("learning_rate", "min_lr")  # what a retry changes


@dataclasses.dataclass(frozen=True)
class Present:
    """What a new run would have here; programs know it, because it needs the data and the weights."""

    data: Callable[[Schema], str]  # the data's fingerprint; empty if it is not prepared
    sha256: Callable[[str, str, str], str]  # of lineage.OPTIONS, its value, OUTPUT_DIR -> sha256 of the content
    dtype: Callable[[Schema], str]  # that DTYPE=auto means


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of the search."""

    plan: Sweep  # with `elsewhere`: the finished runs that count
    words: dict[str, str]  # name of a run of the sweep -> where the finished run is, and how its making differs
    refused: dict[Path, str]  # run -> the first reason; those of BASELINE, and those with the options of a run


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What a finished run must have to count as `run`."""

    run: Run
    values: Values  # of the options that are compared, by name in lower case
    defaults: frozenset[str]  # options that have their defaults
    learns: Mapping[str, int]

    def differing(self, there: Values) -> Iterator[tuple[str, str, str]]:
        """Option, its value here and there, for each that differs.

        An option that is newer than the other run may be missing there: its default means what was done before, or else
        a number of `matters.NUMBERS` was raised.
        """
        if self.values == there:
            return
        for name in sorted(self.values.keys() | there.keys()):
            if name in there or name not in self.defaults:
                here, other = self.values.get(name), there.get(name)
                if here != other:
                    yield text(name.upper()), text(here), text(other)


class _Search:
    """Looks for the runs of a sweep, each after those that it begins from."""

    def __init__(self, plan: Sweep, candidates: list[Candidate], now: Present):
        self.plan, self.candidates, self.now = plan, candidates, now
        # Where begun runs of the sweep found a source, that one counts, even if a newer one is there now.
        self.pins = {f"{name}-seed{seed}": folder for (name, seed), folder in plan.pinned().items()}
        self.schema = Schema()  # one for all, because a new one takes time
        self.resolved: Configuration | None = None  # whose options it has
        self.known: dict[str, _Wanted] = {}  # by the name of the configuration, with some seed
        self.taken: dict[str, Candidate] = {}
        self.words: dict[str, str] = {}
        self.near: dict[str, dict[Path, str]] = {}  # run -> candidate with the same options -> why it does not count
        self.sums: dict[tuple[str, ...], str] = {}
        self.looked: set[str] = set()

    def options(self, one: Run) -> Schema:
        """The configuration of a run, apart from its seed; valid until the next call."""
        if self.resolved is not one.configuration:
            one.configuration.resolve(self.schema)
            self.resolved = one.configuration
        return self.schema

    def wanted(self, one: Run) -> _Wanted:
        """What a run must have to count as this one."""
        name = one.configuration.name
        if name not in self.known:
            schema = self.options(one)
            changed = {option.name.lower() for option in schema.differing()}
            values = compared(schema.values())
            defaults = frozenset(values.keys() - changed - {"seed"})
            self.known[name] = _Wanted(one, values, defaults, matters.learns(schema))
        found = self.known[name]
        return dataclasses.replace(found, run=one, values={**found.values, "seed": one.seed})

    def look(self, one: Run) -> None:
        """Find a run for this one, unless it has been begun in its own folder."""
        if one.name in self.looked:
            return
        self.looked.add(one.name)
        for before in one.before(self.plan):
            self.look(before)
        if one.folder.exists():
            return
        wanted, near, pin = self.wanted(one), {}, self.pins.get(one.name)
        same = [candidate for candidate in self.candidates if not any(wanted.differing(candidate.values))]
        for candidate in sorted(same, key=lambda found: (found.ended, not found.foreign), reverse=True):
            if pin and candidate.folder != pin:
                near[candidate.folder] = f"runs of this sweep began with {pin} as {one.name} already"
            elif one.name in self.taken:
                near[candidate.folder] = f"{self.taken[one.name].folder} is newer and counts as {one.name}"
            elif candidate in self.taken.values() or (not pin and candidate.folder in self.pins.values()):
                near[candidate.folder] = f"counts as another run of this sweep already, not as {one.name}"
            else:
                try:
                    self.words[one.name] = self._check(candidate, wanted)
                    self.taken[one.name] = candidate
                except (UserError, OSError) as error:
                    near[candidate.folder] = str(error).removeprefix(f"{candidate.folder}: ")
        self.near[one.name] = near

    # ---- the checks, cheap ones first ------------------------------------------------------------------------------

    def _check(self, candidate: Candidate, wanted: _Wanted) -> str:
        """How the making of a run that counts differs, in words; raises UserError if it does not count."""
        folder = candidate.folder
        if not candidate.start.keys() >= {"learns", "data"}:
            raise Refused("an earlier version made it, which did not record what its data was and what its code learns")
        if not (folder / "summary.json").exists():
            raise Refused("is not finished")
        if files.is_held(folder):
            raise Refused("is being trained")
        retried = self._check_sessions(candidate, wanted)
        self._check_beginning(candidate, wanted)
        candidate.check_end(wanted.values["max_iters"])
        self._check_checkpoints(candidate, wanted.run)
        retries = [f"{retried} {'retry' if retried == 1 else 'retries'}"] * bool(retried)
        return "; ".join([str(folder), *candidate.made(self.options(wanted.run)), *retries])

    def _check_sessions(self, candidate: Candidate, wanted: _Wanted) -> int:
        """How many retries the run had. Raises Refused if a session had other options, code, data or arithmetic."""
        retried, expected, schema = 0, dict(wanted.values), self.options(wanted.run)
        for session in candidate.history.sessions:
            there = compared(session.get("config") or {})
            if "retry" in session:  # its lower rate follows from RETRY_LR_FACTOR
                retried += 1
                expected |= {name: there[name] for name in _LOWERED if name in there and name in expected}
            if found := next(dataclasses.replace(wanted, values=expected).differing(there), None):
                raise Refused(f"was resumed after step {session['step']} with {found[0]} {found[1]} -> {found[2]}")
            check_code(session.get("learns"), wanted.learns)
            if not (here := self.now.data(schema)):
                raise Refused("the data is not prepared here yet, so nobody knows whether it is the same")
            if session.get("data") != here:
                raise Refused(
                    f"differs in its data: {text(session.get('data'))[:12]} there and {here[:12]} here (sha256)"
                )
            if schema["DTYPE"] == "auto":
                dtype, use = self.now.dtype(schema), history.machine(session)
                if use is None or use.dtype != dtype:
                    was = (use and use.dtype) or "unknown arithmetic"
                    raise Refused(f"DTYPE=auto was {was} there and is {dtype} here; name one of them with DTYPE=")
        return retried

    def _check_beginning(self, candidate: Candidate, wanted: _Wanted) -> None:
        """Raise Refused unless the run began with the weights, masks and teacher that a new one would have."""
        parts = {part: candidate.start.get(part) for part in lineage.OPTIONS}
        began = {part: about.get("sha256") for part, about in parts.items() if isinstance(about, dict)}
        expected = self._expected_beginning(wanted.run)
        for part, what in (("init", "first weights"), ("masks", "masks"), ("teacher", "teacher")):
            if began.get(part) != expected.get(part):
                was, now = (text(found.get(part, "none"))[:12] for found in (began, expected))
                raise Refused(f"differs in its {what}: {was} there and {now} here (sha256)")

    def _expected_beginning(self, one: Run) -> dict[str, str]:
        schema, begins, found = self.options(one), dict(one.configuration.begins), {}
        for part, option in lineage.OPTIONS.items():
            given = schema[option]
            if option in begins:
                name, which = begins[option]
                source = self.plan.run(self.plan.named(name), one.seed)
                if source.name not in self.taken and not source.finished:
                    raise Refused(f"{one.name} begins from {source.name}, which is still to be trained")
                folder = self.taken[source.name].folder if source.name in self.taken else source.folder
                found[part] = self._sha256(folder, which)
            elif given and given != "zeros":
                key = option, given, schema["OUTPUT_DIR"]
                if key not in self.sums:
                    self.sums[key] = self.now.sha256(*key)
                found[part] = self.sums[key]
        return found

    def _sha256(self, folder: Path, which: str) -> str:
        """The sha256 of the checkpoint of a run, as start events have it."""
        path = checkpoint_file.chosen(folder, which.removeprefix("@") or "newest")
        key = (str(path),)
        if key not in self.sums:
            with path.open("rb") as file:
                self.sums[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.sums[key]

    def _check_checkpoints(self, candidate: Candidate, one: Run) -> None:
        """Raise UserError if a checkpoint is damaged, or lacks from which other runs of the sweep begin."""
        if candidate.foreign:
            for path in checkpoint_file.find(candidate.folder / "checkpoints"):
                with path.open("rb") as file:
                    checkpoint_file.verify(file, path)
        for other in self.plan.runs():
            for option, (name, which) in other.configuration.begins:
                if (name, other.seed) != (one.configuration.name, one.seed):
                    continue
                if candidate.folder == self.pins.get(one.name):
                    self._check_begun(candidate.folder, which, other, option)
                if not other.finished:
                    path = checkpoint_file.chosen(candidate.folder, which.removeprefix("@") or "newest")
                    if not which and checkpoint_file.step(path) != self.wanted(one).values["max_iters"]:
                        raise Refused(f"lacks the checkpoint of its last step, from which {other.name} begins")

    def _check_begun(self, folder: Path, which: str, other: Run, option: str) -> None:
        """Raise UserError if a checkpoint is another one than the run `other` began with."""
        if not (other.folder / "run.json").exists():
            return
        try:
            now = self._sha256(folder, which)
        except UserError:  # it is gone, which matters only where a run is still to begin with it
            return
        for part, about in lineage.origin(other.folder).items():
            if lineage.OPTIONS[part] == option and about["sha256"] != now:
                raise Refused(f"its checkpoint is another one than that with which {other.folder} began")


def pinned(plan: Sweep, now: Present) -> Sweep:
    """The sweep with the finished runs of other folders from which its begun runs began.

    Raises UsageError if such a run does not count any more.
    """
    if not (pins := plan.pinned()):
        return plan
    there = found(plan, None, None, now)
    for (name, seed), folder in pins.items():
        if (name, seed) not in there.plan.elsewhere:
            raise UsageError(
                f"{folder}: runs of {plan.folder} began with it, and it does not count as {name}-seed{seed} now: "
                f"{there.refused.get(folder, 'it counts as another run')}; restore it, or remove the runs that began "
                "with it"
            )
    return there.plan


def found(plan: Sweep, output_dir: Path | None, baseline: Path | None, now: Present) -> Found:
    """The finished runs under OUTPUT_DIR and BASELINE that count for the runs of a sweep. Nothing is written.

    Of several that count, the newest does, but first of all the one from which begun runs of the sweep began. A run
    counts once. Runs that the sweep has begun in its own folder stay.
    Without OUTPUT_DIR, only runs from which begun ones began are looked at. Raises UsageError if there is no run under
    BASELINE.
    """
    plan = dataclasses.replace(plan, elsewhere={})
    own = {(one.parent / one.name).resolve() for one in plan.runs()}
    folders = {path.resolve(): (path, False) for path in (_below(output_dir) if output_dir else ())}
    if baseline:
        there = _below(baseline)
        if not there:
            raise UsageError(f"BASELINE={baseline}: there is no run in this folder or its sweeps; name another folder")
        folders |= {path.resolve(): (path, True) for path in there if path.resolve() not in folders}
    for pin in plan.pinned().values():  # spelt as in the .config of the run that began with it
        folders[pin.resolve()] = (pin, folders.get(pin.resolve(), (pin, False))[1])
    candidates = [Candidate(*place) for real, place in sorted(folders.items()) if real not in own]
    runs, search = plan.runs(), _Search(plan, [candidate for candidate in candidates if candidate.start], now)
    for one in runs:
        search.look(one)
    elsewhere = {
        (one.configuration.name, one.seed): search.taken[one.name].folder for one in runs if one.name in search.taken
    }
    return Found(dataclasses.replace(plan, elsewhere=elsewhere), search.words, _refused(search, candidates))


def _refused(search: _Search, candidates: list[Candidate]) -> dict[Path, str]:
    """Folder -> why it does not count, of those whose reason is of interest."""
    foreign = {one.folder for one in candidates if one.foreign}
    counting = {one.folder for one in search.taken.values()}
    refused = {}
    for name, near in search.near.items():
        refused |= {path: why for path, why in near.items() if name not in search.taken or path in foreign}
    for candidate in candidates:
        if candidate.foreign and candidate.folder not in refused:
            refused[candidate.folder] = _distance(candidate, map(search.wanted, search.plan.runs()))
    for one in (one for one in search.plan.runs() if one.name in search.pins.keys() - search.taken.keys()):
        pin = search.pins[one.name]
        why = search.near[one.name].get(pin) or _distance(Candidate(pin, False), [search.wanted(one)])
        refused[pin] = why if pin.exists() else "it is gone"
    return {path: why for path, why in refused.items() if path not in counting}


def _below(folder: Path) -> list[Path]:
    """The runs in a folder, in its sweeps and in their trials; the folder itself if it is one."""
    if (folder / "run.json").exists():
        return [folder]
    trials = {path.parent for form in ("*/tuning/*/run.json", "tuning/*/run.json") for path in folder.glob(form)}
    return sorted({*run.folders(folder), *trials})


def _distance(candidate: Candidate, wanted: Iterable[_Wanted]) -> str:
    """Which run of the sweep is nearest to a candidate, and the first difference."""
    if not candidate.start:
        return "its journal has no start"
    found = [(list(one.differing(candidate.values)), one.run.name) for one in wanted]
    differences, name = min(found, key=lambda one: len(one[0]))
    if not differences:
        return f"{name} is in the sweep's folder already"
    option, here, there = differences[0]
    more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
    return f"differs from {name} in {option}: {there} and {here}{more}"
