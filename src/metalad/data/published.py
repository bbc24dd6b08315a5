"""Published data sets: their categories, and the number of images of each.

The numbers are those of the distributed archives; a comment states where the text of a paper differs. Unverified
numbers are not included. The images are neither part of metalad nor downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metalad.runtime.errors import ConfigError

Part = Literal["train", "validation", "test good", "test abnormal", "train abnormal", "good", "abnormal"]
"""Groups of images that are counted. `train` contains good images; `good` and `abnormal` contain all good and all
anomalous images, regardless of the split."""


@dataclass(frozen=True)
class PublishedCategory:
    """A category, its image counts, and alternative names of its folder.

    Data sets without a published split into training and test images have only the parts `good` and `abnormal`.
    """

    name: str
    counts: Mapping[Part, int]
    folders: tuple[str, ...] = ()

    @property
    def has_split(self) -> bool:
        """Whether a split into training and test images was published."""
        return "train" in self.counts


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    name: on the command line. title: the full name. folders: alternative names of its folder.
    licence: of the images; None if the authors do not state one.
    masks: whether each anomalous image has a mask.
    """

    name: str
    title: str
    paper: str
    licence: str | None
    categories: tuple[PublishedCategory, ...]
    folders: tuple[str, ...] = ()
    masks: bool = True

    @property
    def counts(self) -> dict[Part, int]:
        """The image counts of all categories together."""
        parts = dict.fromkeys(part for category in self.categories for part in category.counts)
        return {part: sum(category.counts.get(part, 0) for category in self.categories) for part in parts}


def plain(name: str) -> str:
    """Return a name in lower case, with letters and digits only, so that different spellings are equal."""
    return "".join(character for character in name.lower() if character.isalnum())


def data_set_named(name: str) -> DataSet:
    """Return the data set with a name, in any spelling.

    Raises:
        ConfigError: unknown name; the text lists the known names.
    """
    for data_set in DATA_SETS:
        if plain(name) in plain_names(data_set):
            return data_set
    known = ", ".join(data_set.name for data_set in DATA_SETS)
    raise ConfigError(f"unknown data set {name!r}; known data sets: {known}")


def category_named(name: str) -> PublishedCategory | None:
    """Return the published category with a name or SET/CATEGORY, in any spelling; None if it is unknown."""
    group, _, last = name.rpartition("/")
    for data_set in DATA_SETS:
        if not group or plain(group) in plain_names(data_set):
            for category in data_set.categories:
                if plain(last) in plain_names(category):
                    return category
    return None


def plain_names(declared: DataSet | PublishedCategory) -> frozenset[str]:
    """Return all names of a data set or category, each converted by `plain`."""
    title = (declared.title,) if isinstance(declared, DataSet) else ()
    return frozenset(map(plain, (declared.name, *title, *declared.folders)))


def _categories(
    parts: tuple[Part, ...], counts: Mapping[str, tuple[int, ...]], **folders: tuple[str, ...]
) -> tuple[PublishedCategory, ...]:
    return tuple(
        PublishedCategory(name, dict(zip(parts, numbers, strict=True)), folders.get(name, ()))
        for name, numbers in counts.items()
    )


_SPLIT: tuple[Part, ...] = ("train", "test good", "test abnormal")
_VALIDATED: tuple[Part, ...] = ("train", "validation", "test good", "test abnormal")
_WHOLE: tuple[Part, ...] = ("good", "abnormal")
_CC_BY_NC_SA = "CC BY-NC-SA 4.0"

MVTEC = DataSet(
    "mvtec",
    "MVTec AD",
    "Bergmann et al., CVPR 2019, 10.1109/CVPR.2019.00982, Table 1",
    _CC_BY_NC_SA,
    _categories(
        _SPLIT,
        {
            "carpet": (280, 28, 89),
            "grid": (264, 21, 57),
            "leather": (245, 32, 92),
            "tile": (230, 33, 84),
            "wood": (247, 19, 60),
            "bottle": (209, 20, 63),
            "cable": (224, 58, 92),
            "capsule": (219, 23, 109),
            "hazelnut": (391, 40, 70),
            "metal_nut": (220, 22, 93),
            "pill": (267, 26, 141),
            "screw": (320, 41, 119),
            "toothbrush": (60, 12, 30),
            "transistor": (213, 60, 40),
            "zipper": (240, 32, 119),
        },
    ),
    ("mvtec_anomaly_detection",),
)

# Only the test images of test_public are counted: the ground truth of the private test images is not published.
MVTEC_2 = DataSet(
    "mvtec2",
    "MVTec AD 2",
    "Heckler-Kram et al. 2025, arXiv:2503.21622",
    _CC_BY_NC_SA,
    _categories(
        _VALIDATED,
        {
            "can": (412, 46, 72, 90),
            "fabric": (387, 43, 66, 90),
            "fruit_jelly": (263, 37, 20, 60),
            "rice": (313, 35, 42, 90),
            "sheet_metal": (137, 19, 24, 90),
            "vial": (291, 41, 35, 105),
            "wallplugs": (293, 33, 60, 90),
            "walnuts": (432, 48, 60, 90),
        },
    ),
)

