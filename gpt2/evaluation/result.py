"""What a measurement of a model found: the values of one task, as the journal's event `task` has them."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Result:
    """The values of one task, with their standard errors where they are known."""

    name: str  # of the task, such as hellaswag
    metrics: dict[str, float]  # "<name>/<metric>" and "<name>/<metric>_stderr"
    n: int  # items (documents, windows) that were measured
    version: str | float | None = None  # of the task's definition
    details: dict[str, Any] = dataclasses.field(default_factory=dict)  # more fields of the event, such as limit
