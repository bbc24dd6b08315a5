"""The registry of methods: one entry each, importable without torch, and one detector a file.

It may import `metalad.detectors` and what stands below; methods do not import each other.

Another package adds a method through the entry-point group `metalad.methods`: the entry's name is the method's, its
value names the detector class (`package.module:MyDetector`), and the module also has the class `<Class>Config`.
"""

import difflib
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
    """A method's name, one line on it, and the location of its detector class (`module:Class`).

    image_level: its paper scores whole images; the anomaly map is metalad's own.
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
        """Import the config class, which is in the module of the detector class and is named after it."""
        module, _, name = self.detector.partition(":")
        config: type[DetectorConfig] = getattr(import_module(module), f"{name}Config")
        return config


OWN = (
    Method(
        "metal",
        "masked transformer that reconstructs each patch from the others (De Nardin 2022)",
        "metalad.methods.metal:Metal",
    ),
    Method(
        "metal_features",
        "distances of pretrained features from codebooks and positional Gaussians; the default",
        "metalad.methods.metal_features:MetalFeatures",
    ),
    Method(
        "patchcore",
        "distance of each patch's feature from a memory bank of good ones (Roth 2022)",
        "metalad.methods.patchcore:PatchCore",
    ),
    Method(
        "padim",
        "Mahalanobis distance from a Gaussian of features at each position (Defard 2021)",
        "metalad.methods.padim:Padim",
    ),
    Method(
        "subspace_ad",
        "distance of each patch's feature from the principal subspace of good ones (Lendering 2026)",
        "metalad.methods.subspace_ad:SubspaceAD",
    ),
    Method(
        "variation_model",
        "each pixel's deviation from its mean, relative to its standard deviation (Steger 2008)",
        "metalad.methods.variation_model:VariationModel",
    ),
    Method(
        "feature_dictionary",
        "distance of each window's feature from a small dictionary (Napoletano 2018)",
        "metalad.methods.feature_dictionary:FeatureDictionary",
    ),
    Method(
        "texture_inspection",
        "likelihood of small patches at each level of a pyramid (Böttger & Ulrich 2016)",
        "metalad.methods.texture_inspection:TextureInspection",
    ),
    Method(
        "gt",
        "classifier of geometric transformations, and the distribution of its outputs (Golan & El-Yaniv 2018)",
        "metalad.methods.gt:GeometricTransformations",
        image_level=True,
    ),
    Method(
        "f_anogan",
        "residual of a Wasserstein GAN with an encoder (Schlegl 2019)",
        "metalad.methods.f_anogan:FAnoGan",
    ),
    Method(
        "anogan",
        "residual of a GAN after a search for the best latent code (Schlegl 2017)",
        "metalad.methods.anogan:AnoGan",
    ),
    Method(
        "ocgan",
        "autoencoder whose latent space is constrained to good images (Perera 2019)",
        "metalad.methods.ocgan:OcGan",
        image_level=True,
    ),
    Method(
        "vt_adl",
        "vision transformer that reconstructs, with a density of patch embeddings (Mishra 2021)",
        "metalad.methods.vt_adl:VtAdl",
    ),
    Method(
        "piade",
        "autoencoder that routes features through capsules (Mishra 2020)",
        "metalad.methods.piade:Piade",
        image_level=True,
    ),
    Method(
        "l2_ae",
        "convolutional autoencoder with squared error (Bergmann 2019)",
        "metalad.methods.l2_ae:L2Autoencoder",
    ),
    Method(
        "student_teacher",
        "students trained to match a teacher's features; error and variance (Bergmann 2020)",
        "metalad.methods.student_teacher:StudentTeacher",
    ),
    Method(
        "efficientad",
        "student of a small teacher, and an autoencoder (Batzner 2024)",
        "metalad.methods.efficientad:EfficientAD",
    ),
    Method(
        "rd4ad",
        "student that decodes a teacher's features from a compressed embedding of them (Deng & Li 2022)",
        "metalad.methods.rd4ad:RD4AD",
    ),
    Method(
        "supersimplenet",
        "segmentation and classification of noise added to features (Rolih 2024)",
        "metalad.methods.supersimplenet:SuperSimpleNet",
    ),
    Method(
        "mkd",
        "small network distilled from a large one at several depths (Salehi 2021)",
        "metalad.methods.mkd:MKD",
    ),
    Method(
        "vae",
        "variational autoencoder with absolute error (Baur 2018)",
        "metalad.methods.vae:Vae",
    ),
    Method(
        "ssim_ae",
        "convolutional autoencoder with structural similarity (Bergmann 2019)",
        "metalad.methods.ssim_ae:SsimAutoencoder",
    ),
    Method(
        "lsa",
        "autoencoder with an autoregressive density of its code (Abati 2019)",
        "metalad.methods.lsa:Lsa",
        image_level=True,
    ),
)


@cache
def methods() -> dict[str, Method]:
    """Return all methods by name: metalad's own, then those of installed packages.

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
    """Return a method by its name; hyphens count as underscores.

    Raises:
        ConfigError: no such method; the text names similar ones, or all.
    """
    known = methods()
    found = name if name in known else name.replace("-", "_")
    if found not in known:
        similar = difflib.get_close_matches(found, known)
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"there are: {', '.join(known)}"
        raise ConfigError(f"there is no method {name!r}; {hint}")
    return known[found]
