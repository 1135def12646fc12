"""GPT-2 as published (Radford et al. 2019), with the parameter names of the published checkpoints.

Letters of shapes: B batch, T time, C width, H heads, D width of a head (C = H * D), V vocabulary.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.cpu import CausalAttention, Linear, gelu_tanh  # torch's own, with faster kernels on a CPU
from gpt2.loss import linear_cross_entropy
from gpt2.shape import ModelOptions, check

ACTIVATIONS = {"gelu-tanh": gelu_tanh, "gelu": F.gelu}  # by the option's value
_VOCABULARY_MULTIPLE = 64  # the head's matrix product is much slower at odd sizes such as 50257


class Attention(nn.Module):
    """Causal self-attention of H heads."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.n_head, self.dropout = options.n_head, options.dropout
        self.c_attn = Linear(options.n_embd, 3 * options.n_embd)  # q, k and v in one product
        self.attend = CausalAttention(options.block_size)
        self.c_proj = Linear(options.n_embd, options.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); position t sees positions 0..t."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=2)
        )
        y = self.attend(q, k, v, self.dropout if self.training else 0.0)  # softmax(q k^T / sqrt(D)) v: (B, H, T, D)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with GELU between them, four times as wide inside."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.dropout = options.dropout
        self.c_fc = Linear(options.n_embd, 4 * options.n_embd)
        self.activate = ACTIVATIONS[options.activation]
        self.c_proj = Linear(4 * options.n_embd, options.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return F.dropout(self.c_proj(self.activate(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each with a layer norm before it and a residual connection around it."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.ln_1 = nn.LayerNorm(options.n_embd)
        self.attn = Attention(options)
        self.ln_2 = nn.LayerNorm(options.n_embd)
        self.mlp = MLP(options)

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
        self.h = nn.ModuleList(Block(options) for _ in range(options.n_layer))
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

    def count_parameters(self) -> int:
        """The number of parameters as in the published model: without padding, and the tied head only once."""
        padding = (self.wte.weight.shape[0] - self.vocab_size) * self.options.n_embd
        return sum(parameter.numel() for parameter in self.parameters()) - padding

    def flops_per_token(self) -> int:
        """Floating-point operations for a token in a forward and backward pass: 6 N + 12 L C T.

        From PaLM (arXiv 2204.02311), appendix B. L is the number of layers. N is the number of weights in matrix
        products, so it leaves out the positions, which are only added.
        """
        weights = self.count_parameters() - self.wpe.weight.numel()
        return 6 * weights + 12 * self.options.n_layer * self.options.n_embd * self.options.block_size
