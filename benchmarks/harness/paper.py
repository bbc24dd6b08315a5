"""The numbers printed in the paper (De Nardin et al. 2022, DOI 10.1142/S0129065722500307, section 4).

Tables 3 and 4: "normalized area under the ROC curve up to a mean FPR per pixel of 30 %", MVTec AD. The numbers may
nevertheless be full AUROC; our tables show both interpretations. Table 5: image AUROC in percent on Head CT,
mean ± spread. Table 6: millions of parameters. Table 4 mixes configurations of Table 3 and differs from it on hazelnut.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from metalad.data.published import plain

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
PRODUCTS = (
    "bottle",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "screw",
    "toothbrush",
    "transistor",
    "zipper",
)


@dataclass(frozen=True)
class Published:
    """A printed number in the unit of its table, and its spread if one is printed."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: a line has one number per column; the last line may be `mean`."""

    title: str
    columns: tuple[str, ...]
    lines: Mapping[str, tuple[float, ...]]
    spreads: Mapping[str, tuple[float, ...]]

    def number(self, line: str, column: str) -> Published | None:
        """Return the printed number, None if there is none."""
        if line not in self.lines or column not in self.columns:
            return None
        index = self.columns.index(column)
        return Published(self.lines[line][index], self.spreads[line][index] if line in self.spreads else None)


TABLES: Mapping[str, PaperTable] = {
    "Table 3": PaperTable(
        "AUROC up to FPR 0.3 of MeTAL's configurations",
        (
            "Only squares (No mask)",
            "Only squares (Masked)",
            "Squares + Rows",
            "Squares + Cols",
            "Rows + Cols",
            "Squares + Rows + Cols",
        ),
        {
            "carpet": (0.495, 0.510, 0.712, 0.723, 0.755, 0.661),
            "grid": (0.814, 0.835, 0.884, 0.883, 0.800, 0.817),
            "leather": (0.734, 0.792, 0.976, 0.905, 0.723, 0.723),
            "tile": (0.727, 0.754, 0.771, 0.772, 0.659, 0.690),
            "wood": (0.701, 0.757, 0.836, 0.851, 0.808, 0.840),
            "bottle": (0.796, 0.812, 0.850, 0.847, 0.821, 0.842),
            "cable": (0.683, 0.715, 0.701, 0.701, 0.753, 0.700),
            "capsule": (0.863, 0.895, 0.891, 0.885, 0.889, 0.893),
            "hazelnut": (0.927, 0.951, 0.953, 0.945, 0.951, 0.942),
            "metal_nut": (0.712, 0.721, 0.773, 0.779, 0.865, 0.806),
            "pill": (0.815, 0.835, 0.852, 0.852, 0.806, 0.850),
            "screw": (0.770, 0.818, 0.901, 0.905, 0.903, 0.903),
            "toothbrush": (0.926, 0.949, 0.975, 0.966, 0.967, 0.971),
            "transistor": (0.848, 0.855, 0.841, 0.860, 0.866, 0.865),
            "zipper": (0.783, 0.805, 0.750, 0.770, 0.634, 0.720),
            "mean": (0.773, 0.800, 0.844, 0.843, 0.814, 0.815),
        },
        {},
    ),
    "Table 4": PaperTable(
        "AUROC up to FPR 0.3 of all methods",
        (
            "f-anoGan",
            "Feature dictionary",
            "Student teacher",
            "l2-AE",
            "SSIM-AE",
            "Texture inspection",
            "Variation model",
            "VT-ADL",
            "Ours",
        ),
        {
            "carpet": (0.251, 0.943, 0.927, 0.287, 0.365, 0.874, 0.162, 0.549, 0.712),
            "grid": (0.550, 0.872, 0.974, 0.741, 0.820, 0.878, 0.488, 0.569, 0.884),
            "leather": (0.574, 0.819, 0.976, 0.491, 0.356, 0.975, 0.381, 0.817, 0.976),
            "tile": (0.180, 0.854, 0.946, 0.174, 0.156, 0.314, 0.304, 0.589, 0.771),
            "wood": (0.392, 0.720, 0.895, 0.417, 0.404, 0.723, 0.408, 0.682, 0.836),
            "bottle": (0.422, 0.953, 0.943, 0.528, 0.624, 0.454, 0.667, 0.687, 0.850),
            "cable": (0.453, 0.797, 0.866, 0.510, 0.302, 0.512, 0.423, 0.751, 0.701),
            "capsule": (0.362, 0.793, 0.952, 0.732, 0.799, 0.698, 0.843, 0.615, 0.891),
            "hazelnut": (0.825, 0.911, 0.959, 0.879, 0.847, 0.955, 0.802, 0.926, 0.959),
            "metal_nut": (0.435, 0.862, 0.979, 0.572, 0.539, 0.135, 0.462, 0.711, 0.773),
            "pill": (0.504, 0.911, 0.955, 0.690, 0.698, 0.440, 0.666, 0.748, 0.852),
            "screw": (0.814, 0.738, 0.961, 0.867, 0.885, 0.877, 0.697, 0.771, 0.901),
            "toothbrush": (0.749, 0.916, 0.971, 0.837, 0.846, 0.712, 0.775, 0.878, 0.975),
            "transistor": (0.372, 0.527, 0.566, 0.657, 0.562, 0.363, 0.601, 0.689, 0.860),
            "zipper": (0.201, 0.921, 0.964, 0.474, 0.564, 0.928, 0.209, 0.683, 0.750),
            "mean": (0.472, 0.836, 0.922, 0.590, 0.584, 0.656, 0.526, 0.683, 0.844),
        },
        {},
    ),
    "Table 5": PaperTable(
        "image AUROC on Head CT, percent",
        ("OCGAN", "LSA", "GT", "MKD", "MeTAL (Squares Only)", "MeTAL (Squares+Rows)"),
        {"headct": (51.20, 81.67, 49.5, 80.4, 81.35, 86.32)},
        {"headct": (0.358, 3.626, 3.873, 0.006, 1.153, 4.03)},
    ),
    "Table 6": PaperTable(
        "millions of parameters",
        ("f-AnoGAN", "Feature dictionary", "Student teacher", "VT-ADL", "MKD", "Ours (Products)", "Ours (textures)"),
        {"parameters": (24.6, 11.5, 26.0, 25.0, 15.0, 17.8, 26.3)},
        {},
    ),
}

_OTHER_NAMES = {"metal": "ours", "uninformedstudents": "studentteacher", "featuredict": "featuredictionary"}


def column_of(table: str, method: str) -> str | None:
    """Return the column of a registered method in a table of the paper, None if it has no column."""
    name = plain(method)
    wanted = {name, _OTHER_NAMES.get(name, name)}
    return next((column for column in TABLES[table].columns if plain(column) in wanted), None)
