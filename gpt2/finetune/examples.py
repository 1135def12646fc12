"""Reads the examples of fine-tuning, and checks that they have the columns that TRL wants."""

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt2.data import split_names
from gpt2.data.local_files import kind, opened, reason, refuse_pointers
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Options

Example = dict[str, Any]

# The chat template without FINETUNE_TEMPLATE_FILE. The text of a prompt is how the text of the whole begins, as TRL
# needs it. Each answer ends with the end-of-text token, so that the model learns to stop.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_FORMS = {  # recipe -> the columns of its forms; TRL has them in docs/source/dataset_formats.md
    "sft": (("text",), ("prompt", "completion"), ("messages",)),
    "dpo": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "grpo": (("prompt",),),
}
_OF_TEMPLATES = ("tools", "chat_template_kwargs")  # columns of messages that TRL hands to the template
_OF_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")  # given to rewards
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_FOR_EVALUATION = ("test", "validation", "val", "eval")  # splits of datasets on the hub


@dataclasses.dataclass(frozen=True)
class ExampleOptions(Options):
    """Which examples."""

    finetune_recipe: str
    finetune_data: str | None
    finetune_eval_data: str | None  # None: nothing is evaluated
    finetune_test_fraction: float | None
    finetune_reward: str | None  # what it reads must be there
    seed: int


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples with the columns that their recipe needs."""

    train: list[Example]
    evaluation: list[Example]  # empty: nothing is evaluated
    note: str  # how they were split; "" if they were not

    @property
    def conversational(self) -> bool:
        """Whether they are messages, which a chat template turns into text."""
        return not all(isinstance(value, str) for name, value in self.train[0].items() if name in _NAMES)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of all examples in their order; two runs with the same one have the same examples."""
        return _sha256([self.train, self.evaluation])

    def words(self) -> str:
        """`900 examples, 100 for evaluation`."""
        more = f", {len(self.evaluation):,} for evaluation" if self.evaluation else ""
        return f"{len(self.train):,} examples{more}{f' ({self.note})' if self.note else ''}"

    def facts(self, template_file: str) -> dict[str, Any]:
        """What the journal says of them, and of the template if they are messages. Raises UserError as `template`."""
        found = {
            name: {"rows": len(rows), "sha256": _sha256(rows)}
            for name, rows in (("train", self.train), ("evaluation", self.evaluation))
            if rows
        }
        if self.conversational:
            found["template"] = {"sha256": hashlib.sha256(template(template_file).encode()).hexdigest()}
        return found


class _Found(NamedTuple):
    """Where examples are: files, or splits of a dataset on the hub."""

    train: list[Path]
    evaluation: list[Path]
    hub: str = ""


_NAMES = {name for forms in _FORMS.values() for form in forms for name in form}


def read(options: ExampleOptions) -> Examples:
    """Find, read, check and split the examples; raises UserError. Reads nothing if an evaluation has no examples."""
    if not options.finetune_data:
        raise UsageError(
            f"FINETUNE_DATA is empty; name a file or folder of JSON lines or parquet with {_wanted(options)}, or a "
            "dataset on the hub"
        )
    evaluates = options.finetune_eval_data is not None
    found = _find("FINETUNE_DATA", options.finetune_data)
    other = _find("FINETUNE_EVAL_DATA", options.finetune_eval_data) if options.finetune_eval_data else None
    there = bool(other or found.evaluation or found.hub)
    if evaluates and not there and not options.finetune_test_fraction:
        raise _no_evaluation(options)
    parts = _of_hub(found.hub) if found.hub else {"train": found.train, "evaluation": found.evaluation}
    train = _rows(parts["train"])
    if not evaluates:
        held, note = [], ""
    elif other:
        chosen = _of_hub(other.hub) if other.hub else {"train": [*other.train, *other.evaluation], "evaluation": []}
        held, note = _rows(chosen["evaluation"] or chosen["train"]), ""
    elif parts["evaluation"]:
        held, note = _rows(parts["evaluation"]), "by name"
    elif options.finetune_test_fraction:
        train, held = _split(train, options)
        note = f"FINETUNE_TEST_FRACTION={options.finetune_test_fraction:g}"
    else:
        raise _no_evaluation(options)
    for what, rows in (("FINETUNE_DATA", train), *((("FINETUNE_EVAL_DATA", held),) if evaluates else ())):
        check(what, rows, options)
    return Examples([row for _, row in train], [row for _, row in held], note)


