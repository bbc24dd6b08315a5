"""Transformer encoder with masked self-attention."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Mask = Literal["blind", "zero-logit", "none"]
"""How a token's attention to itself is masked; see `MaskedEncoder`."""


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class MaskedBlock(nn.Module):
    """A post-norm transformer block with optional attention mask (Vaswani 2017; De Nardin 2022, 2.1 and 3.2.1).

    The residual path carries `stream`; keys and values are computed from `content`. In a plain encoder both are the
    same tensor; a blind encoder keeps them separate. nearness: initial value of the trainable position bias that is
    added to the attention logits of each head; None: no bias.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward_ratio: int,
        mask: Mask,
        nearness: Float[Tensor, "heads tokens tokens"] | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.mask = mask
        self.nearness = None if nearness is None else nn.Parameter(nearness.clone())
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = perceptron(width, feed_forward_ratio * width, width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(
        self,
        stream: Float[Tensor, "#batch tokens width"],
        content: Float[Tensor, "batch tokens width"],
        hidden: Bool[Tensor, "tokens tokens"],
    ) -> Float[Tensor, "batch tokens width"]:
        """Attend from `stream` to `content`; `hidden[i, j]` is true if token i must not attend to token j."""
        query, key, value = (
            self._split(layer(source))
            for layer, source in ((self.query, stream), (self.key, content), (self.value, content))
        )
        attended = self._attend(query.expand_as(key), key, value, hidden)
        stream = self.attention_norm(stream + self.output(attended.transpose(1, 2).flatten(2)))
        fed_forward: Tensor = self.feed_forward_norm(stream + self.feed_forward(stream))
        return fed_forward

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:-1], self.heads, -1).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
        if self.mask == "none":
            return F.scaled_dot_product_attention(query, key, value, attn_mask=self.nearness)
        if self.mask == "blind":
            attn_mask = ~hidden if self.nearness is None else self.nearness.masked_fill(hidden, -math.inf)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if self.nearness is not None:
            logits = logits + self.nearness
        return logits.masked_fill(hidden, 0.0).softmax(-1) @ value


class MaskedEncoder(nn.Module):
    """Embed tokens and encode each of them from the other tokens.

    The `mask` is one of:

    - `blind`: the stream starts from the position embedding alone. Keys and values come from each token's own content,
      which is never mixed across tokens, and the diagonal logits are minus infinity. At any depth the gradient of a
      token's output with respect to the token's own input is exactly 0.
    - `zero-logit`: the diagonal of the scaled dot products is set to 0, as De Nardin 2022, 3.2.1 describes. It
      leaks: exp(0) is not 0, and the residual path carries the token's own content around the attention.
    - `none`: a plain encoder.

    positions: coordinates of the tokens, in tokens. neighbours: initialize each head to attend to a neighbor on one
    side (see `neighbor_bias`) instead of uniformly. reach: tokens within this distance along every axis are masked
    like the token itself.
    """

    hidden: Tensor

    def __init__(
        self,
        *,
        values: int,
        positions: Float[Tensor, "tokens axes"],
        width: int,
        embedding_width: int,
        heads: int,
        feed_forward_ratio: int,
        depth: int,
        mask: Mask,
        neighbours: bool,
        reach: int = 0,
    ) -> None:
        super().__init__()
        tokens = len(positions)
        bias = neighbor_bias(positions, heads, 1 + reach) if neighbours else None
        self.mask = mask
        self.embedding = perceptron(values, embedding_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(MaskedBlock(width, heads, feed_forward_ratio, mask, bias) for _ in range(depth))
        distance = (positions[:, None] - positions[None]).abs().amax(-1)
        self.register_buffer("hidden", distance <= reach, persistent=False)

    def forward(self, tokens: Float[Tensor, "batch tokens values"]) -> Float[Tensor, "batch tokens width"]:
        """Return one embedding per token; with the mask `blind` it does not depend on the token's own values."""
        content = self.embedding(tokens) + self.position
        stream = self.position if self.mask == "blind" else content
        for block in self.blocks:
            stream = block(stream, content if self.mask == "blind" else stream, self.hidden)
        return stream


def neighbor_bias(
    positions: Float[Tensor, "tokens axes"], heads: int, first: int = 1
) -> Float[Tensor, "heads tokens tokens"]:
    """Return initial attention logits with which each head attends to the position `first` tokens to one side.

    The heads cycle through both directions of each axis; after each cycle the distance grows by one token. The
    attention weight falls with the fourth power of the distance from that position, so that it is never 0. Training
    then does not have to find the neighboring tokens first (after d'Ascoli 2021, who initializes heads as the taps of
    a convolution).
    """
    axes = positions.shape[1]
    directions = torch.eye(axes).repeat_interleave(2, 0) * torch.tensor([-1.0, 1.0]).repeat(axes)[:, None]
    head = torch.arange(heads)
    offsets = directions[head % len(directions)] * (first + head // len(directions))[:, None]
    return -2 * (positions[None, None] - positions[None, :, None] - offsets[:, None, None]).square().sum(-1).log1p()
