"""Train a method on a folder of good images, and leave a run: the model file, its history and its log."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metalad.data import Category, Images, Sample, data_hash, load_images, read_category, split_validation
from metalad.detectors.base import SCORINGS, Detector, DetectorConfig, FittedDetector, GradientDetector, Protocol
from metalad.detectors.out_of_fold import calibrate
from metalad.methods import Method, method_named, methods
from metalad.runtime.errors import ConfigError
from metalad.runtime.progress import bars
from metalad.runtime.settings import from_json
from metalad.runtime.versions import versions
from metalad.storage.model_file import Header, Model, read_model, write_model
from metalad.storage.run_folder import RunFolder, RunSettings
from metalad.training.device import choose_device
from metalad.training.loop import Training, descend, epoch_seconds
from metalad.training.precision import Precision, WantedPrecision, fastest_precision
from metalad.training.process_group import ProcessGroup, join_process_group

VALIDATION_FRACTION = 0.1


def train(
    data: Path,
    out: Path,
    *,
    method: str | DetectorConfig = "metal",
    protocol: Protocol = "default",
    seed: int = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    false_alarms: float = 0.01,
    resume: bool = False,
    strict: bool = False,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    progress: bool = False,
) -> Model:
    """Learn from the good images of `data`, calibrate, and write the run folder `out`.

    Processes that `torchrun` started descend together (see `metalad.training.process_group`); the first alone writes and does the rest.

    Args:
        data: a category in a known layout, or any folder of good images, nested ones too.
        out: the run folder; gets `model.safetensors`, `history.jsonl`, `run.json` and `train.log`.
        method: a method's name, or its config.
        protocol: `paper`: trained as published, however long; `default`: as good, much sooner.
        seed: of the split, the initial weights and the order of images.
        epochs: train so many instead of the protocol's number.
        minutes: shorten the schedule so that training fits into so many minutes.
        false_alarms: wanted fraction of good images above the threshold, in (0, 1).
        resume: go on with a run that was stopped; it ends in the same bits as an uninterrupted one.
        strict: let the first unreadable image be an error instead of skipping it.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        precision: of descent's matrix products: `fp32`, `bf16`, or `auto` for bf16 where it is well faster here.
        progress: show a progress bar on the terminal.

    Raises:
        DataError: no usable images. ConfigError: a setting that cannot be. RunError: `out` cannot be used.
    """
    _check(epochs, minutes, false_alarms, seed)
    chosen, config = _method_and_config(method)
    place = choose_device(device)
    with join_process_group(place) as group:
        folder = RunFolder(out, verbose=progress and group.is_main, mute=not group.is_main)
        category = read_category(data, seed=seed)
        if group.broadcast(resume and folder.model.exists()):
            asked = {"method": chosen.name, "config": dataclasses.asdict(config), "protocol": protocol, "seed": seed}
            return _finished(folder, category, asked | {"false_alarms": false_alarms}, None if minutes else epochs)
        split = split_validation(category.train, VALIDATION_FRACTION, seed)
        folder.claim(resume=resume)
        training, validation = (_load(samples, config, folder, strict) for samples in split)
        folder.note(f"{category.name}: {len(training)} good images to learn from, {len(validation)} to validate on")
        torch.manual_seed(seed)
        detector = chosen.load()(config).to(place)
        stored = _stored(folder, group)
        multiplied_in = _precision(detector, precision, stored)
        plans = _plan(detector, protocol, epochs, minutes, multiplied_in, training, stored, group)
        samples = (*training.samples, *validation.samples)
        settings = _settings(chosen.name, detector, plans, protocol, seed, false_alarms, multiplied_in, samples, group)
        folder.record(settings)
        with bars(drawn=folder.verbose):
            _fit(detector, settings, training, validation, folder, group)
            model = (
                _conclude(detector, settings, category.name, training, validation, folder) if group.is_main else None
            )
        group.broadcast(None)  # the others wait for the model
        return model or read_model(out)


def _check(epochs: int | None, minutes: float | None, false_alarms: float, seed: int) -> None:
    if epochs is not None and epochs < 1:
        raise ConfigError(f"epochs is {epochs}; it must be at least 1")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"minutes is {minutes}; it must be more than 0")
    if not 0 < false_alarms < 1:
        raise ConfigError(f"false_alarms is {false_alarms}; it is a probability between 0 and 1, such as 0.01")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; it must not be negative, nor 2^63 or more")


def _method_and_config(wanted: str | DetectorConfig) -> tuple[Method, DetectorConfig]:
    if isinstance(wanted, str):
        chosen = method_named(wanted)
        return chosen, chosen.load_config()()
    for chosen in methods().values():
        if chosen.load_config() is type(wanted):
            return chosen, wanted
    raise ConfigError(f"{type(wanted).__name__} belongs to no registered method; there are: {', '.join(methods())}")


def _finished(folder: RunFolder, category: Category, asked: Mapping[str, Any], epochs: int | None) -> Model:
    model = read_model(folder.path)
    if not model.header.images["skipped"]:
        asked = {**asked, "training_hash": data_hash(category.train)}
    folder.compare(dataclasses.asdict(model.header), asked)
    for plan in model.header.training["stages"].values() if epochs is not None else ():
        folder.compare({"epochs": plan["max_epochs"]}, {"epochs": epochs})
    folder.note(f"{folder.path} is finished; nothing to resume")
    return model


def _load(samples: Sequence[Sample], config: DetectorConfig, folder: RunFolder, strict: bool) -> Images:
    images = load_images(samples, config.image_size, strict=strict, progress=folder.verbose)
    for skipped in images.skipped:
        folder.note(f"skipped {skipped.path}: {skipped.reason}")
    return images


def _stored(folder: RunFolder, group: ProcessGroup) -> RunSettings | None:
    stored = folder.stored()
    values = group.broadcast(dataclasses.asdict(stored) if stored else None)
    return RunSettings(**values) if values else None


def _precision(detector: Detector, wanted: WantedPrecision, stored: RunSettings | None) -> Precision:
    if not isinstance(detector, GradientDetector):
        return "fp32"
    if wanted != "auto":
        return wanted
    if stored is not None:  # it was measured once; measured again it might differ
        return "bf16" if stored.precision == "bf16" else "fp32"
    return fastest_precision(detector.device.type)


def _plan(
    detector: Detector,
    protocol: Protocol,
    epochs: int | None,
    minutes: float | None,
    precision: Precision,
    training: Images,
    stored: RunSettings | None,
    group: ProcessGroup,
) -> tuple[Training, ...]:
    if not isinstance(detector, GradientDetector):
        return ()
    plans = tuple(plan.resolved(len(training)) for plan in detector.plan(protocol))
    if epochs is not None:
        plans = tuple(dataclasses.replace(plan, max_epochs=epochs) for plan in plans)
    if minutes is None:
        return plans
    if stored is not None:  # the time was measured once; measured again it would differ
        return tuple(from_json(Training, plan) for plan in stored.plan.values())
    each = [epoch_seconds(detector, plan, precision, training.pixels, group) for plan in plans]
    whole = sum(seconds * plan.max_epochs for seconds, plan in zip(each, plans, strict=True))
    part = min(1.0, 60 * minutes / whole)
    return tuple(dataclasses.replace(plan, max_epochs=max(1, int(part * plan.max_epochs))) for plan in plans)


def _settings(
    method: str,
    detector: Detector,
    plans: Sequence[Training],
    protocol: Protocol,
    seed: int,
    false_alarms: float,
    precision: Precision,
    samples: Sequence[Sample],
    group: ProcessGroup,
) -> RunSettings:
    settings = RunSettings(
        method=method,
        config=dataclasses.asdict(detector.config),
        protocol=protocol,
        plan={plan.stage: dataclasses.asdict(plan) for plan in plans},
        seed=seed,
        false_alarms=false_alarms,
        training_hash=data_hash(samples),
        device=detector.device.type,
        precision=precision,
        threads=torch.get_num_threads(),
        processes=group.size,
    )
    # What was measured, time and precision, might differ from process to process.
    return RunSettings(**group.broadcast(dataclasses.asdict(settings)))


def _fit(
    detector: Detector,
    settings: RunSettings,
    training: Images,
    validation: Images,
    folder: RunFolder,
    group: ProcessGroup,
) -> None:
    place = f"{settings.device}, {settings.threads} threads"
    if isinstance(detector, FittedDetector) and group.is_main:
        folder.note(f"fitting on {place}")
        detector.fit(training.pixels, settings.seed)
    if isinstance(detector, GradientDetector):
        plans = [from_json(Training, plan) for plan in settings.plan.values()]
        epochs = " + ".join(str(plan.max_epochs) for plan in plans)
        place += f", {group.size} processes" if group.size > 1 else ""
        folder.note(f"{epochs} epochs in {settings.precision} on {place}")
        kept = descend(
            detector,
            plans,
            seed=settings.seed,
            precision="bf16" if settings.precision == "bf16" else "fp32",
            folder=folder.path,
            training=training.pixels,
            validation=validation.pixels,
            progress=folder.verbose,
            group=group,
        )
        for best in kept:
            folder.note(f"{best.stage}: kept epoch {best.epoch}: validation loss {best.validation_loss:.5f}")
        detector.eval()
        if group.is_main:
            detector.conclude(training.pixels, validation.pixels)


def _conclude(
    detector: Detector,
    settings: RunSettings,
    category: str,
    training: Images,
    validation: Images,
    folder: RunFolder,
) -> Model:
    summary = calibrate(detector, training.pixels, validation.pixels)
    folder.note(f"calibrated by {summary.kind}; log-likelihood of a held-out pixel: {_rounded(summary.log_likelihood)}")
    header = Header(
        method=settings.method,
        config=settings.config,
        calibration=dataclasses.asdict(summary),
        category=category,
        seed=settings.seed,
        protocol=settings.protocol,
        training={"stages": settings.plan, "precision": settings.precision, "device": settings.device},
        images={
            "training": len(training),
            "validation": len(validation),
            "skipped": len(training.skipped) + len(validation.skipped),
        },
        training_hash=settings.training_hash,
        versions=versions(("metalad", "torch", "numpy")),
        false_alarms=settings.false_alarms,
        thresholds={scoring: detector.threshold(settings.false_alarms, scoring) for scoring in SCORINGS},
    )
    write_model(folder.model, detector, header)
    folder.checkpoint.unlink(missing_ok=True)
    folder.note(f"wrote {folder.model}; thresholds: {_rounded(header.thresholds)}")
    return Model(detector, header, folder.model)


def _rounded(values: Mapping[str, float]) -> str:
    return json.dumps({name: round(value, 4) for name, value in values.items()})
