"""One image file with what is known of it, and a category: the images to train on and to test on."""

from dataclasses import dataclass
from pathlib import Path

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image file; `defect` is "good" or the kind of defect, `mask` its ground truth, if there is one."""

    path: Path
    abnormal: bool
    defect: str
    mask: Path | None = None

    @property
    def name(self) -> str:
        """The file's name behind its folder's, as in `broken_large/000.png`."""
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass(frozen=True)
class Category:
    """The images of one kind of thing; `layout` is "mvtec", "folder" or "head-ct", `train` is all good."""

    name: str
    root: Path
    layout: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
