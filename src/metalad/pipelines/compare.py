"""Set evaluated runs side by side: their metrics, their curves, and the same images through each of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from json import dumps, loads
from pathlib import Path

from tqdm import tqdm

from metalad.data import Sample, load_images, read_category
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.rendering import render
from metalad.results.comparison import Comparison, compared
from metalad.results.report import Report
from metalad.runtime.errors import ConfigError, DataError, RunError
from metalad.storage.model_file import Model, find_model, read_model
from metalad.training.device import choose_device
from metalad.visualization.html_comparison import ComparedPictures, write_html_comparison
from metalad.visualization.pictures import embed

SAME_SCORE = 0.1
"""How far a score may move, of the highest or itself, between two machines; more, and the image is another."""


def compare(
    runs: Sequence[Path],
    *,
    data: Path | None = None,
    out: Path = Path("comparison.html"),
    images: int = 12,
    device: str = "auto",
    progress: bool = False,
) -> Comparison:
    """Compare runs that were evaluated on the same test images, and write one self-contained page.

    Args:
        runs: run folders or model files, two or more; each was evaluated, or is now if `data` is given.
        data: the category that they are evaluated on, for those that were not and for the pictures; by default the
            folder that the first run was evaluated on. If that is no longer there, the page has no pictures.
        out: the page.
        images: how many images to show; see `metalad.results.comparison.choose` for which.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show a progress bar on the terminal.

    Raises:
        ConfigError: fewer than two runs, one twice, or a number that cannot be. ModelFileError: no usable model.
        RunError: a run was not evaluated, or was trained anew since, or the page cannot be written.
        DataError: the runs were evaluated on different images, or the images are not those.
    """
    if images < 0:
        raise ConfigError(f"images is {images}; it must be 0 or more")
    names = run_names(runs)
    reports = [_report(run, data, device, progress) for run in runs]
    comparison = compared(names, reports, images)
    folder = data or _known_folder(comparison)
    seen: Mapping[int, ComparedPictures] = {}
    if folder and comparison.choices:
        seen = _look(comparison, runs, folder, str(choose_device(device)), progress)
    write_html_comparison(out, comparison, seen)
    return comparison


def run_names(runs: Sequence[Path]) -> list[str]:
    """Name each run as its folder, or where two are named alike, by as many folders above as tell them apart.

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


def _report(run: Path, data: Path | None, device: str, progress: bool) -> Report:
    file = find_model(run).parent / "evaluation" / "report.json"
    if not file.exists():
        if data is None:
            raise RunError(f"{run} was not evaluated yet; give --data, the category's folder, to do it now")
        return evaluate(run, data, device=device, progress=progress)
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
    there = all((folder / first.verdicts[choice.index].path).is_file() for choice in comparison.choices)
    return folder if there else None


def _look(
    comparison: Comparison, runs: Sequence[Path], data: Path, device: str, progress: bool
) -> Mapping[int, ComparedPictures]:
    """Let each run judge the chosen images: one model in memory at a time, and of its pictures only small ones."""
    seen: dict[int, ComparedPictures] = {}
    for number, run in enumerate(tqdm(runs, "compare", unit="run", disable=not progress, leave=False)):
        model, scoring = read_model(run, device), comparison.reports[number].chosen
        _require_unchanged(run, model, comparison.reports[number])
        samples = _samples(run, model, data, comparison)
        images = load_images(list(samples.values()), model.detector.config.image_size, strict=True)
        # Of the scores, not of the threshold: few good images put that anywhere.
        slack = SAME_SCORE * max(abs(verdict.score) for verdict in comparison.verdicts[number])
        for index, sample, pixels in zip(samples, images.samples, images.pixels, strict=True):
            rendering = render(model.detector, sample, pixels, scoring.name)
            score = comparison.verdicts[number][index].score
            if not math.isclose(rendering.score, score, rel_tol=SAME_SCORE, abs_tol=slack):
                raise DataError(f"{sample.path} is not the image that {run} was evaluated on; evaluate it again")
            first = seen.get(index) or ComparedPictures(embed(rendering.image), embed(rendering.white_truth), ())
            overlay = embed(rendering.overlay(scoring.threshold))
            seen[index] = replace(first, overlays=(*first.overlays, overlay))
    return seen


def _require_unchanged(run: Path, model: Model, report: Report) -> None:
    now = loads(dumps(asdict(model.header)))
    # What another version did not write down then is no difference.
    if any(report.settings[name] != now[name] for name in now if name in report.settings):
        raise RunError(f"{run} was trained anew since it was evaluated; evaluate it again")


def _samples(run: Path, model: Model, data: Path, comparison: Comparison) -> dict[int, Sample]:
    category = read_category(data, seed=model.header.seed)
    known = {category.relative(sample): sample for sample in category.test}
    found = {}
    for choice in comparison.choices:
        path = comparison.reports[0].verdicts[choice.index].path
        if path not in known:
            raise DataError(f"{data} has no {path}, on which {run} was evaluated; give the folder that has")
        found[choice.index] = known[path]
    return found
