import numpy as np
import torch

from metalad.nn.means import plane_mean


def test_the_mean_is_that_of_all_pixels() -> None:
    planes = torch.rand(2, 3, 40, 56, dtype=torch.float64)
    torch.testing.assert_close(plane_mean(planes), planes.mean((-2, -1)))


def test_in_sums_of_one_value_after_the_other_two_steps_keep_digits_that_one_loses() -> None:
    """How other runtimes add: `cumsum` of NumPy adds in this order."""
    planes = np.random.default_rng(0).uniform(0.2, 0.9, (256, 256)).astype(np.float32)
    exact = planes.mean(dtype=np.float64)
    at_once = np.cumsum(planes.ravel())[-1] / planes.size
    rows = np.cumsum(planes, 1)[:, -1] / np.float32(256)
    in_two_steps = np.cumsum(rows)[-1] / np.float32(256)
    assert abs(in_two_steps / exact - 1) < 1e-6
    assert abs(in_two_steps / exact - 1) < abs(at_once / exact - 1) / 2
