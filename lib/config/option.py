"""One option: its name, the values it may have, its present value, and what is wrong with a new one."""

import difflib
import functools
import math
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata

try:
    import kconfiglib
except ModuleNotFoundError:  # every program imports this package first, so a missing environment is reported here
    raise SystemExit(
        f"error: {sys.executable} lacks Espalier's packages; run `make train` once and use .venv/bin/python, or "
        "install what pyproject.toml names"
    ) from None

from lib.base import durations, files, redact
from lib.base.errors import UsageError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.ASCII | re.IGNORECASE)
_PATHS = ("_DIR", "_FILE", "_OUTPUT", "_SOURCE", "_FROM", "_MASKS", "_DATA")  # such a string is a path, or may be one
_BEYOND = re.compile(r"[+-]?[0.]*[1-9]")  # a text that is neither zero nor inf

Value = bool | int | float | str | tuple[str, ...] | None


class Option:
    """One thing that a user can choose: a bool, an int, a float, a str, one value of a choice, or a set of members.

    kind      "bool", "int", "float", "str", "choice" or "set"
    is_path   whether it is a text that may be a path, in which a leading ~ is the home folder
    is_time   whether it is a text that is a duration, or empty
    is_wait   whether it is a text that says how long to wait: auto, all, or a duration
    members   value -> kconfiglib symbol, for a choice and a set
    other     symbol with the values `a,b` of a set that are not members; None if only members are allowed
    """

    def __init__(
        self,
        item: kconfiglib.Symbol | kconfiglib.Choice,
        members: Mapping[str, kconfiglib.Symbol],
        kind: str,
        other: kconfiglib.Symbol | None = None,
    ):
        self.name, self.item, self.members, self.kind, self.other = item.name, item, members, kind, other
        self.is_path = kind == "str" and self.name.endswith(_PATHS)
        self.is_time = kind == "str" and self.name.endswith("_TIME")
        self.is_wait = kind == "str" and self.name.endswith("_WAIT")
        self.node = item.nodes[0]
        prompted = self.node if self.node.prompt else self.node.parent  # a set has no prompt, so its menu names it
        self.prompt = prompted.prompt[0]
        self.help = "\n\n".join(node.help for node in (self.node, *(other.nodes if other else ())) if node.help)
        self.flag = "--" + self.name.lower().replace("_", "-")

    @property
    def menu(self) -> tuple[str, ...]:
        """Titles of the menus around the option, outermost first."""
        titles, node = [], self.node.parent
        while node.parent:
            if node.item == kconfiglib.MENU:  # the parent may also be an option
                titles.append(node.prompt[0])
            node = node.parent
        return tuple(titles[:-1] if self.kind == "set" and len(titles) > 1 else titles)[::-1]

    @property
    def meanings(self) -> dict[str, tuple[str, str]]:
        """Value -> its prompt without its name, and its help, which is often empty; {} if it has no members."""
        nodes = {value: symbol.nodes[0] for value, symbol in self.members.items()}
        return {value: (node.prompt[0].removeprefix(f"{value}: "), node.help or "") for value, node in nodes.items()}

    @property
    def switch(self) -> bool:
        """Whether its flags take no value: --name sets y, and --no-name sets n."""
        return self.kind == "bool" or {"y", "n"} <= self.members.keys()

    @property
    def active(self) -> bool:
        """Whether the rest of the configuration uses the option. Only an active option has a value."""
        return self.kind == "set" or (
            self.item.selection is not None
            if self.kind == "choice"
            else kconfiglib.expr_value(self.item.direct_dep) > 0
        )

    @property
    def settable(self) -> bool:
        """Whether a user may assign it now. Other options decide an active option that is not settable."""
        return self.kind == "set" or self.item.visibility > 0

    @property
    def value(self) -> Value:
        """The value in Python's type; None while inactive."""
        if not self.active:
            return None
        if self.kind == "choice":
            return next(value for value, symbol in self.members.items() if symbol is self.item.selection)
        if self.kind == "set":
            chosen = [value for value, symbol in self.members.items() if symbol.str_value == "y"]
            return tuple(dict.fromkeys([*chosen, *split_set(self.other.str_value)] if self.other else chosen))
        return self._convert(self.item.str_value)

    @property
    def text(self) -> str:
        """The value as a user writes it."""
        if not self.active:
            return ""
        if self.kind == "choice":
            return str(self.value)
        return (",".join(self.value) or "none") if self.kind == "set" else self.item.str_value

    @property
    def range(self) -> tuple[str, str] | None:
        """The current bounds, as written in Kconfig; for an inactive option, the first declared ones."""
        if self.kind not in ("int", "float"):
            return None
        bounds = [r for r in self.item.ranges if not self.active or kconfiglib.expr_value(r[2])]
        return (bounds[0][0].str_value, bounds[0][1].str_value) if bounds else None

    @property
    def needs(self) -> str:
        """The condition under which the option is settable, in words; empty if it always is."""
        return in_words(self.node.prompt[1] if self.node.prompt else self.item.direct_dep)

    @property
    def default(self) -> str:
        """The defaults that Kconfig declares, in words: `24 if MODEL_NAME=gpt2-medium, else 12`."""
        if self.kind == "set":
            return "none"
        texts = []
        for value, condition in self.node.orig_defaults:
            text = member_value(value, self.item) if self.kind == "choice" else value.str_value or '""'
            texts.append(text + (f" if {words}" if (words := in_words(condition)) else ""))
        return ", else ".join(texts)

    def _convert(self, text: str) -> Value:
        if self.is_path and text.startswith("~"):
            return str(files.named(text))
        return {"bool": lambda t: t == "y", "int": int, "float": float, "str": str}[self.kind](text)

    def written(self, text: str) -> str:
        """`text` in the spelling of a value, if only case and `_` differ: AdamW is adamw, SR_STE is sr-ste."""
        if self.kind == "set":
            return ",".join(map(self._member, split_set(text))) or text
        return self._member(text) if self.kind == "choice" or self.kind == "bool" else text

    def _member(self, text: str) -> str:
        plain = text.lower().replace("_", "-")
        return plain if plain in (*self.members, *{"bool": "yn", "set": ("all", "none")}.get(self.kind, ())) else text

    def complaint(self, text: str) -> str | None:
        """What is wrong with `text` as a value in the present configuration, or None."""
        return self.malformed(text) or self.out_of_range(text)

    def malformed(self, text: str) -> str | None:
        """Why `text` is never a value of this option, whatever the other options are; None if it can be."""
        if self.kind == "choice" and text not in self.members:
            return f"must be one of {', '.join(self.members)}; got {text!r}{nearest(text, self.members)}"
        if self.kind == "set":
            return self._set_complaint(text)
        if self.kind == "bool" and text not in ("y", "n"):
            return f"must be y or n; got {text!r}"
        if self.kind == "str" and any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in text):
            return "must be one line of UTF-8 text without control characters"
        if self.kind == "str" and redact.found_in(text):
            return (
                "holds a password or token, which files would keep; give it in the environment, as in "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if self.is_wait and text not in ("auto", "all") and not durations.is_duration(text):
            return f"must be auto, all or a duration ({durations.EXAMPLES}); got {text!r}"
        if self.is_time and text and not (durations.is_duration(text) and durations.seconds(text)):
            return f"must be empty or a duration ({durations.EXAMPLES}); got {text!r}"
        if self.is_path and text.startswith("~") and self._convert(text).startswith("~"):
            return f"names the home of an unknown user; got {text!r}; write ./{text} for a file of that name"
        if self.kind == "int" and not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
            return f"must be a whole number; got {text!r}"
        if self.kind == "float" and not _NUMBER.fullmatch(text):
            return f"must be a number; got {text!r}"
        if self.kind == "float" and float(text) in (0, math.inf, -math.inf) and _BEYOND.match(text):
            return f"must be 0, inf or a number that fits into a double; got {text!r}"
        return None

    def out_of_range(self, text: str) -> str | None:
        """Which current bounds the number `text` violates, or None."""
        if self.range and not float(self.range[0]) <= float(text) <= float(self.range[1]):
            return f"must lie between {self.range[0]} and {self.range[1]}; got {text}"
        return None

    def _set_complaint(self, text: str) -> str | None:
        names = split_set(text)
        if unknown := [name for name in names if name not in (*self.members, "none", "all") and not self._takes(name)]:
            hint = self._hint(unknown[0])
            some = ", ".join(value for value in self.members if value != "all")
            return f"takes none, all or some of {some}; got {unknown[0]!r}{hint}"
        if len(names) > 1 and {"none", "all"} & set(names):
            return f"takes none or all only by themselves; got {text!r}"
        return None

    def _hint(self, name: str) -> str:
        """A similar value; one that is no member with its note, a line `- value: note` in the help of <SET>_OTHER."""
        notes = re.findall(r"^- (\S+): (.+(?:\n  .+)*)", self.other.nodes[0].help, re.MULTILINE) if self.other else []
        others = {value.rpartition(":")[2]: (value, " ".join(note.split())) for value, note in notes}
        hit = closest(name.lower(), [*self.members, *others])
        if hit not in others:
            return f"; did you mean {hit}?" if hit else ""
        value, note = others[hit]
        return f"; did you mean {value} ({note})?" if ":" in value else f"; {note}"  # without a colon: it is no value

    def _takes(self, name: str) -> bool:
        """Whether a set takes `name`, not a member: it is `member:more`, or an entry point of an installed package."""
        if not self.other:
            return False
        if re.fullmatch(r"[a-z][\w-]*:[\w.-]+", name):
            return True
        return name in metadata.entry_points(group=f"espalier.{self.name.lower()}s").names

    def in_force(self, text: str) -> bool:
        """Whether the option has the assigned value `text`; dependencies and ranges can prevent it."""
        return set(self.value) == self._chosen(text) if self.kind == "set" else self.active and self.text == text

    def missing(self, text: str) -> str:
        """What would have to change, in words, so that the option can be set, or its members in `text`.

        Only options that forbid it now are named, with all that the condition says of them.
        """
        conditions = [symbol.direct_dep for value, symbol in self.members.items() if value in self._chosen(text)]
        if not self.settable:
            conditions = [self.node.prompt[1] if self.node.prompt else self.item.direct_dep]
        terms = [term for one in conditions for term in kconfiglib.split_expr(one, kconfiglib.AND)]
        about = [(term, {_owner(item) or item for item in kconfiglib.expr_items(term)}) for term in terms]
        failing = [owners for term, owners in about if not kconfiglib.expr_value(term) and term is not self.item]
        named = [
            term
            for i, owners in enumerate(failing)
            if owners not in failing[:i]
            for term, others in about
            if others == owners
        ]
        return in_words(functools.reduce(lambda left, term: (kconfiglib.AND, left, term), named)) if named else ""

    def _chosen(self, text: str) -> set[str]:
        if self.kind == "choice":
            return {text}
        if text == "all" and "all" not in self.members:
            return set(self.members)
        return set(split_set(text)) - {"none"}

    def assign(self, text: str) -> None:
        """Assign a value for which `complaint` is None."""
        if self.kind == "choice":
            self.members[text].set_value("y")
        elif self.kind == "set":
            for value, symbol in self.members.items():
                symbol.set_value("y" if value in self._chosen(text) else "n")
            if self.other:
                others = [name for name in split_set(text) if name not in (*self.members, "none")]
                self.other.set_value(",".join(dict.fromkeys(others)))
        else:
            self.item.set_value(text)

    def unpin(self) -> bool:
        """Remove an assignment that equals the default, so that it may follow other options; True if removed."""
        if not self.active:
            return False
        before = self.text
        for item in filter(None, (self.item, *self.members.values(), self.other)):
            item.unset_value()
        if self.text == before:
            return True
        self.assign(before)
        return False

    def restrict(self) -> str:
        """The allowed values in words: `{sgd,adam}`, `0 .. 10`."""
        if self.kind == "choice":
            return "{" + ",".join(self.members) + "}"
        if self.kind == "set":
            return "none | all | " + ",".join(value for value in self.members if value != "all")
        if self.is_wait:
            return "auto, all, duration"
        if self.is_time:
            return "duration"
        return f"{self.range[0]} .. {self.range[1]}" if self.range else {"bool": "y, n"}.get(self.kind, "text")


def member_value(symbol: kconfiglib.Symbol, parent: kconfiglib.Symbol | kconfiglib.Choice) -> str:
    """What a user writes for a member of a choice or set: OPTIMIZER_ADAMW of OPTIMIZER is adamw."""
    if not symbol.name.startswith(f"{parent.name}_"):
        raise UsageError(
            f"{symbol.nodes[0].filename}:{symbol.nodes[0].linenr}: {symbol.name} must be called {parent.name}_<VALUE>"
        )
    return symbol.name.removeprefix(f"{parent.name}_").lower().replace("_", "-")


def _owner(item: kconfiglib.Symbol | kconfiglib.Choice) -> kconfiglib.Symbol | kconfiglib.Choice | None:
    """The choice or set that a symbol is a member of."""
    return getattr(item, "choice", None) or next((target for target, _ in getattr(item, "selects", ())), None)


def _term(item: kconfiglib.Symbol | kconfiglib.Choice) -> str:
    parent = _owner(item)
    return f"{parent.name}={member_value(item, parent)}" if parent else kconfiglib.standard_sc_expr_str(item)


def in_words(condition: object) -> str:
    """A Kconfig expression in a user's words: `OPTIMIZER=adam or OPTIMIZER=adamw`; empty if it always holds."""
    text = kconfiglib.expr_str(condition, _term).replace(" || ", " or ").replace(" && ", " and ")
    text = re.sub(r"!(\w+)=([\w-]+)", r"\1 other than \2", text)
    return "" if text == "y" else _once(re.sub(r"!(?!=)", "not ", text))


def _once(text: str) -> str:
    """A condition in which neighbours do not repeat an option's name: X=a or X=b becomes X=a or b."""
    for sign, link in (("=", "or"), (" other than ", "and")):
        more = 1
        while more:
            text, more = re.subn(rf"\b(\w+)({sign}[\w-]+(?:, [\w-]+)*) {link} \1{sign}", r"\1\2, ", text)
        text = re.sub(rf"({sign}[\w-]+(?:, [\w-]+)*), ([\w-]+)", r"\1 or \2", text)
    return text


def split_set(text: str) -> list[str]:
    """The names in `a,b`."""
    return [name for part in text.split(",") if (name := part.strip())]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name that looks most like `name`, or nothing."""
    hit = closest(name, known)
    return f"; did you mean {hit}?" if hit else ""


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`; "" if none does."""
    known = list(known)
    plain = name.strip("-_").lower()
    initials = [k for k in known if plain == "".join(word[:1] for word in re.split("[-_]+", k.strip("-_").lower()))]
    return next(iter(initials[:1] or difflib.get_close_matches(name, known, 1)), "")