def _no_evaluation(options: ExampleOptions) -> UsageError:
    return UsageError(
        f"{options.finetune_data}: has no examples for evaluation; set FINETUNE_EVAL_DATA, raise "
        "FINETUNE_TEST_FRACTION above 0, or set EVALUATE=n"
    )


# ---- reading ---------------------------------------------------------------------------------------------------------

Placed = tuple[str, Any]  # where an example is, and the example


def _find(option: str, given: str) -> _Found:
    """The files that a path names, sorted into training and evaluation by their names; or a name on the hub."""
    path = files.named(given)
    if path.is_file():
        paths = [path]
    elif path.is_dir():
        paths = sorted(one for one in path.rglob("*") if one.is_file() and kind(one) in ("lines", "parquet"))
        paths = [one for one in paths if not any(part.startswith(".") for part in one.relative_to(path).parts)]
    elif _HUB.fullmatch(given) and given.count("/") == 1:
        return _Found([], [], given)
    else:
        raise UsageError(f"{option}={given}: there is no such file or folder; check the name")
    if not paths or any(kind(one) not in ("lines", "parquet") for one in paths):
        raise UsageError(f"{option}={given}: is no .jsonl or .parquet file and has none; name examples of this form")
    refuse_pointers(paths)
    parts = split_names.sort(paths)
    return _Found(parts.train, parts.val or parts.test)


def _of_hub(name: str) -> dict[str, list[Placed]]:
    """The examples of a dataset on the hub, in the cache if it is there."""
    from datasets import load_dataset  # here, because it takes seconds, and local files need none of it
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    repository, _, revision = name.partition("@")
    try:
        splits = load_dataset(repository, revision=revision or None)
    except Exception as error:  # of the hub, of HTTP, of the system, or of the dataset's own files
        raise UserError(
            f"{name}: there is no such file or folder, and this dataset of the Hugging Face hub cannot be read "
            f"({reason(error)}); check the name and the network, or download its files and name their folder"
        ) from None
    if "train" not in splits:
        raise UsageError(f"{name}: has the splits {', '.join(splits)} and no split train; download and name its files")
    test = next((split for split in _FOR_EVALUATION if split in splits), None)
    return {
        "train": _placed(f"{name} train", splits["train"].to_list()),
        "evaluation": _placed(f"{name} {test}", splits[test].to_list()) if test else [],
    }


def _placed(where: str, rows: Iterable[Any]) -> list[Placed]:
    return [(f"{where}: row {number}", row) for number, row in enumerate(rows, 1)]


def _rows(parts: Sequence[Path | Placed]) -> list[Placed]:
    """Every example, with its place."""
    return [row for part in parts for row in (_of_file(part) if isinstance(part, Path) else [part])]


def _of_file(path: Path) -> Iterator[Placed]:
    if kind(path) == "parquet":
        yield from _placed(str(path), _of_parquet(path))
        return
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parsed(f"{path}:{number}", line)


def _of_parquet(path: Path) -> list[Example]:
    from pyarrow import parquet  # here: it takes 0.1 s

    try:
        return parquet.read_table(path).to_pylist()
    except Exception as error:  # the errors of pyarrow have no common class
        raise UserError(f"{path}: cannot be read as parquet: {reason(error)}; copy it again") from None


