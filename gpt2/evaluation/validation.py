"""The loss on the whole validation split, with its standard error, perplexity and bits per byte."""

import dataclasses

from gpt2.data.windows import Data
from gpt2.evaluation import losses
from gpt2.evaluation.harness import Model
from gpt2.evaluation.result import Result
from lib.base.errors import UsageError
from lib.machine.device import Machine


def measure(model: Model, data: Data, machine: Machine) -> Result:
    """The loss on every window of the validation split, named `validation`.

    The windows do not overlap. Those of training's evaluations are some of them. Raises UsageError without a validation
    split.
    """
    if data.val is None:
        raise UsageError("EVALUATE=n: there is no validation split to measure; use EVALUATE=y, PERPLEXITY or TASKS")
    size = data.options.block_size
    options = dataclasses.replace(data.options, eval_samples=(data.val.tokens - 1) // size)
    whole = Data(options, data.files, data.tokenizer, data.pin)
    found = losses.of_windows(model, whole.val_batches(), whole.val_windows, machine, "validation")
    values = losses.metrics("validation", found, whole.bits_per_byte(found.mean().item()))
    about = {"data": data.description, "data_sha256": data.fingerprint}
    details = {"tokens": len(found) * size, "block_size": size, **about}
    return Result("validation", values, len(found), details=details)
