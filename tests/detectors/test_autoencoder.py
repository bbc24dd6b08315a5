import pytest
import torch
from torch import Tensor

from metalad.detectors.autoencoder import Autoencoder, AutoencoderConfig, halvings
from metalad.methods.l2_ae import L2Autoencoder, L2AutoencoderConfig
from metalad.nn.pixels import to_batch
from metalad.nn.tiling import tile_starts
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies


def tiled(**changes: object) -> L2Autoencoder:
    torch.manual_seed(0)
    values = {"image_size": (40, 48), "tile": 16, "stride": 7, "code": 4, "width": 4, "smoothing_sigma": 1.0} | changes
    return L2Autoencoder(L2AutoencoderConfig(**values)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("channels", "side", "parameters"),
    [(1, 128, 1_048_549), (3, 128, 1_050_599), (1, 256, 1_081_381), (3, 256, 1_083_431)],
)
def test_the_parameter_count_follows_from_the_table_in_the_paper(channels: int, side: int, parameters: int) -> None:
    """Each row of the table has kernel area × input channels × output channels weights, and biases."""
    table = [(4, channels, 32), (4, 32, 32), (3, 32, 32), (4, 32, 64), (3, 64, 64), (4, 64, 128), (3, 128, 64)]
    table += [(3, 64, 32), (8, 32, 100), (8, 100, 32), (3, 32, 64), (3, 64, 128), (4, 128, 64), (3, 64, 64)]
    table += [(4, 64, 32), (3, 32, 32), (4, 32, 32), (4, 32, channels)] + [(4, 32, 32)] * (2 if side == 256 else 0)
    assert sum(kernel**2 * inputs * outputs + outputs for kernel, inputs, outputs in table) == parameters
    with torch.device("meta"):
        model = Autoencoder(channels, (side, side), 100, 32)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters


@pytest.mark.parametrize(("side", "grid"), [(128, 8), (256, 8), (512, 8), (64, 4), (32, 2), (16, 1)])
def test_the_code_has_a_single_position(side: int, grid: int) -> None:
    with torch.device("meta"):
        model = Autoencoder(3, (side, 2 * side), 10, 4)
        code = model.encoder(torch.empty(2, 3, side, 2 * side))
        assert model(torch.empty(2, 3, side, 2 * side)).shape == (2, 3, side, 2 * side)
    assert code.shape == (2, 10, 1, 1)
    assert side >> halvings((side, 2 * side), 4) == grid


@pytest.mark.parametrize("side", [64, 128])
def test_the_output_of_a_new_network_depends_on_its_input(side: int) -> None:
    """The outputs for two images must differ about as much as the images, else the gradients vanish."""
    torch.manual_seed(0)
    model = Autoencoder(3, (side, side), 100, 32)
    first, second = torch.rand(2, 1, 3, side, side)
    with torch.no_grad():
        assert 0.1 < float((model(first) - model(second)).std() / (first - second).std()) < 3


def test_squared_errors_of_overlapping_tiles_are_averaged() -> None:
    """Compared with a loop over tiles: the map of a pixel is the mean over the tiles that contain it."""
    model, images = tiled(), to_batch(cookies(2, (40, 48)))
    total, reconstruction, count = torch.zeros(2, 40, 48), torch.zeros(2, 3, 40, 48), torch.zeros(40, 48)
    with torch.no_grad():
        for top in tile_starts(40, 16, 7):
            for left in tile_starts(48, 16, 7):
                tile = (..., slice(top, top + 16), slice(left, left + 16))
                part = model.autoencoder(images[tile])
                total[tile] += (part - images[tile]).square().sum(1)
                reconstruction[tile] += part
                count[tile] += 1
        residuals = model.residuals(images)
        torch.testing.assert_close(model.raw_map(residuals), total / count)
        torch.testing.assert_close(model.reconstruct(images), reconstruction / count)
    assert residuals.reconstruction is not None
    torch.testing.assert_close(residuals.reconstruction, (reconstruction / count).clamp(0, 1))
    assert torch.equal(residuals.values > 0, reconstruction / count > images)


def test_training_uses_random_tiles_and_validation_uses_all_tiles() -> None:
    model, images = tiled(), to_batch(cookies(1, (40, 48)))
    with torch.no_grad():
        model.train()
        assert len({float(model.loss(images)) for _ in range(5)}) > 1
        model.eval()
        assert len({float(model.loss(images)) for _ in range(3)}) == 1


def test_only_training_images_are_augmented() -> None:
    model, inputs = tiled(tile=None, image_size=(32, 32), shift=0.2), list[Tensor]()
    model.autoencoder.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    images = to_batch(cookies(1))
    with torch.no_grad():
        for mode in (True, False):
            model.train(mode).loss(images)
    augmented, unchanged = inputs
    assert torch.equal(unchanged, images)
    assert not torch.allclose(augmented, images, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (256, 264)}, "256x264 pixels 5 times; use multiples of 32"),
        ({"tile": 100}, "100x100 pixels 4 times; use multiples of 16"),
        ({"tile": 512}, "tile is 512"),
        ({"tile": 128, "stride": 129}, "stride is 129"),
        ({"code": 0}, "code and width"),
        ({"shift": 0.5}, "shift between 0 and 0.5"),
        ({"degrees": float("nan")}, "degrees must lie"),
    ],
)
def test_invalid_settings_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderConfig(**changes)  # type: ignore[arg-type]
