"""Capsule layers with dynamic routing (Sabour et al. 2017).

A capsule is a vector: its length, in [0, 1), is the probability that an entity is present, and its direction describes
the entity. In shapes, `inputs` and `outputs` are numbers of capsules, and `width` is the number of features of a
capsule.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

ITERATIONS = 3


class Capsules(nn.Module):
    """A layer of capsules: each pair of input and output has its own matrix, without bias, that computes a vote."""

    def __init__(self, inputs: int, outputs: int, input_width: int, output_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(outputs, inputs, output_width, input_width))

    def forward(self, capsules: Float[Tensor, "batch inputs width"]) -> Float[Tensor, "batch outputs out"]:
        """Return the output capsules, with lengths in [0, 1)."""
        if len(self.weight) == 1:  # the softmax over a single output is 1: single votes are not needed
            return squash(torch.einsum("biw,oivw->bov", capsules, self.weight))
        return route(torch.einsum("biw,oivw->boiv", capsules, self.weight))


def squash(vectors: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Scale vectors from length n to length n² / (1 + n²); the direction does not change (eq. 1)."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    scale: Tensor = length / (1 + length.square())
    return vectors * scale


def routing_weights(
    votes: Float[Tensor, "batch outputs inputs width"], iterations: int = ITERATIONS
) -> Float[Tensor, "batch outputs inputs"]:
    """Return the coupling coefficients between inputs and outputs: a softmax over the outputs (procedure 1).

    They start uniform and increase for outputs whose votes agree with the weighted sum. No gradient flows through them.
    """
    votes = votes.detach()
    logits = torch.zeros_like(votes[..., 0])
    for _ in range(iterations - 1):
        agreement = torch.einsum("boiv,bov->boi", votes, _weighted_sum(votes, logits.softmax(1)))
        logits = logits + agreement
    return logits.softmax(1)


def route(votes: Float[Tensor, "batch outputs inputs width"]) -> Float[Tensor, "batch outputs width"]:
    """Return the output capsules: the squashed weighted sums of the votes."""
    return _weighted_sum(votes, routing_weights(votes))


def longest(capsules: Float[Tensor, "batch capsules width"]) -> Float[Tensor, "batch width"]:
    """Return the longest capsule of each image."""
    index = torch.linalg.vector_norm(capsules, dim=-1).argmax(1)
    return capsules.gather(1, index[:, None, None].expand(-1, 1, capsules.shape[2]))[:, 0]


def _weighted_sum(votes: Tensor, weights: Tensor) -> Tensor:
    return squash(torch.einsum("boiv,boi->bov", votes, weights))
