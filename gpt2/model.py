"""GPT-2 as published (Radford et al. 2019), with the parameter names of the published checkpoints.

Letters of shapes: B batch, T time, C width, H heads, D width of a head (C = H * D), V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.linear import Linear
from gpt2.loss import linear_cross_entropy
from gpt2.shape import ModelOptions, check

_GELU = 2 * math.sqrt(2 / math.pi)
# On a CPU in 16 bits, torch's attention takes longer for contexts up to this than its parts one by one: of a training
# step of 4 layers of width 128 at T 64, a quarter. At T 1024 the parts take longer. Their scores are rounded to
# 16 bits: of bfloat16 the result is off by 0.4 to 1 %, torch's by 0.2 %.
_WRITTEN_OUT = 256
_MOST_SCORES = 1 << 24  # 64 MB of float32
_VOCABULARY_MULTIPLE = 64  # the head's matrix product is much slower at odd sizes such as 50257


class Attention(nn.Module):
    """Causal self-attention of H heads."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.n_head, self.dropout = options.n_head, options.dropout
        self.c_attn = Linear(options.n_embd, 3 * options.n_embd)
        self.c_proj = Linear(options.n_embd, options.n_embd)
        size = options.block_size
        causal = torch.full((size, size), -math.inf).triu(1) if size <= _WRITTEN_OUT else None
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); position t sees positions 0..t."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        if self.causal is not None and _is_quicker_in_parts(q):
            y = written_out(q, k, v, self.causal[:T, :T], dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)  # (B, H, T, D)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


def _is_quicker_in_parts(q: Tensor) -> bool:
    """Whether attention of queries (B, H, T, D) is; its B H T T scores, which are kept, must not be too many."""
    B, H, T, _ = q.shape
    return q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and B * H * T * T <= _MOST_SCORES


def written_out(q: Tensor, k: Tensor, v: Tensor, causal: Tensor, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D) + causal) v: (B, H, T, D) each, causal (T, T) float32 of 0 and -inf; (B, H, T, D)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + causal  # (B, H, T, T) float32
    return F.dropout(torch.softmax(scores, dim=-1).to(v.dtype), dropout) @ v


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form; (1 + tanh(u)) / 2 = sigmoid(2 u), and of the two torch.compile makes sigmoid fast."""
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(x * (_GELU + _GELU * 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    """Two layers with GELU (tanh form) between them, four times as wide inside."""

    def __init__(self, options: ModelOptions):
        super().__init__()
        self.dropout = options.dropout
        self.c_fc = Linear(options.n_embd, 4 * options.n_embd)
        self.c_proj = Linear(4 * options.n_embd, options.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return F.dropout(self.c_proj(gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each after a norm and around a residual connection."""

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

    Inside, the vocabulary is padded to a multiple of 64; outside, neither logits nor loss show it.
    """

    def __init__(self, options: ModelOptions, vocab_size: int):
        """Initialise the weights from torch's random state; raises UsageError for a shape that cannot be."""
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
        """As OpenAI's code: normal of 0.02, positions 0.01; projections into the residual stream 0.02 / sqrt(2 layers).

        Each of the 2 x layers projections adds to the stream, whose variance would grow with depth otherwise.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms are 1 and 0, biases are set below
            scale = 1 / math.sqrt(2 * self.options.n_layer) if name.endswith("c_proj.weight") else 1.0
            nn.init.normal_(parameter, std=0.01 if name == "wpe.weight" else 0.02 * scale)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for the token after each of `tokens` (B, T); with `targets` (B, T) the mean loss in nats."""
        T = tokens.shape[1]
        x = self.wte(tokens) + self.wpe.weight[:T]  # (B, T, C)
        x = F.dropout(x, self.options.dropout, self.training)
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return F.linear(x, self.wte.weight)[..., : self.vocab_size]
        return linear_cross_entropy(x.flatten(0, 1), self.wte.weight, targets.flatten(), self.vocab_size)

    def prunable(self) -> list[nn.Parameter]:
        """The matrices of the blocks: what pruning may zero. Embeddings, the tied head, norms and biases are out."""
        return [parameter for parameter in self.h.parameters() if parameter.dim() >= 2]

    def used_rows(self) -> dict[nn.Parameter, int]:
        """How many rows of a parameter are used, of those that have more: the vocabulary's padding is not."""
        return {self.wte.weight: self.vocab_size}

    def stacked(self) -> dict[nn.Parameter, int]:
        """How many matrices, one below the other, a parameter consists of that is computed at once: q, k and v."""
        return {block.attn.c_attn.weight: 3 for block in self.h}

    def count_parameters(self) -> int:
        """Parameters of the published model: without the vocabulary's padding, the tied head counted once."""
        padding = (self.wte.weight.shape[0] - self.vocab_size) * self.options.n_embd
        return sum(parameter.numel() for parameter in self.parameters()) - padding

    def flops_per_token(self) -> int:
        """Floating-point operations of a forward and backward pass: 6 per weight in a matrix product, and attention.

        PaLM (arXiv 2204.02311), appendix B: 6 N + 12 L H D T; N leaves out the positions, which only add.
        """
        weights = self.count_parameters() - self.wpe.weight.numel()
        return 6 * weights + 12 * self.options.n_layer * self.options.n_embd * self.options.block_size
