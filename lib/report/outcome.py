"""What a report knows of one run, read from its folder's journal, summary and provenance, never from a checkpoint."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.base.errors import UserError
from lib.config.kconf import present
from lib.record import history, journal, lineage, mask_sample, scores
from lib.record.history import History
from lib.record.run import Identity
from lib.record.scores import Score
from lib.report import curves
from lib.report.curves import Curve


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run. A number is None where the run does not have it."""

    folder: Path
    name: str
    state: str  # see history.state
    options: dict[str, str]  # the present name of an option -> its value as text, of the newest session
    seed: int
    steps: int
    val_loss: float | None  # after the last step, in nats per token; only of finished runs; may be NaN or infinite
    best_val_loss: float | None
    tokens: int | None  # of this run
    total_tokens: int | None  # with those of all runs before it
    flops: float | None  # of training, counted by non-zeros, with those of all runs before it
    dense_flops: float | None  # the same, counted dense
    average_nonzeros: float | None  # of the weights in scope, averaged over training
    ever_active: float | None  # share of the weights in scope that some mask kept; None where pruned weights stay so
    nonzeros: float | None  # of the weights in scope, at the end
    parameters: int | None
    in_scope: int | None  # weights that pruning may touch
    sparsity: float | None  # of the weights in scope, at the end
    seconds: float | None
    memory: float | None  # peak, in bytes
    evaluation: str  # what the validation loss was measured on, in words; equal text and checksum: the same windows
    data: str  # dataset and split, in words, with their checksum
    checksum: str  # of the data, in words; empty: unknown, because the journal is of a version that recorded none
    code: str  # commit and uncommitted changes
    packages: str  # Python and torch
    machine: str
    retries: int
    tuned: int | None  # trials in which its method was tuned; 0: none; None: only a sweep knows
    before: tuple[str, ...]  # the folders or names of what it began from
    curves: dict[str, Curve]  # val_loss, train_loss, learning_rate, grad_norm, sparsity, tokens, seconds: those it has
    layers: dict[str, float]  # tensor -> its sparsity at the end
    masks: bytes | None  # a sample of the masks at the end, see lib/record/mask_sample.py
    tasks: dict[str, Score]

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end."""
        return self.state == "finished"


@dataclasses.dataclass(frozen=True)
class Group:
    """A configuration: runs that differ only in their seed."""

    name: str
    outcomes: tuple[Outcome, ...]  # by seed; those that are not finished too

    @property
    def losses(self) -> dict[int, float]:
        """Seed -> validation loss after the last step, of the finished runs."""
        return {one.seed: one.val_loss for one in self.outcomes if one.finished and one.val_loss is not None}

    @property
    def dense(self) -> bool:
        """Whether it trains a dense model from random weights."""
        return all(one.options.get("PRUNING_METHOD") == "none" and not one.before for one in self.outcomes)


class VersionError(UserError):
    """A journal was written in another version of its format than this program reads."""


def read(folder: Path) -> Outcome:
    """The outcome of the run in `folder`. Raises UserError if it is not a run or is damaged; see VersionError."""
    name = Identity.load(folder).name
    known = history.skim(folder)
    state = history.state(known, folder)
    if state == "damaged":
        raise UserError(f"{folder / journal.FILE}: is damaged: it has no complete record of a start")
    _check_version(folder, known)
    summary = {key: value for key, value in history.summary(folder).items() if not isinstance(value, str)}
    made = history.provenances(folder)
    options = _options(made, known)
    drawn, memory = curves.read(folder, known)
    last = {key: float(curve[1][-1]) for key, curve in drawn.items()}
    sparsity = summary.get("sparsity", last.get("sparsity"))
    scope = summary.get("weights_in_scope")
    tokens = summary.get("tokens", last.get("tokens"))
    ending = (known.end or {}).get("flops", {})
    costs = summary or {name: value for name, value in ending.items() if type(value) in (int, float)}
    total = "total_" if _before(known) else ""
    part = " of the training split alone" * (options.get("EVALUATE") == "n")
    checksum = f"sha256 {' and '.join(known.data)}{part}" if known.data else ""
    data = _data(options, checksum)
    return Outcome(
        folder=folder,
        name=name,
        state=state,
        options=options,
        seed=_seed(folder, options),
        steps=known.step,
        val_loss=_final_loss(known, summary) if state == "finished" else None,
        best_val_loss=summary.get("best_val_loss", known.best()),
        tokens=_whole(tokens),
        total_tokens=_whole(_total_tokens(folder, known, summary, tokens)),
        flops=costs.get(f"{total}training_flops_nonzeros"),
        dense_flops=costs.get(f"{total}training_flops"),
        average_nonzeros=summary.get("average_nonzeros", known.last("average_nonzeros")),
        ever_active=summary.get("ever_active", known.last("ever_active")),
        nonzeros=None if scope is None or sparsity is None else round(scope * (1 - sparsity)),
        parameters=_whole(summary.get("parameters")),
        in_scope=_whole(scope),
        sparsity=sparsity,
        seconds=known.seconds(),
        memory=memory,
        evaluation=_evaluation(options, data),
        data=data,
        checksum=checksum,
        code=_joined(history.code(one) for one in made),
        packages=_joined(_packages(one) for one in made),
        machine=_machine(known, made),
        retries=sum("retry" in session for session in known.sessions),
        tuned=None,
        before=_before(known),
        curves=drawn,
        layers=_layers(known),
        masks=mask_sample.decode(known.end.get(mask_sample.FIELD)) if known.end else None,
        tasks=scores.newest(known.tasks()),
    )


def _check_version(folder: Path, known: History) -> None:
    version = known.sessions[0].get("schema", journal.SCHEMA) if known.sessions else journal.SCHEMA
    if version != journal.SCHEMA:
        raise VersionError(
            f"{folder / journal.FILE}: is a journal of version {version}, and this program reads version "
            f"{journal.SCHEMA}; leave the run out, or make the report with the program that wrote it"
        )


def _options(made: list[dict[str, Any]], known: History) -> dict[str, str]:
    """The options of the newest session by present names; from the journal, if the run lost its provenance."""
    entries = made[-1].get("options", {}) if made else {}
    texts = {name: entry["value"] for name, entry in entries.items()}
    if not texts:
        texts = {name.upper(): _text(value) for name, value in known.config.items()}
    return dict(present(name, text) for name, text in texts.items())


def _text(value: Any) -> str:
    """The value of an option as configuration files write it."""
    if isinstance(value, bool):
        return "y" if value else "n"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _seed(folder: Path, options: Mapping[str, str]) -> int:
    try:
        return int(options["SEED"])
    except (KeyError, ValueError):
        raise UserError(f"{folder}: neither its provenance nor its journal has the option SEED") from None


def _final_loss(known: History, summary: Mapping[str, float]) -> float | None:
    recorded = journal.numbers(known.end) if known.end else {}
    return recorded.get("final_val_loss", summary.get("final_val_loss"))


def _total_tokens(folder: Path, known: History, summary: Mapping[str, float], tokens: float | None) -> float | None:
    """The tokens with those of the runs before; None if those are unknown."""
    if not any(part in session for session in known.sessions[:1] for part in lineage.OPTIONS):
        return tokens
    return summary["total_tokens"] if "total_tokens" in summary else lineage.total_tokens(folder, known.step)


def _whole(value: float | None) -> int | None:
    return None if value is None or not np.isfinite(value) else int(value)


def _before(known: History) -> tuple[str, ...]:
    start = known.sessions[0] if known.sessions else {}
    parts = [start[part] for part in lineage.OPTIONS if isinstance(start.get(part), dict)]
    return tuple(dict.fromkeys(str(part.get("from", "unknown")) for part in parts))


def _layers(known: History) -> dict[str, float]:
    """Tensor -> sparsity, of the last evaluation."""
    evaluations = [row for (event, _), row in known.rows.items() if event == "eval"]
    newest = max(evaluations, key=lambda row: row["step"], default=None)
    values = journal.numbers(newest) if newest else {}
    return {name.removeprefix("sparsity/"): value for name, value in values.items() if name.startswith("sparsity/")}


# ---- what must be equal, in words ------------------------------------------------------------------------------------


def _data(options: Mapping[str, str], checksum: str) -> str:
    """Dataset, tokenizer, split, and the checksum of the tokens, because different data may have one name."""
    name = {"files": options.get("DATASET_SOURCE"), "bins": options.get("DATASET_SOURCE")}.get(
        options.get("DATASET", ""), options.get("DATASET", "unknown")
    )
    parts = [os.path.basename(name or "unknown"), options.get("DATASET_SUBSET"), options.get("TOKENIZER")]  # noqa: PTH119 - may be a URL
    parts += [f"{options['VAL_FRACTION']} for validation" if "VAL_FRACTION" in options else ""]
    if options.get("DATASET_MAX_TOKENS", "0") != "0":
        parts.append(f"at most {options['DATASET_MAX_TOKENS']} tokens")
    return ", ".join(part for part in (*parts, checksum) if part)


def _evaluation(options: Mapping[str, str], data: str) -> str:
    if options.get("EVALUATE", "y") == "n":
        return "not measured"
    return f"{options.get('EVAL_SAMPLES', '?')} windows of {options.get('BLOCK_SIZE', '?')} tokens of {data}"


def _packages(made: Mapping[str, Any]) -> str:
    return f"Python {made.get('python', 'unknown')}, torch {made.get('packages', {}).get('torch', 'unknown')}"


def _machine(known: History, made: Iterable[Mapping[str, Any]]) -> str:
    hosts = dict.fromkeys(f"{one.get('host') or 'unknown host'} ({one.get('cpu') or 'unknown CPU'})" for one in made)
    uses = dict.fromkeys(use.words(reasons=False) for one in known.sessions if (use := history.machine(one)))
    return "; ".join([*hosts, *uses]) or "unknown"


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts)) or "unknown"
