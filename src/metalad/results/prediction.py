"""Results of inference: of one image in memory, and of one image whose files were written."""

import base64
import html
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from metalad.results.caution import Severity
from metalad.results.regions import Region, above, find_regions
from metalad.runtime.files import write_json
from metalad.visualization.overlay import draw_overlay, in_thresholds, overlay_suffix, save_picture, to_steps

NOTEBOOK_SIDE = 480
"""Longest side of the overlay that a notebook shows, in pixels."""


@dataclass(frozen=True, eq=False)
class Result:
    """The result for one image.

    score: the image score; higher = more anomalous.
    threshold: the score above which an image is anomalous.
    anomaly_map: one number a pixel, at the image's own size; higher = more anomalous, never negative.
    path: the image file, None for an image that was given as an array.
    load_image: returns the image as RGB bytes; a large file is read again instead of being held in memory.
    """

    score: float
    threshold: float
    anomaly_map: Float32[np.ndarray, "height width"]
    path: Path | None = None
    load_image: Callable[[], UInt8[np.ndarray, "_ _ 3"]] | None = field(default=None, repr=False)

    @property
    def is_anomalous(self) -> bool:
        """Whether the score exceeds the threshold."""
        return self.score > self.threshold

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """True where the anomaly map exceeds the threshold."""
        return above(self.anomaly_map, self.threshold)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The connected parts of the mask, the highest peak first; see `metalad.results.regions.find_regions`."""
        return find_regions(self.anomaly_map, self.threshold)

    def overlay(self) -> Image.Image:
        """Return the image with the map over it, and an outline where the map exceeds the threshold.

        Raises:
            ImageError: the image must be read again, and cannot be.
        """
        return Image.fromarray(draw_overlay(self._image(), in_thresholds(self.anomaly_map, self.threshold)))

    def save(self, out: str | Path, *, name: str | None = None) -> "SavedPrediction":
        """Write the map, the overlay and `to_dict` as OUT/maps/NAME.png, OUT/overlays/NAME.jpg and OUT/NAME.json.

        Args:
            out: a folder; made if it does not exist.
            name: of the files; by default that of the image, or "image".

        Raises:
            RunError: a file cannot be written.
        """
        folder, stem = Path(out), name or (self.path.stem if self.path else "image")
        relative = in_thresholds(self.anomaly_map, self.threshold)
        map_file = folder / "maps" / f"{stem}.png"
        overlay_file = folder / "overlays" / f"{stem}{overlay_suffix(*self.anomaly_map.shape)}"
        save_picture(map_file, to_steps(relative))
        save_picture(overlay_file, draw_overlay(self._image(), relative))
        height, width = self.anomaly_map.shape
        saved = SavedPrediction(
            path=self.path,
            score=self.score,
            threshold=self.threshold,
            is_anomalous=self.is_anomalous,
            regions=self.regions,
            map=map_file,
            overlay=overlay_file,
            size=(height, width),
        )
        write_json(folder / f"{stem}.json", saved.to_dict())
        return saved

    def to_dict(self) -> dict[str, Any]:
        """Return path, score, threshold, is_anomalous, height, width and regions as JSON's own types."""
        height, width = self.anomaly_map.shape
        return {
            "path": None if self.path is None else str(self.path),
            "score": self.score,
            "threshold": self.threshold,
            "is_anomalous": self.is_anomalous,
            "height": height,
            "width": width,
            "regions": [region.to_dict() for region in self.regions],
        }

    def _repr_html_(self) -> str:
        """Show the overlay and the verdict in a notebook."""
        picture = self.overlay()
        picture.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        verdict = "NG: anomalous" if self.is_anomalous else "OK"
        caption = f"<b>{verdict}</b>, score {self.score:.4g}, threshold {self.threshold:.4g}"
        source = f"<br>{html.escape(str(self.path))}" if self.path else ""
        uri = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
        shown = f'<img src="{uri}" alt="overlay"><figcaption>{caption}{source}</figcaption>'
        return f'<figure style="margin:0">{shown}</figure>'

    def _image(self) -> UInt8[np.ndarray, "_ _ 3"]:
        if self.load_image is None:
            raise ValueError("this result was made without its image; overlays need it")
        return self.load_image()


@dataclass(frozen=True)
class SavedPrediction:
    """The result for one image file after its map and overlay were written.

    score, is_anomalous: None where the image could not be read.
    map, overlay: the files written, None where they were not.
    error: why the image could not be read, else None.
    size: height and width of the image, None where it could not be read.
    caution: the severity of a caution about the threshold, which is stated before the first result; else None.
    notes: what was read differently than it is stored, such as an ignored alpha channel.
    """

    path: Path | None
    score: float | None
    threshold: float
    is_anomalous: bool | None
    regions: tuple[Region, ...]
    map: Path | None
    overlay: Path | None
    error: str | None = None
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    caution: Severity | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], threshold: float) -> "SavedPrediction":
        """Rebuild a result from `to_dict`, which has no threshold where there is an error.

        Keys of metalad 0.1 (`abnormal`, no regions) are read, too.
        """
        files = {name: None if values.get(name) is None else Path(values[name]) for name in ("map", "overlay")}
        return cls(
            path=None if values["path"] is None else Path(values["path"]),
            score=values.get("score"),
            threshold=threshold,
            is_anomalous=values.get("is_anomalous", values.get("abnormal")),
            regions=tuple(Region.from_dict(region) for region in values.get("regions", ())),
            error=values.get("error"),
            size=(values["height"], values["width"]) if values.get("height") else None,
            notes=tuple(values.get("notes", ())),
            caution=values.get("caution"),
            map=files["map"],
            overlay=files["overlay"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return path, score, threshold, is_anomalous, height, width, regions, map, overlay, notes; or path, error."""
        path = None if self.path is None else str(self.path)
        if self.error is not None:
            return {"path": path, "error": self.error}
        height, width = self.size or (None, None)
        return {
            "path": path,
            "score": self.score,
            "threshold": self.threshold,
            "is_anomalous": self.is_anomalous,
            "height": height,
            "width": width,
            "regions": [region.to_dict() for region in self.regions],
            **({"caution": self.caution} if self.caution else {}),
            "map": None if self.map is None else str(self.map),
            "overlay": None if self.overlay is None else str(self.overlay),
            **({"notes": list(self.notes)} if self.notes else {}),
        }
