"""The suites of this repository: the paper's tables and figure, ablations, and the default comparison."""

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.harness.declaration import Grid, PaperConfiguration, Suite
from benchmarks.harness.paper import PRODUCTS, TEXTURES, column_of
from metalad.methods import OWN
from metalad.pipelines.benchmark.cells import Configuration
from metalad.runtime.errors import ConfigError

HEAD_CT = "headct"
KINDS = ("bottle", "magnetic_tile", "metal_plate", "cookie")
MASKS = ("blind", "zero-logit", "none")
SPLITS = (0, 1, 2, 3, 4)
SEEDS = (0, 1, 2)
FEATURES = Configuration("metal_features", "metal_features")
METHODS = tuple(method.name for method in OWN)
"""Without those of installed plug-ins, which join no table unasked."""
OURS = ("metal", FEATURES.method)
SIZES = {
    "bottle": "256,256",
    "pill": "256,256",
    "metal_plate": "256,256",
    "cookie": "352,256",
    "magnetic_tile": "288,256",
    "ball_screw": "256,640",
    "juice_bottle": "512,256",
    "circuitboard": "384,576",
    HEAD_CT: "320,256",
}
"""Categories of the suite `rivals`, and the height and width that `metal_features` chooses for their images."""
CHEAP = (*OURS, "patchcore", "padim", "variation_model", "student_teacher")
"""Methods that are trained in a few minutes on a CPU: three seeds each."""
AS_PUBLISHED = {
    "l2_ae": ("image_size=256",),
    "ssim_ae": ("image_size=256",),
    "student_teacher": ("teacher=distilled", "scales=17,33,65", "width=128", "dense=true"),
    "efficientad": (
        "teacher=distilled",
        "image_size=256",
        "width=128",
        "channels=384",
        "autoencoder=64",
        "jitter=true",
    ),
    "f_anogan": ("width=64",),
    "anogan": ("width=64", "search_steps=300"),
    "rd4ad": ("block=bottleneck", "blocks=3,3,4,6"),
    "supersimplenet": ("upsampling=2", "segmentation_width=1024", "classification_width=128"),
    "vt_adl": ("image_size=512", "patch_size=64", "width=512", "depth=6", "heads=8", "hidden_width=1024"),
}
"""Settings of a paper that differ from the method's defaults, because they take a CPU hours."""
LITERAL = (
    "image_size=128",
    "reduction=1",
    "smoothing_sigma=4",
    "guide=none",
    "auxiliary_density=none",
    "target=pixels",
    "attention=anywhere",
    "degrees=0",
    "shift=0",
    "photometric=0",
)
"""MeTAL as in the paper, except for the mask."""
TINY = ("image_size=32", "patch_size=8", "width=16", "hidden_width=32", "smoothing_sigma=1", "reduction=1")


def suites() -> dict[str, Suite]:
    """Return the suites by name; suites of all methods depend on the installed packages."""
    tables = (_table_3(), _table_4(), _table_5(), _table_6(), _figure_9())
    studies = (_literal(), _ablation_mask(), _leak(), _loss(), _start())
    shipped = (_default(), _rivals(), _methods(), *tables, *studies, _smoke())
    return {suite.name: suite for suite in shipped}


