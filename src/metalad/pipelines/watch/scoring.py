"""Score one file or frame, and write its map and overlay."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from metalad.data.images import MAPS, OVERLAYS, read_image
from metalad.data.likeness import SINGLE_COLOR_NOTE, is_single_color
from metalad.data.pages import split_page
from metalad.data.reading import Reading, with_pages
from metalad.pipelines.model import Model
from metalad.pipelines.predict.output_names import shortened
from metalad.results.caution import Severity
from metalad.results.prediction import SavedPrediction
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ImageError
from metalad.visualization.overlay import draw_overlay, in_thresholds, overlay_suffix, save_picture, to_steps

HASH_DIGITS = 8
"""Of the content's hash in the names of maps and overlays, so that a new version of a file gets pictures of its own."""
MAX_NAME = 200
MAX_PATH = 3500
"""Bytes; a longer name of a picture is replaced by a hash."""


@dataclass(frozen=True)
class Scorer:
    """Scores images with a model at a threshold, and writes their pictures; threads may share it.

    only_anomalous: write pictures of anomalous images only.
    """

    model: Model
    out: Path
    scoring: Scoring | None
    threshold: float
    caution: Severity | None
    maps: bool
    overlays: bool
    only_anomalous: bool

    def score_file(self, path: Path, name: str, sha256: str, *, is_last: bool) -> list[SavedPrediction]:
        """Return the result of a file, or of each of its pages.

        Args:
            path: the file.
            name: its path relative to the watched folder, for the names of the pictures.
            sha256: of its content.
            is_last: return a result that names the error if an image cannot be read.

        Raises:
            ImageError: an image cannot be read, unless `is_last`. RunError: a picture cannot be written.
        """
        results = []
        for page in with_pages([path]):
            suffix = page.name.removeprefix(path.name)
            try:
                results.append(self.score_image(page, picture_name(name, sha256, suffix), lambda p: read_image(*p)))
            except ImageError as error:
                if not is_last:
                    raise
                results.append(SavedPrediction(page, None, self.threshold, None, (), None, None, error.reason))
        return results

    def score_image(
        self, path: Path, name: str, load: Callable[[tuple[Path, Reading]], UInt8[np.ndarray, "_ _ 3"]]
    ) -> SavedPrediction:
        """Return the result of one image, whose pictures are named `name`; raises as `score_file`."""
        reading = Reading(self.model.header.white_level)
        image = load((path, reading))
        if is_single_color(image):
            reading.notes.add(path, [SINGLE_COLOR_NOTE])
        result = self.model.predict(image, scoring=self.scoring, threshold=self.threshold)
        height, width, _ = image.shape
        saved = SavedPrediction(
            path=path,
            score=result.score,
            threshold=result.threshold,
            is_anomalous=result.is_anomalous,
            regions=result.regions,
            map=None,
            overlay=None,
            size=(height, width),
            notes=reading.notes.of(path),
            caution=self.caution,
        )
        if self.only_anomalous and not result.is_anomalous:
            return saved
        relative = in_thresholds(result.anomaly_map, result.threshold)
        map_file = self.out / MAPS / f"{name}.png" if self.maps else None
        overlay = self.out / OVERLAYS / (name + overlay_suffix(height, width)) if self.overlays else None
        if map_file is not None:
            save_picture(map_file, to_steps(relative))
        if overlay is not None:
            save_picture(overlay, draw_overlay(image, relative))
        return replace(saved, map=map_file, overlay=overlay)


def picture_name(relative: str, sha256: str, suffix: str = "") -> str:
    """Return the name of an image's pictures: that of the file, with the first digits of its content's hash."""
    folder, _, last = relative.rpartition("/")
    stem = last.rpartition(".")[0] or last
    name = f"{shortened(stem, MAX_NAME)}-{sha256[:HASH_DIGITS]}{suffix}"
    whole = f"{folder}/{name}" if folder else name
    return whole if len(os.fsencode(whole)) <= MAX_PATH else f"{sha256}{suffix}"


def frame_name(path: Path, sha256: str | None) -> str:
    """Return the name of the pictures of a frame of a video, whose hash is given, or of a live source."""
    file, number = split_page(path)
    text = path.name if sha256 is None else f"{file.stem}-{sha256[:HASH_DIGITS]}[{number}]"
    return shortened("".join(c if c.isalnum() or c in "-_.[]@" else "_" for c in text), MAX_NAME)
