"""Measure how long an epoch of gradient descent takes."""

import copy
import time

import numpy as np
import torch

from metalad.nn.pixels import Pixels
from metalad.training.loop import Descent, Learner, Training
from metalad.training.precision import Precision
from metalad.training.process_group import SINGLE_PROCESS, ProcessGroup

MAX_STEPS = 50


def epoch_seconds(
    module: Learner,
    plan: Training,
    precision: Precision,
    training: Pixels,
    validation: Pixels,
    group: ProcessGroup = SINGLE_PROCESS,
    at_least: float = 0.0,
) -> float:
    """Return the estimated time of an epoch in seconds, measured on steps and a validation of a copy of the module.

    at_least: steps are repeated until they have taken this many seconds, for a more precise estimate.
    """
    descent = Descent(copy.deepcopy(module), plan, seed=0, precision=precision, folder=None, group=group)
    batch_size = min(plan.batch_size, len(training))
    batch = training[group.shard(np.arange(batch_size))] if group.size > 1 else training[: plan.batch_size]
    period = max(2, *(objective.every for objective in descent.objectives))
    with torch.random.fork_rng(_gpus(descent.device)):
        descent.learner.train()
        descent.step(batch, plan.learning_rate, period - 1, batch_size)
        start, steps = time.perf_counter(), 0
        while True:
            for number in range(period):
                descent.step(batch, plan.learning_rate, number, batch_size)
            steps += period
            # Processes of a group take the same number of steps, because each step is common to them.
            if group.size > 1 or steps >= MAX_STEPS or time.perf_counter() - start >= at_least:
                break
        a_step = (time.perf_counter() - start) / steps
        start = time.perf_counter()
        descent._validate(validation)
        return a_step * len(training) / batch_size + time.perf_counter() - start


def _gpus(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
