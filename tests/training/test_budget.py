"""The time budget, with a clock that moves only when work is done."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from metalad.runtime.errors import ConfigError
from metalad.training.budget import TOLERANCE, Budget, extrapolated_seconds, shortened
from metalad.training.loop import Training

SECONDS = st.floats(0.001, 1000)


class Clock:
    """A clock that stands still between calls of `work`."""

    def __init__(self) -> None:
        self.now = 12345.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def plans_of(*epochs: int) -> tuple[Training, ...]:
    return tuple(Training(max_epochs=count, stage=f"stage {index}") for index, count in enumerate(epochs))


def test_the_budget_counts_from_its_start() -> None:
    clock = Clock()
    budget = Budget(2.0, clock)
    clock.work(30)
    assert (budget.seconds, budget.spent) == (120, 30)


def test_loading_and_calibration_are_part_of_the_budget() -> None:
    clock = Clock()
    budget = Budget(10.0, clock)  # 600 s
    clock.work(100)  # loading and measuring
    (plan,) = shortened(plans_of(1000), [2.0], 300.0, budget)
    assert plan.max_epochs == 100
    clock.work(2.0 * plan.max_epochs + 300.0)
    assert budget.spent == 600


def test_all_stages_are_shortened_alike() -> None:
    found = shortened(plans_of(100, 50, 1), [1.0, 4.0, 10.0], 5.0, Budget(2.0, Clock()))
    assert [plan.max_epochs for plan in found] == [37, 18, 1]
    assert [plan.stage for plan in found] == ["stage 0", "stage 1", "stage 2"]


def test_a_schedule_that_fits_is_kept() -> None:
    plans = plans_of(100, 50)
    assert shortened(plans, [1.0, 1.0], 50.0, Budget(4.0, Clock())) == plans


@given(
    st.lists(st.tuples(st.integers(1, 500), SECONDS), min_size=1, max_size=3), SECONDS, SECONDS, st.floats(0.001, 1000)
)
def test_the_whole_training_takes_the_budget_or_is_refused(
    stages: list[tuple[int, float]], loading: float, reserved: float, minutes: float
) -> None:
    epochs, costs = [count for count, _ in stages], [cost for _, cost in stages]
    clock = Clock()
    budget = Budget(minutes, clock)
    clock.work(loading)
    least = loading + reserved + sum(costs)
    assume(abs(least - (1 + TOLERANCE) * budget.seconds) > 1e-6 * least)
    if least > (1 + TOLERANCE) * budget.seconds:
        with pytest.raises(ConfigError, match=r"minutes is .*, but loading, one epoch of training and calibration"):
            shortened(plans_of(*epochs), costs, reserved, budget)
        return
    found = shortened(plans_of(*epochs), costs, reserved, budget)
    for plan, cost in zip(found, costs, strict=True):
        clock.work(plan.max_epochs * cost)
    clock.work(reserved)
    whole = sum(count * cost for count, cost in stages)
    # Stages are rounded down to whole epochs, and have one at least.
    assert budget.spent <= budget.seconds + sum(costs) + 1e-6
    assert budget.spent >= min(budget.seconds, loading + reserved + whole) - sum(costs) - 1e-6
    assert all(1 <= plan.max_epochs <= count for plan, count in zip(found, epochs, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100, 512])
@pytest.mark.parametrize(("constant", "rate"), [(0.0, 0.1), (1.0, 0.1), (5.0, 0.001)])
def test_the_time_of_many_images_follows_from_that_of_few(count: int, constant: float, rate: float) -> None:
    clock, done = Clock(), list[int]()

    def work(images: int) -> None:
        clock.work(constant + rate * images + (3.0 if not done else 0.0))  # the first time, libraries are loaded
        done.append(images)

    estimated = extrapolated_seconds(work, count, Budget(1e6, clock))
    true = constant + rate * count
    assert done == sorted(done)
    assert max(done) == min(64, count)
    assert estimated == pytest.approx(true if len(done) > 1 else true + 3.0)


def test_measuring_takes_a_small_part_of_the_budget() -> None:
    clock, done = Clock(), list[int]()

    def work(images: int) -> None:
        clock.work(1.0 * images)
        done.append(images)

    assert extrapolated_seconds(work, 512, Budget(1.0, clock)) == pytest.approx(512)
    assert done == [2, 4]
    assert clock.now - 12345.0 < 0.15 * 60
