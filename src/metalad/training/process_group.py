"""Several processes that train one model together, started by `torchrun`, each on a share of every batch.

A batch's gradient is the sum of the shares' gradients, each weighted by its part of the batch. For a loss that is a
mean over images this is the gradient of one process, but for the order of summation. Rank 0 alone writes and tells.
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
"""How long a process waits for another at work: rank 0 calibrates alone, and `torchrun` ends all when one dies."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as one of them sees it."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def shard(self, chosen: np.ndarray) -> np.ndarray:
        """Return this process's part of a batch; some may be empty, together they are the whole."""
        return np.array_split(chosen, self.size)[self.rank]

    def backward(self, loss: Tensor | None, parameters: Sequence[nn.Parameter], part: float) -> Tensor:
        """Leave the whole batch's gradient in the parameters, and return the whole batch's loss.

        Args:
            loss: of this process's share; None if that is empty.
            parameters: those that the loss is to be minimised by.
            part: the share's part of the batch, 1 for all of it.
        """
        if loss is not None:
            scaled = loss if self.size == 1 else loss * part
            scaled.backward(inputs=parameters)  # type: ignore[no-untyped-call]
            loss = scaled.detach()
        if self.size == 1:
            assert loss is not None
            return loss
        return self._summed(loss, parameters)

    def _summed(self, loss: Tensor | None, parameters: Sequence[nn.Parameter]) -> Tensor:
        # One sum of all: gradients, then which of them there are at all, then the loss.
        known = [parameter.grad is not None for parameter in parameters]
        parts = [torch.zeros_like(part) if part.grad is None else part.grad for part in parameters]
        tail = torch.tensor([*map(float, known), 0.0], device=self.device)
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
        """Give all processes the parameters and buffers of rank 0."""
        for tensor in module.state_dict().values() if self.size > 1 else ():
            if tensor.numel():
                sent = tensor.detach().contiguous().flatten()
                dist.broadcast(sent.view(torch.uint8), 0, group=self.group)  # bytes: not every backend sends every type
                tensor.copy_(sent.view_as(tensor))

    def broadcast(self, value: Any) -> Any:
        """Return, in every process, a value that JSON can hold as rank 0 has it; wait for rank 0 to say it."""
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


ALONE = ProcessGroup()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """Yield the team that `torchrun` started this process in; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if by_torchrun() else 1
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")  # all must come within some minutes
    try:
        yield ProcessGroup(rank(), size, device, dist.new_group(timeout=TIMEOUT))
    finally:
        dist.destroy_process_group()
