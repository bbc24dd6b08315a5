"""VT-ADL (Mishra et al. 2021, arXiv:2104.10036): likelihood of a vision transformer's patch embeddings.

A vision transformer embeds the patches of an image. A decoder reconstructs the image from all embeddings, so that they
contain its content. A mixture density network computes the negative log-likelihood of each embedding, which is the
anomaly map.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.residuals import Residuals
from metalad.nn.attention import perceptron
from metalad.nn.capsules import Capsules, squash
from metalad.nn.log_sum_exp import log_sum_exp
from metalad.nn.losses import mean_ssim, ssim_map
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

CAPSULE = 8
"""Features of a capsule, and side of the decoder's first map."""
MAX_LOG_VARIANCE = 20.0
PAPER_SIZE = (512, 512)
PAPER_DECODER = ((16, 3, 2, 1), (32, 9, 3, 1), (32, 7, 5, 1), (16, 9, 2, 0), (8, 6, 1, 0), (3, 11, 1, 0))
"""Channels, kernel, stride and padding of the transposed convolutions: 8, 15, 49, 245, 497, 502, 512 pixels."""
CHANNELS = (16, 32, 32, 16, 8, 3)


@dataclass(frozen=True, kw_only=True)
class VtAdlConfig(DetectorConfig):
    """Settings of VT-ADL: smaller than in the paper, so that training takes minutes without a GPU."""

    image_size: tuple[int, int] = setting(
        (256, 256), "height and width that images are resized to, in pixels; paper: 512"
    )
    patch_size: int = setting(32, "side of a square patch; must divide height and width; paper: 64")
    width: int = setting(128, "features of a patch, a multiple of 64; paper: 512")
    depth: int = setting(2, "blocks of the transformer; paper: 6")
    heads: int = setting(4, "attention heads; paper: 8")
    hidden_width: int = setting(256, "hidden units of a block's perceptron; paper: 1024")
    components: int = setting(10, "Gaussian components of the mixture; best in the authors' figure: 150")
    mdn: Literal["repo", "logsumexp"] = setting("repo", "repo: expected cost, as in the authors' code; logsumexp: NLL")
    noise: float = setting(0.2, "standard deviation of the noise on embeddings in training")
    capsule: bool = setting(True, "true: combine embeddings by routing to one capsule; false: by their sum")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        height, width = self.image_size
        if self.patch_size < 1 or height % self.patch_size or width % self.patch_size:
            raise ConfigError(f"patch_size {self.patch_size} does not divide image_size {height}x{width}")
        if min(self.width, self.depth, self.heads, self.hidden_width, self.components) < 1:
            raise ConfigError("width, depth, heads, hidden_width and components must be at least 1")
        if self.width % CAPSULE**2 or self.width % self.heads:
            raise ConfigError(f"width is {self.width}; it must be a multiple of {CAPSULE**2} and of heads {self.heads}")
        if not 0 <= self.noise < math.inf:
            raise ConfigError(f"noise is {self.noise}; it must not be negative")

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches: rows, columns."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class Block(nn.Module):
    """A pre-norm transformer block; logits are scaled by the root of the whole width, as in the authors' code."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.perceptron = perceptron(width, hidden, width)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Apply self-attention and the perceptron, each with a residual connection."""
        query, key, value = (
            self.to_qkv(self.attention_norm(tokens)).reshape(*tokens.shape[:2], 3, self.heads, -1).unbind(2)
        )
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=tokens.shape[-1] ** -0.5
        )
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(2))
        transformed: Tensor = tokens + self.perceptron(self.perceptron_norm(tokens))
        return transformed


