"""MeTAL, the masked transformer for image anomaly localization (De Nardin et al. 2022, DOI 10.1142/S0129065722500307).

Each square patch is rebuilt from the rest of the image by masked self-attention over square patches and over
whole rows and columns of them; where the rebuilt patch differs from the real one, something is out of place. With
the `blind` mask, the default, a patch's output provably does not depend on its own pixels: the gradient is 0. (Pixels
in the usual light: its brightness and contrast are two numbers of the whole image, see `metalad.nn.photometric`.)

Beyond the paper, images are first brought to one light, patches are embedded and rebuilt as deviations from the mean
good image, each head begins by looking at a neighbour, and a partner looks at the image itself (`metalad.detectors.density.appearance`);
the calibrated map joins both.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, Protocol, Scoring
from metalad.detectors.density.appearance import AppearanceDensity, reduced
from metalad.detectors.reconstruction import Reconstructor
from metalad.detectors.residuals import Residuals
from metalad.nn.attention import Mask, MaskedEncoder, perceptron
from metalad.nn.augmentation import augment, check_augmentation
from metalad.nn.losses import l1_ssim_loss, mean_ssim
from metalad.nn.photometric import PhotometricNormalization
from metalad.nn.pixels import Pixels, batches
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

Token = Literal["squares", "rows", "columns"]
COMMON_SCALE = 0.5
"""No pixel's unit is less than so many times the root mean square of all: few images would take some for fixed."""
MIN_SCALE = 1 / 255
"""Of images that are all the same: a grey level."""
MAX_DEVIATION = 3.0
"""A deviation counts for so many units at most where others are rebuilt from it: an anomaly must not spoil them."""


