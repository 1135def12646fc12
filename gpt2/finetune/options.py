"""The options of fine-tuning, and the checks that need no data and no torch."""

import dataclasses
import math

from lib.base.errors import UsageError
from lib.config.kconf import Options


@dataclasses.dataclass(frozen=True)
class FinetuneOptions(Options):
    """How to fine-tune. An option is None where the recipe does not use it."""

    finetune_recipe: str
    finetune_template_file: str | None  # empty: the template in examples.py
    finetune_learning_rate: float | None
    finetune_epochs: float | None
    finetune_steps: int | None  # 0: as many as the epochs take
    finetune_batch_size: int | None  # examples, with grpo completions
    finetune_accumulation: int | None
    finetune_length: int | None  # tokens; 0: the context
    finetune_beta: float | None
    finetune_generations: int | None
    finetune_completion: int | None  # tokens; 0: a quarter of the context
    finetune_reward: str | None
    finetune_lora_rank: int | None  # 0: all weights are trained
    pruning_method: str
    init_masks: str | None  # zeros: those of the first weights; None: nothing is held
    output_dir: str
    block_size: int
    tokenizer: str
    optimizer: str
    dropout: float
    grad_clip: float
    seed: int
    log_interval: int
    eval_interval: int | None  # None: nothing is evaluated; 0: only before and after
    checkpoint_interval: int  # 0: only at the end
    checkpoint_keep: int
    tracker: tuple[str, ...]
    json_output: str
    tracker_artifacts: str
    eval_tasks: str

    @property
    def length(self) -> int:
        """The longest example in tokens."""
        return self.finetune_length or self.block_size

    @property
    def completion(self) -> int:
        """The longest completion in tokens."""
        return self.finetune_completion or max(1, self.block_size // 4)

    def batch(self, ranks: int) -> int:
        """Examples, or with grpo completions, of a step of so many processes."""
        return self.finetune_batch_size * self.finetune_accumulation * ranks

    def steps(self, examples: int, ranks: int) -> int:
        """The optimizer steps of the run, with so many examples to train on.

        TRL rounds an epoch of sft and dpo up to whole micro-batches and steps. It leaves out the last prompts of grpo
        that do not fill a step.
        """
        if self.finetune_steps:
            return self.finetune_steps
        if self.finetune_recipe == "grpo":
            epoch = max(1, examples * self.finetune_generations // self.batch(ranks))
        else:
            batches = math.ceil(examples / (self.finetune_batch_size * ranks))
            epoch = math.ceil(batches / self.finetune_accumulation)
        return max(1, math.ceil(self.finetune_epochs * epoch))


def check(options: FinetuneOptions, ranks: int) -> None:
    """Raise UsageError for a combination that TRL or this model cannot train."""
    if options.optimizer != "adamw":
        raise UsageError(f"OPTIMIZER={options.optimizer}: make finetune trains with TRL's AdamW; leave it out")
    if options.pruning_method not in ("none", "given"):
        raise UsageError(
            f"PRUNING_METHOD={options.pruning_method}: make finetune holds masks that exist and chooses none; leave it "
            "out, or prune first"
        )
    if options.eval_tasks:
        raise UsageError(f"EVAL_TASKS={options.eval_tasks}: make finetune measures no tasks; use make evaluate later")
    if options.finetune_recipe == "grpo":
        _check_grpo(options, ranks)
    elif options.length > options.block_size:
        raise UsageError(
            f"FINETUNE_LENGTH={options.length}: is longer than the context, BLOCK_SIZE={options.block_size}; lower it"
        )


def _check_grpo(options: FinetuneOptions, ranks: int) -> None:
    batch, generations = options.batch(ranks), options.finetune_generations
    processes = "1 process" if ranks == 1 else f"{ranks} processes"
    if batch % generations:
        raise UsageError(
            f"FINETUNE_GENERATIONS={generations}: a step has {batch} completions ({processes} x "
            f"FINETUNE_BATCH_SIZE={options.finetune_batch_size} x FINETUNE_ACCUMULATION="
            f"{options.finetune_accumulation}), which must be a multiple of it; change one of them"
        )
    if options.completion >= options.block_size:
        raise UsageError(
            f"FINETUNE_COMPLETION={options.completion}: leaves no room for a prompt in the context, BLOCK_SIZE="
            f"{options.block_size}; lower it"
        )
