"""Data-parallel training of one model by the processes that `torchrun` starts; each gets a share of every batch.

The gradient of a batch is the sum of the gradients of the shares, each weighted by its fraction of the batch. For a
loss that is a mean over images it equals the gradient of a single process, except for the order of summation. Only
rank 0 writes files and messages.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from metalad.runtime.tasks import by_torchrun, rank

TIMEOUT = timedelta(days=7)
"""Timeout of collective operations; long, as only rank 0 calibrates, and `torchrun` ends all processes if one dies."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one model; `rank` is the number of this process."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def shard(self, indices: np.ndarray) -> np.ndarray:
        """Return this process's share of a batch; it can be empty. The shares are disjoint and cover the batch."""
        return np.array_split(indices, self.size)[self.rank]

    def backward(self, loss: Tensor | None, parameters: Sequence[nn.Parameter], fraction: float) -> Tensor:
        """Store the gradient of the whole batch in the parameters, and return the loss of the whole batch.

        Args:
            loss: loss of this process's share; None if the share is empty.
            parameters: parameters that are optimized.
            fraction: size of the share divided by the size of the batch.
        """
        if loss is not None:
            scaled = loss if self.size == 1 else loss * fraction
            scaled.backward(inputs=parameters)  # type: ignore[no-untyped-call]
            loss = scaled.detach()
        if self.size == 1:
            assert loss is not None
            return loss
        return self._summed(loss, parameters)

    def _summed(self, loss: Tensor | None, parameters: Sequence[nn.Parameter]) -> Tensor:
        # One all-reduce of: the gradients, a flag for each gradient that exists, and the loss.
        exists = [parameter.grad is not None for parameter in parameters]
        parts = [torch.zeros_like(part) if part.grad is None else part.grad for part in parameters]
        tail = torch.tensor([*map(float, exists), 0.0], device=self.device)
        if loss is not None:
            tail[-1] = loss.float()
        summed = torch.cat([*(part.detach().flatten().float() for part in parts), tail])
        dist.all_reduce(summed, group=self.group)
        *gradients, tail = torch.split(summed, [*(part.numel() for part in parts), len(tail)])
        for parameter, gradient, count in zip(parameters, gradients, tail[:-1].tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None
        return tail[-1]

    def total(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.size == 1:
            return value
        summed = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(summed, group=self.group)
        return float(summed)

    def broadcast_module(self, module: nn.Module) -> None:
        """Copy the parameters and buffers of rank 0 to all processes."""
        for tensor in module.state_dict().values() if self.size > 1 else ():
            if tensor.numel():
                sent = tensor.detach().contiguous().flatten()
                dist.broadcast(
                    sent.view(torch.uint8), 0, group=self.group
                )  # as bytes: not every backend supports every type
                tensor.copy_(sent.view_as(tensor))

    def broadcast(self, value: Any) -> Any:
        """Return the JSON-serializable value of rank 0 in every process; waits until rank 0 calls it."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode()
        length = torch.tensor([len(text)], device=self.device)
        dist.broadcast(length, 0, group=self.group)
        sent = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_main:
            sent.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(sent, 0, group=self.group)
        return json.loads(bytes(sent.tolist()))


SINGLE_PROCESS = ProcessGroup()


@contextlib.contextmanager
def join_process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Yield the process group that `torchrun` started, or `SINGLE_PROCESS` without `torchrun`."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if by_torchrun() else 1
    if size == 1:
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo"
    )  # all processes must join within its default timeout
    try:
        yield ProcessGroup(rank(), size, device, dist.new_group(timeout=TIMEOUT))
    finally:
        dist.destroy_process_group()