@dataclass(frozen=True, kw_only=True)
class MetalConfig(DetectorConfig):
    """Settings of MeTAL; the default network is the paper's "Ours (products)", 17.86M parameters.

    `attention="neighbours"` adds 16,640 of them. What else the paper has differently: see `docs/methods/metal.md`.
    """

    image_size: tuple[int, int] = setting((256, 256), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(6.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    guide: Literal["image", "none"] = setting(
        "image", "what the calibrated map's outlines follow: image, its edges (guided filter), or none (paper)"
    )
    reduction: int = setting(2, "the transformer rebuilds the image so many times smaller; the partner sees it whole")
    patch_size: int = setting(16, "side of a square patch in pixels of the image it rebuilds, which it must divide")
    tokens: tuple[Token, ...] = setting(("squares", "rows"), "shapes to attend over: squares, rows, columns")
    mask: Mask = setting("blind", "blind: cannot see its own patch; zero-logit: the paper's words, leaks; none")
    depth: int = setting(1, "encoder blocks; the paper takes 1 for products, 2 for textures")
    width: int = setting(128, "features a square patch gets from each shape of token")
    hidden_width: int = setting(1024, "hidden units of the embedding and decoding perceptrons")
    heads: int = setting(4, "attention heads")
    feed_forward_ratio: int = setting(2, "hidden units of a block's feed-forward part, in widths")
    target: Literal["deviations", "pixels"] = setting(
        "deviations",
        "what is embedded and rebuilt: deviations from the mean good image, or pixels as they are (paper)",
    )
    attention: Literal["neighbours", "anywhere"] = setting(
        "neighbours", "where each head begins to look: at the neighbour on one side, or everywhere alike (paper)"
    )
    degrees: float = setting(1.0, "turn training images by up to so many degrees, either way")
    shift: float = setting(0.01, "move training images by up to this part of their side, either way")
    photometric: float = setting(
        0.1,
        "light that is no news: bring images to the usual brightness and contrast, and brighten or darken training "
        "images by up to this part; 0: neither (paper)",
    )
    absolute_error: Literal["mean", "sum"] = setting("mean", "loss: mean absolute error, or its sum as eq. 2 has it")
    auxiliary_density: Literal["appearance", "none"] = setting(
        "appearance", "what the calibrated map joins with the error: a density of what is there, or nothing"
    )

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if self.reduction < 1 or any(side % self.reduction for side in self.image_size):
            height, width = self.image_size
            raise ConfigError(f"reduction {self.reduction} does not divide image_size {height}x{width}")
        height, width = self.residual_size
        if self.patch_size < 1 or height % self.patch_size or width % self.patch_size:
            raise ConfigError(f"patch_size {self.patch_size} does not divide the {height}x{width} pixels to rebuild")
        known = get_args(Token)
        if not self.tokens or len(set(self.tokens)) < len(self.tokens) or not set(self.tokens) <= set(known):
            raise ConfigError(f"tokens are {','.join(self.tokens)!r}; take each of {', '.join(known)} at most once")
        if min(self.depth, self.width, self.hidden_width, self.heads, self.feed_forward_ratio) < 1:
            raise ConfigError("depth, width, hidden_width, heads and feed_forward_ratio must be at least 1")
        check_augmentation(self.degrees, self.shift, self.photometric)
        if self.width % self.heads:
            raise ConfigError(f"heads {self.heads} does not divide width {self.width}")
        if min(self.count(token) for token in self.tokens) < 2:
            raise ConfigError(f"{height}x{width} pixels hold one patch; a patch needs others to be rebuilt from")

    @property
    def residual_size(self) -> tuple[int, int]:
        """Height and width of the image that is rebuilt."""
        return self.image_size[0] // self.reduction, self.image_size[1] // self.reduction

    @property
    def grid(self) -> tuple[int, int]:
        """Square patches down and across."""
        height, width = self.residual_size
        return height // self.patch_size, width // self.patch_size

    def count(self, token: Token) -> int:
        """Return the number of tokens of a shape."""
        down, across = self.grid
        return {"squares": down * across, "rows": down, "columns": across}[token]

    def places(self, token: Token) -> Float[Tensor, "tokens axes"]:
        """Return where the tokens of a shape lie: squares down and across, stripes one after the other."""
        axes = [torch.arange(float(side)) for side in (self.grid if token == "squares" else (self.count(token),))]
        return torch.cartesian_prod(*axes).reshape(self.count(token), len(axes))

    def squares_in(self, token: Token) -> int:
        """Return the number of square patches that a token of a shape covers."""
        return self.grid[0] * self.grid[1] // self.count(token)


class Metal(Reconstructor):
    """MeTAL: one masked encoder a token shape, one decoder for all patches.

    light: brings images to the light they are usually taken in, unless the setting of that name is 0.
    mean, spread: [3, down, across], the mean good image and by how much good ones deviate from it (see `prepare`). What
    is embedded and rebuilt is counted from the one in units of the other; of `target="pixels"` they are 0 and 1.
    """

    name = "metal"
    config: MetalConfig
    mean: Tensor
    scale: Tensor

    def __init__(self, config: MetalConfig) -> None:
        super().__init__(config)
        values = 3 * config.patch_size**2
        self.encoders = nn.ModuleDict(
            {
                token: MaskedEncoder(
                    values=values * config.squares_in(token),
                    places=config.places(token),
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
        self.appearance = AppearanceDensity(config.reduction) if config.auxiliary_density == "appearance" else None
        self.photometric = PhotometricNormalization() if config.photometric else None
        self.register_buffer("mean", torch.zeros(3, *config.residual_size))
        self.register_buffer("scale", torch.ones(3, *config.residual_size))

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Learn the usual light, and the mean and spread of good images, by which `target="deviations"` counts.

        A descent that starts from nothing spends its first thousand steps on the mean image, patch by patch, and may
        never come to what a patch's surroundings say of it.
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
        """Return section 4.2 of the paper, or a cosine schedule of small batches: as good in a tenth of the work."""
        if protocol == "paper":
            return (Training(learning_rate=1e-4, batch_size=64, max_epochs=3000, patience=50, patience_from=500),)
        images = 16 if self.config.target == "pixels" else 8
        return (Training(learning_rate=5e-4, batch_size=images, steps=900, schedule="cosine"),)

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Let the partner learn; the held-out images stay new to it, for the units and the threshold."""
        del held_out
        if self.appearance is not None:
            self.appearance.fit(training, self.device, self.photometric)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return reconstruction minus image, and the partner's: what the whole should be minus image, and distances.

        All of the image that is rebuilt, which may be smaller. The first three channels of the residual are the
        reconstruction's.
        """
        images = self.normalized(images)
        target_image = reduced(images, self.config.reduction)
        rebuilt = self.reconstruct(target_image)
        residual, expected = rebuilt - target_image, rebuilt.clamp(0, 1)
        if self.appearance is None or not self.appearance.fitted:
            return Residuals(residual, expected)
        whole = self.appearance.components(target_image) - target_image
        return Residuals(torch.cat([residual, whole], 1), expected, distances=self.appearance(images))

    def out_of_fold_residuals(self, training: Pixels) -> Residuals:
        """Return the evidence of training images, whose partner has learnt from others."""
        auxiliary_density = self.appearance
        if auxiliary_density is None or not auxiliary_density.fitted:
            return super().out_of_fold_residuals(training)

        def residuals_without(left_out: Bool[np.ndarray, " images"]) -> Residuals:
            self.appearance = AppearanceDensity(self.config.reduction).to(self.device)
            self.appearance.fit(training[~left_out], self.device, self.photometric)
            return self.residuals_of(training[left_out])

        try:
            return self._residuals_by_folds(training, residuals_without)
        finally:
            self.appearance = auxiliary_density

    def keeps_training_scores(self, scoring: Scoring) -> bool:
        """Return True of those that the partner has a say in: hardly lower than new ones (`docs/design.md`)."""
        return scoring == "calibrated" and self.appearance is not None and self.appearance.fitted

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the paper's map: the squared error of the reconstruction, summed over colours."""
        return residuals.values[:, :3].square().sum(1)

    def target_image(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 down across"]:
        """Return what is rebuilt of RGB images in [0, 1]: in the usual light, and reduced."""
        return reduced(self.normalized(images), self.config.reduction)

    def normalized(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return images in the light that good ones are taken in; two numbers of the whole image change, no more."""
        return images if self.photometric is None else self.photometric(images)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the mean absolute error minus SSIM of the reconstruction (eq. 4)."""
        images = self.target_image(images)
        degrees, shift, photometric = self.config.degrees, self.config.shift, self.config.photometric
        if self.training and (degrees or shift or photometric):
            images = augment(images, degrees=degrees, shift=shift, brightness=photometric)
        rebuilt = self.reconstruct(images)
        if self.config.absolute_error == "sum":
            return (rebuilt - images).abs().flatten(1).sum(1).mean() - mean_ssim(rebuilt, images)
        return l1_ssim_loss(rebuilt, images)

    def reconstruct(self, target_image: Float[Tensor, "batch 3 down across"]) -> Float[Tensor, "batch 3 down across"]:
        """Rebuild every patch of what is `seen` of images from the others; values may leave [0, 1] by a little."""
        (down, across), size = self.config.grid, self.config.patch_size
        # To batch, grid row, grid column, pixel row × pixel column × colour, and back.
        patches = (
            self._normalized_deviations(target_image)
            .reshape(-1, 3, down, size, across, size)
            .permute(0, 2, 4, 3, 5, 1)
            .flatten(3)
        )
        joined = torch.cat([self._encode(token, patches) for token in self.config.tokens], dim=-1)
        rebuilt: Tensor = self.decoder(joined).float()
        rebuilt = rebuilt.reshape(-1, down, across, size, size, 3).permute(0, 5, 1, 3, 2, 4).reshape(target_image.shape)
        return self.mean + self.scale * rebuilt

    def _normalized_deviations(
        self, target_image: Float[Tensor, "batch 3 down across"]
    ) -> Float[Tensor, "batch 3 down across"]:
        if self.config.target == "pixels":
            return target_image
        return ((target_image - self.mean) / self.scale).clamp(-MAX_DEVIATION, MAX_DEVIATION)

    def _encode(
        self, token: Token, patches: Float[Tensor, "batch down across values"]
    ) -> Float[Tensor, "batch down across width"]:
        """Embed by tokens of one shape; a stripe's embedding is cut in segments, one a patch inside it (Fig. 5)."""
        if token == "columns":
            patches = patches.transpose(1, 2)
        batch, lines, places, _ = patches.shape
        tokens = patches.flatten(1, 2) if token == "squares" else patches.flatten(2)
        embedded: Tensor = self.encoders[token](tokens)
        embedded = embedded.reshape(batch, lines, places, self.config.width)
        return embedded.transpose(1, 2) if token == "columns" else embedded
