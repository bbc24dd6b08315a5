"""A time budget for a whole training: what is left of it for gradient descent, and the epochs that fit into that."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from metalad.runtime.errors import ConfigError
from metalad.training.loop import Training

TOLERANCE = 0.2
"""A training that would need more than this fraction beyond its budget, with one epoch a stage, is refused."""
REHEARSAL_FRACTION = 0.04
"""Measuring ends when it has taken this fraction of the budget."""
FIRST_COUNT = 2
MAX_COUNT = 64
"""Numbers of images in measurements: doubled from the first to the last."""

Clock = Callable[[], float]


class Budget:
    """Minutes for a whole training, counted from when this object is created."""

    def __init__(self, minutes: float, clock: Clock = time.monotonic) -> None:
        self.minutes, self.clock = minutes, clock
        self._start = clock()

    @property
    def seconds(self) -> float:
        """The whole budget."""
        return 60 * self.minutes

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self._start


def shortened(
    plans: Sequence[Training], epoch_costs: Sequence[float], reserved: float, budget: Budget
) -> tuple[Training, ...]:
    """Return the plans with as many epochs as fit into the rest of a budget, all stages shortened by the same factor.

    Args:
        plans: of the stages, with their numbers of epochs.
        epoch_costs: seconds of an epoch of each stage.
        reserved: seconds needed besides the epochs, such as for the calibration.
        budget: its spent time is that of loading and measuring.

    Raises:
        ConfigError: one epoch a stage and the rest take longer than the budget.
    """
    spent = budget.spent
    whole = _cost(plans, epoch_costs)
    part = max(0.0, min(1.0, (budget.seconds - spent - reserved) / whole))
    fitting = tuple(dataclasses.replace(plan, max_epochs=max(1, int(part * plan.max_epochs))) for plan in plans)
    least = spent + reserved + sum(epoch_costs)
    if least > (1 + TOLERANCE) * budget.seconds:
        raise ConfigError(
            f"minutes is {budget.minutes:g}, but loading, one epoch of training and calibration take about "
            f"{least / 60:.2g}; allow more minutes, or use fewer images"
        )
    return fitting


def _cost(plans: Sequence[Training], epoch_costs: Sequence[float]) -> float:
    return sum(cost * plan.max_epochs for cost, plan in zip(epoch_costs, plans, strict=True))


def extrapolated_seconds(work: Callable[[int], object], count: int, budget: Budget) -> float:
    """Return the estimated time of work on `count` images, as a constant and a time for each image.

    The work is done on few images, and on ever more until the time is known well enough: until it has taken
    `REHEARSAL_FRACTION` of the budget, or `MAX_COUNT` images. The first time includes what is done once.

    Args:
        work: does the work on copies, for a number of images.
        count: the images that it will be done on.
        budget: gives the clock.
    """
    measured: list[tuple[int, float]] = []
    size = min(FIRST_COUNT, count)
    begin = budget.clock()
    while True:
        start = budget.clock()
        work(size)
        now = budget.clock()
        measured.append((size, now - start))
        if size == min(MAX_COUNT, count) or now - begin > REHEARSAL_FRACTION * budget.seconds:
            break
        size = min(2 * size, MAX_COUNT, count)
    (size, seconds), (earlier_size, earlier_seconds) = measured[-1], measured[-2] if len(measured) > 2 else (0, 0.0)
    rate = max(0.0, seconds - earlier_seconds) / (size - earlier_size)
    return seconds + rate * (count - size)
