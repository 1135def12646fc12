"""What trackers show as a run's configuration: the options that say what is learned, by the names others use."""

from lib.config.kconf import Schema
from lib.config.option import Value

_MENUS = ("Model", "Dataset", "Training", "Optimizer", "Pruning")
_BESIDE = ("DATA_DIR", "DATA_CACHE_DIR", "AUTO_BATCH")  # say something about this machine, not about the run
_TAUGHT = ("DISTILL_WEIGHT", "DISTILL_TEMPERATURE")  # say something only about runs with a teacher
_FINETUNING = "Fine-tuning"  # a menu, which takes the place of these in runs that are fine-tuned, but for two options:
_TRAINING, _BOTH = ("Training", "Optimizer"), ("MAX_ITERS", "GRAD_CLIP")
# The other options have the names of nanoGPT or of Hugging Face's trainers already, in lower case.
_NAMES = {
    "MODEL_NAME": "model",
    "GRADIENT_ACCUMULATION": "gradient_accumulation_steps",
    "LR_SCHEDULE": "lr_scheduler_type",
    "FINETUNE_RECIPE": "recipe",
    "FINETUNE_LEARNING_RATE": "learning_rate",
    "FINETUNE_EPOCHS": "num_train_epochs",
    "FINETUNE_BATCH_SIZE": "per_device_train_batch_size",
    "FINETUNE_ACCUMULATION": "gradient_accumulation_steps",
    "FINETUNE_LENGTH": "max_length",
    "FINETUNE_BETA": "beta",
    "FINETUNE_GENERATIONS": "num_generations",
    "FINETUNE_COMPLETION": "max_completion_length",
    "FINETUNE_LORA_RANK": "lora_r",
}


def parameters(schema: Schema) -> dict[str, Value]:
    """Name -> value of the active options of the model, its data, training, optimizer and pruning, and of the seed."""
    tuned = schema["FINETUNE_RECIPE"] != "none"
    menus = [_FINETUNING, *(menu for menu in _MENUS if menu not in _TRAINING)] if tuned else _MENUS
    more = ("SEED", *_BOTH) if tuned else ("SEED",)
    beside = _BESIDE if schema["DISTILL_FROM"] else (*_BESIDE, *_TAUGHT)
    wanted = [
        option
        for name, option in schema.options.items()
        if option.active and (option.menu[0] in menus or name in more) and name not in beside
    ]
    return {_NAMES.get(option.name, option.name.lower()): option.value for option in wanted}
