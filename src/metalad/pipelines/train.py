"""Train a method on a folder of good images, and write a run folder: the model file, its history and its log."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metalad.data import Category, Images, Sample, data_hash, load_images, read_category, split_validation
from metalad.data.likeness import likeness_notes, short_hash
from metalad.data.reading import FULL_RANGE, Reading, find_white_level
from metalad.detectors.base import SCORINGS, Detector, DetectorConfig, FittedDetector, GradientDetector, Protocol
from metalad.detectors.out_of_fold import calibrate
from metalad.detectors.residuals import Residuals
from metalad.inference.model import Header
from metalad.nn.fitted import make_contiguous
from metalad.nn.pixels import Pixels
from metalad.pipelines.config import DEFAULT_METHOD, check_training, method_and_config
from metalad.pipelines.model import Model
from metalad.pipelines.resolution import is_automatic, resized, sizes_of
from metalad.pipelines.schedule import require_descent, select_plans
from metalad.pipelines.screening import FOLDER as OUTLIERS
from metalad.pipelines.screening import names_of, screen, screening_lines, write_pictures
from metalad.runtime.choices import Resolution
from metalad.runtime.errors import DataError
from metalad.runtime.progress import bars, logger
from metalad.runtime.settings import from_json, rate
from metalad.runtime.versions import versions
from metalad.storage.model_file import StoredModel, read_model, write_model
from metalad.storage.run_folder import RunFolder, RunSettings, require_same
from metalad.training.budget import Budget
from metalad.training.device import choose_device
from metalad.training.loop import Callback, Training, descend
from metalad.training.precision import Precision, WantedPrecision, fastest_precision
from metalad.training.process_group import ProcessGroup, join_process_group

VALIDATION_FRACTION = 0.1


def train(
    data: str | Path,
    out: str | Path,
    *,
    method: str | DetectorConfig = DEFAULT_METHOD,
    protocol: Protocol = "default",
    seed: int = 0,
    epochs: int | None = None,
    minutes: float | None = None,
    false_alarms: float = 0.01,
    resolution: Resolution | None = None,
    smallest_defect: float | None = None,
    resume: bool = False,
    strict: bool = False,
    all_good: bool = False,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    callback: Callback | None = None,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """Train on the good images of `data`, calibrate, and write the run folder `out`.

    Processes that `torchrun` started train together; the first one alone calibrates and writes.

    Args:
        data: a category in a known layout, or any folder of good images, nested ones too.
        out: the run folder; gets `model.safetensors`, `history.jsonl`, `run.json` and `train.log`.
        method: a method's name; in Python also its config.
        protocol: `paper`: train as published, however long; `default`: as good, in less time.
        seed: of the split, the initial weights and the order of images.
        epochs: train this many instead of the protocol's number.
        minutes: shorten gradient descent so that the whole training, with loading and calibration, takes this long.
        false_alarms: wanted fraction of good images above the threshold, in (0, 1).
        resolution: fast, balanced or fine: how far images are reduced; more pixels take more time. Balanced by default.
        smallest_defect: width of the smallest defect that matters, in pixels of the images; the resolution follows.
        resume: continue a run that was stopped; it ends in the same bits as an uninterrupted one.
        strict: stop with an error at the first image that is unreadable, instead of skipping it, or has several pages.
        all_good: take all images below `data` as good, whatever its folders are named.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        precision: of matrix products in gradient descent: `fp32`, `bf16`, or `auto` for bf16 where it is faster.
        callback: is called after each step of gradient descent with a `metalad.TrainingStep`.
        progress: show progress on stderr.
        settings: of the method, such as `image_size=320`; `metalad methods NAME` lists them.

    Raises:
        DataError: no usable images. ConfigError: an impossible setting, or `minutes` are too few, or given for a method
        without gradient descent. RunError: `out` cannot be used.
    """
    check_training(epochs, minutes, seed, protocol, precision)
    budget = None if minutes is None else Budget(minutes)
    false_alarms = rate("false_alarms", false_alarms)
    chosen, config = method_and_config(method, settings)
    require_descent(chosen.load(), chosen.name, epochs, minutes)
    automatic = is_automatic(method, settings, protocol, resolution, smallest_defect)
    device_ = choose_device(device)
    with join_process_group(device_) as group:
        folder = RunFolder(Path(out), mute=not group.is_main)
        category = read_category(Path(data), seed=seed, all_good=all_good)
        size = None
        if automatic:
            config, size = resized(config, sizes_of(category.train), resolution, smallest_defect)
        if group.broadcast(resume and folder.model.exists()):
            asked = {"method": chosen.name, "config": dataclasses.asdict(config), "protocol": protocol, "seed": seed}
            return _finished(folder, category, asked | {"false_alarms": false_alarms}, None if minutes else epochs)
        require_images(chosen.load(), len(category.train), category.train_notes)
        split = _split(chosen.load(), category.train, seed)
        with folder.claimed(resume=resume):
            for line in (*category.train_notes, *(size.lines() if size else ())):
                folder.note(line)
            training, validation = _load(split, config, folder, strict, progress)
            require_images(chosen.load(), len(training) + len(validation))
            held_out = f", {len(validation)} to validate on" if validation else ""
            folder.note(f"{category.name}: {len(training)} good images to train on{held_out}")
            torch.manual_seed(seed)
            detector = chosen.load()(config).to(device_)
            stored = _stored(folder, group)
            precision_ = select_precision(detector, precision, stored)
            pixels = training.pixels, validation.pixels
            plans = select_plans(detector, protocol, epochs, budget, precision_, *pixels, stored, group)
            training_hash = data_hash((*training.samples, *validation.samples))
            run = run_settings(chosen.name, detector, protocol, plans, seed, false_alarms, training_hash, precision_)
            # Measured values, such as the precision, might differ between processes.
            run = RunSettings(**group.broadcast(dataclasses.asdict(dataclasses.replace(run, processes=group.size))))
            folder.record(run)
            with bars(shown=progress and group.is_main):
                return _trained(detector, run, category.name, training, validation, folder, group, callback)


def _split(kind: type[Detector], samples: tuple[Sample, ...], seed: int) -> tuple[tuple[Sample, ...], ...]:
    """Return training and validation images; none for validation of a method with a closed form, fitted on all."""
    if issubclass(kind, FittedDetector):
        return samples, ()
    return split_validation(samples, VALIDATION_FRACTION, seed)


def require_images(kind: type[Detector], count: int, notes: Sequence[str] = ()) -> None:
    """Check that there are as many good images as a method needs; the notes on what is not used are in the error.

    Raises:
        DataError: there are fewer.
    """
    required = kind.required_images()
    if count < required:
        hint = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"found {count} good images{hint}, but {kind.name} needs at least {required}; "
            "give more images of good parts"
        )


def run_settings(
    method: str,
    detector: Detector,
    protocol: Protocol,
    plans: Sequence[Training],
    seed: int,
    false_alarms: float,
    training_hash: str,
    precision: Precision,
) -> RunSettings:
    """Return the settings of a run of one process on this machine."""
    return RunSettings(
        method=method,
        config=dataclasses.asdict(detector.config),
        protocol=protocol,
        plan={plan.stage: dataclasses.asdict(plan) for plan in plans},
        seed=seed,
        false_alarms=false_alarms,
        training_hash=training_hash,
        device=detector.device.type,
        precision=precision,
        threads=torch.get_num_threads(),
    )


def fit_detector(
    detector: Detector,
    run: RunSettings,
    training: Pixels,
    validation: Pixels,
    folder: RunFolder | None,
    group: ProcessGroup,
    callback: Callback | None,
) -> Residuals | None:
    """Fit or train a new detector, and return the out-of-fold residuals, if fitting gives them.

    folder: gets log, history and checkpoints; None: nothing is written.
    """
    where = f"{run.device}, {run.threads} threads"
    if isinstance(detector, FittedDetector):
        _note(folder, f"fitting on {where}")
        return detector.fit(training, run.seed) if group.is_main else None
    assert isinstance(detector, GradientDetector)
    plans = [from_json(Training, plan) for plan in run.plan.values()]
    where += f", {group.size} processes" if group.size > 1 else ""
    epochs = " + ".join(str(plan.max_epochs) for plan in plans)
    _note(folder, f"{epochs} epochs in {run.precision} on {where}")
    selected = descend(
        detector,
        plans,
        seed=run.seed,
        precision="bf16" if run.precision == "bf16" else "fp32",
        folder=None if folder is None else folder.path,
        training=training,
        validation=validation,
        group=group,
        callback=callback,
    )
    for best in selected:
        _note(folder, f"{best.stage}: selected epoch {best.epoch}: validation loss {best.validation_loss:.5f}")
    detector.eval()
    if group.is_main:
        detector.conclude(training, validation)
    return None


def select_precision(detector: Detector, wanted: WantedPrecision, stored: RunSettings | None) -> Precision:
    """Return the precision of gradient descent; a resumed run keeps the one that was measured for it."""
    if not isinstance(detector, GradientDetector):
        return "fp32"
    if wanted != "auto":
        return wanted
    if stored is not None:
        return "bf16" if stored.precision == "bf16" else "fp32"
    return fastest_precision(detector.device.type)


def calibrated_model(
    detector: Detector,
    run: RunSettings,
    category: str,
    pixels: tuple[Pixels, Pixels],
    skipped: int,
    out_of_fold: Residuals | None,
    folder: RunFolder | None,
) -> StoredModel:
    """Calibrate a trained detector, and return it with its header, not stored yet.

    pixels: of the training and of the validation images. folder: gets the log; None: nothing is written.
    """
    training, validation = pixels
    summary = calibrate(detector, training, validation, out_of_fold, run.seed)
    make_contiguous(detector)
    if weights := detector.distance_weights:
        _note(folder, f"weights of the distances: {_rounded(weights)}")
    if summary.kind == "own":
        _note(folder, "the map is in units of good images; no calibration is needed")
    else:
        likelihoods = _rounded(summary.log_likelihood)
        _note(folder, f"calibrated by {summary.kind}; log-likelihood of a held-out pixel: {likelihoods}")
    header = Header(
        method=run.method,
        config=run.config,
        calibration=dataclasses.asdict(summary),
        category=category,
        seed=run.seed,
        protocol=run.protocol,
        training={"stages": run.plan, "precision": run.precision, "device": run.device},
        images={"training": len(training), "validation": len(validation), "skipped": skipped},
        training_hash=run.training_hash,
        versions=versions(("metalad", "torch", "numpy")),
        false_alarms=run.false_alarms,
        thresholds={scoring: detector.threshold(run.false_alarms, scoring) for scoring in SCORINGS},
    )
    # With lists for tuples, as a header that is read from a file.
    header = Header(**json.loads(json.dumps(dataclasses.asdict(header))))
    return StoredModel(detector, header, None)


def _finished(folder: RunFolder, category: Category, asked: Mapping[str, Any], epochs: int | None) -> Model:
    model = read_model(folder.path)
    if not model.header.images["skipped"]:
        asked = {**asked, "training_hash": data_hash(category.train)}
    require_same(folder.path, dataclasses.asdict(model.header), asked)
    for plan in model.header.training["stages"].values() if epochs is not None else ():
        require_same(folder.path, {"epochs": plan["max_epochs"]}, {"epochs": epochs})
    folder.note(f"{folder.path} is finished; nothing to resume")
    return Model(model)


def _load(
    split: Sequence[Sequence[Sample]], config: DetectorConfig, folder: RunFolder, strict: bool, progress: bool
) -> tuple[Images, Images]:
    """Load the training and the validation images, and log what was noted about them."""
    reading = Reading(find_white_level([sample.path for part in split for sample in part]), strict=strict)
    training, *held_out = (
        load_images(part, config.framing, strict=strict, progress=progress, reading=reading) for part in split if part
    )
    validation = held_out[0] if held_out else training.without_images()
    for skipped in (*training.skipped, *validation.skipped):
        folder.note(f"skipped {skipped.path}: {skipped.reason}")
    if reading.white_level != FULL_RANGE:
        folder.note(f"16-bit values up to {reading.white_level} are used, as in the training images")
    hashes, single_color = (*training.hashes, *validation.hashes), (*training.single_color, *validation.single_color)
    for line in (*reading.notes.lines(), *likeness_notes(names_of(training, validation), hashes, single_color)):
        folder.note(line, logging.WARNING)
    return training, validation


def _stored(folder: RunFolder, group: ProcessGroup) -> RunSettings | None:
    stored = folder.stored()
    values = group.broadcast(dataclasses.asdict(stored) if stored else None)
    return RunSettings(**values) if values else None


def _trained(
    detector: Detector,
    run: RunSettings,
    category: str,
    training: Images,
    validation: Images,
    folder: RunFolder,
    group: ProcessGroup,
    callback: Callback | None,
) -> Model:
    out_of_fold = fit_detector(detector, run, training.pixels, validation.pixels, folder, group, callback)
    model = None
    if group.is_main:
        model = _conclude(detector, run, category, training, validation, out_of_fold, folder)
    group.broadcast(None)  # the others wait for the model file
    return Model(model or read_model(folder.path))


def _conclude(
    detector: Detector,
    run: RunSettings,
    category: str,
    training: Images,
    validation: Images,
    out_of_fold: Residuals | None,
    folder: RunFolder,
) -> StoredModel:
    skipped = len(training.skipped) + len(validation.skipped)
    pixels = (training.pixels, validation.pixels)
    model = calibrated_model(detector, run, category, pixels, skipped, out_of_fold, folder)
    hashes = (*training.hashes, *validation.hashes, *detector.further_hashes)
    model = with_image_facts(model, training.white_level, hashes)
    names = names_of(training, validation)
    outliers = screen(model, *pixels, names)
    write_model(folder.model, detector, model.header)
    folder.checkpoint.unlink(missing_ok=True)
    folder.note(f"wrote {folder.model}; thresholds: {_rounded(model.header.thresholds)}")
    pictures = folder.path / OUTLIERS
    samples = (*training.samples, *validation.samples)
    write_pictures(pictures, model, outliers, samples, Reading(training.white_level))
    for line in screening_lines(outliers, names, pictures):
        folder.note(line, logging.WARNING)
    return dataclasses.replace(model, path=folder.model)


def with_image_facts(model: StoredModel, white_level: int, image_hashes: Sequence[str]) -> StoredModel:
    """Return a model whose header has the white level and the hashes of its images."""
    header = dataclasses.replace(
        model.header, white_level=white_level, image_hashes=[short_hash(each) for each in image_hashes]
    )
    return dataclasses.replace(model, header=header)


def _note(folder: RunFolder | None, line: str) -> None:
    """Log a line, also in the run's log file if there is one."""
    if folder is None:
        logger.info("%s", line)
    else:
        folder.note(line)


def _rounded(values: Mapping[str, float]) -> str:
    return json.dumps({name: round(value, 4) for name, value in values.items()})
