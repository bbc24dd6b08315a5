"""The model of the public API: a trained detector that scores images of every kind that Python knows."""

import contextlib
import glob
import html
import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from jaxtyping import Float, UInt8

from metalad.data.convert import is_image, to_rgb
from metalad.data.images import read_image
from metalad.data.live import LiveSource, LiveStream, live_source
from metalad.data.pages import split_page
from metalad.data.products import logged_products
from metalad.data.reading import Reading, with_pages
from metalad.data.video import decoded_in_order, is_video
from metalad.inference.model import Header, ScoringModel
from metalad.inference.stream import (
    InferredImage,
    Predictor,
    UnreadableImage,
    default_batch_size,
    infer_one,
    infer_stream,
)
from metalad.results.caution import Caution
from metalad.results.prediction import Result
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ConfigError, DataError, ModelFileError
from metalad.runtime.progress import logger
from metalad.runtime.settings import whole_number
from metalad.storage.opening import open_model

if TYPE_CHECKING:
    from metalad.storage.model_file import StoredModel


@dataclass(frozen=True, eq=False)
class _Input:
    """One image to score: RGB bytes in memory, or a file."""

    pixels: UInt8[np.ndarray, "height width 3"] | None
    path: Path | None
    reading: Reading

    def load(self) -> UInt8[np.ndarray, "height width 3"]:
        if self.pixels is not None:
            return self.pixels
        assert self.path is not None
        return read_image(self.path, self.reading)


