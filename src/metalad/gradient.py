"""Gradient descent that can be killed at any moment and resumed to the same bits.

All chance is drawn from (seed, epoch), never from a stream that a crash would lose; a checkpoint at the end of an
epoch therefore holds weights, the optimizer's moments and the best weights so far, and nothing else.
"""

import contextlib
import copy
import dataclasses
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from metalad.errors import RunError
from metalad.files import explained, write_bytes
from metalad.precision import Precision
from metalad.settings import setting

Pixels = UInt8[np.ndarray, "_images height width 3"]

WARM_UP = 0.05
"""The part of a cosine schedule in which the learning rate rises from 0."""
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to descend. An epoch is one pass over the training images, in an order drawn anew."""

    learning_rate: float = setting(1e-4, "highest learning rate of Adam")
    batch_size: int = setting(64, "images in a step")
    max_epochs: int = setting(3000, "epochs at most")
    steps: int | None = setting(None, "steps instead of max_epochs: as many epochs as hold them")
    schedule: Literal["constant", "cosine"] = setting("constant", "constant, or warm-up and cosine to 0")
    patience: int | None = setting(None, "stop when the validation loss has not improved for so many epochs")
    patience_from: int = setting(0, "first epoch at whose end patience may stop the descent")

    def resolved(self, images: int) -> "Training":
        """Return the same plan with its length in epochs, for a training set of `images`."""
        if self.steps is None:
            return self
        return dataclasses.replace(self, max_epochs=math.ceil(self.steps / self.steps_per_epoch(images)), steps=None)

    def steps_per_epoch(self, images: int) -> int:
        """Return the number of steps that see every image once."""
        return math.ceil(images / self.batch_size)

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        return (
            self.learning_rate * min(1.0, (step + 1) / (WARM_UP * total)) * (1 + math.cos(math.pi * step / total)) / 2
        )


@dataclass(frozen=True)
class Epoch:
    """One line of the history; losses are means over images."""

    epoch: int
    training_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float


@dataclass
class _Progress:
    """Where the descent stands: what a checkpoint stores beside tensors."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    seconds: float = 0.0


