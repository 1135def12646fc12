"""Follows a trainer of transformers: its logs go into the run's journal, its checkpoints are made complete."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from gpt2.loop import GRAD_NORM, LEARNING_RATE, TOKENS, TOKENS_PER_SECOND, TRAIN_LOSS, VAL_LOSS, VAL_PERPLEXITY
from gpt2.recorder import Recorder, Unrecorded
from gpt2.training import Training
from lib.base.errors import UserError
from lib.base.metric import Metric
from lib.machine.dist import Ranks
from lib.prune.pruner import SPARSITY
from lib.record import trl_checkpoints

_NAMES = {  # TRL's -> ours
    "loss": TRAIN_LOSS,
    "learning_rate": LEARNING_RATE,
    "grad_norm": GRAD_NORM,
    "reward": Metric("reward", label="reward", row=9),  # of GRPO, whose loss says nothing
    "rewards/accuracies": Metric("rewards/accuracies", label="accuracy", form=".2f", row=9),  # of DPO: pairs in order
}
# While adapters are not merged under the mask. `sparsity` is always that of the model that a checkpoint holds.
_ADAPTED_SPARSITY = Metric("adapted_sparsity", form=".1%")
_OF_EVALUATION = "eval_"
_REWARD = "eval_reward"
_EQUAL = "frac_reward_zero_std"  # share of the prompts whose completions all have the same reward
_CLOCKS = ("_runtime", "_per_second", "step_time")  # ends of the names of times, which no resume repeats


class Broken(UserError):
    """The loss is NaN or infinite."""


class Follow(TrainerCallback):
    """Records what a trainer logs, ends it when the user wants it, and keeps its checkpoints."""

    def __init__(
        self,
        training: Training,
        ranks: Ranks,
        *,
        evaluates: bool,
        merges: bool,
        perplexity: bool,
        tokens_before: int,
        keep: int,
    ):
        """Follow a run of TRL, whose state `training` shows to our programs.

        evaluates      whether the last step is evaluated
        merges         whether adapters are trained, and merged under a mask where the model is evaluated or saved
        perplexity     whether the loss of an evaluation is one of tokens
        tokens_before  read by earlier sessions, for trainers that forget it
        keep           how many of TRL's checkpoints stay
        """
        self.training, self.ranks, self.keep = training, ranks, keep
        self.evaluates, self.merges, self.perplexity = evaluates, merges, perplexity
        self.tokens_before, self.tokens = tokens_before, tokens_before
        self.lapped = time.perf_counter(), tokens_before  # when the speed was last measured, and the tokens then
        self.warned = False  # that rewards are equal
        # Set before the trainer starts.
        self.recorder: Recorder | Unrecorded
        self.asked: Callable[[], bool]
        self.sparsity: Callable[[], float]
        self.save: Callable[[int], None]

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self.lapped = time.perf_counter(), self.tokens

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step. Save after the last one and when asked to stop."""
        self.training.step = state.global_step
        self.recorder.tick()
        last = state.global_step >= state.max_steps
        if self.ranks.any(self.asked()) and not last:
            control.should_save = control.should_training_stop = True
        if last:
            control.should_save, control.should_evaluate = True, self.evaluates
        if control.should_save:
            control.should_log = True  # so that a resumed session averages over the same steps

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record training or an evaluation; raises Broken if the loss is NaN or infinite."""
        logs = {name: value for name, value in (logs or {}).items() if not name.endswith(_CLOCKS)}
        logs = {name: math.nan if value is None else value for name, value in logs.items()}  # rewards that never apply
        if f"{_OF_EVALUATION}loss" in logs:
            self._evaluated(state.global_step, logs)
        elif "loss" in logs:
            self._trained(state.global_step, logs)

    def _trained(self, step: int, logs: dict[str, float]) -> None:
        if "num_tokens" in logs:
            self.tokens = self.tokens_before + int(logs.pop("num_tokens"))
        logs.pop(SPARSITY, None)  # HoldMasks adds it to logs
        metrics = {_NAMES.get(name, name): value for name, value in logs.items()}
        (began, before), now = self.lapped, time.perf_counter()
        self.lapped = now, self.tokens
        metrics |= {
            _ADAPTED_SPARSITY if self.merges else SPARSITY: self.sparsity(),
            TOKENS: self.tokens,
            TOKENS_PER_SECOND: (self.tokens - before) / (now - began),
        }
        self.recorder.write("train", step, metrics)
        if logs.get(_EQUAL) == 1 and not self.warned:
            self.warned = True
            text = "all completions of each prompt have the same reward, so they teach nothing; choose other rewards"
            self.recorder.alert("rewards", "warn", text, step)
        if not math.isfinite(logs["loss"]):
            raise Broken(f"step {step}: the training loss is NaN or infinite; lower FINETUNE_LEARNING_RATE")

    def _evaluated(self, step: int, logs: dict[str, float]) -> None:
        loss = logs.pop(f"{_OF_EVALUATION}loss")
        # GRPO's own loss is about 0 whatever the model can do.
        loss = 0.0 - logs[_REWARD] if _REWARD in logs else loss  # not -reward, which is -0.0 for a reward of 0
        metrics = {VAL_LOSS: loss}
        if self.perplexity:
            metrics[VAL_PERPLEXITY] = math.exp(min(loss, 700.0))
        for name, value in logs.items():
            if name.startswith(_OF_EVALUATION) and name != f"{_OF_EVALUATION}num_tokens":
                metrics[f"val_{name.removeprefix(_OF_EVALUATION)}"] = value
        sparsity = self.sparsity()
        if self.merges:
            metrics[SPARSITY] = sparsity
        self.training.note(loss)
        self.recorder.write("eval", step, metrics, sparsity=sparsity)
        self.lapped = time.perf_counter(), self.tokens
        if not math.isfinite(loss):
            raise Broken(f"step {step}: the validation loss is NaN or infinite; lower FINETUNE_LEARNING_RATE")

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the run's own checkpoint too, say that TRL's is complete, and remove older ones."""
        step = state.global_step
        self.ranks.any(False)  # all ranks have written their part
        if self.ranks.rank == 0:
            folder = Path(args.output_dir)
            self.save(step)
            trl_checkpoints.complete(
                folder / f"checkpoint-{step}", self.tokens, self.recorder.seconds(), self.ranks.size
            )
            for old in trl_checkpoints.checkpoints(folder)[: -self.keep]:
                shutil.rmtree(old)
        self.lapped = time.perf_counter(), self.tokens