class Transformer(nn.Module):
    """Embeds patches: linear layer, trained position embeddings, a class token (not returned), and blocks."""

    def __init__(self, config: VtAdlConfig) -> None:
        super().__init__()
        self.size = config.patch_size
        self.embedding = nn.Linear(3 * config.patch_size**2, config.width)
        self.class_token = nn.Parameter(torch.randn(1, 1, config.width))
        self.position = nn.Parameter(torch.randn(1, config.grid[0] * config.grid[1] + 1, config.width))
        blocks = (Block(config.width, config.heads, config.hidden_width) for _ in range(config.depth))
        self.blocks = nn.Sequential(*blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens features"]:
        """Return the embedding of each patch, in row-major order."""
        patches = images.unfold(2, self.size, self.size).unfold(3, self.size, self.size)
        tokens = self.embedding(patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.position
        embedded: Tensor = self.blocks(tokens)
        return embedded[:, 1:]


class MixtureDensity(nn.Module):
    """Predicts from an embedding the parameters of a Gaussian mixture for this embedding (Bishop 1994)."""

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.weights = nn.Linear(width, components, bias=False)
        self.means = nn.Linear(width, components * width, bias=False)
        self.variances = nn.Linear(width, components * width, bias=False)

    def forward(
        self, embeddings: Float[Tensor, "*batch width"]
    ) -> tuple[
        Float[Tensor, "*batch components"],
        Float[Tensor, "*batch components width"],
        Float[Tensor, "*batch components width"],
    ]:
        """Return weight logits, means, and log variances, which are at least 0."""
        inputs = embeddings.clamp_min(torch.finfo(torch.double).eps)
        shape = (*embeddings.shape[:-1], self.weights.out_features, embeddings.shape[-1])
        log_variances = F.softplus(self.variances(inputs).float()).clamp_max(MAX_LOG_VARIANCE)
        return self.weights(inputs).float(), self.means(inputs).float().reshape(shape), log_variances.reshape(shape)


def mixture_cost(
    embeddings: Float[Tensor, "*batch width"],
    logits: Float[Tensor, "*batch components"],
    means: Float[Tensor, "*batch components width"],
    log_variances: Float[Tensor, "*batch components width"],
    kind: Literal["repo", "logsumexp"],
) -> Float[Tensor, "*batch"]:
    """Return the negative log-likelihood minus width/2 · log 2π; it is at least 0, since variances are at least 1.

    kind: `logsumexp` is −log Σ π·N; `repo` is Σ π·(−log N), an upper bound of it.
    """
    squared_distance = (embeddings.float().unsqueeze(-2) - means).square() * (-log_variances).exp()
    costs = (log_variances + squared_distance).sum(-1) / 2
    if kind == "repo":
        return (logits.softmax(-1) * costs).sum(-1)
    return -log_sum_exp(logits.log_softmax(-1) - costs, -1)


class VtAdl(GradientDetector):
    """VT-ADL: transformer, decoder, mixture density network."""

    name = "vt_adl"
    has_own_score = True
    config: VtAdlConfig

    def __init__(self, config: VtAdlConfig) -> None:
        super().__init__(config)
        self.transformer = Transformer(config)
        tokens, channels = config.grid[0] * config.grid[1], config.width // CAPSULE**2
        self.capsule = Capsules(tokens * config.width // CAPSULE, 1, CAPSULE, config.width) if config.capsule else None
        self.decoder = nn.Sequential(*_decoder(config.image_size, channels))
        self.density = MixtureDensity(config.width, config.components)

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the authors' plan, or one with a much higher learning rate.

        The mixture means must learn to copy the embeddings, and an Adam step changes a weight by about the rate.
        """
        if protocol == "paper":
            return (Training(learning_rate=1e-4, batch_size=8, max_epochs=400, weight_decay=1e-4),)
        return (Training(learning_rate=3e-3, batch_size=8, steps=1200, schedule="cosine", weight_decay=1e-4),)

    def embed(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens features"]:
        """Return the embedding of each patch in row-major order; in training, noise is added."""
        embeddings: Tensor = self.transformer(images)
        if self.training:
            embeddings = embeddings + self.config.noise * torch.randn_like(embeddings)
        return embeddings

    def reconstruct(self, embeddings: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch 3 height width"]:
        """Reconstruct images from all their embeddings; values are in (-1, 1)."""
        if self.capsule is None:
            vector = squash(embeddings.sum(1))
        else:
            vector = self.capsule(embeddings.reshape(embeddings.shape[0], -1, CAPSULE))[:, 0]
        reconstruction: Tensor = self.decoder(vector.reshape(vector.shape[0], -1, CAPSULE, CAPSULE)).float()
        if reconstruction.shape[-2:] != self.config.image_size:
            reconstruction = F.interpolate(reconstruction, self.config.image_size, mode="bilinear")
        return reconstruction.tanh()

    def cost(self, embeddings: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch tokens"]:
        """Return the cost of each embedding; see `mixture_cost`."""
        logits, means, log_variances = self.density(embeddings)
        return mixture_cost(embeddings, logits, means, log_variances, self.config.mdn)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return 5·MSE − 0.5·SSIM of the reconstruction, plus the summed cost of an image's embeddings."""
        embeddings = self.embed(images)
        reconstruction = self.reconstruct(embeddings)
        error = 5 * F.mse_loss(reconstruction, images) - 0.5 * mean_ssim(reconstruction, images)
        return error + self.cost(embeddings).sum(1).mean()

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the square root of the patch costs (bilinear); the image score is MSE + (1 − SSIM) + maximum cost."""
        embeddings = self.embed(images)
        reconstruction, costs = self.reconstruct(embeddings), self.cost(embeddings)
        maps = F.interpolate(costs.reshape(-1, 1, *self.config.grid), images.shape[-2:], mode="bilinear")
        error = (
            (reconstruction - images).square().mean((1, 2, 3)) + 1 - ssim_map(reconstruction, images).mean((1, 2, 3))
        )
        return Residuals(maps.sqrt(), reconstruction.clamp(0, 1), error + costs.amax(1))


def _decoder(image_size: tuple[int, int], channels: int) -> Iterator[nn.Module]:
    """Yield the authors' layers for their image size; otherwise layers that double 8 pixels up to the longer side."""
    layers: tuple[tuple[int, int, int, int], ...] = PAPER_DECODER
    if image_size != PAPER_SIZE:
        doublings = max(1, math.ceil(math.log2(max(image_size) / CAPSULE)))
        widths = CHANNELS[:1] * (doublings - len(CHANNELS)) + CHANNELS[-doublings:]
        layers = tuple((outputs, 4, 2, 1) for outputs in widths)
    for index, (outputs, kernel, stride, padding) in enumerate(layers):
        yield nn.ConvTranspose2d(channels, outputs, kernel, stride, padding)
        if index < len(layers) - 1:
            yield nn.BatchNorm2d(outputs)
            yield nn.ReLU()
        channels = outputs
