"""AnoGAN (Schlegl et al. 2017, DOI 10.1007/978-3-319-59050-9_12), with the settings of Bergmann et al. (CVPR 2019).

A GAN learns to draw good images from random codes. For each image to be judged, gradient descent searches the code
whose drawing comes nearest. What no code draws is out of place.
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
    doubling,
    grid_of,
    halving,
    parameters_of,
    signed,
    start_small,
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

    smoothing_sigma: float = setting(2.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    search_steps: int = setting(100, "steps of the search for the code of an image to be judged; as published: 300")
    search_rate: float = setting(0.02, "learning rate of that search")
    feature_weight: float = setting(0.1, "weight of the discriminator's features in the search's loss, in [0, 1]")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        grid_of(self.image_size, HALVINGS)
        if self.search_steps < 1 or not self.search_rate > 0 or not 0 <= self.feature_weight <= 1:
            raise ConfigError("search_steps must be at least 1, search_rate more than 0, feature_weight in [0, 1]")


class AnoGan(GradientDetector):
    """AnoGAN: a generator and its discriminator, and a search."""

    name = "anogan"
    has_own_score = True
    config: AnoGanConfig

    def __init__(self, config: AnoGanConfig) -> None:
        super().__init__(config)
        height, width = grid_of(config.image_size, HALVINGS)
        widths = [factor * config.width for factor in (1, 2, 4, 8, 8)]
        top = widths[-1]
        self.generator = nn.Sequential(
            nn.Linear(config.latent, top * height * width, bias=False),
            nn.Unflatten(1, (top, height, width)),
            nn.BatchNorm2d(top),
            nn.ReLU(),
            doubling(widths[::-1], kernel=4, padding=1),
            nn.ConvTranspose2d(config.width, 3, 4, 2, 1),
            nn.Tanh(),
        )
        self.features = halving([3, *widths], kernel=4, padding=1)
        self.verdict = nn.Linear(top * height * width, 1)
        for network in (self.generator, self.features, self.verdict):
            start_small(network)

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return 50 epochs of 10,000 augmented images (Bergmann et al., CVPR 2019), or fewer and smaller steps."""
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
        del stage  # there is one
        discriminator = Objective(
            lambda images: self.loss(self.config.augmented(images)), parameters_of(self.features, self.verdict)
        )
        generator = Objective(self._generator_loss, parameters_of(self.generator))
        return Stage((self.generator, self.features, self.verdict), (discriminator, generator), self.loss)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the discriminator's loss on images in [0, 1] and as many that are drawn."""
        real = adversarial_loss(self._logits(signed(images)), real=True)
        return real + adversarial_loss(self._logits(self._fakes(len(images)).detach()), real=False)

    def search(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, " batch"]]:
        """Search the drawing nearest to each image in [0, 1]; return it, in [-1, 1], and its loss.

        Each image has a search of its own, so that no rounding that depends on its batch can grow in it.
        """
        with torch.inference_mode(False), torch.enable_grad():
            found = [self._nearest(signed(image)) for image in torch.split(images.clone(), 1)]
        return torch.cat([drawing for drawing, _ in found]), torch.stack([loss for _, loss in found])

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the nearest drawing minus the image, and the search's final loss as the image score."""
        drawings, losses = self.search(images)
        return Residuals(unsigned(drawings) - images, unsigned(drawings), losses)

    def _nearest(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Descend from the code 0, the likeliest; keep the best drawing that was met, not the last."""
        weight = self.config.feature_weight
        wanted = self.features(image).detach()
        code = torch.zeros(1, self.config.latent, device=image.device, requires_grad=True)
        descent = torch.optim.Adam([code], self.config.search_rate)
        best, least = image, torch.full((), torch.inf, device=image.device)
        for _ in range(self.config.search_steps + 1):
            drawing = self.generator(code)
            off = (image - drawing).abs().sum()
            loss = (1 - weight) * off + weight * (wanted - self.features(drawing)).abs().sum()
            if loss < least:
                best, least = drawing.detach(), loss.detach()
            (code.grad,) = torch.autograd.grad(loss, code)
            descent.step()
        return best, least

    def _fakes(self, count: int) -> Tensor:
        drawn: Tensor = self.generator(torch.randn(count, self.config.latent, device=self.device))
        return drawn

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.verdict(self.features(images).flatten(1))
        return logits

    def _generator_loss(self, images: Tensor) -> Tensor:
        return adversarial_loss(self._logits(self._fakes(len(images))), real=True)