class Model:
    """A trained or exported model with its threshold; made by `metalad.train`, `metalad.fit` or `metalad.load`."""

    def __init__(self, opened: ScoringModel) -> None:
        self._opened = opened

    @property
    def opened(self) -> ScoringModel:
        """The engine and the header; internal, may change without notice."""
        return self._opened

    @property
    def stored(self) -> "StoredModel":
        """The detector and its header; internal, may change without notice.

        Raises:
            ModelFileError: the model is an exported file, which has no detector.
        """
        return stored_model(self._opened, "auto")

    @property
    def header(self) -> Header:
        """What the model was trained with: method, settings, seed, versions, numbers of images, thresholds."""
        return self._opened.header

    @property
    def path(self) -> Path | None:
        """The model file; None if the model was not saved."""
        return self._opened.path

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.header.method

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the method."""
        return dict(self.header.config)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that images are resized to, in pixels."""
        return self._opened.engine.image_size

    @property
    def images(self) -> int:
        """The number of good images that the model was trained on."""
        return self.header.images["training"]

    @property
    def threshold(self) -> float:
        """The score above which an image is anomalous, for the false-alarm rate that the model was trained with."""
        return self._opened.threshold()

    def threshold_for(self, false_alarms: float, scoring: Scoring | None = None) -> float:
        """Return the threshold for another false-alarm rate, a probability between 0 and 1.

        Raises:
            ConfigError: the rate is not between 0 and 1.
        """
        return self._opened.threshold(false_alarms, scoring)

    def out_of_fold_scores(self, scoring: Scoring | None = None) -> Float[np.ndarray, " images"]:
        """Return the image scores of good images, unseen by what scores them, that thresholds are computed from."""
        return self._opened.normal_scores(self._opened.scoring(scoring)).astype(np.float64)

    def caution(self, false_alarms: float | None = None, scoring: Scoring | None = None) -> Caution | None:
        """Return a caution if the good images are too few to support a false-alarm rate, else None.

        It has a `severity` (caution, warning or severe) and a `text`; as a string it is one line with both.
        """
        return self._opened.caution(false_alarms, scoring)

    @overload
    def predict(
        self,
        x: Any,
        *,
        stream: Literal[True],
        scoring: Scoring | None = None,
        false_alarms: float | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        every: int = 1,
        strict: bool = False,
    ) -> Generator[Result, None, None]: ...

    @overload
    def predict(
        self,
        x: Any,
        *,
        stream: Literal[False] = False,
        scoring: Scoring | None = None,
        false_alarms: float | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        every: int = 1,
        strict: bool = False,
    ) -> Any: ...

    def predict(
        self,
        x: Any,
        *,
        stream: bool = False,
        scoring: Scoring | None = None,
        false_alarms: float | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        every: int = 1,
        strict: bool = False,
    ) -> Any:
        """Score one image or many. Nothing is written.

        Args:
            x: one image: the path of a file, a Pillow image, a NumPy array [height, width] or [height, width, 3], a
                torch tensor [3, height, width], each of uint8, uint16 or floats in [0, 1]. Or many: a folder, whose
                images are found at any depth, a pattern such as `line/*.png`, or a list or an iterator of images. Of a
                file with several pages, a folder or pattern gives all; a path gives the first, `scan.tif[2]` another.
                A video file gives its frames; `camera:0` or `rtsp://host/stream` gives the newest frame of a camera
                or a stream whenever one can be scored, without end, and needs `stream`.
            stream: of many images, return a generator, whose memory does not grow, instead of a list.
            scoring: `calibrated` or `raw`; the model's own by default.
            false_alarms: wanted fraction of good images above the threshold; the model's own by default.
            threshold: the score above which an image is anomalous, instead of the one for a false-alarm rate.
            batch_size: images in a batch; by default 1 on a CPU, 16 on a GPU. It can change a score's last bits.
            every: of a video, a camera or a stream, score every n-th frame.
            strict: of many files, raise at the first unreadable one; by default it is left out, and a warning on the
                logger `metalad` names it.

        Returns:
            One `Result` for one image, a list of results for many, or a generator of them.

        Raises:
            ImageError: an image file cannot be read. DataError: no such path, no images there, or an array of another
            shape, type or range. ConfigError: an impossible setting.
        """
        if whole_number("every", every) < 1:
            raise ConfigError(f"every is {every}; it must be at least 1")
        reader = _Reader(self._opened, scoring, self._opened.threshold_or(threshold, false_alarms, scoring), batch_size)
        reading = Reading(self.header.white_level, strict=strict)
        if isinstance(x, str | Path) and (live := live_source(x)) is not None:
            if not stream:
                raise ConfigError(f"{live.name} has no end; use stream=True")
            return (reader.one(source) for source in _live_inputs(live, every, reading))
        if not stream and (one := _one_input(x, reading)) is not None:
            result = reader.one(one)
            _log_notes(reading)
            return result
        results = reader.many(_inputs(x, reading, every), strict, reading)
        return results if stream else list(results)

    def save(self, path: str | Path) -> Path:
        """Write the model file, and return its path. An existing file is replaced.

        Raises:
            RunError: the file cannot be written. ModelFileError: the model is an exported file.
        """
        from metalad.storage.model_file import StoredModel, write_model

        file, detector = Path(path), self.stored.detector
        write_model(file, detector, self.header)
        self._opened = StoredModel(detector, self.header, file)
        return file

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"<metalad.Model {self.method}, {self.images} images, {height}x{width}, threshold {self.threshold:.4g}>"

    def _repr_html_(self) -> str:
        """Show method, threshold and number of images in a notebook."""
        height, width = self.image_size
        rows = {
            "method": self.method,
            "category": self.header.category,
            "trained on": f"{self.images} good images",
            "image size": f"{height} × {width} px",
            "threshold": f"{self.threshold:.4g}, for {100 * self.header.false_alarms:.3g} % false alarms",
            "caution": str(self.caution() or ""),
        }
        cells = (f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items() if text)
        return f"<table>{''.join(cells)}</table>"


