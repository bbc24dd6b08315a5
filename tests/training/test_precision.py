import time
from collections.abc import Iterator

import pytest
import torch

from metalad.training import precision
from metalad.training.precision import Precision, fastest_precision, product_rate


@pytest.fixture(autouse=True)
def _clear_cache() -> Iterator[None]:
    fastest_precision.cache_clear()
    yield
    fastest_precision.cache_clear()


@pytest.mark.parametrize(
    ("speedup", "expected"), [(2.2, "bf16"), (1.31, "bf16"), (1.29, "fp32"), (1.0, "fp32"), (0.2, "fp32")]
)
def test_bf16_is_used_above_the_minimum_speedup(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: Precision
) -> None:
    rates = {torch.float32: 1e11, torch.bfloat16: speedup * 1e11}
    monkeypatch.setattr(precision, "product_rate", lambda dtype, device, size: rates[dtype])  # noqa: ARG005
    assert fastest_precision("cpu") == expected


def test_rate_is_work_divided_by_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three measured times are 3, 1 and 2 seconds."""
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert product_rate(torch.float32, size=16, repeats=3) == 2 * 16**3


def test_measurement_does_not_change_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MIN_SMALL_SPEEDUP", 0.0)  # both sizes are measured on any machine
    rate = product_rate
    monkeypatch.setattr(precision, "product_rate", lambda dtype, device, _: rate(dtype, device, size=8, repeats=1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fastest_precision("cpu")
    assert torch.equal(torch.rand(3), expected)


def _recorded_rates(monkeypatch: pytest.MonkeyPatch, small_speedup: float) -> list[int | None]:
    """Let bf16 be twice as fast as fp32, but for small products; return the list that measured sizes are added to."""
    sizes: list[int | None] = []

    def rate(dtype: torch.dtype, device: str, size: int | None) -> float:
        del device
        sizes.append(size)
        return 1.0 if dtype == torch.float32 else small_speedup if size else 2.0

    monkeypatch.setattr(precision, "product_rate", rate)
    return sizes


def test_measurement_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = _recorded_rates(monkeypatch, 1.0)
    assert fastest_precision("cpu") == fastest_precision("cpu") == "bf16"
    assert sizes == [precision.SMALL_SIZE] * 2 + [None] * 2


def test_large_products_are_not_measured_where_small_ones_in_bf16_are_much_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = _recorded_rates(monkeypatch, 0.4)
    assert fastest_precision("cpu") == "fp32"
    assert sizes == [precision.SMALL_SIZE] * 2
    assert fastest_precision("cuda") == "bf16"  # a GPU takes no second for any product
    assert sizes[2:] == [None] * 2
