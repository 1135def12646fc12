"""How a run uses the machine: fields for its journal, and the words that people read. Does not import torch."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

# Matches the text of `Use.words`, which earlier versions wrote into the journal in place of fields.
_WORDS = re.compile(
    r"(?:(?P<ranks>\d{1,9}) x )?(?P<device>.+?)(?:, (?P<dtype>b?float\d+)(?: \((?P<dtype_reason>[^)]*)\))?)?"
    r"(?:, (?P<threads>\d{1,9}) threads?)?(?P<deterministic>, deterministic)?"
    r"(?:, (?P<compiled>(?:not )?compiled)(?: \((?P<compiled_reason>.*)\))?)?",
    re.DOTALL,
)
_LONGEST = 1000  # characters: the pattern takes quadratic time for a text that is only similar


@dataclasses.dataclass(frozen=True)
class Use:
    """What a session computes on, and how."""

    device: str  # `cpu`, `mps` or the name of the GPU
    dtype: str = ""  # of matrix products; empty if unknown
    dtype_reason: str = ""  # why `auto` chose this dtype; empty if the user chose it
    threads: int = 0  # of PyTorch on a CPU; 0 on other devices
    deterministic: bool = False
    compiled: bool | None = None  # None if unknown
    compiled_reason: str = ""  # why `auto` compiles or not; empty if the user decided
    ranks: int = 1
    kernels: str = ""  # on a CPU `torch`, or the other ones that are used; empty if unknown
    kernels_reason: str = ""  # why `auto` chose these kernels and threads; empty if the user did
    spins_little: bool = False  # threads that wait sleep soon, because others used the processor at the start

    def words(self, reasons: bool = True) -> str:
        """`2 x cpu, float32 (auto: ...), 2 threads, kernels torch (auto: ...), deterministic, not compiled`."""
        parts = [f"{self.ranks} x {self.device}" if self.ranks > 1 else self.device]
        if self.dtype:
            parts.append(self.dtype + _bracketed(self.dtype_reason, reasons))
        if self.threads:
            sleepy = "sleeping while they wait, because other programs compute" * self.spins_little
            parts.append(f"{self.threads} thread{'s' * (self.threads > 1)}" + _bracketed(sleepy, reasons))
        if self.kernels:
            parts.append(f"kernels {self.kernels}" + _bracketed(self.kernels_reason, reasons))
        if self.deterministic:
            parts.append("deterministic")
        if self.compiled is not None:
            parts.append("not " * (not self.compiled) + "compiled" + _bracketed(self.compiled_reason, reasons))
        return ", ".join(parts)


def read(recorded: str | Mapping[str, Any]) -> Use:
    """The `machine` of a start or resume record: fields, or one sentence in a journal of an earlier version.

    Raises ValueError if a field has the wrong type.
    """
    if isinstance(recorded, str):
        return _parsed(recorded)
    kinds = typing.get_type_hints(Use)
    if not isinstance(recorded.get("device"), str):
        raise ValueError("the machine has no device")
    known = {name: recorded[name] for name in kinds.keys() & recorded.keys()}  # a later version may write more
    if wrong := [name for name, value in known.items() if not isinstance(value, kinds[name])]:
        raise ValueError(f"{wrong[0]} of the machine has the wrong type")
    return Use(**known)


def _parsed(words: str) -> Use:
    found = _WORDS.fullmatch(words) if len(words) <= _LONGEST else None
    if not found:
        return Use(words)
    compiled = found["compiled"]
    return Use(
        device=found["device"],
        dtype=found["dtype"] or "",
        dtype_reason=found["dtype_reason"] or "",
        threads=int(found["threads"] or 0),
        deterministic=bool(found["deterministic"]),
        compiled=None if compiled is None else compiled == "compiled",
        compiled_reason=found["compiled_reason"] or "",
        ranks=int(found["ranks"] or 1),
    )


def _bracketed(reason: str, shown: bool) -> str:
    return f" ({reason})" if reason and shown else ""
