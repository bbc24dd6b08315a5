"""An image file with its label, and a category: its training and test images."""

from dataclasses import dataclass
from pathlib import Path

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image file; `defect` is "good" or the defect type.

    mask: the ground truth, if available: a file, or a folder of several masks whose union is the ground truth.
    """

    path: Path
    abnormal: bool
    defect: str
    mask: Path | None = None

    @property
    def name(self) -> str:
        """The file name with the name of its folder, such as `broken_large/000.png`."""
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass(frozen=True)
class Category:
    """The images of one type of object or texture.

    layout: of its folder, see `read_category`.
    train: training images, all good.
    validation: good images of the published validation set; not used, because `train` is split for validation.
    left_out: anomalous images of the published training set; not used.
    train_notes, test_notes: lines about what was found, such as files that are not read, for the user of the training
    images and of the test images.
    """

    name: str
    root: Path
    layout: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    validation: tuple[Sample, ...] = ()
    left_out: tuple[Sample, ...] = ()
    train_notes: tuple[str, ...] = ()
    test_notes: tuple[str, ...] = ()

    def relative(self, sample: Sample) -> str:
        """Return the sample's POSIX path relative to the category's folder, or its full path if it is elsewhere."""
        path = sample.path
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()
