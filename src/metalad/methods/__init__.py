"""The register of methods: one line each, importable without torch.

Another package adds its own through the entry-point group `metalad.methods`: the entry's name is the method's, its
value names the detector class (`package.module:MyDetector`), and the module's `<Class>Config` lies beside it.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from metalad.runtime.errors import ConfigError

if TYPE_CHECKING:
    from metalad.detectors.base import Detector, DetectorConfig

GROUP = "metalad.methods"


@dataclass(frozen=True)
class Method:
    """A method's name, one line on it, and where its detector class lies (`module:Class`).

    image_level: its paper judges whole images; the anomaly map is metalad's own.
    """

    name: str
    summary: str
    detector: str
    image_level: bool = False

    def load(self) -> "type[Detector]":
        """Import the detector class."""
        module, _, name = self.detector.partition(":")
        detector: type[Detector] = getattr(import_module(module), name)
        return detector

    def load_config(self) -> "type[DetectorConfig]":
        """Import the config class, which lies beside the detector class and is named after it."""
        module, _, name = self.detector.partition(":")
        config: type[DetectorConfig] = getattr(import_module(module), f"{name}Config")
        return config


OWN = (
    Method(
        "metal",
        "masked transformer that rebuilds each patch from the others (De Nardin 2022)",
        "metalad.methods.metal:Metal",
    ),
    Method(
        "metal_features",
        "how far a pretrained network's features lie from the typical, and from what is usual at their place",
        "metalad.methods.metal_features:MetalFeatures",
    ),
    Method(
        "patchcore",
        "distance of each patch's feature from a bank of normal ones (Roth 2022)",
        "metalad.methods.patchcore:PatchCore",
    ),
    Method("padim", "a normal law of features at each place (Defard 2021)", "metalad.methods.padim:Padim"),
    Method(
        "variation_model",
        "each pixel's difference from its normal value, in its normal variation (Steger 2008)",
        "metalad.methods.variation_model:VariationModel",
    ),
    Method(
        "feature_dictionary",
        "distance of each window's feature from a few typical ones (Napoletano 2018)",
        "metalad.methods.feature_dictionary:FeatureDictionary",
    ),
    Method(
        "texture_inspection",
        "how unlikely small patches are at each level of a pyramid (Böttger & Ulrich 2016)",
        "metalad.methods.texture_inspection:TextureInspection",
    ),
    Method(
        "gt",
        "a classifier of flips, shifts and turns, and the law of its answers (Golan & El-Yaniv 2018)",
        "metalad.methods.gt:GeometricTransformations",
        image_level=True,
    ),
    Method(
        "f_anogan",
        "what a Wasserstein GAN cannot draw from an encoder's code (Schlegl 2019)",
        "metalad.methods.f_anogan:FAnoGan",
    ),
    Method(
        "anogan",
        "what a GAN cannot draw from any code that a search finds (Schlegl 2017)",
        "metalad.methods.anogan:AnoGan",
    ),
    Method(
        "ocgan",
        "autoencoder that can draw nothing but good images (Perera 2019)",
        "metalad.methods.ocgan:OcGan",
        image_level=True,
    ),
    Method(
        "vt_adl",
        "likelihood of each patch's embedding by a transformer that must rebuild the image (Mishra 2021)",
        "metalad.methods.vt_adl:VtAdl",
    ),
    Method(
        "piade",
        "error of an autoencoder that routes an image's features to two capsules (Mishra 2020)",
        "metalad.methods.piade:Piade",
        image_level=True,
    ),
    Method(
        "l2_ae",
        "squared error of an autoencoder that minimises it (Bergmann 2019)",
        "metalad.methods.l2_ae:L2Autoencoder",
    ),
    Method(
        "student_teacher",
        "students that describe good patches as their teacher does, and disagree on others (Bergmann 2020)",
        "metalad.methods.student_teacher:StudentTeacher",
    ),
    Method(
        "efficientad",
        "a student that foretells a small teacher, and an autoencoder (Batzner 2024)",
        "metalad.methods.efficientad:EfficientAD",
    ),
    Method(
        "mkd",
        "a small network that clones a large one on good images, at several depths (Salehi 2021)",
        "metalad.methods.mkd:MKD",
    ),
    Method(
        "vae",
        "absolute error of a variational autoencoder (Baur 2018)",
        "metalad.methods.vae:Vae",
    ),
    Method(
        "ssim_ae",
        "structural dissimilarity of an autoencoder that minimises it (Bergmann 2019)",
        "metalad.methods.ssim_ae:SsimAutoencoder",
    ),
    Method(
        "lsa",
        "error of an autoencoder, and surprise at its code, foretold number by number (Abati 2019)",
        "metalad.methods.lsa:Lsa",
        image_level=True,
    ),
)


@cache
def methods() -> dict[str, Method]:
    """Return every method by its name: ours, then those of installed packages.

    Raises:
        ConfigError: two methods of one name.
    """
    found = {method.name: method for method in OWN}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in found:
            raise ConfigError(
                f"two methods are named {entry.name!r}; uninstall one of {entry.value}, {found[entry.name].detector}"
            )
        package = entry.dist.name if entry.dist else entry.value
        found[entry.name] = Method(entry.name, f"from the package {package}", entry.value)
    return found


def method_named(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ConfigError: no such method; the text lists those there are.
    """
    if name not in methods():
        raise ConfigError(f"there is no method {name!r}; there are: {', '.join(methods())}")
    return methods()[name]
