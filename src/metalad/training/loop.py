"""Training loop that can be killed at any time and resumed with bit-identical results.

The random generators are seeded from (seed, epoch), so that their state need not be stored. A checkpoint, written at
the end of an epoch, holds the weights, the optimizer states and the best weights so far.

A method can train in several stages (a teacher, then its students), and in each stage with several objectives that
alternate on every batch (a critic, then a generator).
"""

import dataclasses
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import RunError
from metalad.runtime.files import os_errors_as_run_errors, write_bytes
from metalad.runtime.progress import Counter, counter
from metalad.runtime.settings import setting
from metalad.training.checkpoint import damaged, select_prefix, stored_stage
from metalad.training.precision import Precision
from metalad.training.process_group import SINGLE_PROCESS, ProcessGroup

WARM_UP = 0.05
"""Fraction of a cosine schedule in which the learning rate increases from 0."""
DECAY, DECAYS = 0.4, (0.8, 0.9)
"""Factor on the learning rate of a multistep schedule, applied after each of these fractions of the steps."""
CHECKPOINT_SECONDS = 30.0
"""Minimum time between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training settings. An epoch is one pass over the training images, in a new random order."""

    learning_rate: float = setting(1e-4, "highest learning rate of Adam")
    batch_size: int = setting(64, "images per step")
    max_epochs: int = setting(3000, "maximum number of epochs")
    steps: int | None = setting(None, "number of steps, rounded up to whole epochs; replaces max_epochs")
    schedule: Literal["constant", "cosine", "multistep"] = setting(
        "constant", "constant; warm-up and cosine decay to 0; or multiplied by 0.4 after 80 % and 90 % of the steps"
    )
    patience: int | None = setting(None, "epochs without a lower validation loss after which training stops")
    patience_from: int = setting(0, "first epoch after which patience can stop training")
    keep: Literal["best", "last"] = setting("best", "weights to keep: those of the lowest validation loss, or the last")
    optimizer: Literal["adam", "adamw", "rmsprop"] = setting("adam", "Adam, AdamW or RMSprop")
    betas: tuple[float, float] = setting((0.9, 0.999), "decay rates of Adam's two moments")
    weight_decay: float = setting(0.0, "L2 penalty on the weights, added to the gradient; AdamW: to the step")
    whole_batches: bool = setting(False, "skip the last, smaller batch of an epoch, for batch norm")
    stage: str = setting("train", "name of this stage of training")

    def resolved(self, images: int) -> "Training":
        """Return the same settings with `steps` converted to epochs, for a training set of `images` images."""
        if self.steps is None:
            return self
        return dataclasses.replace(self, max_epochs=math.ceil(self.steps / self.steps_per_epoch(images)), steps=None)

    def steps_per_epoch(self, images: int) -> int:
        """Return the number of steps per epoch; with `whole_batches`, the last partial batch is not counted."""
        if self.whole_batches:
            return max(1, images // self.batch_size)
        return math.ceil(images / self.batch_size)

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of a step, counted from 0, of `total` steps."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "multistep":
            return self.learning_rate * DECAY ** sum(step >= fraction * total for fraction in DECAYS)
        return (
            self.learning_rate * min(1.0, (step + 1) / (WARM_UP * total)) * (1 + math.cos(math.pi * step / total)) / 2
        )


@dataclass(frozen=True)
class Epoch:
    """One line of the training history; losses are means over images, seconds are cumulative."""

    epoch: int
    training_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float
    stage: str = "train"


@dataclass(frozen=True)
class TrainingStep:
    """One training step, as a callback receives it.

    stage: its name. step, epoch: counted from 1 within the stage; steps, epochs: their totals. loss: of this step's
    batch. validation_loss: of the last finished epoch of the stage, None in the first.
    """

    stage: str
    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    validation_loss: float | None


Callback = Callable[[TrainingStep], None]


@dataclass
class _Progress:
    """State of the training that a checkpoint stores in addition to tensors."""

    stage: str
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    seconds: float = 0.0


@dataclass(frozen=True)
class Objective:
    """A loss, the parameters that minimize it, and how often it is minimized.

    every: minimize in every n-th step; 1 for the first objective, whose loss is reported in the history.
    rate: factor on the learning rate of the plan. rates: a further factor for each parameter; empty: 1.
    """

    loss: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]
    every: int = 1
    rate: float = 1.0
    rates: tuple[float, ...] = ()