class _Reader:
    """Scores inputs by one scoring at one threshold."""

    def __init__(self, model: ScoringModel, scoring: Scoring | None, threshold: float, batch_size: int | None) -> None:
        self.scoring = model.scoring(scoring)
        self.threshold = threshold
        if batch_size is not None and whole_number("batch_size", batch_size) < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        size = batch_size or default_batch_size(model.engine.device_type)
        self.predictor = Predictor(model.engine, (self.scoring,), size)

    def one(self, source: _Input) -> Result:
        return self._result(infer_one(self.predictor, source, source.load))

    def many(self, sources: Iterable[_Input], strict: bool, reading: Reading) -> Generator[Result, None, None]:
        sources = decoded_in_order(sources, lambda source: source.path if source.pixels is None else None)
        stream = infer_stream(self.predictor, sources, _Input.load, lambda item: self._finish(item, strict))
        with contextlib.closing(stream) as results:
            for result in results:
                if result is not None:
                    yield result
        _log_notes(reading)

    def _finish(self, item: InferredImage[_Input] | UnreadableImage[_Input], strict: bool) -> Result | None:
        if isinstance(item, InferredImage):
            return self._result(item)
        if strict or item.source.path is None:
            raise item.error
        logger.warning("skipped: %s", item.error)
        return None

    def _result(self, item: InferredImage[_Input]) -> Result:
        score, anomaly_map = item.scores[self.scoring], item.own_map(self.scoring)
        return Result(score, self.threshold, anomaly_map, item.source.path, item.decoded.load)


def opened_model(model: str | Path | Model | ScoringModel, device: str) -> ScoringModel:
    """Return the model of a path or of a public model.

    Raises:
        ModelFileError: no usable model. ConfigError: its method is not installed here, or there is no such device.
    """
    if isinstance(model, Model):
        return model.opened
    return model if isinstance(model, ScoringModel) else open_model(Path(model), device)


def stored_model(model: str | Path | Model | ScoringModel, device: str) -> "StoredModel":
    """Return the trained model of a path or of a public model; raises as `opened_model`, and for an exported file."""
    opened = opened_model(model, device)
    from metalad.storage.model_file import StoredModel

    if not isinstance(opened, StoredModel):
        raise ModelFileError(f"{opened.path} is an exported model, which can only predict; give the trained one")
    return opened


def _one_input(x: Any, reading: Reading) -> _Input | None:
    """Return the one image that `x` is, or None if it is many."""
    if is_image(x):
        return _Input(to_rgb(x, "the image", reading), None, reading)
    if isinstance(x, str | Path) and not _is_many(x):
        return _Input(None, Path(x), reading)
    return None


def _log_notes(reading: Reading) -> None:
    for line in reading.notes.lines():
        logger.warning("%s", line)


def _is_many(path: str | Path) -> bool:
    return (
        Path(path).is_dir()
        or (is_video(Path(path)) and Path(path).exists())
        or (glob.has_magic(str(path)) and not split_page(Path(path))[0].exists())
    )


def _inputs(x: Any, reading: Reading, every: int) -> Iterator[_Input]:
    if (one := _one_input(x, reading)) is not None:
        return iter([one])
    if isinstance(x, str | Path):
        return _files(x, reading, every)
    if not isinstance(x, Iterable):
        raise DataError(f"x is a {type(x).__name__}; give a path, an array, a Pillow image, a tensor, or many of them")
    return itertools.chain.from_iterable(_numbered(number, value, reading, every) for number, value in enumerate(x))


def _numbered(number: int, value: Any, reading: Reading, every: int) -> Iterator[_Input]:
    if isinstance(value, str | Path):
        return _inputs(value, reading, every)
    if not is_image(value):
        raise DataError(f"x[{number}] is a {type(value).__name__}; give paths, arrays, Pillow images or tensors")
    # Copied now, not in a worker thread later: a camera may reuse the buffer, or a file may be closed.
    return iter([_Input(to_rgb(value, f"x[{number}]", reading), None, reading)])


def _live_inputs(source: LiveSource, every: int, reading: Reading) -> Iterator[_Input]:
    return (_Input(frame.pixels, Path(frame.path), reading) for frame in LiveStream(source, every).frames())


def _files(path: str | Path, reading: Reading, every: int) -> Iterator[_Input]:
    if Path(path).is_dir():
        found: Iterator[Path] = logged_products(Path(path))
    else:
        found = map(Path, sorted(glob.iglob(str(path), recursive=True)))  # noqa: PTH207 (takes absolute patterns)
    found = with_pages(found, every)
    first = next(found, None)
    if first is None:
        raise DataError(f"no images in {path}; give a folder or a pattern that contains image files")
    return (_Input(None, file, reading) for file in itertools.chain([first], found))
