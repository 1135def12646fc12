"""GPT-2 as published (Radford et al. 2019), with the parameter names of the published checkpoints.

Letters of shapes: B batch, T time, C width, H heads, D width of a head (C = H * D), V vocabulary.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import flops
from gpt2.cpu import CausalAttention, Linear, gelu_tanh  # torch's own, or faster kernels on a CPU
from gpt2.loss import linear_cross_entropy
from gpt2.shape import ModelOptions, check, groups
from lib.prune.census import Units
from lib.prune.kinds import Group
from lib.prune.score.synflow import Product

ACTIVATIONS = {"gelu-tanh": gelu_tanh, "gelu": F.gelu}  # by the option's value
_VOCABULARY_MULTIPLE = 64  # the head's matrix product is much slower at odd sizes such as 50257


class Attention(nn.Module):
    """Causal self-attention of H heads."""

    def __init__(self, options: ModelOptions, n_head: int):
        super().__init__()
        self.n_head, self.dropout = n_head, options.dropout
        inside = n_head * (options.n_embd // options.n_head)  # C, unless make shrink has removed heads
        self.c_attn = Linear(options.n_embd, 3 * inside)  # q, k and v in one product
        self.attend = CausalAttention()
        self.c_proj = Linear(inside, options.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); position t sees positions 0..t."""
        qkv = self.c_attn(x)  # (B, T, 3 C): the heads of q, of k and of v
        y = self.attend(qkv, self.n_head, self.dropout if self.training else 0.0)  # softmax(q k^T / sqrt(D)) v
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with GELU between them; `width` neurons inside, usually 4 C."""

    def __init__(self, options: ModelOptions, width: int):
        super().__init__()
        self.dropout = options.dropout
        self.c_fc = Linear(options.n_embd, width)
        self.activate = ACTIVATIONS[options.activation]
        self.c_proj = Linear(width, options.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return F.dropout(self.c_proj(self.activate(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each with a layer norm before it and a residual connection around it."""

    def __init__(self, options: ModelOptions, n_head: int, width: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(options.n_embd)
        self.attn = Attention(options, n_head)
        self.ln_2 = nn.LayerNorm(options.n_embd)
        self.mlp = MLP(options, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The language model: learned positions, pre-norm blocks, a head tied to the token embedding.

    Inside, the vocabulary is padded to a multiple of 64. Logits and loss leave the padding out.
    """

    def __init__(self, options: ModelOptions, vocab_size: int):
        """Initialise the weights from torch's random state; raises UsageError for an invalid shape."""
        super().__init__()
        check(options)
        self.options, self.vocab_size = options, vocab_size
        padded = math.ceil(vocab_size / _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
        self.wte = nn.Embedding(padded, options.n_embd)
        self.wpe = nn.Embedding(options.block_size, options.n_embd)
        self.h = nn.ModuleList(Block(options, *inside) for inside in zip(options.heads, options.widths, strict=True))
        self.ln_f = nn.LayerNorm(options.n_embd)
        self._initialise()

    def _initialise(self) -> None:
        """Draw the weights as OpenAI's code does: from a normal distribution with a standard deviation of 0.02.

        Two exceptions: positions have 0.01, projections into the residual stream 0.02 / sqrt(2 n_layer). The stream is
        a sum of 2 n_layer projections. This scale keeps its variance from growing with depth.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms stay at 1 and 0; biases are set below
            scale = 1 / math.sqrt(2 * self.options.n_layer) if name.endswith("c_proj.weight") else 1.0
            nn.init.normal_(parameter, std=0.01 if name == "wpe.weight" else 0.02 * scale)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights that were trained elsewhere; `wte.weight` has one row for each token id.

        The padding of the vocabulary stays as it was drawn: no logit reads it.
        """
        own = self.state_dict()
        for name, value in state.items():
            own[name][: len(value)].copy_(value)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for the token after each of `tokens` (B, T); with `targets` (B, T) the mean loss in nats."""
        x = self.hidden(tokens)
        if targets is None:
            return self.logits(x)
        return linear_cross_entropy(x.flatten(0, 1), self.wte.weight, targets.flatten(), self.vocab_size)

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads: (B, T) -> (B, T, C)."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]  # (B, T, C)
        x = F.dropout(x, self.options.dropout, self.training)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: (..., C) -> (..., V)."""
        return F.linear(hidden, self.wte.weight)[..., : self.vocab_size]

    @property
    def block_size(self) -> int:
        """Positions of the longest sequence."""
        return self.options.block_size

    def prunable(self) -> list[nn.Parameter]:
        """The parameters that may be pruned: the matrices of the blocks, not embeddings, head, norms or biases."""
        return [parameter for parameter in self.h.parameters() if parameter.dim() >= 2]

    def used_rows(self) -> dict[nn.Parameter, int]:
        """The parameters with padding, each with the number of rows that are used: the embedding of the vocabulary."""
        return {self.wte.weight: self.vocab_size}

    def stacked(self) -> dict[nn.Parameter, int]:
        """Parameters that hold several matrices stacked by rows -> how many: c_attn holds those of q, k and v."""
        return {block.attn.c_attn.weight: 3 for block in self.h}

    def units(self) -> list[Units]:
        """The heads and neurons of each block. A head reads by the rows of its values, a neuron by one row of c_fc.

        A head without queries or keys still passes on the mean of the values.
        """
        width = self.options.n_embd // self.options.n_head
        found = []
        for number, block in enumerate(self.h):
            attn, mlp = block.attn, block.mlp
            values = 2 * attn.n_head * width  # after the rows of queries and keys
            found.append(Units("heads", f"h.{number}.attn", attn.c_attn.weight, values, attn.c_proj.weight, width))
            found.append(Units("neurons", f"h.{number}.mlp", mlp.c_fc.weight, 0, mlp.c_proj.weight, 1))
        return found

    def groups(self) -> list[Group]:
        """The heads and neurons of each block with all their weights, for pruning them as a whole."""
        return groups(self.options)

    def flow(self, product: Product) -> Tensor:
        """The sum of the outputs of the linear network that SynFlow scores, times a constant (lib.prune.score.synflow).

        In the model, the input is a token and a position, one-hot; here it is 1 for every token and every position. A
        GELU passes on what it gets, as a ReLU does with numbers above 0. A norm multiplies by the absolute value of its
        weight, and does not normalise. A head adds up queries, keys and values: with equal inputs its softmax would
        pass on no flow to queries and keys, and all of them would be pruned. There are no biases.
        """

        def scaled(norm: nn.LayerNorm, x: Tensor) -> Tensor:
            return norm.weight.detach().abs().to(x.device).to(x) * x

        tokens = (torch.arange(len(self.wte.weight)) < self.vocab_size).double()
        positions = torch.ones(self.block_size, dtype=torch.float64)
        x = product(self.wte.weight, tokens, transposed=True) + product(self.wpe.weight, positions, transposed=True)
        for block in self.h:
            x = x / x.detach().sum()  # a constant that all scores are divided by: no number becomes too large
            attn, mlp = block.attn, block.mlp
            heads = product(attn.c_attn.weight, scaled(block.ln_1, x)).unflatten(0, (3, -1)).sum(0)
            x = x + product(attn.c_proj.weight, heads)
            x = x + product(mlp.c_proj.weight, product(mlp.c_fc.weight, scaled(block.ln_2, x)))
        return product(self.wte.weight, scaled(self.ln_f, x))[: self.vocab_size].sum()

    def count_parameters(self) -> int:
        """The number of parameters as in the published model: without padding, and the tied head only once."""
        padding = (self.wte.weight.shape[0] - self.vocab_size) * self.options.n_embd
        return sum(parameter.numel() for parameter in self.parameters()) - padding

    def flops_per_token(self) -> int:
        """Floating-point operations for a token in a forward and backward pass; see gpt2/flops.py."""
        return flops.training(self.options, self.vocab_size)
