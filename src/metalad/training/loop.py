"""Gradient descent that can be killed at any moment and resumed to the same bits.

All chance is drawn from (seed, epoch), never from a stream that a crash would lose; a checkpoint at the end of an
epoch therefore holds weights, the optimizers' moments and the best weights so far, and nothing else.

A method may descend in several stages (a teacher, then its students), and in each by several objectives that take
turns on every batch (a critic, then a generator).
"""

import contextlib
import copy
import dataclasses
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import RunError
from metalad.runtime.files import explained, write_bytes
from metalad.runtime.settings import setting
from metalad.training.checkpoint import damaged, stored_stage, under
from metalad.training.precision import Precision
from metalad.training.process_group import ALONE, ProcessGroup

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
    keep: Literal["best", "last"] = setting("best", "weights to keep: of the lowest validation loss, or the last")
    optimizer: Literal["adam", "rmsprop"] = setting("adam", "Adam or RMSprop")
    betas: tuple[float, float] = setting((0.9, 0.999), "decay rates of Adam's two moments")
    weight_decay: float = setting(0.0, "squared-weight penalty, added to the gradient")
    whole_batches: bool = setting(False, "leave out the smaller batch at an epoch's end: batch norm needs company")
    stage: str = setting("train", "name of this stage of training")

    def resolved(self, images: int) -> "Training":
        """Return the same plan with its length in epochs, for a training set of `images`."""
        if self.steps is None:
            return self
        return dataclasses.replace(self, max_epochs=math.ceil(self.steps / self.steps_per_epoch(images)), steps=None)

    def steps_per_epoch(self, images: int) -> int:
        """Return the number of steps that see every image once, or, of whole batches alone, nearly every one."""
        if self.whole_batches:
            return max(1, images // self.batch_size)
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
    stage: str = "train"


@dataclass
class _Progress:
    """Where the descent stands: what a checkpoint stores beside tensors."""

    stage: str
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    seconds: float = 0.0


@dataclass(frozen=True)
class Objective:
    """What to minimise on a batch, by which parameters, and in every how-manieth step.

    every: 1 for the first objective, whose loss the history tells. rate: a factor on the plan's learning rate.
    """

    loss: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]
    every: int = 1
    rate: float = 1.0


class Learner(nn.Module, ABC):
    """A module that knows what to minimise."""

    @abstractmethod
    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return what to minimise on a batch of normal images in [0, 1]; on held-out ones, the validation loss."""

    def objectives(self) -> tuple[Objective, ...]:
        """Return what a step minimises, one after the other: by default the loss, by all parameters not frozen."""
        return (Objective(self.loss, tuple(part for part in self.parameters() if part.requires_grad)),)

    def learner(self, stage: str) -> "Learner":  # noqa: ARG002 (one stage needs no name)
        """Return who learns in a stage of training: this module, or one that holds a part of it and the rest as given.

        The one returned is set to training mode, the rest of this module to evaluation mode.
        """
        return self

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Do what must be done before a stage begins, such as statistics of its targets over the training images.

        What it leaves must be parameters and buffers of the shapes they were made with: a resumed stage reads them from
        its checkpoint.
        """