class Learner(nn.Module, ABC):
    """A module with a loss to minimize."""

    @abstractmethod
    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the loss of a batch of defect-free images in [0, 1]; on held-out images, the validation loss."""

    def objectives(self) -> tuple[Objective, ...]:
        """Return the objectives that a step minimizes in turn; default: `loss`, with all parameters not frozen."""
        return (Objective(self.loss, tuple(tensor for tensor in self.parameters() if tensor.requires_grad)),)

    def learner(self, stage: str) -> "Learner":  # noqa: ARG002 (for methods with several stages)
        """Return the module that is trained in a stage: this module, or one that shares some of its submodules.

        The returned module is set to training mode, the rest of this module to evaluation mode.
        """
        return self

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Prepare a stage, for example compute statistics of its targets over the training images.

        Results must be stored in parameters and buffers whose shapes do not change: a resumed stage reads them from its
        checkpoint.
        """


class Descent:
    """One training stage of `module`, with its history and checkpoint in `folder`.

    earlier: history of the previous stages. group: the processes that train together; only rank 0 writes.
    """

    def __init__(
        self,
        module: Learner,
        plan: Training,
        *,
        seed: int,
        precision: Precision,
        folder: Path | None,
        earlier: Sequence[Epoch] = (),
        group: ProcessGroup = SINGLE_PROCESS,
        callback: Callback | None = None,
    ) -> None:
        self.module, self.plan, self.seed, self.precision, self.group = module, plan, seed, precision, group
        self.callback = callback
        self.learner = module.learner(plan.stage)
        self.device = next(module.parameters()).device
        self.checkpoint = None if folder is None else folder / "checkpoint.safetensors"
        self.history = Path(os.devnull) if folder is None else folder / "history.jsonl"
        self.objectives = self.learner.objectives()
        self.optimizers = [_optimizer(plan, objective) for objective in self.objectives]
        self.best = self._weights()
        self.earlier, self.rows = list(earlier), list[Epoch]()
        self.state = _Progress(plan.stage, seconds=earlier[-1].seconds if earlier else 0.0)

    def run(self, training: Pixels, validation: Pixels) -> Epoch:
        """Train to the end of the plan, load the best weights into the module, and return the losses of their epoch.

        Raises:
            RunError: the folder cannot be written, the checkpoint is damaged, or no epoch had a finite loss.
        """
        if self.checkpoint is not None and stored_stage(self.checkpoint) == self.plan.stage:
            self._resume(self.checkpoint)
        else:
            self.module.prepare(self.plan.stage, training, self.seed)
            self.group.broadcast_module(self.module)
            self.best = self._weights()
        saved = time.monotonic()
        history = self.history if self.group.is_main else Path(os.devnull)
        with os_errors_as_run_errors(history), history.open("w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in (*self.earlier, *self.rows))
            steps = self.plan.steps_per_epoch(len(training))
            with counter(self.plan.max_epochs * steps, self.plan.stage, "step", self.state.epoch * steps) as count:
                while not self._finished():
                    self.rows.append(self._epoch(training, validation, count))
                    file.write(_line(self.rows[-1]))
                    file.flush()
                    if self.checkpoint and self.group.is_main and time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._save(self.checkpoint)
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

    def _epoch(self, training: Pixels, validation: Pixels, count: Counter) -> Epoch:
        start, plan, number = time.perf_counter(), self.plan, self.state.epoch + 1
        torch.manual_seed(_epoch_seed(self.seed, number, self.group.rank))
        order = np.random.default_rng([self.seed, number]).permutation(len(training))
        per_epoch = plan.steps_per_epoch(len(training))
        total, rate, losses = plan.max_epochs * per_epoch, 0.0, 0.0
        images = 0
        self.module.eval()
        self.learner.train()
        for index in range(per_epoch):
            step = self.state.epoch * per_epoch + index
            rate = plan.rate(step, total)
            batch = np.sort(order[index * plan.batch_size : (index + 1) * plan.batch_size])
            loss = self.step(training[self.group.shard(batch)], rate, step, len(batch))
            losses, images = losses + loss * len(batch), images + len(batch)
            count.update(loss=f"{loss:.4f}", validation=f"{self.state.best_loss:.4f}")
            self._call_back(step + 1, total, loss)
        self.group.broadcast_module(self.module)  # running statistics of batch norm differ between processes
        validation_loss = self._validate(validation)
        self.state.epoch = number
        if plan.keep == "last" or validation_loss < self.state.best_loss:
            self.state.best_epoch, self.state.best_loss = number, validation_loss
            self.best = self._weights()
        self.state.seconds += time.perf_counter() - start
        return Epoch(number, losses / images, validation_loss, rate, round(self.state.seconds, 3), plan.stage)

    def _call_back(self, step: int, steps: int, loss: float) -> None:
        if self.callback is not None and self.group.is_main:
            validation = self.rows[-1].validation_loss if self.rows else None
            epoch, epochs = self.state.epoch + 1, self.plan.max_epochs
            self.callback(TrainingStep(self.plan.stage, step, steps, epoch, epochs, loss, validation))

    def step(self, pixels: Pixels, rate: float, number: int = 0, batch_size: int | None = None) -> float:
        """Take one training step on a batch and return the loss of the first objective before the step.

        number: number of the step, from 0. batch_size: size of the whole batch if `pixels` is this process's share.
        """
        images, losses = to_batch(pixels, self.device), list[Tensor]()
        fraction = len(pixels) / (batch_size or len(pixels))
        for objective, optimizer in zip(self.objectives, self.optimizers, strict=True):
            if (number + 1) % objective.every:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate * objective.rate * group["factor"]
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = objective.loss(images) if len(images) else None
            losses.append(self.group.backward(loss, objective.parameters, fraction))
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

    def _save(self, checkpoint: Path) -> None:
        tensors = {f"module/{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{number}/{index}/{name}": tensor for name, tensor in moments.items()}
        metadata = {
            "progress": json.dumps(dataclasses.asdict(self.state)),
            "history": json.dumps([*self.earlier, *self.rows], default=vars),
        }
        write_bytes(checkpoint, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def _resume(self, checkpoint: Path) -> None:
        try:
            with safe_open(checkpoint, framework="pt", device=str(self.device)) as file:
                self.state = _Progress(**json.loads(file.metadata()["progress"]))
                rows = [Epoch(**row) for row in json.loads(file.metadata()["history"])]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            self.module.load_state_dict(select_prefix(tensors, "module/"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(checkpoint, error) from error
        self.earlier = [row for row in rows if row.stage != self.plan.stage]
        self.rows = [row for row in rows if row.stage == self.plan.stage]
        self.best = select_prefix(tensors, "best/")
        for number, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in select_prefix(tensors, f"optimizer/{number}/").items():
                index, key = name.split("/")
                # load_state_dict moves the step counter of the fused optimizer to the device that it needs.
                moments.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def descend(
    module: Learner,
    plans: Sequence[Training],
    *,
    seed: int,
    precision: Precision,
    folder: Path | None,
    training: Pixels,
    validation: Pixels,
    group: ProcessGroup = SINGLE_PROCESS,
    callback: Callback | None = None,
) -> list[Epoch]:
    """Train all stages, or continue with the stage of the checkpoint; return the selected epoch of each trained stage.

    folder: gets history and checkpoints; None: they are not written. callback: is called after each step.

    Raises:
        RunError: see `Descent.run`.
    """
    stages = [plan.stage for plan in plans]
    stored = None if folder is None else stored_stage(folder / "checkpoint.safetensors")
    selected: list[Epoch] = []
    rows: list[Epoch] = []
    for plan in plans[stages.index(stored) if stored in stages else 0 :]:
        descent = Descent(
            module, plan, seed=seed, precision=precision, folder=folder, earlier=rows, group=group, callback=callback
        )
        selected.append(descent.run(training, validation))
        rows = [*descent.earlier, *descent.rows]
    return selected


def _optimizer(plan: Training, objective: Objective) -> torch.optim.Optimizer:
    factors = objective.rates or (1.0,) * len(objective.parameters)
    groups = [  # one for each factor; all parameters are in the first group if none has its own
        {
            "params": [one for one, own in zip(objective.parameters, factors, strict=True) if own == factor],
            "factor": factor,
        }
        for factor in dict.fromkeys(factors)
    ]
    if plan.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, plan.learning_rate, weight_decay=plan.weight_decay)
    adam = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, plan.learning_rate, plan.betas, weight_decay=plan.weight_decay, fused=True)


def _line(row: Epoch) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    # Each process uses different noise; rank 0 uses that of a single process.
    return int(np.random.SeedSequence([seed, epoch, rank] if rank else [seed, epoch]).generate_state(1)[0])
