"""Makes the configurations of a sweep from its points: resolves each, follows what it begins from, and checks it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lib import schedule
from lib.base import files
from lib.base.errors import UsageError
from lib.compare.chains import Chains
from lib.compare.plan import Configuration, Run
from lib.compare.points import SHAPE, SIZES, Point, Points
from lib.compare.sweep_file import SweepFile
from lib.config import matters
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.config.matters import METHOD_MENUS, TUNED
from lib.config.option import split_set
from lib.record import checkpoint_file, lineage, run

_OF_BATCH = ("BATCH_SIZE", "GRADIENT_ACCUMULATION", "BLOCK_SIZE")  # their product is the tokens of a step
# What scripts/oneshot.py sets itself, so that it may differ from that of training.
_OF_ONESHOT = ("EVAL_INTERVAL",)

Adopt = Callable[[Schema, Path | None], object]
# (schema, quantity, schema of the other) -> assignments as (name, text), and a sentence with the choice. For tokens the
# other's MAX_ITERS is what this configuration must train, with the runs before both counted.
Choose = Callable[[Schema, str, Schema], tuple[list[tuple[str, str]], str]]


class Reading:
    """The configurations of the points, and their problems."""

    def __init__(
        self,
        file: SweepFile,
        name: str,
        points: Points,
        links: Chains,
        adopt: Adopt,
        choose: Choose | None,
    ):
        self.file, self.name, self.points, self.links = file, name, points.points, links
        self.adopt, self.choose = adopt, choose
        self.schema = file.known  # one for all, because a new one takes time
        self.texts: dict[str, dict[str, tuple[str, str]]] = {}  # configuration -> option -> text and its source
        self.wrong: dict[str, list[str]] = {}  # configuration -> problems
        self.made: dict[str, Configuration] = {}
        self.begun: dict[str, Path] = {}  # configuration -> the folder of a run that has begun

    def configurations(self) -> list[Configuration]:
        """All of them, in the order of the file; those with problems too."""
        points = {point.name: point for point in self.points}
        for name in self.links.order:
            point = points[name]
            try:
                self._make(point)
            except UsageError as error:
                place = "" if isinstance(error, ConfigError) else f"{point.line.place}: "
                self.wrong[name] = [place + problem for problem in error.args]
        return [self.made[point.name] for point in self.points if point.name in self.made]

    def problems(self) -> Iterator[str]:
        """What is wrong with single configurations, and with all together."""
        for point in self.points:
            yield from self.wrong.get(point.name, ())
        good = [self.made[point.name] for point in self.points if point.name in self.texts]
        evaluate = [self.texts[one.name]["EVALUATE"] for one in good]
        without = {source for text, source in evaluate if text == "n"}
        for place in sorted(without):
            why = "the table of a sweep compares validation losses, so all its runs must measure them"
            yield f"{place}: EVALUATE=n: {why}"
        if not without:
            yield from self._unequal(good)

    def _make(self, point: Point) -> None:
        """Make a configuration and note what its options are; raises UsageError with its problems."""
        begins = self.links.begins[point.name]
        one = Configuration(
            point.name,
            point.line.place,
            self.file.base,
            point.own,
            point.assignments,
            oneshot=point.line.oneshot,
            begins=begins,
        )
        self.made[one.name] = one
        schema = one.resolve(self.schema)
        if set(self.links.needed(one.name)) - self.texts.keys():
            return  # what it needs has problems, which are told
        given = set(schema.given)
        one = self._follow(one, schema)
        one = self._adopted(one, schema)
        if one.name in self.links.matched:
            one = self._sized(one, schema, point)
        self._check_masks(one, schema)
        if one.oneshot:
            one = self._steps_of_oneshot(one, schema, given)
        else:
            schedule.check(schema.bind)
        if checkpoints := self.links.checkpoints(one.name):
            one = self._keeping(one, schema, checkpoints)
        self.made[one.name] = one
        self.texts[one.name] = {
            name: (option.text, schema.sources.get(name, "")) for name, option in schema.options.items()
        }

    def _keeping(self, one: Configuration, schema: Schema, checkpoints: Iterable[str]) -> Configuration:
        """The configuration that keeps the checkpoints from which others begin."""
        steps, last = [int(step) for step in checkpoints if step.isdigit()], schema["MAX_ITERS"]
        if late := [step for step in steps if step > last]:
            raise UsageError(f"others begin from step {late[0]} of {one.name}, which ends after {last}")
        if one.oneshot and (early := [which for which in checkpoints if which not in ("newest", str(last))]):
            raise UsageError(
                f"others begin from @{one.name}@{early[0]}, and one-shot pruning saves only its last step; leave out "
                f"@{early[0]}"
            )
        if "best" in checkpoints and not schema["CHECKPOINT_BEST"]:
            raise UsageError(f"others begin from the best checkpoint of {one.name}, which has CHECKPOINT_BEST=n")
        if not steps:
            return one
        kept = dict.fromkeys([*split_set(schema["CHECKPOINT_AT"]), *map(str, steps)])
        added = ("CHECKPOINT_AT", ",".join(kept), one.place)
        schema.override([added])
        return dataclasses.replace(one, assignments=(*one.assignments, added))

    def _follow(self, one: Configuration, schema: Schema) -> Configuration:
        """The configuration with the shape of the one that it begins from, whose weights do not exist yet."""
        sources = {option: name for option, (name, _) in one.begins}
        if "INIT_FROM" not in sources:
            return one
        source = sources["INIT_FROM"]
        theirs = {name: self.texts[source][name][0] for name in SHAPE}
        for name in SHAPE:
            if name in schema.given and schema.options[name].text not in ("", theirs[name]):
                raise UsageError(
                    f"{name}={schema.options[name].text} does not fit INIT_FROM=@{source}, which has {theirs[name]}; "
                    "leave it out"
                )
        names = [name for name in SHAPE if theirs["MODEL_NAME"] == "custom" or name not in SIZES]
        changed = tuple((name, theirs[name], one.place) for name in names if schema.options[name].text != theirs[name])
        schema.override(changed)
        return dataclasses.replace(one, adopted=changed)

    def _adopted(self, one: Configuration, schema: Schema) -> Configuration:
        """The configuration with what `adopt` changes in `schema`."""
        chained = {name: schema[name] for name, _ in one.begins}
        for name in chained:
            schema.forget(name)
        runs = [Run(one, seed, Path(schema["OUTPUT_DIR"]) / self.name) for seed in self.file.seeds]
        begun = next((run.folder for run in runs if (run.folder / ".config").exists()), None)
        self.begun |= {one.name: begun} if begun else {}
        before = {name: (option.text, schema.sources.get(name)) for name, option in schema.options.items()}
        self.adopt(schema, begun)
        changed = [
            (name, option.text, one.place)
            for name, option in schema.options.items()
            if before[name] != (option.text, schema.sources.get(name)) and option.settable
        ]
        if chained:
            schema.override((name, str(text), one.place) for name, text in chained.items())
        return dataclasses.replace(one, adopted=(*one.adopted, *changed))

    def _check_masks(self, one: Configuration, schema: Schema) -> None:
        """Raise UsageError if the masks of another configuration do not fit the shape of this one."""
        for source in (name for option, (name, _) in one.begins if option == "INIT_MASKS"):
            for size in SHAPE[1:]:
                if (theirs := self.texts[source][size][0]) != schema.options[size].text:
                    ours = f"{one.name} has {schema.options[size].text}"
                    raise UsageError(
                        f"INIT_MASKS=@{source} has masks for {size}={theirs}, and {ours}; begin from @{source} too"
                    )

    def _steps_of_oneshot(self, one: Configuration, schema: Schema, given: set[str]) -> Configuration:
        """The configuration with what scripts/oneshot.py sets: a step for each block, evaluated after each."""
        if (dynamics := schema["PRUNING_DYNAMICS"]) != "oneshot":
            raise UsageError(f"PRUNING_DYNAMICS={dynamics}: the word oneshot sets it; leave it out")
        if schema["PRUNING_METHOD"] == "shrink":
            raise UsageError(
                "PRUNING_METHOD=shrink: the shape that is left is known only when the model is pruned, so no sweep can "
                "plan with it; use make shrink"
            )
        changes = [("MAX_ITERS", str(schema["N_LAYER"]), one.place)]
        if schema["EVALUATE"] and "EVAL_INTERVAL" not in given:
            changes.append(("EVAL_INTERVAL", "1", one.place))
        schema.override(changes)
        return dataclasses.replace(one, adopted=(*one.adopted, *changes))

    def _sized(self, one: Configuration, schema: Schema, point: Point) -> Configuration:
        """The configuration with the size or the steps that make a quantity equal to that of another one."""
        quantity, target = point.line.matched[0], self.links.matched[one.name]
        words = f"match={quantity}:{target}"
        if self.choose is None:
            raise UsageError(f"{words} needs a program that can size models")
        if one.oneshot:
            raise UsageError(f"{words}: one-shot pruning has the size and the steps of its model; leave it out")
        if quantity.endswith("nonzeros") and schema["INIT_FROM"]:
            raise UsageError(f"{words} chooses the size of the model, which INIT_FROM={schema['INIT_FROM']} decides")
        theirs = self.made[target].schema()
        if quantity == "tokens":
            theirs.override([("MAX_ITERS", str(self._steps(one, schema, target, words)), one.place)])
        elif quantity == "flops" and (_begins(schema) or _begins(theirs)):
            raise UsageError(f"{words}: FLOPs of chains cannot be planned; match tokens, or give MAX_ITERS")
        chosen, sentence = self.choose(one.schema(), quantity, theirs)
        own = {schema.now_called(word.name): word for word in point.line.words}
        for name in (name for name, _ in chosen if name in own):
            raise UsageError(f"{own[name]}: {words} chooses it; leave it out")
        placed = tuple((name, text, one.place) for name, text in chosen)
        schema.override(placed)
        return dataclasses.replace(
            one, assignments=(*one.assignments, *placed), matched=(quantity, target), chosen=sentence
        )

    def _steps(self, one: Configuration, schema: Schema, target: str, words: str) -> int:
        """The steps after which a configuration, with all before it, has trained as long as the target with its own."""
        last = {
            name: 0 if self.made[name].oneshot else int(texts["MAX_ITERS"][0]) for name, texts in self.texts.items()
        }
        ours, theirs = self.links.steps(one.name, last | {one.name: 0}), self.links.steps(target, last)
        outside, unknown = lineage.cost(self._trained_outside(ours, one.name, schema))
        wanted, theirs_unknown = lineage.cost(self._trained_outside(theirs, one.name, schema))
        if differ := unknown ^ theirs_unknown:
            raise UsageError(
                f"{words}: nobody knows for how many tokens {' and '.join(sorted(differ))} was trained; give MAX_ITERS"
            )
        size = math.prod(int(self.texts[target][name][0]) for name in _OF_BATCH)
        outside += sum(ours.values()) * size
        wanted += sum(theirs.values()) * size
        if outside >= wanted:
            raise UsageError(
                f"{words}: the runs before {one.name} train {outside // size:,} steps, which are enough already"
            )
        if (wanted - outside) % size:
            raise UsageError(
                f"{words}: no number of steps of {size:,} tokens makes the missing {wanted - outside:,}; begin from "
                "other runs, or leave it out"
            )
        return (wanted - outside) // size

    def _trained_outside(self, names: Iterable[str], made: str, schema: Schema) -> lineage.Ancestors:
        """What was trained for these configurations outside of the sweep; `made` is being made, with `schema`."""
        found = []
        for name in names:
            texts = [
                schema.options[option].text if name == made else self.texts[name][option][0]
                for option in lineage.OPTIONS.values()
            ]
            outside = [text for text in texts if text not in ("", "zeros") and not text.startswith("@")]
            begun = None if self.links.begins[name] else self.begun.get(name)
            found += [_trained(text, schema["OUTPUT_DIR"], begun) for text in outside]
        return lineage.merged(*found)

    def _unequal(self, good: Sequence[Configuration]) -> Iterator[str]:
        """A sentence for each option that must be equal in all configurations and is not; one for a whole matrix."""
        equal = matters.names(self.schema, lambda group: group.equal_in_sweep)
        told = set()
        first = next((one for one in good if not one.oneshot), next(iter(good), None))
        for other in (one for one in good if one is not first):
            decided = _OF_ONESHOT if other.oneshot and not first.oneshot else ()
            for name in self.texts[other.name]:
                text, expected = self.texts[other.name][name][0], self.texts[first.name][name][0]
                if name in equal and name not in decided and text != expected and (other.place, name) not in told:
                    told.add((other.place, name))
                    yield (
                        f"{other.place}: {other.name} has {name}={text or 'unset'}, and {first.name} has "
                        f"{expected or 'unset'}: a table needs equal budgets, so only options of the menus "
                        f"{' and '.join(METHOD_MENUS)}, the size of the model, MAX_ITERS, {', '.join(TUNED[:-1])} and "
                        f"{TUNED[-1]} may differ"
                    )


def _begins(schema: Schema) -> bool:
    """Whether other runs come before one of this configuration."""
    return any(schema[name] not in (None, "", "zeros") for name in lineage.OPTIONS.values())


def _trained(given: str, output_dir: str, begun: Path | None) -> lineage.Ancestors:
    """What was trained for what an option of lineage.OPTIONS names; of other things than runs nobody knows it.

    A run that has `begun` with it knows it even if that run is gone.
    """
    folder, which = run.named(given, [f"OUTPUT_DIR={output_dir}"])
    is_export = (files.named(given) / "config.json").is_file()  # it lies in its run's folder
    if (folder / "run.json").exists() and not is_export:
        path = checkpoint_file.chosen(folder, which or "newest")
        return lineage.chain(folder, checkpoint_file.step(path))
    known = lineage.ancestors(begun) if begun else {}
    return known if known and None not in known.values() else {given: None}
