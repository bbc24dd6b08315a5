"""One image file with what is known of it, and a category: the images to train on and to test on."""

from dataclasses import dataclass
from pathlib import Path

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image file; `defect` is "good" or the kind of defect.

    mask: its ground truth, if there is one: a file, or a folder of several that are one mask together.
    """

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
    """The images of one kind of thing.

    layout: how its folder is laid out, as `read_category` names it.
    train: all good.
    validation: good images that the set's authors set aside; counted and not used, as `train` is split anew.
    left_out: abnormal images among those published to train on; counted and not used.
    """

    name: str
    root: Path
    layout: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    validation: tuple[Sample, ...] = ()
    left_out: tuple[Sample, ...] = ()

    def relative(self, sample: Sample) -> str:
        """The sample's path below the category's folder, with slashes; the whole path of one that lies elsewhere."""
        path = sample.path
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()
