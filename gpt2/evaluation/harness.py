"""Answers lm-eval's three kinds of request with a model in memory: log-likelihood, rolling and generation."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gpt2.data.tokenizer import Tokenizer
from lib.machine.device import Machine

ROWS = 1024  # whose logits are in memory at a time: 206 MB of float32 for GPT-2
_MOST_TOKENS = 256  # of a generation, unless the request says it; the default of lm-eval
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of the limit, first wins

Scored = tuple[float, bool]  # the sum of log-probabilities in nats, and whether each token is the most likely one


class Model(Protocol):
    """What is needed of a GPT2."""

    block_size: int

    def hidden(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""


class Answers:
    """Answers requests in batches of sequences of similar length. A batch is padded on the right.

    The causal mask keeps the padding from changing anything. What does not fit the context is cut on the left, as in
    lm-eval's own wrapper of transformers (HFLM), and float32 gives its numbers.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, machine: Machine, batch_size: int, seed: int):
        self.model, self.tokenizer, self.machine, self.batch_size = model, tokenizer, machine, batch_size
        self.length = model.block_size
        self.generator = torch.Generator().manual_seed(seed)  # for requests that ask for sampling

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        return self.tokenizer.encode_batch([text])[0].tolist()

    def loglikelihood(self, requests: Iterable[tuple[str, str]]) -> list[Scored]:
        """The log-likelihood of each continuation after its context; an empty context is the end-of-text token."""
        return self._scored([[self._pair(*request)] for request in requests])

    def rolling(self, texts: Iterable[str]) -> list[float]:
        """The log-likelihood of each whole text, in windows that follow each other; each token is predicted once."""
        start = [self.tokenizer.end_of_text]
        return [total for total, _ in self._scored([[(start, self.encode(text))] for text in texts])]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a request. Spaces at the end of the context belong to the continuation."""
        if not context:
            tokens, end = self.encode(continuation), self.tokenizer.end_of_text
            return (tokens[:1], tokens[1:]) if tokens[:1] == [end] else ([end], tokens)
        bare = context.rstrip()
        before, whole = self.encode(bare), self.encode(context + continuation)
        return (before, whole[len(before) :]) if before else ([self.tokenizer.end_of_text], whole)

    # ---- log-likelihoods ---------------------------------------------------------------------------------------------

    def _scored(self, requests: list[list[tuple[list[int], list[int]]]]) -> list[Scored]:
        windows = [
            (number, window)
            for number, pairs in enumerate(requests)
            for pair in pairs
            for window in _windows(*pair, self.length)
        ]
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        windows.sort(key=lambda item: -len(item[1].tokens))
        with tqdm(total=len(windows), desc="log-likelihoods", leave=False, disable=None) as bar:
            for start in range(0, len(windows), self.batch_size):
                batch = windows[start : start + self.batch_size]
                for (number, _), (total, likeliest) in zip(batch, self._score([w for _, w in batch]), strict=True):
                    totals[number] += total
                    greedy[number] &= likeliest
                bar.update(len(batch))
        return list(zip(totals, greedy, strict=True))

    @torch.no_grad()
    def _score(self, windows: "list[_Window]") -> Iterator[Scored]:
        """The score of each window. Logits take most memory: they are computed only where a token is predicted."""
        device = self.machine.device
        wanted = [torch.arange(len(w.tokens) - len(w.targets), len(w.tokens)) for w in windows]
        rows = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor([len(w.targets) for w in windows]))
        targets = torch.tensor([token for w in windows for token in w.targets], device=device)  # (N,)
        with self.machine.autocast():
            hidden = self.model.hidden(_padded([w.tokens for w in windows]).to(device))  # (B, T, C)
            hidden = hidden[rows.to(device), torch.cat(wanted).to(device)]  # (N, C)
            parts = [self._chosen(*part) for part in zip(hidden.split(ROWS), targets.split(ROWS), strict=True)]
        chosen, likeliest = (torch.cat(found).cpu() for found in zip(*parts, strict=True))
        sizes = [len(w.targets) for w in windows]
        for one, right in zip(chosen.split(sizes), likeliest.split(sizes), strict=True):
            yield float(one.sum()), bool(right.all())

    def _chosen(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) and (N,) -> (N,) each: the log-probability of a target, and whether it is the most likely token."""
        logits = self.model.logits(hidden).float()  # (N, V)
        return -F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets

    # ---- generation --------------------------------------------------------------------------------------------------

    def generate(self, requests: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The continuation of each context, up to the first stop sequence, the end of text or the limit of tokens."""
        asked = [_Generation.of(self.encode(context), kwargs, self.length) for context, kwargs in requests]
        order = sorted(range(len(asked)), key=lambda n: -len(asked[n].tokens))
        with tqdm(total=len(asked), desc="generations", leave=False, disable=None) as bar:
            for start in range(0, len(order), self.batch_size):
                self._generate([asked[n] for n in order[start : start + self.batch_size]])
                bar.update(len(order[start : start + self.batch_size]))
        return [one.text for one in asked]

    @torch.no_grad()
    def _generate(self, batch: "list[_Generation]") -> None:
        for one in batch:
            one.tokens = one.tokens or [self.tokenizer.end_of_text]
        while active := [one for one in batch if not one.done]:
            windows = [one.tokens[-self.length :] for one in active]
            last = torch.tensor([len(window) - 1 for window in windows], device=self.machine.device)
            with self.machine.autocast():
                hidden = self.model.hidden(_padded(windows).to(self.machine.device))
                logits = self.model.logits(hidden[torch.arange(len(active), device=last.device), last]).float().cpu()
            for one, row in zip(active, logits, strict=True):
                one.add(self._draw(row, one), self.tokenizer)

    def _draw(self, logits: Tensor, one: "_Generation") -> int:
        """A token by its probability among `top_k` and `top_p`; the most likely one at temperature 0. logits (V,)."""
        if one.temperature == 0:
            return int(logits.argmax())
        chances, tokens = torch.softmax(logits.double() / one.temperature, 0).sort(descending=True)
        chances = chances[: one.top_k or None]
        chances = chances[chances.cumsum(0) - chances < one.top_p * chances.sum()]
        return int(tokens[torch.multinomial(chances, 1, generator=self.generator)])


@dataclasses.dataclass(frozen=True)
class _Window:
    tokens: list[int]  # input of the model
    targets: list[int]  # what follows the last of `tokens`, one by one


def _windows(context: Sequence[int], targets: Sequence[int], length: int) -> Iterator[_Window]:
    """The windows that predict each of `targets` once, after as much of what is before it as fits `length` tokens.

    One window is enough for up to `length` targets. The last of several windows is a full one.
    """
    whole = [*context, *targets]
    for start in range(0, len(targets), length):
        end = min(start + length, len(targets))
        stop = len(context) + end
        yield _Window(whole[max(0, stop - 1 - length) : stop - 1], list(targets[start:end]))


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, T): the rows, with zeros after the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


@dataclasses.dataclass
class _Generation:
    tokens: list[int]  # the context, and what was generated
    stops: list[str]
    left: int  # tokens that may still be generated
    temperature: float
    top_k: int  # 0: all
    top_p: float
    made: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    done: bool = False

    @classmethod
    def of(cls, context: list[int], kwargs: Mapping[str, Any], length: int) -> "_Generation":
        """A request of lm-eval. The context leaves room for the generation; where there is none, the window slides."""
        limits = [kwargs[name] for name in _LIMITS if kwargs.get(name) is not None]
        most = int(limits[0]) if limits else _MOST_TOKENS
        until = kwargs.get("until") or []
        temperature = float(kwargs.get("temperature") or 0.0)
        if kwargs.get("do_sample"):
            temperature = temperature or 1.0
        elif kwargs.get("do_sample") is False:
            temperature = 0.0
        room = length - most if most < length else length
        return cls(
            context[-room:],
            [stop for stop in ([until] if isinstance(until, str) else until) if stop],
            most,
            temperature,
            int(kwargs.get("top_k") or 0),
            float(kwargs.get("top_p") or 1.0),
            done=most <= 0,
        )

    def add(self, token: int, tokenizer: Tokenizer) -> None:
        """Append a token, and find out whether it was the last one."""
        self.left -= 1
        if token == tokenizer.end_of_text:
            self.done = True
            return
        self.tokens.append(token)
        self.made.append(token)
        text = tokenizer.decode(self.made).decode(errors="replace")
        self.text = min((text.split(stop)[0] for stop in self.stops), key=len, default=text)
        self.done = self.text != text or self.left <= 0
