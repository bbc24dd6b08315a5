"""How unusual an image looks at each place, without a network: what is there, not what was expected there.

A reconstruction foretells a large anomaly from the anomaly's own surroundings, and lets it pass. Two densities look at
the content itself. One asks what edges and colours a place usually has, for things that always lie the same way; the
other, whether such a patch occurs anywhere, the nearer the better. And a few principal components say what the whole
image should look like. All are learnt from good images in seconds.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.data.corruptions import perturbed
from metalad.detectors.density.codebook import Codebook, sampled_positions
from metalad.detectors.density.gaussian import PositionalGaussian
from metalad.detectors.density.pca import PrincipalComponents
from metalad.nn.photometric import LUMINANCE
from metalad.nn.pixels import Pixels, batches, thinned
from metalad.nn.standardization import Standardization

STRIDE = 8
"""Pixels of the image from one place to the next, down and across."""
LEVELS = (1, 2)
"""The image and its half size: edges are taken from each."""
BRIGHTNESS_DIRECTIONS, COLOUR_DIRECTIONS = 8, 4
CHANNELS = len(LEVELS) * (BRIGHTNESS_DIRECTIONS + 2 * COLOUR_DIRECTIONS) + 3
PATCH = 9
"""Side of a patch, in pixels of the image reduced by the stride."""
PROJECTION = 96
"""Numbers that a patch of 243 is projected to at random, which nearly keeps distances (Johnson, Lindenstrauss 1984)."""
CODEBOOK_SIZE = 1024
MAX_IMAGES = 512
"""Images that are learnt from; the descriptions of all, and of the copies of some, are held at once."""
PERTURBED_EVERY = 2
"""Of so many images one is shown once more with light, position and focus changed a little: enough to learn what
is harmless, and too few to blur what a place usually shows."""
YUV = (LUMINANCE, (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""Brightness and two differences of colour, of red, green and blue (ITU-R BT.601)."""


class AppearanceDensity(nn.Module):
    """Two densities of what good images show, and what the whole should be.

    place: edges and colours, a normal law at each place. patch: patches of the reduced image with their coordinates,
        by one codebook. spread: the root of the patches' summed variances; half the image weighs so much.
    components: of images `reduction` times smaller.
    """

    yuv: Tensor
    projection: Tensor
    scale: Tensor

    def __init__(self, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.standardization, self.position, self.patch = (
            Standardization(CHANNELS),
            PositionalGaussian(),
            Codebook(CODEBOOK_SIZE),
        )
        self.components = PrincipalComponents()
        drawn = torch.randn(PROJECTION, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(0))
        self.register_buffer("projection", drawn / math.sqrt(PROJECTION))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("yuv", torch.tensor(YUV)[:, :, None, None], persistent=False)

    @property
    def fitted(self) -> bool:
        """Whether there is anything to compare with."""
        return self.position.whitening.numel() > 0

    def fit(self, pixels: Pixels, device: torch.device, photometric: nn.Module | None = None) -> None:
        """Learn all from good images, and from changed copies of some (see `PERTURBED_EVERY`).

        Of very many, from some spread evenly over them. light: what images go through before they come here.
        """
        pixels, rng = thinned(pixels, MAX_IMAGES), np.random.default_rng(0)
        with torch.no_grad():
            images = list(batches(pixels, device))
            images += list(batches(np.stack([perturbed(image, rng) for image in pixels[::PERTURBED_EVERY]]), device))
            images = images if photometric is None else [photometric(batch) for batch in images]
            edges = torch.cat([self.edges(batch) for batch in images])
            self.standardization.fit([edges])
            self.position.fit(self.standardization(edges))
            patches = torch.cat([self.patches(batch) for batch in images])
            self.scale.copy_(patches.var((0, 2, 3)).sum().sqrt())
            self.patch.fit(sampled_positions(self._with_coordinates(patches), seed=0), seed=0)
            self.components.fit(torch.cat([reduced(batch, self.reduction) for batch in images]))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2 down across"]:
        """Return how far place and patch lie from those of good images, each in a unit of its own.

        For each pixel of the image `reduction` times smaller.
        """
        size = (images.shape[-2] // self.reduction, images.shape[-1] // self.reduction)
        distances = (
            self.position(self.standardization(self.edges(images))),
            self.patch(self._with_coordinates(self.patches(images))),
        )
        return F.interpolate(torch.stack(distances, 1), size, mode="bilinear")

    def edges(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels down across"]:
        """Return the strength of edges by direction, at two sizes, and the colour, averaged around each place."""
        height, width = images.shape[-2:]
        grid = (-(-height // STRIDE), -(-width // STRIDE))
        planes = F.conv2d(images, self.yuv)
        parts = [planes]
        for level in LEVELS:
            small = reduced(planes, level)
            parts += [_edges(small[:, :1], BRIGHTNESS_DIRECTIONS), _edges(small[:, 1:], COLOUR_DIRECTIONS)]
        described = torch.cat([F.adaptive_avg_pool2d(part, grid) for part in parts], 1)
        # What lies outside counts as 0, so that places at the border are like others at the border alone.
        return F.avg_pool2d(described, 3, stride=1, padding=1)

    def patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch projection down across"]:
        """Return the patch around each place of the reduced image, projected; what lies outside counts as 0."""
        return F.conv2d(reduced(images, STRIDE), self.projection, padding=PATCH // 2)

    def _with_coordinates(self, patches: Float[Tensor, "batch channels down across"]) -> Tensor:
        """Append each patch's coordinates, from -1 to 1 times the spread."""
        batch, _, height, width = patches.shape
        down = torch.linspace(-1, 1, height, device=patches.device)[:, None].expand(height, width)
        across = torch.linspace(-1, 1, width, device=patches.device).expand(height, width)
        where = self.scale * torch.stack([down, across])
        return torch.cat([patches, where.expand(batch, -1, -1, -1)], 1)


def reduced(
    images: Float[Tensor, "batch channels height width"], factor: int
) -> Float[Tensor, "batch channels down across"]:
    """Return images so many times smaller: the means of squares of pixels."""
    return F.avg_pool2d(images, factor, ceil_mode=True) if factor > 1 else images


def _edges(planes: Tensor, directions: int) -> Tensor:
    """Return the slope of each plane in so many directions around the circle, where it rises; 0 where it falls."""
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    angles = [2 * math.pi * number / directions for number in range(directions)]
    return torch.cat([F.relu(across * math.cos(angle) + down * math.sin(angle)) for angle in angles], 1)
