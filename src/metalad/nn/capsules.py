"""Capsules: vectors that vote for the vectors above them, which count the votes that agree (Sabour et al. 2017).

The length of a capsule, in [0, 1), says how sure it is that something is there; its direction says how it looks.
Letters in shapes: batch, inputs and outputs (numbers of capsules), width (features of a capsule).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

ITERATIONS = 3


class Capsules(nn.Module):
    """A layer of capsules: each input votes for each output through a matrix of its own, without bias."""

    def __init__(self, inputs: int, outputs: int, input_width: int, output_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(outputs, inputs, output_width, input_width))

    def forward(self, capsules: Float[Tensor, "batch inputs width"]) -> Float[Tensor, "batch outputs out"]:
        """Return the output capsules; their lengths lie in [0, 1)."""
        if len(self.weight) == 1:  # the softmax over a single output is 1: the votes need not be kept apart
            return squash(torch.einsum("biw,oivw->bov", capsules, self.weight))
        return route(torch.einsum("biw,oivw->boiv", capsules, self.weight))


def squash(vectors: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Bring a vector's length n to n² / (1 + n²) and keep its direction (eq. 1)."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    scale: Tensor = length / (1 + length.square())
    return vectors * scale


def routing_weights(
    votes: Float[Tensor, "batch outputs inputs width"], iterations: int = ITERATIONS
) -> Float[Tensor, "batch outputs inputs"]:
    """Return how much of each input goes to each output: a softmax over the outputs (procedure 1).

    It begins even, and moves to where the votes agree with the sum of all. No gradient passes through it.
    """
    votes = votes.detach()
    logits = torch.zeros_like(votes[..., 0])
    for _ in range(iterations - 1):
        agreement = torch.einsum("boiv,bov->boi", votes, _gather(votes, logits.softmax(1)))
        logits = logits + agreement
    return logits.softmax(1)


def route(votes: Float[Tensor, "batch outputs inputs width"]) -> Float[Tensor, "batch outputs width"]:
    """Return the outputs that votes lead to: their weighted sums, squashed."""
    return _gather(votes, routing_weights(votes))


def longest(capsules: Float[Tensor, "batch capsules width"]) -> Float[Tensor, "batch width"]:
    """Return each image's capsule of the greatest length."""
    chosen = torch.linalg.vector_norm(capsules, dim=-1).argmax(1)
    return capsules[torch.arange(len(capsules), device=capsules.device), chosen]


def _gather(votes: Tensor, weights: Tensor) -> Tensor:
    return squash(torch.einsum("boiv,boi->bov", votes, weights))
