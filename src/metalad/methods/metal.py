"""MeTAL, the masked transformer for image anomaly localization (De Nardin et al. 2022, DOI 10.1142/S0129065722500307).

Each square patch is reconstructed from the rest of the image by masked self-attention over square patches and over
whole rows and columns of patches. A large reconstruction error indicates an anomaly. With the `blind` mask, the
default, a patch's output does not depend on the patch's own pixels: the gradient is exactly 0. (The pixels are those
after photometric normalization, which depends on the whole image through two numbers; see `metalad.nn.photometric`.)

Not in the paper are: photometric normalization of the input; standardization of patches as deviations from the mean
good image; heads that initially attend to one neighbor; and an auxiliary density model of the image
(`metalad.detectors.density.appearance`), which the calibrated map and image score combine with the reconstruction
error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, Protocol, Scoring
from metalad.detectors.density.appearance import AppearanceDensity, grid_of, reduced
from metalad.detectors.density.codebook import Selection
from metalad.detectors.density.composition import joined_score
from metalad.detectors.reconstruction import Reconstructor
from metalad.detectors.residuals import Residuals
from metalad.nn.attention import Mask, MaskedEncoder, perceptron
from metalad.nn.augmentation import augment, check_augmentation
from metalad.nn.losses import WINDOW, l1_ssim_loss, mean_ssim
from metalad.nn.photometric import PhotometricNormalization
from metalad.nn.pixels import Pixels, batches
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import auto_size, setting
from metalad.training.loop import Training

Token = Literal["squares", "rows", "columns"]
COMMON_SCALE = 0.5
"""Lower bound of a pixel's scale, as a fraction of the RMS: with few images, some pixels have almost no variance."""
MIN_SCALE = 1 / 255
"""Least scale, one gray level; it applies if all training images are identical."""
MAX_DEVIATION = 3.0
"""Input deviations are clipped to this many scales, so that an anomaly hardly affects the output of other patches."""


