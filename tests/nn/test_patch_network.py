import pytest
import torch

from metalad.nn.patch_network import NETWORKS, PatchNetwork

FIELDS = {17: (17, 1), 33: (32, 4), 65: (60, 8)}
"""Of each side of a patch, the pixels that count, and the stride: poolings round the last rows away."""


def network(side: int) -> PatchNetwork:
    torch.manual_seed(side)
    return PatchNetwork(side, 6, 5).double()


@pytest.mark.parametrize("side", NETWORKS)
def test_dense_is_patch_by_patch(side: int) -> None:
    """Each descriptor of the dense network is what the network says of that patch alone."""
    net = network(side)
    images = torch.rand(2, 3, side + 9, side + 12, dtype=torch.double)
    dense = net(images, dense=True)
    assert (net.field, net.stride) == FIELDS[side]
    assert dense.shape[2:] == (side + 10 - net.field, side + 13 - net.field)
    for row in range(10):
        for column in range(0, 13, 3):
            patch = images[..., row : row + side, column : column + side]
            alone = net(patch)
            assert alone.shape == (2, 5, 1, 1)
            torch.testing.assert_close(dense[..., row, column], alone[..., 0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", NETWORKS)
def test_strided_is_every_strideth_of_dense(side: int) -> None:
    net, images = network(side), torch.rand(1, 3, 95, 101, dtype=torch.double)
    strided = net(images)
    dense = net(images, dense=True)[..., :: net.stride, :: net.stride]
    torch.testing.assert_close(strided, dense[..., : strided.shape[2], : strided.shape[3]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("side", NETWORKS)
def test_a_descriptor_is_of_the_patch_around_its_place(side: int, dense: bool) -> None:
    """The gradient of one descriptor to the image lies around its place, as far as the field reaches."""
    net = network(side)
    images = torch.rand(1, 3, 90, 102, dtype=torch.double, requires_grad=True)
    found = net.around(images, dense=dense)
    stride = 1 if dense else net.stride
    assert found.shape[2:] == (-(-90 // stride), -(-102 // stride))
    place = 45 // stride, 51 // stride
    (gradient,) = torch.autograd.grad(found[0, :, place[0], place[1]].square().sum(), images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    for touched, at in ((rows, place[0]), (columns, place[1])):
        centre = (at + 0.5) * stride - 0.5
        assert abs(float(touched[0] + touched[-1]) / 2 - centre) <= net.stride / 2
        assert net.field - net.stride < touched[-1] - touched[0] + 1 <= net.field
