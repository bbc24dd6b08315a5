import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from metalad.methods.ssim_ae import SsimAutoencoder, SsimAutoencoderConfig
from metalad.nn.pixels import to_batch
from tests.cookies import cookies

SIZE = (32, 48)


def model() -> SsimAutoencoder:
    torch.manual_seed(0)
    return SsimAutoencoder(SsimAutoencoderConfig(image_size=SIZE, smoothing_sigma=1.0, code=4, width=4)).eval()


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    _, full = structural_similarity(  # type: ignore[no-untyped-call]
        one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
    )
    similarity_map: np.ndarray = full
    return similarity_map


def test_gray_conversion_matches_pillow() -> None:
    pixels = cookies(2, SIZE)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
    found = 255 * model().network_input(to_batch(pixels))[:, 0].numpy()
    assert np.abs(found - expected).max() <= 0.51


def test_raw_map_is_scikit_image_dissimilarity_and_the_loss_is_its_mean() -> None:
    detector, images = model(), to_batch(cookies(2, SIZE))
    with torch.no_grad():
        seen, reconstruction = detector.network_input(images), detector.reconstruct(images)
        found, loss = detector.raw_map(detector.residuals(images)), float(detector.loss(images))
    assert reconstruction.shape == images.shape
    assert torch.equal(reconstruction[:, 0], reconstruction[:, 2])
    pairs = zip(reconstruction[:, 0].double().numpy(), seen[:, 0].double().numpy(), strict=True)
    expected = np.stack([1 - similarity(one, other) for one, other in pairs])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert abs(loss - expected[:, 5:-5, 5:-5].mean()) < 1e-4


def test_images_of_equal_luminance_have_equal_residuals() -> None:
    red = torch.zeros(1, 3, *SIZE)
    red[:, 0] = 0.5
    grey = (0.299 * red[:, :1]).expand_as(red)
    with torch.no_grad():
        one, other = (model().residuals(images).values for images in (red, grey))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