def suite_named(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        ConfigError: no such suite.
    """
    if name not in suites():
        raise ConfigError(f"there is no suite {name!r}; there are: {', '.join(suites())}")
    return suites()[name]


def _default() -> Suite:
    ours = (PaperConfiguration("metal", "metal", paper="Squares + Rows"),)
    return Suite(
        "default",
        "`metal` (MeTAL on pixels) and `metal_features`, with default settings, on four categories",
        (Grid((*ours, FEATURES), KINDS, seeds=SEEDS),),
        paper_table="Table 3",
        whole=True,
    )


def _rivals() -> Suite:
    """PatchCore, whose own default is a side of 224 pixels, has the image size of the others.

    `metal_features` has three seeds, except on Head CT, whose seed splits the images into training and test images.
    """
    same_size = tuple(
        Grid((Configuration("patchcore", "patchcore", (f"image_size={size}",)),), (category,))
        for category, size in SIZES.items()
    )
    others = tuple(Configuration(name, name) for name in ("subspace_ad", "rd4ad", "supersimplenet"))
    further = Grid((FEATURES,), tuple(category for category in SIZES if category != HEAD_CT), seeds=SEEDS[1:])
    return Suite(
        "rivals",
        "`metal_features` and four methods with the same backbone and image size, on nine categories",
        (Grid((FEATURES,), tuple(SIZES)), further, *same_size, Grid(others, tuple(SIZES))),
        scorings=("calibrated",),
    )


def _methods() -> Suite:
    names = [name for name in METHODS if name not in OURS]
    others = tuple(PaperConfiguration(name, name, paper=column_of("Table 4", name)) for name in names)
    return Suite(
        "methods",
        "the other methods with default settings, on the same categories",
        (Grid(others, KINDS),),
        scorings=("raw", "calibrated"),
        paper_table="Table 4",
        whole=True,
    )


def _table_3() -> Suite:
    return Suite(
        "table-3",
        "the paper's ablation: six shapes of patches, and the mask as printed",
        (
            Grid(_patches(1), PRODUCTS),
            Grid(_patches(1), KINDS[:1], seeds=SEEDS[1:]),
            Grid(_patches(2), TEXTURES),
            Grid(_patches(1), PRODUCTS, protocol="paper"),
            Grid(_patches(1), KINDS[:1], seeds=SEEDS[1:], protocol="paper"),
            Grid(_patches(2), TEXTURES, protocol="paper"),
        ),
        scorings=("raw", "calibrated"),
        paper_table="Table 3",
        whole=True,
    )


def _patches(depth: int) -> tuple[PaperConfiguration, ...]:
    def metal(label: str, tokens: str, mask: str, paper: str) -> PaperConfiguration:
        settings = (*LITERAL, f"tokens={tokens}", f"mask={mask}", f"depth={depth}")
        return PaperConfiguration(label, "metal", settings, paper)

    return (
        metal("squares, no mask", "squares", "none", "Only squares (No mask)"),
        metal("squares", "squares", "blind", "Only squares (Masked)"),
        metal("squares+rows", "squares,rows", "blind", "Squares + Rows"),
        metal("squares+columns", "squares,columns", "blind", "Squares + Cols"),
        metal("rows+columns", "rows,columns", "blind", "Rows + Cols"),
        metal("squares+rows+columns", "squares,rows,columns", "blind", "Squares + Rows + Cols"),
        metal("squares, zero-logit", "squares", "zero-logit", "Only squares (Masked)"),
        metal("squares+rows, zero-logit", "squares,rows", "zero-logit", "Squares + Rows"),
    )


def _table_4() -> Suite:
    return Suite(
        "table-4",
        "all methods",
        (
            Grid(_every(1), PRODUCTS),
            Grid(tuple(c for c in _every(1) if c.method in CHEAP), KINDS[:1], seeds=SEEDS[1:]),
            Grid(_every(2), TEXTURES),
            Grid(_every(1, AS_PUBLISHED), PRODUCTS, protocol="paper"),
            Grid(_every(2, AS_PUBLISHED), TEXTURES, protocol="paper"),
        ),
        scorings=("raw", "calibrated"),
        paper_table="Table 4",
        whole=True,
    )


def _every(depth: int, others: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> tuple[Configuration, ...]:
    """Return all methods with default settings or those in `others`, MeTAL with the depth for products or textures."""
    settings = {**others, "metal": _of_depth(depth)}
    return tuple(PaperConfiguration(name, name, settings.get(name, ()), column_of("Table 4", name)) for name in METHODS)


def _of_depth(depth: int) -> tuple[str, ...]:
    return () if depth == 1 else (f"depth={depth}",)  # the default depth is omitted: suite `default` shares the cell


def _table_5() -> Suite:
    ours = (
        PaperConfiguration("squares", "metal", (*LITERAL, "tokens=squares"), "MeTAL (Squares Only)"),
        PaperConfiguration("squares+rows", "metal", (*LITERAL, "tokens=squares,rows"), "MeTAL (Squares+Rows)"),
        Configuration("metal", "metal"),
    )
    others = tuple(
        PaperConfiguration(name, name, paper=column_of("Table 5", name))
        for name in METHODS
        if column_of("Table 5", name) is not None
    )
    every = (*ours, FEATURES, *others)
    return Suite(
        "table-5",
        "hemorrhages in head CT, five random splits",
        (Grid(every, (HEAD_CT,), seeds=SPLITS), Grid(every, (HEAD_CT,), seeds=SPLITS, protocol="paper")),
        table="image",
        scorings=("raw", "calibrated"),
        paper_table="Table 5",
    )


def _table_6() -> Suite:
    ours = (
        PaperConfiguration("metal, products", "metal", ("depth=1", "attention=anywhere"), "Ours (Products)"),
        PaperConfiguration("metal, textures", "metal", ("depth=2", "attention=anywhere"), "Ours (textures)"),
    )
    others = tuple(
        PaperConfiguration(name, name, AS_PUBLISHED.get(name, ()), column_of("Table 6", name))
        for name in METHODS
        if name != "metal"
    )
    plain = (*AS_PUBLISHED["vt_adl"], "capsule=false")
    grid = Grid((*ours, *others, PaperConfiguration("vt_adl, without its capsule", "vt_adl", plain, "VT-ADL")))
    return Suite("table-6", "numbers of parameters", (grid,), "parameters", paper_table="Table 6")


def _figure_9() -> Suite:
    """The paper's Figure 9 for MeTAL alone; it shares its cells with `table-4`."""
    products, textures = (
        (PaperConfiguration("metal", "metal", _of_depth(depth), column_of("Table 4", "metal")),) for depth in (1, 2)
    )
    return Suite(
        "figure-9",
        "a picture: MeTAL's reconstruction and anomaly maps for one image per defect type",
        (Grid(products, PRODUCTS), Grid(textures, TEXTURES)),
        paper_table="Table 4",
        whole=True,
        picture=True,
    )


def _literal() -> Suite:
    """Squares and rows on bottle and pill share their cells with `table-3`, the default settings with `default`."""
    papers = (c for c in _patches(1) if c.label in ("squares+rows", "squares+rows, zero-logit"))
    configurations = (*papers, Configuration("metal", "metal"))
    others = tuple(category for category in SIZES if category not in KINDS)
    return Suite(
        "literal",
        "MeTAL with the mask as printed, with the blind mask, and with default settings, on nine categories",
        (Grid(configurations, KINDS, seeds=SEEDS), Grid(configurations, others)),
        scorings=("raw", "calibrated"),
        paper_table="Table 3",
        whole=True,
    )


def _ablation_mask() -> Suite:
    configurations = tuple(
        Configuration(
            f"{mask}, depth {depth}", "metal", (*LITERAL, "tokens=squares,rows", f"mask={mask}", f"depth={depth}")
        )
        for mask in MASKS
        for depth in (1, 2)
    )
    return Suite(
        "ablation-mask",
        "the effect of masking a patch from itself",
        (Grid(configurations, ("bottle",)),),
        scorings=("raw", "calibrated"),
    )


def _leak() -> Suite:
    """The learning rate is constant: a run of few epochs is the beginning of the full run, a cell of `table-3`."""

    def grid(epochs: int | None) -> Grid:
        length = "to its end" if epochs is None else f"{epochs} epochs"
        configurations = (
            Configuration(f"{mask}, {length}", "metal", (*LITERAL, "tokens=squares", f"mask={mask}", "depth=1"))
            for mask in MASKS
        )
        return Grid(tuple(configurations), ("bottle",), protocol="paper", epochs=epochs)

    return Suite(
        "leak",
        "information leaks of the three masks, by number of epochs",
        tuple(grid(epochs) for epochs in (10, 30, 90, 270, None)),
        scorings=("raw",),
    )


def _loss() -> Suite:
    ours = (*LITERAL, "tokens=squares,rows", "mask=blind", "depth=1")
    configurations = (
        Configuration("mean absolute error", "metal", ours),
        Configuration("sum of absolute errors", "metal", (*ours, "absolute_error=sum")),
    )
    return Suite(
        "loss",
        "the absolute error of the loss as a mean, and as the sum of eq. 2",
        (Grid(configurations, ("bottle",)),),
        scorings=("raw", "calibrated"),
    )


def _start() -> Suite:
    """To compare with the cells of `table-3`: the settings changed here, and the batch size, differ."""

    def changed(label: str, *settings: str, masks: tuple[str, ...]) -> tuple[PaperConfiguration, ...]:
        names = tuple(f"{setting.partition('=')[0]}=" for setting in settings)
        return tuple(
            PaperConfiguration(
                f"{shape.label}, {label}",
                "metal",
                settings=(*(text for text in shape.settings if not text.startswith(names)), *settings),
                paper=shape.paper,
            )
            for shape in _patches(1)
            if any(f"mask={mask}" in shape.settings for mask in masks)
        )

    mean = changed("from the mean image", "target=deviations", "attention=anywhere", masks=MASKS)
    neighbours = changed("from mean and neighbours", "target=deviations", "attention=neighbours", masks=MASKS[:1])
    return Suite(
        "start",
        "the paper's shapes of patches, with training that starts from the mean image, and attention to neighbors only",
        (Grid((*mean, *neighbours), KINDS[:1]),),
        scorings=("raw", "calibrated"),
        paper_table="Table 3",
        whole=True,
    )


def _smoke() -> Suite:
    configurations = tuple(Configuration(f"tiny {mask}", "metal", (*TINY, f"mask={mask}")) for mask in MASKS)
    return Suite(
        "smoke",
        "twelve cells of a few seconds to test the harness; the numbers are meaningless",
        (Grid(configurations, ("cookie",), seeds=(0, 1, 2, 3), epochs=1),),
    )
