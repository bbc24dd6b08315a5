import pytest
import torch

from metalad.nn.patch_network import NETWORKS, PatchNetwork

FIELDS = {17: (17, 1), 33: (32, 4), 65: (60, 8)}
"""Receptive field and stride per patch side; pooling rounds down."""


def network(side: int) -> PatchNetwork:
    torch.manual_seed(side)
    return PatchNetwork(side, 6, 5).double()


@pytest.mark.parametrize("side", NETWORKS)
def test_dense_descriptors_equal_those_of_single_patches(side: int) -> None:
    net = network(side)
    images = torch.rand(2, 3, side + 9, side + 12, dtype=torch.double)
    dense = net(images, dense=True)
    assert (net.field, net.stride) == FIELDS[side]
    assert dense.shape[2:] == (side + 10 - net.field, side + 13 - net.field)
    for row in range(10):
        for column in range(0, 13, 3):
            patch = images[..., row : row + side, column : column + side]
            single = net(patch)
            assert single.shape == (2, 5, 1, 1)
            torch.testing.assert_close(dense[..., row, column], single[..., 0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", NETWORKS)
def test_strided_descriptors_are_a_subset_of_dense_descriptors(side: int) -> None:
    net, images = network(side), torch.rand(1, 3, 95, 101, dtype=torch.double)
    strided = net(images)
    dense = net(images, dense=True)[..., :: net.stride, :: net.stride]
    torch.testing.assert_close(strided, dense[..., : strided.shape[2], : strided.shape[3]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("side", NETWORKS)
def test_descriptor_depends_on_the_patch_around_its_position(side: int, dense: bool) -> None:
    """The image gradient of a descriptor covers the receptive field around its position."""
    net = network(side)
    images = torch.rand(1, 3, 90, 102, dtype=torch.double, requires_grad=True)
    descriptors = net.around(images, dense=dense)
    stride = 1 if dense else net.stride
    assert descriptors.shape[2:] == (-(-90 // stride), -(-102 // stride))
    position = 45 // stride, 51 // stride
    (gradient,) = torch.autograd.grad(descriptors[0, :, position[0], position[1]].square().sum(), images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    for nonzero, index in ((rows, position[0]), (columns, position[1])):
        center = (index + 0.5) * stride - 0.5
        assert abs(float(nonzero[0] + nonzero[-1]) / 2 - center) <= net.stride / 2
        assert net.field - net.stride < nonzero[-1] - nonzero[0] + 1 <= net.field
