import torch

from metalad.detectors.density.feature_densities import peak_ratio


def test_the_peak_is_relative_to_the_residual_that_a_fifth_exceed() -> None:
    residuals = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float()[None] + 1
    assert float(peak_ratio(residuals)) == 100 / 80
    torch.testing.assert_close(peak_ratio(7 * residuals), peak_ratio(residuals))
    residuals[residuals == 100] = 160
    assert float(peak_ratio(residuals)) == 2


def test_images_without_residual_have_the_ratio_0() -> None:
    assert peak_ratio(torch.zeros(2, 30)).tolist() == [[0.0], [0.0]]
    assert torch.isfinite(peak_ratio(torch.eye(1, 30))).all()
    assert float(peak_ratio(torch.ones(1, 1))) == 1
