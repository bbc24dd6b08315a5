"""A small network that describes patches of an image, one by one or densely (Bergmann et al. 2020)."""

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
"""Of each side of a patch, the convolutions: kernel, channels in widths (0: the descriptor's), whether pooled."""


class PatchNetwork(nn.Module):
    """A network that describes patches of `side` pixels, one by one, or all of an image at once.

    field: pixels down and across that a descriptor depends on; poolings round the last of a patch's rows away.
    stride: pixels between patches, unless they are described densely.
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
        """Describe every patch that fits, one every `stride` pixels, or densely, one every pixel.

        Dense pooling does not skip; what comes after it looks at places further apart instead.
        """
        spread = 1
        maps = patches
        for index, (layer, pooled) in enumerate(zip(self.convolutions, self.pooled, strict=True)):
            maps = F.conv2d(maps, layer.get_parameter("weight"), layer.get_parameter("bias"), dilation=spread)
            if index + 1 < len(self.convolutions):
                maps = F.leaky_relu(maps, SLOPE)
            if pooled and dense:
                maps = F.max_pool2d(maps, 2, 1, dilation=spread)
                spread *= 2
            elif pooled:
                maps = F.max_pool2d(maps, 2)
        return maps

    def around(
        self, images: Float[Tensor, "batch 3 height width"], *, dense: bool
    ) -> Float[Tensor, "batch descriptor down across"]:
        """Describe the patches around every pixel, or around every square of `stride` pixels; the rim is mirrored."""
        stride = 1 if dense else self.stride
        before = (self.field - stride) // 2
        behind = [-side % stride + self.field - stride - before for side in images.shape[-2:]]
        described: Tensor = self(F.pad(images, (before, behind[1], before, behind[0]), mode="reflect"), dense=dense)
        return described
