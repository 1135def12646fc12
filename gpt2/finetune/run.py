"""A run of fine-tuning: TRL trains the model in the run's folder `start`, and the run's journal and checkpoints follow.

The trainer's own checkpoints, with which a run continues, are in the folder `trl`. Those in `checkpoints` hold the
weights and masks in our form, so that every program can read the run like any other.
"""

import dataclasses
import functools
import shlex
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import trl

from gpt2 import announce, ending, limit
from gpt2.alerts import AlertOptions, Watch
from gpt2.announce import Start
from gpt2.data import tokenizer as tokenizers
from gpt2.divergence import DivergenceOptions
from gpt2.finetune import examples as reading
from gpt2.finetune import model as models
from gpt2.finetune import trainers
from gpt2.finetune.examples import Examples
from gpt2.finetune.follow import Broken, Follow
from gpt2.finetune.options import FinetuneOptions
from gpt2.finetune.rewards import Loaded
from gpt2.model import GPT2, ModelOptions
from gpt2.recorder import Recorder, Unrecorded
from gpt2.training import Training
from gpt2.weights import source
from lib import optim, prune, track
from lib.base import durations, files
from lib.base.errors import UserError
from lib.base.signals import StopSignals
from lib.config.kconf import Schema
from lib.machine.device import Machine
from lib.prune.hold_masks import HoldMasks, linear_weights
from lib.prune.sample import sampled_masks
from lib.record import best, checkpoint, journal, lineage, monitor, provenance, run, trl_checkpoints
from lib.record.trl_checkpoints import TRL
from lib.terminal.console import Console, duration, say, table
from lib.track import waiting

