import torch
import torch.nn.functional as F

from metalad.detectors.density.high_pass import (
    AVERAGED,
    COMPONENTS,
    PATCH,
    SAMPLED_STRIDE,
    STRIDE,
    HighPassPatches,
    high_pass,
)
from metalad.nn.pixels import to_batch
from tests.cookies import cookies

SIZE = 48


def images(count: int = 6) -> torch.Tensor:
    return to_batch(cookies(count, (SIZE, SIZE)))


def fitted() -> HighPassPatches:
    patches = HighPassPatches()
    patches.fit([images()[:4], images()[4:]], seed=0)
    return patches


def test_high_pass_removes_a_constant_and_inside_the_image_a_ramp() -> None:
    one = images(1)
    torch.testing.assert_close(high_pass(one + 0.2), high_pass(one), atol=1e-5, rtol=0)
    ramp = torch.linspace(0, 1, SIZE).expand(1, 3, SIZE, SIZE)
    inside = slice(PATCH // 2, -(PATCH // 2))
    assert high_pass(ramp)[..., inside].abs().max() < 1e-5
    assert high_pass(ramp).abs().max() > 1e-3


def test_a_distance_equals_that_of_the_explicit_patch() -> None:
    patches, new = fitted(), images(8)[6:]
    distances = patches(new)
    assert distances.shape == (2, -(-SIZE // STRIDE), -(-SIZE // STRIDE))
    filtered = new - F.conv2d(
        F.pad(new, (PATCH // 2,) * 4, mode="replicate"), torch.full((3, 1, PATCH, PATCH), 1 / PATCH**2), groups=3
    )
    down, across = 3, 4
    patch = filtered[:, :, STRIDE * down - 4 : STRIDE * down + 5, STRIDE * across - 4 : STRIDE * across + 5].flatten(1)
    projected = patch @ patches.projection.flatten(1).T - patches.mean
    expected = torch.cdist(projected, patches.codebook.entries).amin(1)
    torch.testing.assert_close(distances[:, down, across], expected, atol=1e-5, rtol=1e-4)


def test_the_projection_is_orthonormal_and_half_of_few_patches_are_entries() -> None:
    patches = fitted()
    rows = patches.projection.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(COMPONENTS), atol=1e-5, rtol=0)
    padded = F.pad(high_pass(images()), (PATCH // 2,) * 4, mode="replicate")
    sampled = F.conv2d(padded, patches.projection, stride=SAMPLED_STRIDE) - patches.mean[:, None, None]
    distances = patches.codebook(sampled)
    count = distances.numel() // 2
    assert len(patches.codebook.entries) == count
    assert (distances < 1e-4).sum() >= count - round(AVERAGED * count)


def test_entries_explain_repeated_structure_and_not_noise() -> None:
    noise = HighPassPatches()
    noise.fit([torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))], seed=0)
    stripes = HighPassPatches()
    columns = (torch.arange(SIZE) // 3 % 2).float()
    stripes.fit([torch.stack([columns.roll(shift).expand(3, SIZE, SIZE) for shift in range(6)])], seed=0)
    assert noise.explained_variance < 0.35  # averages explain part of noise
    assert stripes.explained_variance > 0.9
