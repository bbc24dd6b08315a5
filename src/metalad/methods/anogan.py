"""AnoGAN (Schlegl et al. 2017, DOI 10.1007/978-3-319-59050-9_12), with the settings of Bergmann et al. (CVPR 2019).

A GAN is trained to generate good images from random latent codes. For each test image, gradient descent searches for
the code whose generated image is nearest. The remaining difference is the residual.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import GradientDetector, Protocol
from metalad.detectors.gan import (
    EPOCH_IMAGES,
    GanConfig,
    Stage,
    adversarial_loss,
    bottleneck_size,
    initialize_weights,
    parameters_of,
    signed,
    strided_convolutions,
    transposed_convolutions,
    unsigned,
)
from metalad.detectors.residuals import Residuals
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Objective, Training

HALVINGS = 5
EPOCHS = 50


@dataclass(frozen=True, kw_only=True)
class AnoGanConfig(GanConfig):
    """Settings of AnoGAN; width 64 and 300 search steps are the published ones."""

    smoothing_sigma: float = setting(2.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    search_steps: int = setting(100, "gradient steps of the search for a test image's code; published: 300")
    search_rate: float = setting(0.02, "learning rate of this search")
    feature_weight: float = setting(0.1, "weight of the discriminator features in the search loss, in [0, 1]")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        bottleneck_size(self.image_size, HALVINGS)
        if self.search_steps < 1 or not self.search_rate > 0 or not 0 <= self.feature_weight <= 1:
            raise ConfigError("search_steps must be at least 1, search_rate more than 0, feature_weight in [0, 1]")


class AnoGan(GradientDetector):
    """AnoGAN: a generator, a discriminator, and a search in latent space."""

    name = "anogan"
    not_exportable = "inference is a search by gradient descent, and exported graphs compute no gradients"
    has_own_score = True
    config: AnoGanConfig

    def __init__(self, config: AnoGanConfig) -> None:
        super().__init__(config)
        height, width = bottleneck_size(config.image_size, HALVINGS)
        widths = [factor * config.width for factor in (1, 2, 4, 8, 8)]
        top = widths[-1]
        self.generator = nn.Sequential(
            nn.Linear(config.latent, top * height * width, bias=False),
            nn.Unflatten(1, (top, height, width)),
            nn.BatchNorm2d(top),
            nn.ReLU(),
            transposed_convolutions(widths[::-1], kernel=4, padding=1),
            nn.ConvTranspose2d(config.width, 3, 4, 2, 1),
            nn.Tanh(),
        )
        self.features = strided_convolutions([3, *widths], kernel=4, padding=1)
        self.verdict = nn.Linear(top * height * width, 1)
        for network in (self.generator, self.features, self.verdict):
            initialize_weights(network)

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return 50 epochs of 10,000 augmented images (Bergmann et al., CVPR 2019), or fewer, smaller steps."""
        if protocol == "paper":
            steps = EPOCHS * EPOCH_IMAGES // 64
            return (Training(learning_rate=2e-4, betas=(0.5, 0.999), batch_size=64, steps=steps, keep="last"),)
        return (
            Training(
                learning_rate=1e-3, betas=(0.5, 0.999), batch_size=16, steps=2000, keep="last", whole_batches=True
            ),
        )

    def learner(self, stage: str) -> Learner:
        """Return the GAN."""
        del stage  # there is only one
        discriminator = Objective(
            lambda images: self.loss(self.config.augmented(images)), parameters_of(self.features, self.verdict)
        )
        generator = Objective(self._generator_loss, parameters_of(self.generator))
        return Stage((self.generator, self.features, self.verdict), (discriminator, generator), self.loss)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the discriminator's loss on images in [0, 1] and as many generated ones."""
        real = adversarial_loss(self._logits(signed(images)), real=True)
        return real + adversarial_loss(self._logits(self._fake_images(len(images)).detach()), real=False)

    def search(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, " batch"]]:
        """Search for the generated image nearest to each image in [0, 1]; return it, in [-1, 1], and its loss.

        Each image is searched separately: rounding that depends on the batch would grow over the steps.
        """
        with torch.inference_mode(False), torch.enable_grad():
            results = [self._nearest(signed(image)) for image in torch.split(images.clone(), 1)]
        return torch.cat([generated for generated, _ in results]), torch.stack([loss for _, loss in results])

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the nearest generated image minus the image, and the least search loss as the image score."""
        generated, losses = self.search(images)
        return Residuals(unsigned(generated) - images, unsigned(generated), losses)

    def _nearest(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Descend from code 0, the mode of the prior; return the image of least loss and that loss."""
        weight = self.config.feature_weight
        target_features = self.features(image).detach()
        code = torch.zeros(1, self.config.latent, device=image.device, requires_grad=True)
        optimizer = torch.optim.Adam([code], self.config.search_rate)
        best, least_loss = image, torch.full((), torch.inf, device=image.device)
        for _ in range(self.config.search_steps + 1):
            generated = self.generator(code)
            image_error = (image - generated).abs().sum()
            loss = (1 - weight) * image_error + weight * (target_features - self.features(generated)).abs().sum()
            if loss < least_loss:
                best, least_loss = generated.detach(), loss.detach()
            (code.grad,) = torch.autograd.grad(loss, code)
            optimizer.step()
        return best, least_loss

    def _fake_images(self, count: int) -> Tensor:
        generated: Tensor = self.generator(torch.randn(count, self.config.latent, device=self.device))
        return generated

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.verdict(self.features(images).flatten(1))
        return logits

    def _generator_loss(self, images: Tensor) -> Tensor:
        return adversarial_loss(self._logits(self._fake_images(len(images))), real=True)
