"""The result of `watch` for one image, as it is stored in the log."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from metalad.results.prediction import SavedPrediction


@dataclass(frozen=True)
class LoggedPrediction(SavedPrediction):
    """A result with its place in the log.

    id: the number of the result; numbers increase. time: when it was stored, in UTC, as in ISO 8601.
    sha256: of the file's content; None for a frame of a camera or a stream.
    moved_to: where `watch --move` moved the file.
    """

    id: int = 0
    time: str = ""
    sha256: str | None = None
    moved_to: Path | None = None

    @classmethod
    def of(
        cls, saved: SavedPrediction, id: int, time: str, sha256: str | None, moved_to: Path | None = None
    ) -> "LoggedPrediction":
        """Return a result with its place in the log."""
        values = {field.name: getattr(saved, field.name) for field in fields(SavedPrediction)}
        return cls(**values, id=id, time=time, sha256=sha256, moved_to=moved_to)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "LoggedPrediction":
        """Return the result of a row of the table `results`; `moved_to` is a path or None."""
        saved = SavedPrediction.from_dict(json.loads(row["result"]), row["threshold"])
        return cls.of(saved, row["id"], row["time"], row["sha256"], row["moved_to"])

    def to_dict(self) -> dict[str, Any]:
        """Return id, time, the entries of `SavedPrediction.to_dict`, sha256 and moved_to as JSON's own types."""
        moved_to = None if self.moved_to is None else str(self.moved_to)
        return {"id": self.id, "time": self.time, **super().to_dict(), "sha256": self.sha256, "moved_to": moved_to}

    def moved(self, destination: Path) -> "LoggedPrediction":
        """Return the result with the path that its file was moved to."""
        return replace(self, moved_to=destination)