# The text of the paper states 1772 training and 304 validation images; the archive contains 1778 and 305.
LOCO = DataSet(
    "loco",
    "MVTec LOCO AD",
    "Bergmann et al., IJCV 2022, 10.1007/s11263-022-01578-9",
    _CC_BY_NC_SA,
    _categories(
        _VALIDATED,
        {
            "breakfast_box": (351, 62, 102, 83 + 90),
            "juice_bottle": (335, 54, 94, 142 + 94),
            "pushpins": (372, 69, 138, 91 + 81),
            "screw_bag": (360, 60, 122, 137 + 82),
            "splicing_connectors": (360, 60, 119, 108 + 85),
        },
    ),
    ("mvtec_loco", "mvtec_loco_anomaly_detection"),
)

# Counts of the one-class split, split_csv/1cls.csv.
VISA = DataSet(
    "visa",
    "VisA",
    "Zou et al., ECCV 2022, arXiv:2207.14315",
    "CC BY 4.0",
    _categories(
        _SPLIT,
        {
            "candle": (900, 100, 100),
            "capsules": (542, 60, 100),
            "cashew": (450, 50, 100),
            "chewinggum": (453, 50, 100),
            "fryum": (450, 50, 100),
            "macaroni1": (900, 100, 100),
            "macaroni2": (900, 100, 100),
            "pcb1": (904, 100, 100),
            "pcb2": (901, 100, 100),
            "pcb3": (905, 101, 100),
            "pcb4": (904, 101, 100),
            "pipe_fryum": (450, 50, 100),
        },
    ),
    ("VisA_20220922", "visa_pytorch"),
)

# The paper states 2830 images; the distributed archive contains 2540.
BTAD = DataSet(
    "btad",
    "BTAD",
    "Mishra et al., ISIE 2021, arXiv:2104.10036",
    None,
    _categories(_SPLIT, {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}),
    ("btech", "BTech_Dataset_transformed"),
)

MPDD = DataSet(
    "mpdd",
    "MPDD",
    "Jezek et al., ICUMT 2021, 10.1109/ICUMT54235.2021.9631567",
    None,
    _categories(
        _SPLIT,
        {
            "bracket_black": (289, 32, 47),
            "bracket_brown": (185, 26, 51),
            "bracket_white": (110, 30, 30),
            "connector": (128, 30, 14),
            "metal_plate": (54, 26, 71),
            "tubes": (122, 32, 69),
        },
    ),
)

# The published folds are for supervised training and are not suitable for training on good images only.
KSDD = DataSet(
    "ksdd",
    "KolektorSDD",
    "Tabernik et al., J. Intell. Manuf. 2020, 10.1007/s10845-019-01476-x",
    _CC_BY_NC_SA,
    _categories(_WHOLE, {"kolektor_commutator": (347, 52)}, kolektor_commutator=("kolektorsdd", "ksdd", "kolektor")),
    ("kolektor",),
)

KSDD2 = DataSet(
    "ksdd2",
    "KolektorSDD2",
    "Božič et al., Computers in Industry 2021, 10.1016/j.compind.2021.103459",
    _CC_BY_NC_SA,
    _categories(
        ("train", "train abnormal", "test good", "test abnormal"),
        {"kolektor_surface": (2085, 246, 894, 110)},
        kolektor_surface=("kolektorsdd2", "ksdd2"),
    ),
)

MTD = DataSet(
    "mtd",
    "Magnetic tile defects",
    "Huang et al., Visual Computer 2020, 10.1007/s00371-018-1588-5",
    None,
    # 115 blowholes, 85 breaks, 57 cracks, 32 frays, 103 uneven
    _categories(_WHOLE, {"magnetic_tile": (952, 392)}, magnetic_tile=("mtd", "Magnetic-tile-defect-datasets.")),
    ("magnetic_tile", "Magnetic-tile-defect-datasets."),
)

# The number of anomalous training images per class is not published, so only the totals are listed.
DAGM = DataSet(
    "dagm",
    "DAGM 2007",
    "Wieler and Hahn, Weakly Supervised Learning for Industrial Optical Inspection, DAGM 2007",
    None,
    _categories(_WHOLE, {f"Class{number}": (1000, 150) if number <= 6 else (2000, 300) for number in range(1, 11)}),
    ("DAGM_KaggleUpload",),
)

HEAD_CT = DataSet(
    "headct",
    "Head CT hemorrhage",
    "F. Kitamura 2018",
    None,
    _categories(_WHOLE, {"headct": (100, 100)}, headct=("head_ct_hemorrhage",)),
    masks=False,
)

DATA_SETS = (MVTEC, MVTEC_2, LOCO, VISA, BTAD, MPDD, KSDD, KSDD2, MTD, DAGM, HEAD_CT)
