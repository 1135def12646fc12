"""Scores of a model on tasks of lm-eval: which tasks there are, where their data is, and how they are measured."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.evaluation.result import Result
from lib.base.errors import UsageError, UserError
from lib.config import extras
from lib.config.option import nearest
from lib.machine import device

if TYPE_CHECKING:
    from gpt2.evaluation.harness import Answers

BOOTSTRAP = 1000  # resamples for the standard error of what is not a mean, such as LAMBADA's perplexity
_UNFIT = "runs code that the model writes, or shows it images or sound, so it is not measured here; choose another task"
_FORMATS = {"jsonl": "json", "parquet": "parquet"}  # ending of a file -> how the library datasets calls its reader


def names(given: str) -> list[str]:
    """The tasks in a comma-separated list, each once."""
    return list(dict.fromkeys(filter(None, (name.strip() for name in given.split(",")))))


def check(given: str, data: str) -> None:
    """Raise UsageError if lm-eval is missing, has no task of one of these names, or if `data` lacks a file for one.

    Takes 5 seconds if there are names.
    """
    wanted = names(given)
    if not wanted:
        if given:
            raise UsageError(f"{given!r} names no task; give names of lm-eval's tasks, separated by commas")
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            f"tasks are measured by lm-eval, which is not installed; {extras.install(extras.extra('eval'))}"
        )
    known = _manager().task_index
    problems = [
        f"{name}: lm-eval has no task of this name{nearest(name, known)}" for name in wanted if name not in known
    ]
    problems += [f"{name}: {_UNFIT}" for name in wanted if name in known and (known[name].cfg or {}).get("unsafe_code")]
    if problems:
        raise UsageError(*problems)
    for name in wanted if data else ():
        _check_files(name, Path(data))


def measure(answers: "Answers", given: str, data: str, limit: int) -> Iterator[Result]:
    """Measure the tasks in a comma-separated list one by one, with all items or the first `limit` of each.

    `data` is the folder TASK_DATA; if it is empty, data comes from the Hugging Face hub. Raises UserError for a task
    whose data is missing or does not fit, before the first result if that is known then.
    """
    check(given, data)
    for part in _parts([_load(name, Path(data) if data else None) for name in names(given)]):
        name = next(iter(part["groups"] or part["tasks"]))
        where = f"{data}: the data of task {name} does not fit" if data else f"{name}: cannot be measured"
        advice = "correct its rows" if data else "choose another task"
        # It prints what it bootstraps.
        with _quiet(), _without_bars(), contextlib.redirect_stdout(sys.stderr), _told(where, advice):
            from lm_eval.evaluator import evaluate

            found = evaluate(as_lm(answers), part, limit=limit or None, bootstrap_iters=BOOTSTRAP, log_samples=False)
        yield from _results(found, limit)


def _parts(loaded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is measured at a time, each task once: a group with all its tasks, or one task."""
    parts: list[dict[str, Any]] = []
    seen: set[str] = set()
    for found in sorted(loaded, key=lambda one: -len(one.get("groups", {}))):  # a group before its parts
        tasks, groups = found["tasks"], found.get("groups", {})
        for name, task in tasks.items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise UsageError(f"{name}: {_UNFIT}")
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=1234)  # lm-eval's default
        units = [found] if groups else [{"tasks": {name: task}, "groups": {}} for name, task in tasks.items()]
        for unit in units:
            if not (inside := unit["tasks"].keys() | unit["groups"].keys()) <= seen:
                parts.append(unit)
                seen |= inside
    return parts


def version() -> str:
    """The version of lm-eval."""
    return importlib.metadata.version("lm_eval")


def _results(found: dict[str, Any], limit: int) -> Iterator[Result]:
    """The results of `lm_eval.evaluate`, those of groups last."""
    counts = found["n-samples"]
    for name in sorted(found["results"], key=lambda name: name not in counts):
        metrics, parts = {}, list(_leaves(name, found["group_subtasks"]))
        for key, value in found["results"][name].items():
            metric, comma, kind = key.partition(",")
            if comma and isinstance(value, int | float):
                metrics[f"{name}/{metric}" if kind == "none" else f"{name}/{kind}/{metric}"] = float(value)
        if metrics:
            n, total = (sum(counts[part][which] for part in parts) for which in ("effective", "original"))
            details: dict[str, Any] = {"lm_eval": version(), "num_fewshot": found["n-shot"].get(name)}
            details |= {"limit": limit, "of": total} if n < total else {}
            yield Result(name, metrics, n, found["versions"].get(name), details)


def _leaves(name: str, groups: dict[str, list[str]]) -> Iterator[str]:
    """The tasks of a group, or the task itself."""
    for part in groups.get(name, []):
        yield from _leaves(part, groups)
    if name not in groups:
        yield name


# ---- tasks and their data --------------------------------------------------------------------------------------------


@functools.cache
def _manager() -> Any:
    """lm-eval's index of its tasks. Reading their 14,000 files takes 5 seconds."""
    with _quiet():
        from lm_eval.tasks import TaskManager

        return TaskManager()


