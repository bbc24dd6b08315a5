"""A small convolutional network that computes descriptors of image patches (Bergmann et al. 2020)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.005

Layer = tuple[int, float, bool]
NETWORKS: dict[int, tuple[Layer, ...]] = {
    17: ((5, 1, False), (5, 2, False), (5, 2, False), (5, 0, False)),
    33: ((5, 1, True), (5, 2, True), (2, 2, False), (4, 0, False)),
    65: ((5, 1, True), (5, 1, True), (5, 1, True), (4, 2, False), (1, 0, False)),
}
"""Convolutions per patch side: kernel, channels as a multiple of the width (0: descriptor size), pooling after it."""


class PatchNetwork(nn.Module):
    """A network that computes descriptors of patches of `side` pixels, for one patch or for all patches of an image.

    field: height and width of the receptive field in pixels; pooling rounds down, so that it can be smaller than
        `side`.
    stride: distance of patches in pixels, except for dense descriptors.
    """

    def __init__(self, side: int, width: int, descriptor: int) -> None:
        super().__init__()
        channels = [3, *(int(width * factor) or descriptor for _, factor, _ in NETWORKS[side])]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel)
            for inputs, outputs, (kernel, _, _) in zip(channels[:-1], channels[1:], NETWORKS[side], strict=True)
        )
        self.pooled = [pooled for _, _, pooled in NETWORKS[side]]
        self.field = self.stride = 1
        for kernel, _, pooled in NETWORKS[side]:
            self.field += (kernel - 1 + pooled) * self.stride
            self.stride *= 2 if pooled else 1

    def forward(
        self, patches: Float[Tensor, "batch 3 height width"], *, dense: bool = False
    ) -> Float[Tensor, "batch descriptor down across"]:
        """Return the descriptors of all patches that fit, at every `stride` pixels, or if dense, at every pixel.

        Dense pooling has stride 1; the layers after it are dilated instead.
        """
        dilation = 1
        maps = patches
        for index, (layer, pooled) in enumerate(zip(self.convolutions, self.pooled, strict=True)):
            maps = F.conv2d(maps, layer.get_parameter("weight"), layer.get_parameter("bias"), dilation=dilation)
            if index + 1 < len(self.convolutions):
                maps = F.leaky_relu(maps, SLOPE)
            if pooled and dense:
                maps = F.max_pool2d(maps, 2, 1, dilation=dilation)
                dilation *= 2
            elif pooled:
                maps = F.max_pool2d(maps, 2)
        return maps

    def around(
        self, images: Float[Tensor, "batch 3 height width"], *, dense: bool
    ) -> Float[Tensor, "batch descriptor down across"]:
        """Return the descriptors of patches around every pixel, or every `stride` pixels; the border is mirrored."""
        stride = 1 if dense else self.stride
        before = (self.field - stride) // 2
        after = [-side % stride + self.field - stride - before for side in images.shape[-2:]]
        descriptors: Tensor = self(F.pad(images, (before, after[1], before, after[0]), mode="reflect"), dense=dense)
        return descriptors
