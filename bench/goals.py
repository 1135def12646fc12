"""The goals of speed and memory, and why some of them are missed; docs/performance.md has them in a table."""

from typing import NamedTuple


class Goal(NamedTuple):
    """A bound on one figure of the benchmark."""

    name: str  # in the table
    section: str
    case: str
    bound: str  # on the ratio, or without a base on the seconds; a sign alone says only which figure is better
    cause: str = ""  # why it is missed, where it is, and first which goals these are; several may share it

    @property
    def binds(self) -> bool:
        """Whether the figure can meet or miss it."""
        return len(self.bound.split()) == 2

    def applies(self, machine: str) -> bool:
        """Whether this machine, by its description, computes in the arithmetic of the figure."""
        return "bfloat16" not in self.section or ", float32," not in machine


_PEERS = (
    "Beside nanoGPT: both programs spend most of their time in the same matrix products; the share of the best product "
    "says how much. nanoGPT as shipped has no bias, and computes the exact GELU, for which PyTorch has a fast kernel. "
    "The tanh form that GPT-2 was trained with takes 0.9 in place of 0.3 ms a layer at 4 x 128, where it is not "
    "compiled."
)
_SHARE = "Share of the best product: the rest is attention, GELU, norms and the loss, which move memory."
_HOLD = (
    "Keeping a mask: a pass over the gradients moves 9 of the 28 bytes that AdamW moves, so it costs at least 0.3. A "
    "hook that masks each gradient while it is in the cache still costs 0.25 to 0.32."
)
_THRESHOLD = "Exact threshold: the pass makes two comparisons, an absolute value and the indices of the window."
_MASKS = (
    "Updates of masks: each score is computed three times, once to compare it, and before and after the update for the "
    "scale of its tensor. State also chooses by magnitude, to be compared with it."
)
_MUON = (
    "Muon: in float32, Newton-Schulz takes 850 GFLOP, though half of each symmetric product is computed, and wide "
    "matrices are iterated by their smaller side. At the best rate of products on the Intel that alone is 46 x AdamW. "
    "With AMX it runs in bfloat16."
)
_LOOP = (
    "Loop: beside 25 ms of forward and backward, AdamW over 52 small tensors takes 1.4 ms, clipping 0.8, the "
    "guard and the end of the gradients 0.3, and a batch 1.0 on the thread that reads it ahead."
)
_COMPILED = "First compiled step: the AMD's is of a version whose gradient of the loss PyTorch traced at every start."
_TRACKERS = "Three trackers: their processes share the 2 cores; single rounds gave 0.92 to 1.06."
_PREPARE = (
    "Preparation: ours also starts a process, reads and splits the documents, and writes shards. One core alone is "
    "faster than each of two, so half of its time is a hard opponent."
)
_START = "First step of gpt2_tiny: the first evaluation and the estimate of the run's time take most of it."


def _beside(size: str, shape: str) -> list[Goal]:
    float32, bfloat16 = (f"{size} beside nanoGPT, {dtype}" for dtype in ("float32", "bfloat16"))
    return [
        Goal(f"{shape}, float32, as shipped", float32, "nanoGPT as shipped", ">= 1.3", _PEERS),
        Goal(f"{shape}, float32, compiled", float32, "nanoGPT compiled", ">= 1.15", _PEERS),
        Goal(f"{shape}, float32, not compiled", float32, "nanoGPT not compiled", ">="),
        Goal(f"{shape}, bfloat16, as shipped", bfloat16, "nanoGPT as shipped, float32", ">= 2.4", _PEERS),
        Goal(f"{shape}, bfloat16, compiled", bfloat16, "nanoGPT compiled, bfloat16", ">= 1.2", _PEERS),
        Goal(f"{shape}, share of the best product", f"{size}: share of the best product", "Espalier compiled",
             ">= 0.85", _SHARE),
    ]  # fmt: skip


