"""The served models, by name: loaded at the start, and again when their files change."""

import datetime
import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from metalad.data.content import file_hash
from metalad.inference.model import ScoringModel
from metalad.results.caution import Caution
from metalad.runtime.errors import ConfigError, MetaladError
from metalad.runtime.progress import logger
from metalad.service.batches import Scorer
from metalad.service.problems import Problem
from metalad.service.warming import warm_up
from metalad.storage.opening import open_model

MODEL_FILE = "model.safetensors"
"""The model of a run folder."""
Stamp = tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model.

    name: of the model in requests. hash: SHA-256 of its file. stamp: of the file when it was read, see `_stamp`.
    loaded: when, in UTC. error: why a newer file could not be loaded, else None.
    """

    name: str
    model: ScoringModel
    scorer: Scorer
    hash: str
    stamp: Stamp
    loaded: datetime.datetime
    error: str | None = None

    @property
    def device_type(self) -> str:
        """`cpu`, or the kind of another device."""
        return self.model.engine.device_type

    @cached_property
    def caution(self) -> Caution | None:
        """Why the model's threshold cannot be relied on, else None."""
        return self.model.caution()

    def to_dict(self) -> dict[str, Any]:
        """Return the description for `GET /v1/models`."""
        model, header = self.model, self.model.header
        caution, scoring = self.caution, model.scoring(None)
        return {
            "name": self.name,
            "method": header.method,
            "category": header.category,
            "image_size": list(model.engine.image_size),
            "images": header.images["training"],
            "threshold": model.threshold(),
            "false_alarms": header.false_alarms,
            "scoring": scoring,
            "out_of_fold_scores": [float(score) for score in model.normal_scores(scoring)],
            "caution": None if caution is None else {"severity": caution.severity, "text": caution.text},
            "hash": self.hash,
            "training_hash": header.training_hash,
            "versions": dict(header.versions),
            "device": self.device_type,
            "loaded": self.loaded.isoformat(timespec="seconds"),
            "error": self.error,
        }


def named_paths(texts: Iterable[str]) -> dict[str, Path]:
    """Return the paths of models by name, from texts such as `runs/bottle` or `NAME=PATH`.

    Without a name, a run folder gets its own name, and a file the one of its folder if it is called `model`, else its
    own without the suffix.

    Raises:
        ConfigError: two models have the same name, or a name is empty or contains a slash or a control character.
    """
    paths: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            name, path = _name_of(Path(text)), text
        if not name or "/" in name or not name.isprintable():
            raise ConfigError(f"the model {text!r} has no usable name; write NAME=PATH")
        if name in paths:
            raise ConfigError(f"two models are called {name!r}: {paths[name]} and {path}; write NAME=PATH for one")
        paths[name] = Path(path)
    return paths


def _name_of(path: Path) -> str:
    absolute = path.absolute()
    return absolute.parent.name if absolute.stem == "model" else absolute.stem if absolute.is_file() else absolute.name


@dataclass(frozen=True, eq=False)
class Registry:
    """The served models by name; requests look names up here, and nowhere else."""

    paths: Mapping[str, Path]
    device: str
    served: dict[str, ServedModel] = field(default_factory=dict)
    _changed: dict[str, Stamp] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, texts: Iterable[str], device: str) -> "Registry":
        """Load all models.

        Raises:
            ConfigError: as `named_paths`. ModelFileError: a model cannot be loaded, or cannot score.
        """
        registry = cls(named_paths(texts), device)
        for name, path in registry.paths.items():
            registry.served[name] = _loaded(name, path, device)
        return registry

    def get(self, name: str | None) -> ServedModel:
        """Return a model by name; without a name the only one.

        Raises:
            Problem: no such model (404), or no name where there are several models (422).
        """
        if name is None:
            if len(self.served) == 1:
                return next(iter(self.served.values()))
            raise Problem(422, f"several models are served; add ?model=NAME, one of {', '.join(self.served)}")
        served = self.served.get(name)
        if served is None:
            raise Problem(404, "there is no such model; GET /v1/models lists them", models=list(self.served))
        return served

    def check_files(self) -> None:
        """Load the models whose files changed; a file that cannot be loaded leaves the old model in service.

        A file counts as changed when two checks found the same new state, so that one that is still being written is
        not read.
        """
        with self._lock:
            for name, served in list(self.served.items()):
                stamp = _stamp(self.paths[name])
                if stamp == served.stamp:
                    self._changed.pop(name, None)
                elif self._changed.get(name, ()) != stamp:
                    self._changed[name] = stamp
                else:
                    del self._changed[name]
                    self.served[name] = self._reloaded(served, stamp)

    def _reloaded(self, served: ServedModel, stamp: Stamp) -> ServedModel:
        path = self.paths[served.name]
        if stamp is None:
            error = f"{path} is missing; the model that was loaded from it stays in service"
        else:
            try:
                if _hash(path) == served.hash:
                    return replace(served, stamp=stamp, error=None)
                fresh = _loaded(served.name, path, self.device)
            except (MetaladError, OSError, RuntimeError, MemoryError) as problem:
                error = f"{problem}; the model that was loaded before stays in service"
            else:
                logger.info("%s: loaded again, threshold %.4g", served.name, fresh.model.threshold())
                return fresh
        logger.warning("%s: %s", served.name, error)
        return replace(served, stamp=stamp, error=error)


def _loaded(name: str, path: Path, device: str) -> ServedModel:
    # Before the model is read: a file that changes in between is loaded again at the next check.
    stamp = _stamp(path)
    hash_ = _hash(path) if stamp else ""
    model = open_model(path, device)
    scorer = Scorer(model)
    warm_up(scorer, model.engine, path)
    return ServedModel(name, model, scorer, hash_, stamp, datetime.datetime.now(datetime.UTC))


def _files(path: Path) -> list[Path]:
    """Return the files of a model: that of a run folder, or both files of OpenVINO."""
    if path.is_dir():
        return [path / MODEL_FILE]
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _stamp(path: Path) -> Stamp:
    """Return what changes when a model's files are written or replaced; None where one is missing."""
    try:
        states = [file.stat() for file in _files(path)]
    except OSError:
        return None
    return tuple(value for state in states for value in (state.st_mtime_ns, state.st_size, state.st_ino))


def _hash(path: Path) -> str:
    """Return the SHA-256 of a model's files; of one file that of its bytes."""
    hashes = [file_hash(file) for file in _files(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
