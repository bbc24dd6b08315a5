import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from metalad.methods.subspace_ad import SubspaceAD, SubspaceADConfig, rotated
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from tests.cookies import cookies

SIZE = (64, 80)


def fitted(images: int = 6, **changes: object) -> SubspaceAD:
    values = {"image_size": SIZE, "smoothing_sigma": 1.0} | changes
    model = SubspaceAD(SubspaceADConfig(**values))  # type: ignore[arg-type]
    model.fit(cookies(images, SIZE), 0)
    return model


def test_distance_is_the_residual_of_principal_component_analysis() -> None:
    """The reference is scikit-learn's PCA of all patches, in double precision."""
    model = fitted(variance=0.9)
    training = model.patches(to_batch(cookies(6, SIZE))).double().flatten(0, 2).numpy()
    images = to_batch(cookies(8, SIZE)[6:])
    test = model.patches(images).double().flatten(0, 2).numpy()
    pca = PCA(0.9, svd_solver="full").fit(training)
    assert model.subspace.dimensions == pca.n_components_
    expected = np.linalg.norm(test - pca.inverse_transform(pca.transform(test)), axis=1)
    np.testing.assert_allclose(model.distances(images).flatten().numpy(), expected, rtol=1e-3)


def test_image_score_is_the_mean_of_the_highest_hundredth_of_the_map() -> None:
    model, images = fitted(), to_batch(cookies(8, SIZE)[6:])
    score, maps = model.predict(images, model.residuals(images), "raw")
    highest = np.sort(maps.flatten(1).numpy(), 1)[:, -round(0.01 * SIZE[0] * SIZE[1]) :]
    np.testing.assert_allclose(score.numpy(), highest.mean(1), rtol=1e-5)


def test_more_variance_leaves_a_smaller_residual() -> None:
    images = to_batch(cookies(8, SIZE)[6:])
    distances = [fitted(variance=variance).distances(images) for variance in (0.5, 0.9, 0.99)]
    assert (distances[0] >= distances[1]).all()
    assert (distances[1] >= distances[2]).all()


def test_taps_are_concatenated_or_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    images = to_batch(cookies(2, SIZE))
    model = fitted()
    concatenated = model.patches(images)
    assert not model.averaged
    assert concatenated.shape == (2, 8, 10, 24 + 40 + 112)
    maps = [torch.full((2, 4, 8, 10), value) for value in (1.0, 2.0, 6.0)]
    monkeypatch.setattr(model.backbone, "forward", lambda _: maps)
    model.averaged = True
    torch.testing.assert_close(model.patches(images)[:, 1:-1, 1:-1], torch.full((2, 6, 8, 4), 3.0))


def test_rotated_copies_take_part_in_the_subspace() -> None:
    """With copies, a rotated training image has a smaller residual."""
    image = cookies(1, SIZE)
    turned = rotated(to_batch(image), math.tau / 4)
    plain, with_copies = (fitted(1, rotations=count, variance=0.9) for count in (0, 3))
    assert with_copies.distances(turned).mean() < plain.distances(turned).mean()


def test_rotation_of_a_square_by_a_quarter_turn_is_exact() -> None:
    images = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(rotated(images, math.tau / 4), torch.rot90(images, 1, (2, 3)), rtol=0, atol=1e-5)


def test_rotation_keeps_distances_in_an_image_that_is_not_square() -> None:
    """A spot 10 pixels right of the center moves to 10 pixels above it."""
    images = torch.zeros(1, 3, 41, 81)
    images[..., 20, 50] = 1
    row, column = divmod(int(rotated(images, math.tau / 4)[0, 0].argmax()), 81)
    assert (row, column) == (10, 40)


@pytest.mark.parametrize("changes", [{"grid": "s32"}, {"variance": 0.0}, {"variance": 1.0}, {"rotations": -1}])
def test_invalid_settings_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        SubspaceADConfig(**changes)  # type: ignore[arg-type]


def test_zero_images_raise() -> None:
    with pytest.raises(DataError, match="at least 1"):
        SubspaceAD(SubspaceADConfig()).fit(np.zeros((0, 256, 256, 3), np.uint8), 0)
