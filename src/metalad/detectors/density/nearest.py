"""Exact nearest neighbors by matrix products, in blocks whose distances stay in the CPU's cache."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metalad.nn.parallel import each_part
from metalad.nn.parts import in_parts

QUERIES_AT_ONCE = 2048
ONE_PASS_BANK = 2048
"""Bank vectors per matrix product in a search by one pass; limits memory use. A CPU searches more in two passes."""
BANK_CHUNK = 512
"""Bank vectors per matrix product in a search by two passes."""


def nearest(
    queries: Float[Tensor, "queries channels"], bank: Float[Tensor, "bank channels"]
) -> Int[Tensor, " queries"]:
    """Return the index of each query's nearest bank vector, by |y|² − 2 x·y; |x|² does not depend on y."""
    squared_norms = bank.square().sum(1)
    parts = in_parts(queries, QUERIES_AT_ONCE)
    if len(bank) <= ONE_PASS_BANK or queries.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.cat(list(each_part(lambda part: _in_one_pass(part, bank, squared_norms), parts)))
    chunks = torch.split(torch.cat([bank, squared_norms[:, None]], 1), BANK_CHUNK)
    return torch.cat(list(each_part(lambda part: _in_two_passes(part, chunks), parts)))


def _in_one_pass(queries: Tensor, bank: Tensor, squared_norms: Tensor) -> Int[Tensor, " queries"]:
    best = torch.full_like(queries[:, 0], math.inf)
    result = torch.zeros_like(best, dtype=torch.long)
    for start in range(0, len(bank), ONE_PASS_BANK):
        part = slice(start, start + ONE_PASS_BANK)
        # min is twice as fast as argmin, and returns the index, too.
        squares, index = torch.addmm(squared_norms[part], queries, bank[part].T, alpha=-2).min(1)
        if len(bank) <= ONE_PASS_BANK:
            return index
        result = torch.where(squares < best, index + start, result)
        best = torch.minimum(best, squares)
    return result


def _in_two_passes(
    queries: Float[Tensor, "queries channels"], chunks: tuple[Float[Tensor, "_ extended"], ...]
) -> Int[Tensor, " queries"]:
    """Find the chunk of each query's nearest vector by a minimum without its index, several times as fast as with it.

    The second pass repeats the product with that chunk alone. chunks: of the bank, with the squared norms appended.
    """
    extended = torch.cat([-2 * queries, torch.ones_like(queries[:, :1])], 1)
    lowest = torch.stack([torch.mm(extended, chunk.T).amin(1) for chunk in chunks])
    chunk_of_each = lowest.argmin(0)
    order = chunk_of_each.argsort(stable=True)
    by_chunk = torch.split(extended[order], torch.bincount(chunk_of_each, minlength=len(chunks)).tolist())
    found = [
        number * BANK_CHUNK + torch.mm(part, chunk.T).min(1).indices
        for number, (part, chunk) in enumerate(zip(by_chunk, chunks, strict=True))
    ]
    result = torch.empty_like(order)
    result[order] = torch.cat(found)
    return result
