"""Compare evaluated runs: their metrics, their curves, and the same images with the map of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from json import dumps, loads
from pathlib import Path

from metalad.data import Sample, read_category
from metalad.data.reading import Reading
from metalad.inference.stream import default_batch_size
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.rendering import infer_and_render
from metalad.pipelines.used_outputs import REPORT, require_own_comparison
from metalad.results.comparison import Comparison, compared
from metalad.results.pages.comparison_page import ComparedPictures, write_html_comparison
from metalad.results.report import Report
from metalad.runtime.errors import ConfigError, DataError, RunError, escaped
from metalad.runtime.files import require_writable
from metalad.runtime.progress import counted
from metalad.storage.model_file import StoredModel, find_model, read_model
from metalad.training.device import choose_device
from metalad.visualization.pictures import embed

SAME_SCORE = 0.1
"""Largest relative difference of a score between two machines; if it is larger, the image is another one."""


def compare(
    runs: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    out: str | Path = Path("comparison.html"),
    images: int = 12,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Comparison:
    """Compare runs that were evaluated on the same test images, and write one self-contained page.

    Args:
        runs: run folders or model files, two or more; with `data`, those that were not evaluated are evaluated now.
        data: the category's folder, for evaluation and for the pictures; by default the folder that the first run was
            evaluated on. If that no longer exists, the page has no pictures.
        out: the page.
        images: how many images to show; see `metalad.results.comparison.choose` for which.
        overwrite: replace a file `out` also if it is not a page of an earlier comparison.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show progress on stderr.

    Raises:
        ConfigError: fewer than two runs, one twice, or a number that cannot be. ModelFileError: no usable model.
        RunError: a run was not evaluated, or was trained again since, or the page cannot be written or is another file.
        DataError: the runs were evaluated on different images, or the images are not those.
    """
    if images < 0:
        raise ConfigError(f"images is {images}; it must be 0 or more")
    require_own_comparison(Path(out), overwrite=overwrite)
    require_writable(Path(out))
    paths = [Path(run) for run in runs]
    names = run_names(paths)
    folder = None if data is None else Path(data)
    if folder is not None:
        for path in paths:
            if not _report_file(path).exists():
                require_writable(_report_file(path))
    reports = [_report(path, folder, device, progress) for path in paths]
    comparison = compared(names, reports, images)
    folder = folder or _known_folder(comparison)
    seen: Mapping[int, ComparedPictures] = {}
    if folder and comparison.choices:
        seen = _pictures(comparison, paths, folder, str(choose_device(device)), progress)
    write_html_comparison(Path(out), comparison, seen)
    return comparison


def run_names(runs: Sequence[Path]) -> list[str]:
    """Name each run after its folder; if two names are equal, with as many parent folders as are needed.

    Raises:
        ModelFileError: no model there. ConfigError: a run is given twice.
    """
    folders = [find_model(run).parent.resolve() for run in runs]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            raise ConfigError(f"{runs[index]} is given twice; give each run once")
    longest = max(len(folder.parts) for folder in folders) if folders else 0
    for depth in range(1, longest + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return []


def _report_file(run: Path) -> Path:
    return find_model(run).parent / "evaluation" / REPORT


def _report(run: Path, data: Path | None, device: str, progress: bool) -> Report:
    file = _report_file(run)
    if not file.exists():
        if data is None:
            raise RunError(f"{run} was not evaluated yet; give --data, the category's folder, to do it now")
        return evaluate(run, data, out=file.parent, device=device, progress=progress)
    try:
        return Report.from_json(loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot use {file} ({error}); evaluate {run} again") from error


def _known_folder(comparison: Comparison) -> Path | None:
    """Return the folder that the first run was evaluated on, if all images that are to be shown are still there."""
    first = comparison.reports[0]
    if first.data is None:
        return None
    folder = Path(first.data)
    there = all((folder / first.images[choice.index].path).is_file() for choice in comparison.choices)
    return folder if there else None


def _pictures(
    comparison: Comparison, runs: Sequence[Path], data: Path, device: str, progress: bool
) -> Mapping[int, ComparedPictures]:
    """Infer the selected images with each run: one model in memory at a time, and only thumbnails of its pictures."""
    seen: dict[int, ComparedPictures] = {}
    for number, run in enumerate(counted(runs, "compare", "run", shown=progress)):
        model, scoring = read_model(run, device), comparison.reports[number].chosen
        _require_unchanged(run, model, comparison.reports[number])
        samples = _samples(run, model, data, comparison)
        batch_size = default_batch_size(model.detector.device.type)
        reading = Reading(model.header.white_level)
        # Relative to the scores, not to the threshold, which few good images can put anywhere.
        slack = SAME_SCORE * max(abs(image.score) for image in comparison.images_by_run[number])
        for index, sample in samples.items():
            rendering = infer_and_render(model.detector, sample, scoring.name, batch_size, reading)
            score = comparison.images_by_run[number][index].score
            if not math.isclose(rendering.score, score, rel_tol=SAME_SCORE, abs_tol=slack):
                raise DataError(f"{sample.path} is not the image that {run} was evaluated on; evaluate it again")
            first = seen.get(index) or ComparedPictures(embed(rendering.image), embed(rendering.white_truth), ())
            overlay = embed(rendering.overlay(scoring.threshold))
            seen[index] = replace(first, overlays=(*first.overlays, overlay))
    return seen


def _require_unchanged(run: Path, model: StoredModel, report: Report) -> None:
    now = loads(dumps(model.header.to_dict()))
    # An entry that an older version did not write is no difference.
    if any(report.settings[name] != now[name] for name in now if name in report.settings):
        raise RunError(f"{run} was trained again since it was evaluated; evaluate it again")


def _samples(run: Path, model: StoredModel, data: Path, comparison: Comparison) -> dict[int, Sample]:
    category = read_category(data, seed=model.header.seed)
    known = {escaped(category.relative(sample)): sample for sample in category.test}
    found = {}
    for choice in comparison.choices:
        path = comparison.reports[0].images[choice.index].path
        if path not in known:
            raise DataError(f"{data} has no {path}, on which {run} was evaluated; give the folder that has")
        found[choice.index] = known[path]
    return found
