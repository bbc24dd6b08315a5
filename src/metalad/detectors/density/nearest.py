"""Exact nearest neighbors by matrix products, in blocks whose distances stay in the CPU's cache."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metalad.nn.parallel import each_part
from metalad.nn.parts import in_parts

QUERIES_AT_ONCE = 2048
BANK_CHUNK = 2048
"""Bank vectors per matrix product; limits memory use."""


def nearest(
    queries: Float[Tensor, "queries channels"], bank: Float[Tensor, "bank channels"]
) -> Int[Tensor, " queries"]:
    """Return the index of each query's nearest bank vector, by |y|² − 2 x·y; |x|² does not depend on y."""
    squared_norms = bank.square().sum(1)
    parts = in_parts(queries, QUERIES_AT_ONCE)
    return torch.cat(list(each_part(lambda part: _nearest(part, bank, squared_norms), parts)))


def _nearest(queries: Tensor, bank: Tensor, squared_norms: Tensor) -> Tensor:
    best = torch.full_like(queries[:, 0], math.inf)
    result = torch.zeros_like(best, dtype=torch.long)
    for start in range(0, len(bank), BANK_CHUNK):
        part = slice(start, start + BANK_CHUNK)
        # min is twice as fast as argmin, and returns the index, too.
        squares, index = torch.addmm(squared_norms[part], queries, bank[part].T, alpha=-2).min(1)
        if len(bank) <= BANK_CHUNK:
            return index
        result = torch.where(squares < best, index + start, result)
        best = torch.minimum(best, squares)
    return result
