"""What an export says about a run: its options, measurements and lineage, without paths of this machine and secrets."""

import dataclasses
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

from gpt2.weights.source import Source, Weights
from lib.base import redact
from lib.base.errors import UserError
from lib.config import matters
from lib.config.kconf import Schema
from lib.config.option import Option, Value
from lib.record import best, history, lineage, run
from lib.record.in_force import Record

FORMAT = 1  # of espalier.json
_MASKS = re.compile(r"\.safetensors( [0-9a-f]{12})?$")  # in the name of an ancestor
# Of the start event's `init`, `masks` and `teacher`. The others name files of this machine.
_ORIGIN = ("from", "kind", "sha256", "revision", "step")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known about the weights of a checkpoint."""

    source: Source
    identity: run.Identity
    schema: Schema  # the run's configuration
    config: dict[str, Value]  # name in lower case -> value, of the options that decide what is learned
    sessions: list[Record]  # the events `start` and `resume`
    code: str  # the commit, and whether there were uncommitted changes; "" if it is not known
    evaluations: list[best.Evaluation]  # of the run up to this checkpoint
    bits_per_byte: float | None  # of the validation loss of these weights; None if it was not measured
    tasks: list[Record]  # the events `task` of this checkpoint
    zeros: dict[str, tuple[int, int]]  # masked tensor -> weights that are exactly zero, all weights
    parameters: int  # of the model

    @property
    def step(self) -> int:
        """The last step of the checkpoint."""
        return self.source.step

    @property
    def sparsity(self) -> float | None:
        """The share of exact zeros among the weights that masks cover; None without masks."""
        zeros, weights = (sum(counts) for counts in zip(*self.zeros.values(), strict=True)) if self.zeros else (0, 0)
        return zeros / weights if weights else None

    @property
    def ancestors(self) -> dict[str, int | None]:
        """This run and what was trained before it (see Source), without places on this machine."""
        return {public(name): tokens for name, tokens in self.source.ancestors.items()}

    @property
    def own_tokens(self) -> int:
        """The tokens that this run trained on."""
        return self.source.ancestors[self.identity.run_id]

    @property
    def total_tokens(self) -> int | None:
        """The tokens of the whole chain; None if those of an ancestor are not known."""
        return None if self.unknown else sum(self.ancestors.values())

    @property
    def unknown(self) -> list[str]:
        """The ancestors whose tokens are not known: models of others, and files of masks without their model."""
        return [name for name, tokens in self.ancestors.items() if tokens is None]

    @property
    def foreign(self) -> list[str]:
        """The models of others that the weights began from, or that taught them."""
        return [name for name in self.unknown if not _MASKS.search(name)]  # masks are no weights

    @property
    def is_oneshot(self) -> bool:
        """Whether the run pruned a finished model without training; its steps are then blocks."""
        return self.config.get("pruning_dynamics") == "oneshot"

    @property
    def is_finetuned(self) -> bool:
        """Whether TRL trained the run on examples."""
        return self.config.get("finetune_recipe", "none") != "none"

    @property
    def is_shrunk(self) -> bool:
        """Whether the run removed neurons and heads, which decides its shape."""
        return self.config.get("pruning_method") == "shrink"

    @property
    def is_one_session(self) -> bool:
        """Whether one training with the run's configuration repeats it: no resume changed an option."""
        return not any(session.get("changed") for session in self.sessions)

    @property
    def loss(self) -> float | None:
        """The validation loss of exactly these weights; None if the run did not evaluate them."""
        return next((one.val_loss for one in self.evaluations if one.step == self.step), None)

    @property
    def best(self) -> best.Evaluation | None:
        """The best evaluation of the run up to here (see lib.record.best)."""
        return best.best(self.evaluations)

    def origin(self, part: str) -> dict[str, Any] | None:
        """A part of lineage.OPTIONS in the start event, without places on this machine; None if it has none."""
        found = self.sessions[0].get(part)
        if not found:
            return None
        return {
            key: public(found[key]) if isinstance(found[key], str) else found[key] for key in _ORIGIN if key in found
        }

    def record(self) -> dict[str, Any]:
        """The content of espalier.json."""
        metrics = {
            "step": self.step,
            "val_loss": self.loss,
            "val_bits_per_byte": self.bits_per_byte,
            "best_val_loss": self.best and self.best.val_loss,
            "best_val_loss_step": self.best and self.best.step,
            "sparsity": self.sparsity,
            "tokens": self.own_tokens,
            "tokens_of_the_chain": self.total_tokens,
        }
        return {
            "format": FORMAT,
            "run": {"run_id": self.identity.run_id, "name": self.identity.name, "checkpoint": self.source.path.name},
            "code": self.code,
            "configuration": self.config,
            "metrics": {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)},
            "tasks": [
                {key: one[key] for key in ("task", "n", "of", "version", "metrics") if key in one} for one in self.tasks
            ],
            "lineage": {
                "ancestors": self.ancestors,
                "init": self.origin("init"),
                "masks": self.origin("masks"),
                "teacher": self.origin("teacher"),
            },
        }