class Descent:
    """One stage of gradient descent over `module`, with its history and checkpoint in `folder`.

    earlier: the history of the stages before. team: the processes that descend together; rank 0 alone writes.
    """

    def __init__(
        self,
        module: Learner,
        plan: Training,
        *,
        seed: int,
        precision: Precision,
        folder: Path,
        earlier: Sequence[Epoch] = (),
        group: ProcessGroup = ALONE,
    ) -> None:
        self.module, self.plan, self.seed, self.precision, self.group = (
            module,
            plan,
            seed,
            precision,
            group,
        )
        self.learner = module.learner(plan.stage)
        self.device = next(module.parameters()).device
        self.checkpoint, self.history = folder / "checkpoint.safetensors", folder / "history.jsonl"
        self.objectives = self.learner.objectives()
        self.optimizers = [_optimizer(plan, objective) for objective in self.objectives]
        self.best = self._weights()
        self.earlier, self.rows = list(earlier), list[Epoch]()
        self.state = _Progress(plan.stage, seconds=earlier[-1].seconds if earlier else 0.0)

    def run(self, training: Pixels, validation: Pixels, *, progress: bool) -> Epoch:
        """Descend to the end of the plan, put the best weights into the module, and return their epoch's losses.

        Raises:
            RunError: the folder cannot be written, its checkpoint is damaged, or no epoch had a finite loss.
        """
        if stored_stage(self.checkpoint) == self.plan.stage:
            self._resume()
        else:
            self.module.prepare(self.plan.stage, training, self.seed)
            self.group.broadcast_module(self.module)
            self.best = self._weights()
        saved = time.monotonic()
        history = self.history if self.group.is_main else Path(os.devnull)
        with explained(history), history.open("w", encoding="utf-8") as lines:
            lines.writelines(_line(row) for row in (*self.earlier, *self.rows))
            with _bar(self.plan, len(training), self.state.epoch, progress) as bar:
                while not self._finished():
                    self.rows.append(self._epoch(training, validation, bar))
                    lines.write(_line(self.rows[-1]))
                    lines.flush()
                    if self.group.is_main and time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._save()
                        saved = time.monotonic()
        if not self.state.best_epoch or not math.isfinite(self.state.best_loss):
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
        torch.manual_seed(_stream(self.seed, number, self.group.rank))
        order = np.random.default_rng([self.seed, number]).permutation(len(training))
        per_epoch = plan.steps_per_epoch(len(training))
        total, rate, losses = plan.max_epochs * per_epoch, 0.0, 0.0
        seen = 0
        self.module.eval()
        self.learner.train()
        for index in range(per_epoch):
            step = self.state.epoch * per_epoch + index
            rate = plan.rate(step, total)
            chosen = np.sort(order[index * plan.batch_size : (index + 1) * plan.batch_size])
            loss = self.step(training[self.group.shard(chosen)], rate, step, len(chosen))
            losses, seen = losses + loss * len(chosen), seen + len(chosen)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.4f}, validation {self.state.best_loss:.4f}", refresh=False)
        self.group.broadcast_module(self.module)  # running statistics of batch norm differ
        validation_loss = self._validate(validation)
        self.state.epoch = number
        if plan.keep == "last" or validation_loss < self.state.best_loss:
            self.state.best_epoch, self.state.best_loss = number, validation_loss
            self.best = self._weights()
        self.state.seconds += time.perf_counter() - start
        return Epoch(number, losses / seen, validation_loss, rate, round(self.state.seconds, 3), plan.stage)

    def step(self, pixels: Pixels, rate: float, number: int = 0, whole: int | None = None) -> float:
        """Take the step of that number, from 0, on a batch; return the first objective's loss before it.

        whole: images of the batch of which `pixels` is this process's share; without it, all.
        """
        images, losses = to_batch(pixels, self.device), list[Tensor]()
        part = len(pixels) / (whole or len(pixels))
        for objective, optimizer in zip(self.objectives, self.optimizers, strict=True):
            if (number + 1) % objective.every:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate * objective.rate
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = objective.loss(images) if len(images) else None
            losses.append(self.group.backward(loss, objective.parameters, part))
            optimizer.step()
        return float(losses[0])

    def _validate(self, pixels: Pixels) -> float:
        self.module.eval()
        self.learner.eval()
        size, total = self.plan.batch_size, 0.0
        with torch.no_grad():
            for start in range(self.group.rank * size, len(pixels), self.group.size * size):
                batch = pixels[start : start + size]
                with self._autocast():
                    total += float(self.learner.loss(to_batch(batch, self.device))) * len(batch)
        return self.group.total(total) / len(pixels)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def _save(self) -> None:
        tensors = {f"module/{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{number}/{index}/{name}": tensor for name, tensor in moments.items()}
        metadata = {
            "progress": json.dumps(dataclasses.asdict(self.state)),
            "history": json.dumps([*self.earlier, *self.rows], default=vars),
        }
        write_bytes(self.checkpoint, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def _resume(self) -> None:
        try:
            with safe_open(self.checkpoint, framework="pt", device=str(self.device)) as file:
                self.state = _Progress(**json.loads(file.metadata()["progress"]))
                rows = [Epoch(**row) for row in json.loads(file.metadata()["history"])]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            self.module.load_state_dict(under(tensors, "module/"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(self.checkpoint, error) from error
        self.earlier = [row for row in rows if row.stage != self.plan.stage]
        self.rows = [row for row in rows if row.stage == self.plan.stage]
        self.best = under(tensors, "best/")
        for number, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in under(tensors, f"optimizer/{number}/").items():
                index, key = name.split("/")
                # The step counter of the fused optimizer lives on the CPU or the device, as the optimizer wants.
                moments.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def descend(
    module: Learner,
    plans: Sequence[Training],
    *,
    seed: int,
    precision: Precision,
    folder: Path,
    training: Pixels,
    validation: Pixels,
    progress: bool,
    group: ProcessGroup = ALONE,
) -> list[Epoch]:
    """Go through all stages, or on from the one in which a run was stopped; return the epoch kept of each of those.

    Raises:
        RunError: as `Descent.run` does.
    """
    checkpoint = folder / "checkpoint.safetensors"
    stages = [plan.stage for plan in plans]
    reached = stored_stage(checkpoint)
    kept: list[Epoch] = []
    rows: list[Epoch] = []
    for plan in plans[stages.index(reached) if reached in stages else 0 :]:
        descent = Descent(module, plan, seed=seed, precision=precision, folder=folder, earlier=rows, group=group)
        kept.append(descent.run(training, validation, progress=progress))
        rows = [*descent.earlier, *descent.rows]
    return kept


def _optimizer(plan: Training, objective: Objective) -> torch.optim.Optimizer:
    if plan.optimizer == "rmsprop":
        return torch.optim.RMSprop(objective.parameters, plan.learning_rate, weight_decay=plan.weight_decay)
    return torch.optim.Adam(
        objective.parameters, plan.learning_rate, plan.betas, weight_decay=plan.weight_decay, fused=True
    )


def epoch_seconds(
    module: Learner, plan: Training, precision: Precision, training: Pixels, group: ProcessGroup = ALONE
) -> float:
    """Return the time that an epoch will take, measured by a few steps of a copy of the module."""
    descent = Descent(copy.deepcopy(module), plan, seed=0, precision=precision, folder=Path(), group=group)
    whole = min(plan.batch_size, len(training))
    batch = training[group.shard(np.arange(whole))] if group.size > 1 else training[: plan.batch_size]
    turn = max(2, *(objective.every for objective in descent.objectives))
    descent.learner.train()
    descent.step(batch, plan.learning_rate, turn - 1, whole)
    start = time.perf_counter()
    for number in range(turn):
        descent.step(batch, plan.learning_rate, number, whole)
    return (time.perf_counter() - start) / turn * len(training) / whole


def _line(row: Epoch) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"


def _stream(seed: int, epoch: int, rank: int) -> int:
    # Each process draws noise of its own; the first, as one that is alone.
    return int(np.random.SeedSequence([seed, epoch, rank] if rank else [seed, epoch]).generate_state(1)[0])


@contextlib.contextmanager
def _bar(plan: Training, images: int, done: int, shown: bool) -> Iterator[Any]:
    steps = plan.steps_per_epoch(images)
    with tqdm(
        total=plan.max_epochs * steps, initial=done * steps, disable=not shown, desc=plan.stage, unit="step"
    ) as bar:
        yield bar
