"""What trackers show as a run's configuration: the options that say what is learned, by the names others use."""

from lib.config.kconf import Schema
from lib.config.option import Value

_MENUS = ("Model", "Dataset", "Training", "Optimizer", "Pruning")
_BESIDE = ("DATA_DIR",)  # says something about this machine, not about the run
# The other options have the names of nanoGPT or of Hugging Face's trainers already, in lower case.
_NAMES = {
    "MODEL_NAME": "model",
    "GRADIENT_ACCUMULATION": "gradient_accumulation_steps",
    "LR_SCHEDULE": "lr_scheduler_type",
}


def parameters(schema: Schema) -> dict[str, Value]:
    """Name -> value of the active options of the model, its data, training, optimizer and pruning, and of the seed."""
    wanted = [
        option
        for name, option in schema.options.items()
        if option.active and (option.menu[0] in _MENUS or name == "SEED") and name not in _BESIDE
    ]
    return {_NAMES.get(option.name, option.name.lower()): option.value for option in wanted}
