"""The training plans of a run: those of its protocol, or as many epochs as a time budget allows."""

import copy
import dataclasses
from collections.abc import Sequence

import torch

from metalad.detectors.base import Detector, GradientDetector, Protocol
from metalad.detectors.out_of_fold import MAX_IMAGES, calibrate
from metalad.nn.pixels import Pixels, subsampled
from metalad.runtime.errors import ConfigError
from metalad.runtime.progress import bars, logger
from metalad.runtime.settings import from_json
from metalad.storage.run_folder import RunSettings
from metalad.training.budget import REHEARSAL_FRACTION, Budget, extrapolated_seconds, shortened
from metalad.training.loop import Training
from metalad.training.precision import Precision
from metalad.training.process_group import ProcessGroup
from metalad.training.timing import epoch_seconds


def require_descent(kind: type[Detector], name: str, epochs: int | None, minutes: float | None) -> None:
    """Check that a method has a training that `minutes` can shorten, and warn if `epochs` have no effect on it.

    Raises:
        ConfigError: it has not.
    """
    if issubclass(kind, GradientDetector):
        return
    if epochs is not None:
        logger.warning("epochs have no effect: %s is fitted in one pass, without gradient descent", name)
    if minutes is not None:
        raise ConfigError(
            f"{name} is fitted in one pass, without gradient descent that minutes could shorten; leave minutes out, "
            "and give fewer or smaller images to save time"
        )


def select_plans(
    detector: Detector,
    protocol: Protocol,
    epochs: int | None,
    budget: Budget | None,
    precision: Precision,
    training: Pixels,
    validation: Pixels,
    stored: RunSettings | None,
    group: ProcessGroup,
) -> tuple[Training, ...]:
    """Return the plans of all stages, with their numbers of epochs; a resumed run keeps those that were measured.

    Raises:
        ConfigError: the budget is too short for one epoch a stage.
    """
    if not isinstance(detector, GradientDetector):
        return ()
    plans = tuple(plan.resolved(len(training)) for plan in detector.plan(protocol))
    if epochs is not None:
        plans = tuple(dataclasses.replace(plan, max_epochs=epochs) for plan in plans)
    if budget is None:
        return plans
    if stored is not None:
        return tuple(from_json(Training, plan) for plan in stored.plan.values())
    at_least = REHEARSAL_FRACTION / 4 * budget.seconds / len(plans)
    costs = [epoch_seconds(detector, plan, precision, training, validation, group, at_least) for plan in plans]
    reserved = seconds_besides_descent(detector, plans, training, validation, budget)
    fitting = shortened(plans, costs, reserved, budget)
    if group.is_main:
        logger.info(
            "%g minutes: %s of %s epochs, %.0f s reserved for preparation and calibration",
            budget.minutes,
            " + ".join(str(plan.max_epochs) for plan in fitting),
            " + ".join(str(plan.max_epochs) for plan in plans),
            reserved,
        )
    return fitting


def seconds_besides_descent(
    detector: GradientDetector, plans: Sequence[Training], training: Pixels, validation: Pixels, budget: Budget
) -> float:
    """Estimate the seconds of a training besides its epochs: preparation of the stages, calibration and screening.

    They are measured on copies of the detector with few images, and extrapolated.
    """
    copies: list[GradientDetector] = []
    prepared = extrapolated_seconds(
        lambda count: copies.append(_prepare(detector, plans, training, validation, count)), len(training), budget
    )
    calibrated = extrapolated_seconds(
        lambda count: _calibrate(copies[-1], training, validation, count), min(MAX_IMAGES, len(training)), budget
    )
    return prepared + calibrated


def _prepare(
    detector: GradientDetector, plans: Sequence[Training], training: Pixels, validation: Pixels, count: int
) -> GradientDetector:
    """Return a copy that has run all but the epochs of its stages, on `count` training images."""
    prepared = copy.deepcopy(detector)
    chosen, held_out = _parts(training, validation, count)
    with torch.random.fork_rng(_gpus(detector)), bars(shown=False):
        for plan in plans:
            prepared.prepare(plan.stage, chosen, 0)
        prepared.eval()
        prepared.conclude(chosen, held_out)
    return prepared


def _calibrate(prepared: GradientDetector, training: Pixels, validation: Pixels, count: int) -> None:
    chosen, held_out = _parts(training, validation, count)
    with torch.random.fork_rng(_gpus(prepared)), bars(shown=False):
        prepared.residuals_of(chosen)  # as screening does
        calibrate(copy.deepcopy(prepared), chosen, held_out)


def _parts(training: Pixels, validation: Pixels, count: int) -> tuple[Pixels, Pixels]:
    """Return `count` training images, and as many validation images in proportion, spread evenly."""
    held_out = min(len(validation), max(1, round(count * len(validation) / len(training))))
    return subsampled(training, count), subsampled(validation, held_out)


def _gpus(detector: Detector) -> list[torch.device]:
    return [detector.device] if detector.device.type == "cuda" else []