START = "start"  # folder of a run, with the first model


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of, beside its options."""

    machine: Machine
    examples: Examples
    rewards: Loaded
    begun: dict[str, Any]  # `init` and `masks` of the start event

    def facts(self, options: FinetuneOptions) -> dict[str, Any]:
        """What the start event says of the fine-tuning."""
        return {
            "recipe": options.finetune_recipe,
            "examples": self.examples.facts(options.finetune_template_file),
            "rewards": self.rewards.sha256,
            "trl": trl.__version__,
        }


class FineTuning:
    """The parts that fine-tune a model. They are built without the run's folder, and `train` uses them once."""

    def __init__(self, schema: Schema, parts: Parts, start: Path, steps: int, before: Path | None):
        """Load the model in the folder `start`, and tokenise the examples; raises UserError for what cannot be trained.

        `before` is the checkpoint of TRL to continue from; None: there is none.
        """
        self.schema, self.parts, self.steps, self.before = schema, parts, steps, before
        self.options, self.machine = schema.bind(FinetuneOptions), parts.machine
        if self.options.json_output:
            ending.check_output(Path(self.options.json_output))
        shape, vocab_size = schema.bind(ModelOptions), tokenizers.vocab_size(self.options.tokenizer)
        weights = source.read(source.find(str(start)), shape.block_size, vocab_size)
        self.training = self._training(shape, vocab_size, weights)
        self.hold = HoldMasks(start) if weights.masks else None
        merges = bool(self.hold and self.options.finetune_lora_rank)
        known = trl_checkpoints.about(before) if before else {}
        forgets = self.options.finetune_recipe != "grpo"  # TRL restores its count of tokens only for grpo
        self.follow = Follow(
            self.training,
            self.machine.ranks,
            evaluates=bool(parts.examples.evaluation),
            merges=merges,
            perplexity=self.options.finetune_recipe == "sft",
            tokens_before=known.get("tokens", 0) if forgets else 0,
            keep=self.options.checkpoint_keep,
        )
        if before:
            self.training.step, self.training.total_seconds = trl_checkpoints.step_of(before), known["seconds"]
        template = reading.template(self.options.finetune_template_file)
        functions, callbacks = parts.rewards.functions, [*([self.hold] if self.hold else []), self.follow]
        self.trainer = trainers.build(
            self.options, start, self.machine, parts.examples, functions, template, steps, callbacks
        )
        if merges:
            trainers.measure_merged(self.trainer, self.hold)
        if before:
            self.trainer.args.eval_on_start = False

    def _training(self, shape: ModelOptions, vocab_size: int, weights: source.Weights) -> Training:
        """The run's state in our form, on the CPU, which checkpoints hold."""
        schema = self.schema
        host = dataclasses.replace(self.machine, device=torch.device("cpu"), dtype=torch.float32)
        model = GPT2(shape, vocab_size)
        model.load(weights.state)
        optimizer = optim.build(model, schema.bind)
        pruner = prune.build(model, optimizer, schema.bind, weights.masks or None)
        sums = {"train": {}, "val": {}}  # the examples are no files of tokens
        return Training(model, optimizer, pruner, host, schema.bind(DivergenceOptions), lambda: sums)

    def train(self, start: Start) -> int:
        """Train to the last step, a signal or a failure; returns the exit code. The journal is closed in any case."""
        ranks, folder = self.machine.ranks, start.folder
        self.trainer.args.output_dir = str(folder / TRL)
        for adapter in getattr(self.trainer.model, "peft_config", {}).values():
            adapter.base_model_name_or_path = str(folder / START)
        with ExitStack() as stack:
            with StopSignals("stopping after this step, then saving") as asked:
                recorder = ranks.only_first(lambda: self._record(start, stack, asked), Unrecorded(folder))
                late = limit.Limit(self.schema.bind(limit.LimitOptions), self.training, recorder.seconds).over
                self.follow.recorder, self.follow.asked = recorder, lambda: asked() or late()
                self.follow.sparsity, self.follow.save = self._sparsity, functools.partial(self._save, recorder)
                self._steps(recorder)
                if self.training.step < self.steps:
                    stopped = ranks.any(asked())
                    ending.stopped(recorder, self.training.step, False, "" if stopped else self.schema["RUN_TIME"])
                    return (asked.exit_code or 128 + signal.SIGTERM) if stopped else durations.TIME_OVER
            with StopSignals("recording the end of the run") as later:
                ranks.first(lambda: self._finish(recorder, later))
            return asked.exit_code or later.exit_code

    # ---- before the first step -------------------------------------------------------------------------------------

    def _record(self, start: Start, stack: ExitStack, asked: StopSignals) -> Recorder:
        """Record and announce the start of this session; `stack` closes what records it."""
        schema, options, training, folder = self.schema, self.options, self.training, start.folder
        stack.enter_context(files.held(folder, "training this run"))
        identity, book = run.Identity.load(folder), journal.Journal(folder)
        stack.callback(book.close)
        asked.last_words = lambda: book.last_word(training.step, "interrupted")
        known = best.evaluations(journal.history(folder).values())
        training.evaluations = [one for one in known if one.step <= training.step]
        console = Console(self.steps, training.step, lambda: training.evaluations)
        stack.callback(console.close)
        file = f"provenance-{book.seq}.json" if book.seq else "provenance.json"
        if note := provenance.save(schema, folder, start.command, file, self.parts.begun):
            console.say(f"note: {note}")
        use = self.machine.use(False, "TRL trains the model as it is")
        facts = announce.facts(schema, use, identity, self.parts.examples, training)
        facts["finetune"] = self.parts.facts(options)
        announce.begin(start, book, console, training, self.steps, facts, self.parts.begun)
        (folder / "summary.json").unlink(missing_ok=True)  # of an earlier end
        schema.write(folder / ".config")
        schema.write(folder / "defconfig", minimal=True)
        console.say(table(self._facts(folder, use.words())))

        sigma = schema.bind(AlertOptions).loss_spike_sigma
        watch = Watch(training.model.vocab_size, training.pruner.goal(), True, sigma)
        watch.recall(folder, training.step)
        keeping, trackers = schema.bind(checkpoint.Keeping), track.names(options.tracker)
        patience = waiting.patience(schema.bind(waiting.WaitOptions).tracker_wait)
        about = announce.about(identity, training.model, schema)
        recorder = Recorder(folder, book, console, trackers, training, watch, keeping, about, None, patience)
        stack.enter_context(recorder)
        recorder.tidy()
        trl_checkpoints.remove_unfinished(folder / TRL)  # of a session that was killed while it saved
        interval = schema.bind(monitor.MonitorOptions).system_metrics_interval
        write, after = functools.partial(book.write, "system"), book.reached.get("system", 0)
        stack.enter_context(monitor.Monitor(interval, lambda: training.step, write, after))
        return recorder

    def _facts(self, folder: Path, machine: str) -> dict[str, object]:
        """What is trained, how, and on what."""
        options, examples, ranks = self.options, self.parts.examples, self.machine.ranks.size
        lora = f", LoRA of rank {options.finetune_lora_rank}" if options.finetune_lora_rank else ""
        what = "completions" if options.finetune_recipe == "grpo" else "examples"
        kept = self.training.pruner
        where = " in what is evaluated and saved" if lora else ""  # beside adapters, no weight is zero
        zeros = f"{kept.total - kept.kept:,} of {kept.total:,} weights in scope are zero{where}"
        facts = {
            "model": announce.model_words(self.training.model),
            **lineage.described(self.parts.begun),
            "recipe": f"{options.finetune_recipe} by TRL {trl.__version__}{lora}",
            "held": zeros if self.hold else "",
            "examples": examples.words(),
            "template": (options.finetune_template_file or repr(reading.TEMPLATE)) if examples.conversational else "",
            "rewards": options.finetune_reward,
            "training": f"{self.steps:,} steps of {options.batch(ranks)} {what}",
            "machine": machine,
            "run folder": folder,
        }
        return {name: value for name, value in facts.items() if value}

    # ---- training --------------------------------------------------------------------------------------------------

    def _steps(self, recorder: Recorder | Unrecorded) -> None:
        """Train; raises if a failure ends it."""
        try:
            recorder.ready()
            if self.training.step < self.steps:
                self.trainer.train(resume_from_checkpoint=str(self.before) if self.before else None)
            else:
                self._recall(recorder)
            recorder.settle()
        except Broken as error:
            recorder.alert("nan", "error", str(error), self.training.step)
            recorder.settle()
            recorder.write("finish", self.training.step, {}, status="diverged")
            raise UserError(f"the run has diverged: {error}") from None
        except UserError as error:
            ending.failed(error, self.training, recorder)
            raise
        except Exception as error:
            told = None if self.machine.ranks.rank else trl_checkpoints.not_written(recorder.folder, error)
            ending.failed(told or error, self.training, recorder)
            raise told or error from None

    def _sparsity(self) -> float:
        """The share of zeros in the model that TRL trains, counted from the weights."""
        if self.hold:
            return self.hold.sparsity()
        weights = [weight for _, weight in linear_weights(self.trainer.model)]
        return 1 - sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)

    def _save(self, recorder: Recorder, step: int) -> None:
        """Save the weights as they are after `step`, with the masks."""
        self._take(step)
        recorder.save(step)

    @torch.no_grad()
    def _take(self, step: int) -> None:
        """Give the run's state the weights that TRL has after `step`; adapters are merged and masked."""
        if self.hold and (count := self.hold.broken()):
            raise RuntimeError(f"step {step}: {count} pruned weights are not zero; this is a mistake in Espalier")
        self.training.model.load(models.weights(self.trainer.model))
        for weight in self.training.pruner.weights if self.hold else ():
            weight.value.mul_(weight.mask)

    def _recall(self, recorder: Recorder | Unrecorded) -> None:
        """Load the last weights: the session before was killed after the last step, but before the end was recorded."""
        self.trainer._load_from_checkpoint(str(self.before))
        if self.hold:
            self.hold.apply(self.trainer.model)
        if not self.machine.ranks.rank:
            self._take(self.steps)
            if not recorder.has_checkpoint(self.steps):
                recorder.save(self.steps)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _finish(self, recorder: Recorder, asked: StopSignals) -> None:
        """Record the end, write the summary and show it; if `asked` to stop, without pictures."""
        training, pruner, folder, step = self.training, self.training.pruner, recorder.folder, self.training.step
        known, losses = training.evaluations, {}
        if known:
            losses = {"final_val_loss": known[-1].val_loss, "best_val_loss": (best.best(known) or known[-1]).val_loss}
        final = journal.final(folder, step) or losses | {"total_time_seconds": recorder.seconds()}
        tokens, metrics = lineage.own_tokens(folder, step), pruner.metrics(step)
        costs = ending.costs_of(training, folder, tokens, metrics["average_nonzeros"], metrics["sparsity"])
        if not recorder.journal.ended(step):
            if not asked():
                recorder.draw(step)
            recorder.keep_artifact(self.options.tracker_artifacts, step)
            recorder.write("finish", step, final, status="finished", flops=costs, **sampled_masks(pruner))
        recorder.console.close()
        total = lineage.total_tokens(folder, step)
        summary = {
            "run": str(folder),
            "status": "finished",
            "steps": step,
            **({"initial_val_loss": known[0].val_loss} if known else {}),
            **final,
            "tokens": tokens,
            **({} if total is None else {"total_tokens": total}),
            "sparsity": metrics["sparsity"],
            "average_nonzeros": metrics["average_nonzeros"],
            "weights_in_scope": pruner.total,
            "parameters": training.model.count_parameters(),
            **costs,
        }
        files.write_json(folder / "summary.json", summary)
        if self.options.json_output:
            files.write_json(Path(self.options.json_output), summary)
        if asked():
            recorder.hurry()
        _show(summary, bool(self.hold), self.options.finetune_recipe == "grpo")


def _show(summary: dict[str, Any], pruned: bool, rewarded: bool) -> None:
    """Print the summary, and what can be done with the model."""
    folder, facts = shlex.quote(summary["run"]), {}
    if "final_val_loss" in summary:
        what, sign = ("mean reward", -1) if rewarded else ("validation loss", 1)
        first, last = (0.0 + sign * summary[f"{which}_val_loss"] for which in ("initial", "final"))
        facts[what] = f"{first:.4f} before, {last:.4f} after"
    if pruned:
        facts["zero"] = f"{summary['sparsity']:.2%} of the {summary['weights_in_scope']:,} weights in scope"
    facts |= {
        "tokens": f"{summary['tokens']:,}",
        "time": duration(summary["total_time_seconds"]),
        "run folder": summary["run"],
        "look at it": f"make show RUN={folder}",
        "evaluate it": f"make evaluate RUN={folder}",
        "export it": f"make export-model RUN={folder}",
    }
    say(table(facts))
