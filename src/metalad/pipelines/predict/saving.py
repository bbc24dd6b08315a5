"""Write the map and the overlay of each image, and describe what was written."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from metalad.data.images import MAPS, OVERLAYS, read_image
from metalad.data.likeness import SINGLE_COLOR_NOTE, is_single_color
from metalad.data.reading import Reading
from metalad.inference.engine import Engine
from metalad.inference.stream import InferredImage, Predictor, UnreadableImage
from metalad.pipelines.predict.journal import Plan
from metalad.pipelines.predict.sources import Source
from metalad.results.prediction import SavedPrediction
from metalad.results.regions import find_regions
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ImageError
from metalad.visualization.overlay import draw_overlay, in_thresholds, overlay_suffix, save_picture, to_steps


def load_source(source: Source, reading: Reading | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image of a source as RGB bytes; raises as `read_image`."""
    return read_image(source.path, reading)


@dataclass(frozen=True)
class Writer:
    """Writes the files of an inferred image; the threshold is the unit of the maps.

    strict: an unreadable image raises instead of being described. reading: how image files are read.
    """

    out: Path
    scoring: Scoring
    threshold: float
    strict: bool = False
    maps: bool = True
    overlays: bool = True
    reading: Reading = field(default_factory=Reading, compare=False)

    @classmethod
    def of(cls, plan: Plan, out: Path) -> "Writer":
        """Return the writer of a prediction."""
        reading = Reading(plan.white_level, strict=plan.strict)
        return cls(out, plan.scoring, plan.threshold, plan.strict, plan.maps, plan.overlays, reading)

    def load(self, source: Source) -> UInt8[np.ndarray, "height width 3"]:
        """Return the image of a source as RGB bytes; raises as `read_image`."""
        image = load_source(source, self.reading)
        if is_single_color(image):
            self.reading.notes.add(source.path, [SINGLE_COLOR_NOTE])
        return image

    def predictor(self, engine: Engine, batch_size: int) -> Predictor:
        """Return what computes the maps that this writer needs."""
        return Predictor(engine, (self.scoring,), batch_size)

    def write(self, item: InferredImage[Source] | UnreadableImage[Source]) -> SavedPrediction:
        """Write an image's map and overlay, and describe the result; raises as `predict`."""
        if isinstance(item, UnreadableImage):
            return self._unreadable(item.source, item.error)
        source, score = item.source, item.scores[self.scoring]
        anomaly_map = item.own_map(self.scoring)
        relative = in_thresholds(anomaly_map, self.threshold)
        map_file, overlay_file = None, None
        if self.overlays:
            try:
                overlay_file = self._write_overlay(item, relative)
            except ImageError as error:  # it could be read once, but not again
                return self._unreadable(source, error)
        if self.maps:
            map_file = self.out / MAPS / f"{source.name}.png"
            save_picture(map_file, to_steps(relative))
        return SavedPrediction(
            path=source.path,
            score=score,
            threshold=self.threshold,
            is_anomalous=score > self.threshold,
            regions=find_regions(anomaly_map, self.threshold),
            map=map_file,
            overlay=overlay_file,
            size=item.decoded.size,
            notes=self.reading.notes.of(source.path),
        )

    def _write_overlay(self, item: InferredImage[Source], relative: Float32[np.ndarray, "height width"]) -> Path:
        image = item.decoded.load()
        if image.shape[:2] != item.decoded.size:
            raise ImageError(item.source.path, "another image replaced it during inference")
        file = self.out / OVERLAYS / (item.source.name + overlay_suffix(*item.decoded.size))
        save_picture(file, draw_overlay(image, relative))
        return file

    def _unreadable(self, source: Source, error: ImageError) -> SavedPrediction:
        if self.strict:
            raise error
        return SavedPrediction(source.path, None, self.threshold, None, (), None, None, error.reason)