def _load(name: str, data: Path | None) -> dict[str, Any]:
    """A task, or all tasks of a group or tag, with its data; as `TaskManager.load` returns it."""
    manager = _manager()
    where = f"{data}: the data of task {name} does not fit" if data else f"{name}: its data cannot be fetched"
    with _told(where, "correct its rows" if data else "give local copies with TASK_DATA=folder"), _quiet():
        if data is None:
            return manager.load(name)
        entry = manager.task_index[name]
        if entry.kind.name == "TAG":
            parts = [_load(part, data) for part in sorted(entry.tags)]
            return {"tasks": {task: one for part in parts for task, one in part["tasks"].items()}}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name.replace(os.sep, '-')}.yaml")
            own = {"include": str(entry.yaml_path), **_local(name, entry.cfg, data)}
            path.write_text(json.dumps(own), encoding="utf-8")  # JSON is YAML
            return manager.load(str(path))


@contextlib.contextmanager
def _told(where: str, advice: str) -> Iterator[None]:
    """Raise UserError for an error of a library about data that it cannot fetch or read, or about one of its rows."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if device.trouble(error):  # such as too little memory
            raise
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: {type(error).__name__}: {why}; {advice}") from None


def _check_files(name: str, data: Path) -> None:
    """Raise UsageError if a file of this task, or of a task of this tag, is missing in the folder `data`."""
    entry = _manager().task_index[name]
    if entry.kind.name == "GROUP":
        raise UsageError(f"{name}: is a group of tasks; with TASK_DATA, name its tasks one by one")
    if entry.kind.name == "TAG":
        for part in sorted(entry.tags):
            _check_files(part, data)
    else:
        _local(name, entry.cfg, data)


def _local(name: str, config: dict[str, Any], data: Path) -> dict[str, Any]:
    """What a task's configuration needs to read its dataset from local files; raises UsageError if one is missing."""
    if not config.get("dataset_path"):
        raise UsageError(
            f"{name}: its data is made by its own code, so TASK_DATA cannot hold it; leave TASK_DATA empty"
        )
    folder = data / config["dataset_path"] / (config.get("dataset_name") or "")
    measured = config.get("test_split") or config.get("validation_split")
    shots = config.get("fewshot_split") or config.get("training_split") or config.get("validation_split")
    if (config.get("fewshot_config") or {}).get("samples"):  # the examples are in the configuration
        shots = None
    needed = ({measured, shots} if config.get("num_fewshot") else {measured}) - {None}
    found = {split: path for split in _splits(config) if (path := _file(folder, split))}
    if missing := sorted(needed - found.keys()):
        raise UsageError(f"{folder / missing[0]}.jsonl: is missing, and so is .parquet; task {name} needs this file")
    ending = found[measured].suffix
    if other := [path for path in found.values() if path.suffix != ending]:
        raise UsageError(f"{other[0]}: all splits of a dataset must have one format, and {found[measured]} has another")
    left_out = {f"{kind}_split": None for kind in ("training", "validation", "test", "fewshot")}
    there = {key: config.get(key) for key in left_out if config.get(key) in found}
    sources = {split: str(path.absolute()) for split, path in found.items()}
    reader = {"dataset_path": _FORMATS[ending[1:]], "dataset_name": None, "dataset_kwargs": {"data_files": sources}}
    return left_out | there | reader


def _splits(config: dict[str, Any]) -> Iterable[str]:
    named = (config.get(f"{kind}_split") for kind in ("test", "validation", "training", "fewshot"))
    return dict.fromkeys(split for split in named if split)


def _file(folder: Path, split: str) -> Path | None:
    return next((path for ending in _FORMATS if (path := folder / f"{split}.{ending}").is_file()), None)


# ---- lm-eval ---------------------------------------------------------------------------------------------------------


def as_lm(answers: "Answers") -> Any:
    """The model as lm-eval knows models. The class is made here, because its base needs lm-eval."""
    from lm_eval.api.model import LM

    class Model(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return answers.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return answers.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answers.generate([request.args for request in requests])

    return Model()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes of lm-eval and the bars of datasets, and let bootstrapping use this process only.

    The library datasets does not report to its maker that a local file is read: that would need a network.
    """
    import datasets

    logger, before = logging.getLogger("lm_eval"), os.environ.get("DISABLE_MULTIPROC")
    level, bars, counts = logger.level, datasets.are_progress_bars_disabled(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    os.environ["DISABLE_MULTIPROC"] = "1"  # of lm-eval: a pool of processes would inherit the threads of torch
    try:
        yield
    finally:
        logger.setLevel(level)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        if not bars:
            datasets.enable_progress_bars()
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Hide lm-eval's progress bars, which have no labels; `Answers` shows the progress."""
    import tqdm
    from lm_eval.api import task

    real = tqdm.tqdm

    class Hidden(real):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs | {"disable": True})

    task.tqdm = tqdm.tqdm = Hidden  # bootstrapping imports it when it begins
    try:
        yield
    finally:
        task.tqdm = tqdm.tqdm = real
