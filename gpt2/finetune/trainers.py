"""Builds the trainers of TRL from our options: everything else that TRL can do is left at its default."""

import warnings
from pathlib import Path
from typing import Any

import datasets
import jinja2
import torch
import transformers
import trl
from datasets.utils.logging import disable_progress_bar
from transformers.trainer_callback import PrinterCallback

from gpt2.finetune import model as models
from gpt2.finetune.examples import Example, Examples, used
from gpt2.finetune.options import FinetuneOptions
from gpt2.finetune.rewards import Reward
from lib.base.errors import UsageError, UserError
from lib.machine.device import Machine
from lib.prune.hold_masks import HoldMasks

_CONFIGS = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}
_TRAINERS = {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer, "grpo": trl.GRPOTrainer}


def quiet() -> None:
    """Turn off the progress bars and reports of the libraries: the run has its own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")  # for their own developers


def build(
    options: FinetuneOptions,
    start: Path,
    machine: Machine,
    examples: Examples,
    rewards: list[Reward],
    template: str,
    steps: int,
    callbacks: list[transformers.TrainerCallback],
) -> transformers.Trainer:
    """The trainer of the recipe for the model in the folder `start`; tokenises the examples.

    Raises UserError for examples that do not fit into the context.
    """
    tokenizer = models.tokenizer(start, template)
    recipe, more = options.finetune_recipe, {}
    if recipe == "grpo":
        more["reward_funcs"] = list(rewards)
    if options.finetune_lora_rank:
        more["peft_config"] = models.lora(options.finetune_lora_rank)
    model = models.load(start)
    # TRL reads the reference model of dpo and grpo from this place.
    model.config._name_or_path = str(start)
    try:
        if recipe == "grpo":
            _check_prompts(options, tokenizer, examples)
        trainer = _TRAINERS[recipe](
            model=model,
            args=_CONFIGS[recipe](**_arguments(options, start, machine, bool(examples.evaluation), steps)),
            train_dataset=_dataset(used(recipe, examples.train)),
            eval_dataset=_dataset(used(recipe, examples.evaluation)) if examples.evaluation else None,
            processing_class=tokenizer,
            callbacks=callbacks,
            **more,
        )
    except jinja2.TemplateError as error:
        name = options.finetune_template_file or "the template"
        raise UserError(f"{name}: cannot be used as a chat template: {' '.join(str(error).split())[:300]}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"TRL {trl.__version__} refuses these options or examples: {' '.join(str(error).split())[:300]}"
        ) from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure_merged(trainer: transformers.Trainer, hold: HoldMasks) -> None:
    """From now on `trainer` evaluates the model that checkpoints hold: its adapters are merged under the mask."""
    evaluate = trainer.evaluate

    def measured(*args: Any, **kwargs: Any) -> dict[str, float]:
        with hold.merged(trainer.model):
            return evaluate(*args, **kwargs)

    trainer.evaluate = measured


def _arguments(options: FinetuneOptions, start: Path, machine: Machine, evaluates: bool, steps: int) -> dict[str, Any]:
    """What TRL's configuration of the recipe gets."""
    on_cpu = machine.device.type == "cpu"
    if on_cpu and machine.dtype == torch.float16:
        raise UsageError("DTYPE=float16: scales losses, which TRL does on a GPU only; use DTYPE=float32 or bfloat16")
    batch = options.finetune_batch_size
    found = {
        "output_dir": str(start),  # replaced as soon as the run has a folder
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": options.finetune_accumulation,
        "learning_rate": options.finetune_learning_rate,
        "lr_scheduler_type": "linear",
        "max_grad_norm": options.grad_clip,
        "seed": options.seed,
        "use_cpu": on_cpu,
        "bf16": machine.dtype == torch.bfloat16,
        "fp16": machine.dtype == torch.float16,
        "activation_checkpointing": False,
        "logging_steps": options.log_interval,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if options.checkpoint_interval else "no",
        "save_steps": options.checkpoint_interval or steps,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": (options.eval_interval or steps) if evaluates else None,
        "eval_on_start": evaluates,
        "dataloader_pin_memory": machine.device.type == "cuda",
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
        "report_to": "none",  # the run's own trackers get everything from its journal
    }
    if options.finetune_recipe != "grpo":
        found["max_length"] = options.length
    if options.finetune_recipe != "sft":
        found["beta"] = options.finetune_beta
    if options.finetune_recipe == "grpo":
        generations = options.finetune_generations
        found |= {
            "num_generations": generations,
            "max_completion_length": options.completion,
            "per_device_eval_batch_size": -(-batch // generations) * generations,
            "use_vllm": False,
        }
    return found


def _dataset(rows: list[Example]) -> datasets.Dataset:
    """The rows in memory, so that nothing is written to a cache."""
    try:
        return datasets.Dataset.from_list(rows)
    except Exception as error:  # of pyarrow: columns whose values have several types
        raise UserError(f"the examples do not form a table: {' '.join(str(error).split())[:300]}; mend them") from None


def _check_prompts(options: FinetuneOptions, tokenizer: Any, examples: Examples) -> None:
    """Raise UserError if a prompt leaves too little room for a completion: the model would read beyond its context."""
    room = options.block_size - options.completion
    for row in [*examples.train, *examples.evaluation]:
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        if (count := len(tokenizer(prompt)["input_ids"])) > room:
            raise UserError(
                f"a prompt has {count} tokens, and {room} fit beside FINETUNE_COMPLETION={options.completion} into "
                f"BLOCK_SIZE={options.block_size}; lower it or leave out long prompts ({prompt[:40]!r})"
            )