class Learner(nn.Module, ABC):
    """A module that knows what to minimise."""

    @abstractmethod
    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return what to minimise on a batch of normal images in [0, 1]."""


class Descent:
    """One run of gradient descent over `module`, with its history and checkpoint in `folder`."""

    def __init__(
        self,
        module: Learner,
        plan: Training,
        *,
        seed: int,
        precision: Precision,
        folder: Path,
    ) -> None:
        self.module, self.plan, self.seed, self.precision = module, plan, seed, precision
        self.device = next(module.parameters()).device
        self.checkpoint, self.history = folder / "checkpoint.safetensors", folder / "history.jsonl"
        self.optimizer = torch.optim.Adam(module.parameters(), lr=plan.learning_rate, fused=True)
        self.best = self._weights()
        self.state = _Progress()
        self.rows: list[Epoch] = []

    def run(self, training: Pixels, validation: Pixels, *, progress: bool) -> Epoch:
        """Descend to the end of the plan, put the best weights into the module, and return their epoch's losses.

        Raises:
            RunError: the folder cannot be written, its checkpoint is damaged, or no epoch had a finite loss.
        """
        if self.checkpoint.exists():
            self._resume()
        saved = time.monotonic()
        with explained(self.history), self.history.open("w", encoding="utf-8") as lines:
            lines.writelines(_line(row) for row in self.rows)
            with _bar(self.plan, len(training), self.state.epoch, progress) as bar:
                while not self._finished():
                    self.rows.append(self._epoch(training, validation, bar))
                    lines.write(_line(self.rows[-1]))
                    lines.flush()
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._save()
                        saved = time.monotonic()
        if not self.state.best_epoch:
            raise RunError("the validation loss was never a finite number; check the images and the settings")
        self.module.load_state_dict(self.best)
        self.module.eval()
        return self.rows[self.state.best_epoch - 1]

    def _finished(self) -> bool:
        state, plan = self.state, self.plan
        if state.epoch >= plan.max_epochs:
            return True
        if plan.patience is None or state.epoch < plan.patience_from:
            return False
        return state.epoch - state.best_epoch >= plan.patience

    def _epoch(self, training: Pixels, validation: Pixels, bar: Any) -> Epoch:
        start, plan, number = time.perf_counter(), self.plan, self.state.epoch + 1
        torch.manual_seed(_stream(self.seed, number))
        order = np.random.default_rng([self.seed, number]).permutation(len(training))
        per_epoch = plan.steps_per_epoch(len(training))
        total, rate, losses = plan.max_epochs * per_epoch, 0.0, 0.0
        self.module.train()
        for index in range(per_epoch):
            rate = plan.rate(self.state.epoch * per_epoch + index, total)
            chosen = np.sort(order[index * plan.batch_size : (index + 1) * plan.batch_size])
            loss = self.step(training[chosen], rate)
            losses += loss * len(chosen)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.4f}, validation {self.state.best_loss:.4f}", refresh=False)
        validation_loss = self._validate(validation)
        self.state.epoch = number
        if validation_loss < self.state.best_loss:
            self.state.best_epoch, self.state.best_loss = number, validation_loss
            self.best = self._weights()
        self.state.seconds += time.perf_counter() - start
        return Epoch(number, losses / len(training), validation_loss, rate, round(self.state.seconds, 3))

    def step(self, pixels: Pixels, rate: float) -> float:
        """Take one step on a batch at a learning rate, and return the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(pixels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def _validate(self, pixels: Pixels) -> float:
        self.module.eval()
        size, total = self.plan.batch_size, 0.0
        with torch.no_grad():
            for start in range(0, len(pixels), size):
                batch = pixels[start : start + size]
                total += float(self._loss(batch)) * len(batch)
        return total / len(pixels)

    def _loss(self, pixels: Pixels) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.module.loss(to_batch(pixels, self.device))

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def _save(self) -> None:
        tensors = {f"module/{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in moments.items()}
        metadata = {
            "progress": json.dumps(dataclasses.asdict(self.state)),
            "history": json.dumps(self.rows, default=vars),
        }
        write_bytes(self.checkpoint, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def _resume(self) -> None:
        try:
            with safe_open(self.checkpoint, framework="pt", device=str(self.device)) as file:
                self.state = _Progress(**json.loads(file.metadata()["progress"]))
                self.rows = [Epoch(**row) for row in json.loads(file.metadata()["history"])]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            self.module.load_state_dict(_under(tensors, "module/"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(f"{self.checkpoint} is damaged ({error}); delete it to train from the start") from error
        self.best = _under(tensors, "best/")
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, "optimizer/").items():
            index, key = name.split("/")
            # The step counter of the fused optimizer lives on the CPU or the device, as the optimizer wants.
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def to_batch(
    pixels: UInt8[np.ndarray, "images height width 3"], device: torch.device | str = "cpu"
) -> Float[Tensor, "images 3 height width"]:
    """Turn decoded images into what a detector takes: planes of RGB in [0, 1]."""
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    return torch.from_numpy(planes).to(device).float().div_(255)


def epoch_seconds(module: Learner, plan: Training, precision: Precision, training: Pixels) -> float:
    """Return the time that an epoch will take, measured by three steps of a copy of the module."""
    descent = Descent(copy.deepcopy(module), plan, seed=0, precision=precision, folder=Path())
    batch = training[: plan.batch_size]
    descent.step(batch, plan.learning_rate)
    start = time.perf_counter()
    for _ in range(2):
        descent.step(batch, plan.learning_rate)
    return (time.perf_counter() - start) / 2 * len(training) / len(batch)


def _line(row: Epoch) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"


def _stream(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextlib.contextmanager
def _bar(plan: Training, images: int, done: int, shown: bool) -> Iterator[Any]:
    steps = plan.steps_per_epoch(images)
    with tqdm(total=plan.max_epochs * steps, initial=done * steps, disable=not shown, desc="train", unit="step") as bar:
        yield bar