_MEMORY = Goal("peak memory, over nanoGPT's", "peak memory beside nanoGPT", "Espalier", "<= 0.6")
_CPU = [
    *_beside("4x128", "4 x 128"),
    *_beside("6x384", "6 x 384"),
    *_beside("gpt2", "124M"),
    Goal("124M, 4 x 1024 tokens, share of the best product", "utilisation", "gpt2, 4 x 1024 tokens", ">= 0.8", _SHARE),
    Goal(
        "first compiled step, warm",
        "4x128 to the first step beside nanoGPT",
        "Espalier compiled, warm",
        "<= 1",
        _COMPILED,
    ),
    Goal(
        "first compiled step, cold",
        "4x128 to the first step beside nanoGPT",
        "Espalier compiled, cold",
        "<= 1",
        _COMPILED,
    ),
    Goal("first step of gpt2_tiny without import torch", "start", "first step", "<= 0.5", _START),
    Goal("loop around the model, 4 x 128", "loop around the model", "whole step", "<= 1.04", _LOOP),
    Goal("keeping a mask, x AdamW", "masks", "keeping a mask", "<= 0.2", _HOLD),
    Goal("a step with a mask", "step", "step with a 50 % mask", "<= 1.02"),
    Goal("exact threshold, x AdamW", "threshold", "exact threshold", "<= 2", _THRESHOLD),
    Goal("torch.kthvalue, x the exact threshold", "threshold", "torch.kthvalue", ">= 5"),
    Goal("masks by magnitude, x AdamW", "masks", "mask update, magnitude", "<= 6", _MASKS),
    Goal("masks by state, x AdamW", "masks", "mask update, state", "<= 12", _MASKS),
    Goal("SPAM, x AdamW", "optimizers", "adamwspam", "<= 3"),
    Goal("Stable-SPAM, x AdamW", "optimizers", "stablespam", "<= 3"),
    Goal("Muon, x AdamW", "optimizers", "muon", "<= 40", _MUON),
    Goal("SparseGPT of 124M, share of the best product", "one-shot", "whole model", ">= 0.6"),
    _MEMORY,
    Goal("a save, over a copy of the state", "saving", "save as the loop sees it", "<= 1.2"),
    Goal("preparation, all cores: tiktoken's time over ours", "preparation", "tiktoken, all cores", ">= 0.9", _PREPARE),
    Goal("preparation, one core: the same", "preparation", "tiktoken, one core", ">= 0.9", _PREPARE),
    Goal("preparation of one large document, of 1 GiB", "memory of preparation", "one document", "<= 1"),
    Goal("a record of the journal", "scale of the journal", "a record", "<= 2e-05"),
    Goal("three trackers", "tracking", "three live trackers", "<= 1.02", _TRACKERS),
]
_CUDA = [
    Goal("124M, as shipped", "gpt2 beside nanoGPT, bfloat16", "nanoGPT as shipped", ">= 1.1"),
    Goal("124M, compiled", "gpt2 beside nanoGPT, bfloat16", "nanoGPT compiled, bfloat16", ">= 1.1"),
    Goal("124M, share of the best product", "utilisation", "gpt2, 16 x 1024 tokens", ">= 0.55"),
    Goal("gpt2-medium, share of the best product", "utilisation", "gpt2-medium, 16 x 1024 tokens", ">= 0.6"),
    Goal("gpt2-xl, share of the best product", "utilisation", "gpt2-xl, 8 x 1024 tokens", ">= 0.6"),
    Goal("first step of 124M, compiled", "first step", "gpt2 compiled", "<= 60"),
    Goal("first step of 124M, not compiled", "first step", "gpt2 not compiled", "<= 10"),
    Goal("exact threshold of 85M weights", "threshold", "exact threshold", "<= 0.005"),
    Goal("keeping a mask, x a step", "step", "keeping the mask alone", "<= 0.01"),
    _MEMORY,
]


def of(kind: str) -> list[Goal]:
    """The goals on a kind of device, such as cpu."""
    return _CUDA if kind == "cuda" else _CPU


def bound(kind: str, section: str, case: str) -> str:
    """The bound on a figure, which is empty if there is no goal."""
    found = {(goal.section, goal.case): goal.bound for goal in of(kind) if goal.binds}
    return found.get((section, case), "")
