"""Refuses a tuning that would change a quantity of match=, which chooses sizes and steps before anything is tuned."""

from lib.base.errors import UsageError
from lib.compare import tuning
from lib.compare.plan import Configuration, Sweep
from lib.compare.reading import Choose
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.config.matters import TUNED

Values = tuple[tuple[str, str], ...]


def check(plan: Sweep, choose: Choose) -> None:
    """Raise ConfigError if `choose` finds something else with the values of some trial than it found for the sweep."""
    matched = [
        one for one in plan.configurations if one.matched and one.matched[0] != "tokens"
    ]  # no trial changes them
    if not plan.tuning or not matched:
        return
    tried: dict[str, list[tuple[int, Values]]] = {}  # configuration -> number and values of its trials
    for trial in tuning.planned(plan):
        for name in trial.method.names:
            tried.setdefault(name, []).append((trial.number, trial.values))
    problems = []
    for one in matched:
        again = _Again(plan, one, choose)
        for name in (one.name, one.matched[1]):
            for number, values in tried.get(name, ()):
                if again.differs(name, values):
                    problems.append(_problem(again, name, number, values))
                    break
    if problems:
        raise ConfigError(dict.fromkeys(problems))


class _Again:
    """Chooses again for a configuration with match=, as if it or its target had the values of a trial."""

    def __init__(self, plan: Sweep, one: Configuration, choose: Choose):
        self.plan, self.one, self.choose = plan, one, choose
        self.schemas = Schema(), Schema()  # for all trials, because new ones take time
        self.known = {self._decisive({}): one.chosen}

    def differs(self, name: str, values: Values) -> bool:
        """Whether the choice, or what is said of it, is another one if the configuration `name` has these values."""
        given = {name: values}
        if (key := self._decisive(given)) not in self.known:
            ours, theirs = self._resolved(given)
            try:
                self.known[key] = self.choose(ours, self.one.matched[0], theirs)[1]
            except UsageError as error:  # such as soft movement, whose non-zeros nobody can plan
                self.known[key] = str(error)
        return self.known[key] != self.one.chosen

    def _resolved(self, given: dict[str, Values]) -> list[Schema]:
        pair = zip((self.one.name, self.one.matched[1]), self.schemas, strict=True)
        return [
            tuning.given(self.plan, self.plan.named(name), given.get(name, ())).resolve(schema) for name, schema in pair
        ]

    def _decisive(self, given: dict[str, Values]) -> tuple[str, ...]:
        """What may decide the choice: all but the optimizer's options, which prune nothing. Choosing takes 0.1 s."""
        return tuple(
            option.text
            for schema in self._resolved(given)
            for name, option in schema.options.items()
            if option.menu[:1] != ("Optimizer",) and name not in TUNED
        )


def _problem(again: _Again, name: str, number: int, values: Values) -> str:
    """The sentence about a trial that differs; it names the options that differ alone, or else all of the trial."""
    blamed = [pair for pair in values if _alone(again, name, pair)] or values
    texts, names = " ".join(map("=".join, blamed)), " and ".join(option for option, _ in blamed)
    words = f"match={':'.join(again.one.matched)}"
    return (
        f"{again.plan.tuning.place}: {texts}, which trial {number} gives {name}, changes what {words} chose for "
        f"{again.one.name}; leave {names} out of tune, or leave out {words}"
    )


def _alone(again: _Again, name: str, pair: tuple[str, str]) -> bool:
    try:
        return again.differs(name, (pair,))
    except UsageError:  # it has no effect without another value of the trial
        return False
