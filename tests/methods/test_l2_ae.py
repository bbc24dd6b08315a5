import torch

from metalad.methods.l2_ae import L2Autoencoder, L2AutoencoderConfig
from metalad.nn.pixels import to_batch
from tests.cookies import cookies


def test_raw_map_is_the_squared_error_and_the_loss_is_its_mean() -> None:
    torch.manual_seed(0)
    model = L2Autoencoder(L2AutoencoderConfig(image_size=(32, 48), smoothing_sigma=1.0, code=4, width=4)).eval()
    images = to_batch(cookies(2, (32, 48)))
    with torch.no_grad():
        expected = (model.reconstruct(images) - images).square()
        torch.testing.assert_close(model.raw_map(model.residuals(images)), expected.sum(1))
        torch.testing.assert_close(model.loss(images), expected.mean())


def test_paper_protocol_is_200_epochs_of_10_000_patches() -> None:
    (plan,) = L2Autoencoder(L2AutoencoderConfig(image_size=(32, 32))).plan("paper")
    assert (plan.learning_rate, plan.weight_decay, plan.schedule) == (2e-4, 1e-5, "constant")
    assert plan.steps is not None
    assert 0 <= 200 * 10_000 - plan.steps * plan.batch_size < plan.batch_size
