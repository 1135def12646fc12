"""Rewards of GRPO: the two that come with Espalier, and functions in a file of the user.

A reward is called as TRL calls it, with keywords: `prompts`, `completions`, and each further column of the examples as
a list. It returns a number for each completion.
"""

import functools
import hashlib
import inspect
import math
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.base import files
from lib.base.errors import UsageError, UserError

Reward = Callable[..., list[float]]
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Loaded(NamedTuple):
    """The rewards of a run, and the SHA-256 of each file that they came from."""

    functions: list[Reward]
    sha256: dict[str, str]


def exact(completions: list[Any], answer: list[Any], **columns: Any) -> list[float]:
    """1 for a completion that is the answer, or has it between <answer> and </answer>; outer spaces do not count."""
    return [float(_answered(text(one)) == str(wanted).strip()) for one, wanted in zip(completions, answer, strict=True)]


def format(completions: list[Any], **columns: Any) -> list[float]:
    """1 for a completion that ends with exactly one <answer>...</answer> that is not empty."""
    return [float(_is_formatted(text(one))) for one in completions]


def text(completion: Any) -> str:
    """The text of a completion: itself, or the contents of its messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def _answered(completion: str) -> str:
    found = _ANSWER.findall(completion)
    return (found[-1] if found else completion).strip()


def _is_formatted(completion: str) -> bool:
    found = _ANSWER.findall(completion)
    tags = completion.count("<answer>") + completion.count("</answer>")
    return len(found) == 1 and tags == 2 and bool(found[0].strip()) and completion.rstrip().endswith("</answer>")


_OURS = {"exact": exact, "format": format}


def load(given: str, folder: Path | None = None, before: Mapping[str, str] | None = None) -> Loaded:
    """The rewards that FINETUNE_REWARD names. Executes the files among them; raises UserError.

    If the run in `folder` is continued, its files must be those of `before`, by their SHA-256. None may be in the run's
    folder: a received run would bring its own code.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise UsageError(f"FINETUNE_REWARD is empty; choose {', '.join(_OURS)}, or FILE.py:FUNCTION")
    functions, sums = [], {}
    for name in names:
        if name in _OURS:
            functions.append(_OURS[name])
            continue
        path, _, function = name.partition(":")
        if not path.endswith(".py"):
            raise UsageError(f"FINETUNE_REWARD={name}: is no reward; choose {', '.join(_OURS)}, or FILE.py:FUNCTION")
        source = _source(files.named(path))
        sums[path] = hashlib.sha256(source).hexdigest()
        if before is not None and before.get(path) != sums[path]:
            raise UserError(f"{path}: this reward has changed since the run began; restore it, or start a new run")
        if folder and folder.resolve() in files.named(path).resolve().parents:
            raise UsageError(f"{path}: lies in the folder of its run; move it elsewhere, and start a new run with it")
        functions.append(_function(files.named(path), source, function))
    return Loaded(functions, sums)


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"FINETUNE_REWARD: {path}: cannot be read: {error.strerror}; check the name") from None


def _function(path: Path, source: bytes, wanted: str) -> Reward:
    """Execute a file of the user, who named it for this, and return its function."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), namespace)
    except (Exception, SystemExit) as error:  # a script may end with sys.exit()
        raise UserError(f"{path}: {type(error).__name__} when it is executed: {error}; correct it") from None
    own = {
        name: value
        for name, value in namespace.items()
        if inspect.isfunction(value) and value.__globals__ is namespace and not name.startswith("_")
    }
    if wanted and wanted not in own:
        raise UsageError(f"{path}: has no function {wanted!r} (it has {', '.join(own) or 'none'}); name one of these")
    if not wanted and len(own) != 1:
        raise UsageError(
            f"{path}: has {len(own)} functions without _ at their beginning; say which one is the reward, as in "
            f"{path}:{next(iter(own), 'reward')}"
        )
    function = own[wanted] if wanted else next(iter(own.values()))
    if "completions" not in (names := inspect.signature(function).parameters) and not any(
        one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values()
    ):
        raise UsageError(f"{path}: {function.__name__} takes no completions; a reward is called with completions=[...]")
    return function if inspect.iscoroutinefunction(function) else _checked(path, function)


def _checked(path: Path, function: Reward) -> Reward:
    """The same function, which raises UserError if it fails, or returns what is no reward for each completion."""

    @functools.wraps(function)
    def checked(completions: list[Any], **columns: Any) -> list[float | None]:
        try:
            found = function(completions=completions, **columns)
        except Exception as error:
            lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == str(path)]
            place = f"{path}:{lines[-1]}" if lines else path
            raise UserError(f"{place}: {type(error).__name__} in {function.__name__}: {error}; correct it") from error
        try:
            values = [None if one is None else float(one) for one in found]  # None: it does not apply, for TRL
        except (TypeError, ValueError):
            values = [math.nan]
        if len(values) != len(completions) or not all(one is None or math.isfinite(one) for one in values):
            raise UserError(
                f"{path}: {function.__name__} must return a list of {len(completions)} finite numbers, one for each "
                f"completion, and returned {repr(found)[:80]}; correct it"
            )
        return values

    return checked