@dataclass(frozen=True, kw_only=True)
class MetalConfig(DetectorConfig):
    """Settings of MeTAL; the default network is the paper's "Ours (products)", 17.86M parameters.

    `attention="neighbours"` adds 16,640 parameters. `docs/methods/metal.md` lists all differences from the paper.
    """

    image_size: tuple[int, int] = auto_size(256, 32)
    smoothing_sigma: float = setting(6.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    guide: Literal["image", "none"] = setting(
        "image", "edges that the calibrated map follows: image, those of the input (guided filter), or none (paper)"
    )
    reduction: int = setting(2, "factor that reduces the transformer's input; the auxiliary density uses full size")
    patch_size: int = setting(16, "side of a square patch in pixels of the reduced image, whose sides it must divide")
    tokens: tuple[Token, ...] = setting(("squares", "rows"), "token shapes: squares, rows, columns")
    mask: Mask = setting("blind", "blind: excludes a patch's own pixels; zero-logit: as in the paper, leaks; none")
    depth: int = setting(1, "encoder blocks; paper: 1 for products, 2 for textures")
    width: int = setting(128, "features of a square patch for each token shape")
    hidden_width: int = setting(1024, "hidden units of the embedding and decoding perceptrons")
    heads: int = setting(4, "attention heads")
    feed_forward_ratio: int = setting(2, "hidden units of a block's feed-forward layer, as a multiple of width")
    target: Literal["deviations", "pixels"] = setting(
        "deviations",
        "input and output: standardized deviations from the mean good image, or pixel values (paper)",
    )
    attention: Literal["neighbours", "anywhere"] = setting(
        "neighbours", "initial attention of a head: mostly to the neighbor on one side, or uniform (paper)"
    )
    degrees: float = setting(1.0, "rotate training images by up to this many degrees, in both directions")
    shift: float = setting(0.01, "shift training images by up to this fraction of their side, in both directions")
    photometric: float = setting(
        0.1,
        "above 0: normalize brightness and contrast to those of good images, and change the brightness of training "
        "images by up to this fraction; 0: neither (paper)",
    )
    absolute_error: Literal["mean", "sum"] = setting("mean", "absolute error in the loss: mean, or sum as in eq. 2")
    auxiliary_density: Literal["appearance", "none"] = setting(
        "appearance", "density model that the calibrated map combines with the reconstruction error, or none (paper)"
    )
    selection: Selection = setting(
        "coreset",
        "entries of its codebook: coreset, which keeps rare patches, with a weight chosen from the images; or k-means",
    )
    high_pass: bool = setting(True, "add a codebook of high-pass filtered patches to the auxiliary density model")
    composition: bool = setting(True, "add the composition of the whole image to the calibrated image score")
    reconstruction_errors: Literal["separate", "joint"] = setting(
        "separate",
        "errors of transformer and principal components: separate distances, each weighted by the variance that it "
        "explains, or one joint distance of weight 1",
    )

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if self.reduction < 1 or any(side % self.reduction for side in self.image_size):
            height, width = self.image_size
            raise ConfigError(f"reduction {self.reduction} does not divide image_size {height}x{width}")
        height, width = self.residual_size
        if self.patch_size < 1 or height % self.patch_size or width % self.patch_size:
            raise ConfigError(f"patch_size {self.patch_size} does not divide the reduced image, {height}x{width}")
        if min(height, width) < WINDOW:
            raise ConfigError(
                f"the reduced image, {height}x{width}, is smaller than the window of SSIM, {WINDOW}x{WINDOW} pixels; "
                "choose a larger image_size or a smaller reduction"
            )
        known = get_args(Token)
        if not self.tokens or len(set(self.tokens)) < len(self.tokens) or not set(self.tokens) <= set(known):
            raise ConfigError(f"tokens is {','.join(self.tokens)!r}; use each of {', '.join(known)} at most once")
        if min(self.depth, self.width, self.hidden_width, self.heads, self.feed_forward_ratio) < 1:
            raise ConfigError("depth, width, hidden_width, heads and feed_forward_ratio must be at least 1")
        check_augmentation(self.degrees, self.shift, self.photometric)
        if self.width % self.heads:
            raise ConfigError(f"heads {self.heads} does not divide width {self.width}")
        if min(self.count(token) for token in self.tokens) < 2:
            raise ConfigError(f"the reduced image, {height}x{width}, must hold at least 2 tokens of each shape")

    @property
    def residual_size(self) -> tuple[int, int]:
        """Height and width of the reduced image, which is reconstructed."""
        return self.image_size[0] // self.reduction, self.image_size[1] // self.reduction

    @property
    def grid(self) -> tuple[int, int]:
        """Number of square patches: rows, columns."""
        height, width = self.residual_size
        return height // self.patch_size, width // self.patch_size

    def count(self, token: Token) -> int:
        """Return the number of tokens of a shape."""
        down, across = self.grid
        return {"squares": down * across, "rows": down, "columns": across}[token]

    def positions(self, token: Token) -> Float[Tensor, "tokens axes"]:
        """Return the positions of the tokens of a shape: (row, column) of squares, the index of rows or columns."""
        axes = [torch.arange(float(side)) for side in (self.grid if token == "squares" else (self.count(token),))]
        return torch.cartesian_prod(*axes).reshape(self.count(token), len(axes))

    def squares_in(self, token: Token) -> int:
        """Return the number of square patches that a token of a shape covers."""
        return self.grid[0] * self.grid[1] // self.count(token)


class Metal(Reconstructor):
    """MeTAL: one masked encoder per token shape, one decoder for all patches.

    photometric: normalizes brightness and contrast; None if the setting of that name is 0.
    explained: [2], the fraction of the deviations of held-out images from the mean image that the transformer and the
        principal components explain.
    mean, scale: [3, down, across], the mean good image and the scale of deviations from it (see `prepare`). They
        standardize the network's input and output; with `target="pixels"` they stay 0 and 1.
    """

    name = "metal"
    config: MetalConfig
    mean: Tensor
    scale: Tensor
    explained: Tensor

    def __init__(self, config: MetalConfig) -> None:
        super().__init__(config)
        values = 3 * config.patch_size**2
        self.encoders = nn.ModuleDict(
            {
                token: MaskedEncoder(
                    values=values * config.squares_in(token),
                    positions=config.positions(token),
                    width=config.width * config.squares_in(token),
                    embedding_width=config.hidden_width,
                    heads=config.heads,
                    feed_forward_ratio=config.feed_forward_ratio,
                    depth=config.depth,
                    mask=config.mask,
                    neighbours=config.attention == "neighbours",
                )
                for token in config.tokens
            }
        )
        self.decoder = perceptron(config.width * len(config.tokens), config.hidden_width, values)
        self.appearance = self._new_density() if config.auxiliary_density == "appearance" else None
        self.photometric = PhotometricNormalization() if config.photometric else None
        self.register_buffer("mean", torch.zeros(3, *config.residual_size))
        self.register_buffer("scale", torch.ones(3, *config.residual_size))
        self.has_separate_residuals = self.appearance is not None and config.reconstruction_errors == "separate"
        if self.has_separate_residuals:
            self.register_buffer("explained", None)

    @property
    def distance_weights(self) -> Mapping[str, float]:
        """The weights of both reconstruction errors, or of their joint one, and of the densities of appearance."""
        if self.appearance is None:
            return {}
        errors = ("transformer", "components") if self.has_separate_residuals else ("errors",)
        values = [*self._residual_weights().tolist(), *self.appearance.weights().tolist()]
        return dict(zip((*errors, *self.appearance.names), values, strict=True))

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Fit photometric normalization and, for `target="deviations"`, mean and scale of the good images.

        Without mean and scale, the first thousand steps of training fit the mean image patch by patch, and the network
        may never use a patch's surroundings.
        """
        del stage, seed
        if self.photometric is not None:
            self.photometric.fit(batches(pixels, self.device))
        if self.config.target == "pixels":
            return
        target_image = torch.cat([self.target_image(batch) for batch in batches(pixels, self.device)])
        variance, mean = torch.var_mean(target_image, 0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_((variance + COMMON_SCALE**2 * variance.mean()).sqrt().clamp_min(MIN_SCALE))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return section 4.2 of the paper, or small batches with a cosine schedule: as good, a tenth of the cost."""
        if protocol == "paper":
            return (Training(learning_rate=1e-4, batch_size=64, max_epochs=3000, patience=50, patience_from=500),)
        images = 16 if self.config.target == "pixels" else 8
        return (Training(learning_rate=5e-4, batch_size=images, steps=900, schedule="cosine"),)

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Fit the auxiliary density model without the held-out images, which set weights, scales and threshold."""
        if self.appearance is None:
            return
        self.appearance.fit(training, self.device, self.photometric)
        if self.has_separate_residuals:
            with torch.no_grad():
                self.explained = self._explained(self.appearance, held_out)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the residuals at the size of the reduced image.

        Channels 0 to 2 are reconstruction minus image. With an auxiliary density model, channels 3 to 5 are its
        principal-component reconstruction minus image, `distances` holds its distances, and `contribution` that of the
        composition to the calibrated image score.
        """
        images = self.normalized(images)
        target_image = reduced(images, self.config.reduction)
        reconstruction = self.reconstruct(target_image)
        residual, expected = reconstruction - target_image, reconstruction.clamp(0, 1)
        if self.appearance is None:
            return Residuals(residual, expected)
        pca_residual = self.appearance.components(target_image) - target_image
        distances, contribution = self.appearance(images)
        residual_weights = self._residual_weights()
        return Residuals(
            torch.cat([residual, pca_residual], 1),
            expected,
            contribution=contribution,
            distances=distances,
            parts=residual_weights.shape[0],
            weights=torch.cat([residual_weights, self.appearance.weights()]).expand(images.shape[0], -1),
        )

    def out_of_fold_residuals(self, training: Pixels, seed: int = 0) -> Residuals:  # noqa: ARG002 (seed 0)
        """Return the residuals of training images, each by an auxiliary density model fitted without that image."""
        auxiliary_density = self.appearance
        if auxiliary_density is None:
            return super().out_of_fold_residuals(training)

        def residuals_without(left_out: Bool[np.ndarray, " images"]) -> Residuals:
            self.appearance = self._new_density().to(self.device)
            self.appearance.fit(training[~left_out], self.device, self.photometric)
            self.appearance.use_shrinkage_of(auxiliary_density)
            return self.residuals_of(training[left_out])

        try:
            return self._residuals_by_folds(training, residuals_without)
        finally:
            self.appearance = auxiliary_density

    def training_scores_are_out_of_fold(self, scoring: Scoring) -> bool:
        """Return True with the auxiliary density: out-of-fold scores are then hardly too low (`docs/design.md`)."""
        return scoring == "calibrated" and self.appearance is not None

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the paper's map: the squared reconstruction error, summed over colors."""
        return residuals.values[:, :3].square().sum(1)

    def _image_score(
        self, residuals: Residuals, maps: Tensor, smoothed: Tensor, scoring: Scoring
    ) -> Float[Tensor, " batch"]:
        """Return the map's score; a calibrated one is joined with the contribution of the composition."""
        score = super()._image_score(residuals, maps, smoothed, scoring)
        return score if scoring == "raw" else joined_score(score, residuals.contribution)

    def target_image(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 down across"]:
        """Return the network's target for RGB images in [0, 1]: photometrically normalized and reduced."""
        return reduced(self.normalized(images), self.config.reduction)

    def normalized(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return images after photometric normalization, if it is used."""
        return images if self.photometric is None else self.photometric(images)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the mean absolute error minus SSIM of the reconstruction (eq. 4)."""
        images = self.target_image(images)
        degrees, shift, photometric = self.config.degrees, self.config.shift, self.config.photometric
        if self.training and (degrees or shift or photometric):
            images = augment(images, degrees=degrees, shift=shift, brightness=photometric)
        reconstruction = self.reconstruct(images)
        if self.config.absolute_error == "sum":
            return (reconstruction - images).abs().flatten(1).sum(1).mean() - mean_ssim(reconstruction, images)
        return l1_ssim_loss(reconstruction, images)

    def reconstruct(self, target_image: Float[Tensor, "batch 3 down across"]) -> Float[Tensor, "batch 3 down across"]:
        """Reconstruct every patch of target images from the other patches; values may lie slightly outside [0, 1]."""
        (down, across), size = self.config.grid, self.config.patch_size
        # To (batch, grid row, grid column, pixel row × pixel column × color), and back.
        patches = (
            self._normalized_deviations(target_image)
            .reshape(-1, 3, down, size, across, size)
            .permute(0, 2, 4, 3, 5, 1)
            .flatten(3)
        )
        joined = torch.cat([self._encode(token, patches) for token in self.config.tokens], dim=-1)
        reconstruction: Tensor = self.decoder(joined).float()
        reconstruction = (
            reconstruction.reshape(-1, down, across, size, size, 3)
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(target_image.shape)
        )
        return self.mean + self.scale * reconstruction

    def _new_density(self) -> AppearanceDensity:
        return AppearanceDensity(
            self.config.reduction,
            self.config.selection,
            high_pass=self.config.high_pass,
            composition_grid=grid_of(*self.config.image_size) if self.config.composition else None,
        )

    def _residual_weights(self) -> Float[Tensor, " parts"]:
        """Return the weight of each part of the residual: the fraction of the variance that it explains."""
        return self.explained if self.has_separate_residuals else self.mean.new_ones(1)

    def _explained(self, appearance: AppearanceDensity, held_out: Pixels) -> Float[Tensor, "2"]:
        """Return the fractions of the deviations of held-out images that the two reconstructions explain."""
        unexplained, total = self.mean.new_zeros(2), self.mean.new_zeros(())
        for batch in batches(held_out, self.device):
            target_image = self.target_image(batch)
            reconstructions = torch.stack([self.reconstruct(target_image), appearance.components(target_image)])
            unexplained += (reconstructions - target_image).square().sum((1, 2, 3, 4))
            total += (appearance.components.mean - target_image).square().sum()
        return (1 - unexplained / total.clamp_min(torch.finfo(total.dtype).tiny)).clamp_min(0)

    def _normalized_deviations(
        self, target_image: Float[Tensor, "batch 3 down across"]
    ) -> Float[Tensor, "batch 3 down across"]:
        if self.config.target == "pixels":
            return target_image
        return ((target_image - self.mean) / self.scale).clamp(-MAX_DEVIATION, MAX_DEVIATION)

    def _encode(
        self, token: Token, patches: Float[Tensor, "batch down across values"]
    ) -> Float[Tensor, "batch down across width"]:
        """Embed tokens of one shape; the embedding of a row or column is split into one segment per patch (Fig. 5)."""
        if token == "columns":
            patches = patches.transpose(1, 2)
        batch, lines, patches_per_line, _ = patches.shape
        tokens = patches.flatten(1, 2) if token == "squares" else patches.flatten(2)
        embedded: Tensor = self.encoders[token](tokens)
        embedded = embedded.reshape(batch, lines, patches_per_line, self.config.width)
        return embedded.transpose(1, 2) if token == "columns" else embedded