def _parsed(place: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not valid JSON ({reason(error)}); every line must be an object") from None


def _split(rows: list[Placed], options: ExampleOptions) -> tuple[list[Placed], list[Placed]]:
    """Divide the examples: for training, and the share for evaluation, at least one, which SEED chooses."""
    count = max(1, round(options.finetune_test_fraction * len(rows)))
    if count >= len(rows):
        raise UsageError(
            f"{options.finetune_data}: has {len(rows)} examples, too few to keep some for evaluation; set "
            "FINETUNE_EVAL_DATA or EVALUATE=n"
        )
    kept = set(random.Random(options.seed).sample(range(len(rows)), count))
    return [row for n, row in enumerate(rows) if n not in kept], [row for n, row in enumerate(rows) if n in kept]


# ---- checking --------------------------------------------------------------------------------------------------------


def check(what: str, rows: Sequence[Placed], options: ExampleOptions) -> None:
    """Raise UserError unless all examples have the same columns, those of the recipe, with text or messages in them."""
    if not rows:
        raise UsageError(f"{what}: has no examples; name a file that has some")
    place, first = rows[0]
    if not isinstance(first, dict):
        raise UserError(f"{place}: is {_kind(first)}, not an object of columns; {_wanted(options)} are wanted")
    names = _columns(options, first)
    if names is None:
        found = ", ".join(map(str, first)) or "none"
        raise UsageError(f"{place}: has the columns {found}, and TRL wants {_wanted(options)}; rename the columns")
    if options.finetune_recipe == "grpo" and (taken := [name for name in _OF_TRL if name in first]):
        raise UsageError(f"{place}: has the column {taken[0]}, which TRL gives to rewards itself; rename the column")
    kinds = {name: _kind(first[name]) for name in names}
    for place, row in rows:
        if not isinstance(row, dict) or row.keys() != first.keys():
            raise UserError(f"{place}: has other columns than {rows[0][0]}; give all examples the same")
        for name in names:
            if kinds[name] not in ("text", "messages") or _kind(row[name]) != kinds[name]:
                raise UserError(
                    f"{place}: {name} is {_kind(row[name])}; TRL wants text, or a list of messages with role and "
                    "content, of one kind in all examples"
                )
    if not any(row[name] for _, row in rows for name in names):
        raise UserError(f"{what}: all texts in {' and '.join(names)} are empty; name examples that have some")
    if len(set(kinds.values())) > 1:
        raise UserError(f"{rows[0][0]}: has text and messages; use one kind for {' and '.join(names)}")


def _columns(options: ExampleOptions, first: Example) -> tuple[str, ...] | None:
    """The columns of the form that the examples have; None if they have no form of the recipe."""
    if "exact" in (options.finetune_reward or "").split(",") and "answer" not in first:
        return None
    return _form(options.finetune_recipe, first)


def _form(recipe: str, first: Example) -> tuple[str, ...] | None:
    return next((form for form in _FORMS[recipe] if all(name in first for name in form)), None)


def used(recipe: str, rows: Sequence[Example]) -> list[Example]:
    """The examples with the columns that TRL is to read.

    By others it would do something else: with `input_ids` it tokenises nothing, for example. Rewards of grpo read all.
    """
    if recipe == "grpo":
        return list(rows)
    names = [name for name in (*_form(recipe, rows[0]), *_OF_TEMPLATES) if name in rows[0]]
    return [{name: row[name] for name in names} for row in rows]


def _wanted(options: ExampleOptions) -> str:
    """The columns that the recipe can use, in words."""
    forms = [" and ".join(form) for form in _FORMS[options.finetune_recipe]]
    if options.finetune_recipe == "grpo":
        exact = "exact" in (options.finetune_reward or "").split(",")
        return "prompt and answer for the reward exact" if exact else "prompt, and what the reward reads"
    return f"{options.finetune_recipe}'s columns {', or '.join(forms)}"


def _kind(value: Any) -> str:
    """What a value is, in a word."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value and all(_is_message(one) for one in value):
        return "messages"
    return "empty" if value is None or value == [] else type(value).__name__


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


# ---- templates -------------------------------------------------------------------------------------------------------


def template(given: str) -> str:
    """The chat template in the Jinja file that FINETUNE_TEMPLATE_FILE names, or TEMPLATE; raises UserError."""
    if not given:
        return TEMPLATE
    path = files.named(given)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"FINETUNE_TEMPLATE_FILE={given}: cannot be read: {why}; check the name") from None
    if "messages" not in text:
        raise UsageError(f"FINETUNE_TEMPLATE_FILE={given}: does not use messages, so it is no chat template; name one")
    return text