def collect(folder: Path, source: Source, weights: Weights, schema: Schema) -> Facts:
    """Read what the run in `folder` recorded up to the checkpoint `source`; raises UserError for a damaged run."""
    seen = history.load(folder)
    if lineage.own_tokens(folder, source.step) is None:
        raise UserError(f"{folder}: the journal does not say how the run was started; restore its first line")
    zeros = {
        name: (int((weights.state[name] == 0).sum()), weights.state[name].numel()) for name in sorted(weights.masks)
    }
    made = history.provenances(folder)
    return Facts(
        source=source,
        identity=run.Identity.load(folder),
        schema=schema,
        config={name.lower(): _shared(option, option.value) for name, option in _options(schema).items()},
        sessions=seen.sessions,
        code=history.code(made[-1]) if made and made[-1].get("commit") else "",
        evaluations=[one for one in seen.evaluations() if one.step <= source.step],
        bits_per_byte=seen.values("val_bits_per_byte").get(source.step),
        tasks=[record for record in seen.tasks() if record["step"] == source.step],
        zeros=zeros,
        parameters=sum(tensor.numel() for tensor in weights.state.values()),
    )


def command(facts: Facts) -> str:
    """The command that trains, or prunes, like this again. It is the same in every clone, because no .config counts."""
    words = [f"{name}={shlex.quote(str(_shared(option, option.text)))}" for name, option in _words(facts).items()]
    name = "shrink" if facts.is_shrunk else "oneshot" if facts.is_oneshot else "train"
    program = f"KCONFIG_CONFIG={os.devnull} make {'finetune' if facts.is_finetuned else name}"
    return " \\\n    ".join([program, *words])


def _words(facts: Facts) -> dict[str, Option]:
    """The options that the command must give: those that differ from the defaults, and some whose default is not."""
    wanted = {option.name for option in facts.schema.differing()}
    if facts.schema["INIT_FROM"]:
        wanted.add("BLOCK_SIZE")  # without it, the run has all positions of the weights
    if facts.is_finetuned:
        wanted.add("PRUNING_METHOD")  # without it, the zeros of the weights decide
    if facts.is_shrunk:
        wanted -= set(matters.GROUPS["size"].options)  # they describe the result; the weights are larger
    return {name: option for name, option in _options(facts.schema).items() if name in wanted}


def _options(schema: Schema) -> dict[str, Option]:
    """The active options that decide what is learned, and how it was evaluated."""
    wanted = matters.decisive(schema) - {"TRACKER_PROJECT", "TRACKER_RUN_NAME"}
    return {name: option for name, option in schema.options.items() if option.active and name in wanted}


def _shared(option: Option, value: Value) -> Value:
    """A value of the option, fit for strangers."""
    return public(value) if option.kind == "str" else value


def public(text: str) -> str:
    """A text without secrets; of an absolute path, and of one with `..`, only the last part."""
    path = Path(text)
    return redact.hide(path.name if text.startswith(("/", "~")) or ".." in path.parts else text)
