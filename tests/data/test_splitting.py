from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.data import Sample, split_validation
from metalad.data.splitting import choose, subsampled_indices
from metalad.runtime.errors import DataError, ImageError
from tests.data.folders import put_samples


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 60), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 99))
def test_each_sample_is_in_exactly_one_part(count: int, fraction: float, seed: int) -> None:
    samples = [Sample(Path(f"{index}.png"), False, "good") for index in range(count)]
    train, validation = split_validation(samples, fraction, seed)
    assert train
    assert validation
    assert sorted(train + validation, key=samples.index) == samples
    assert list(train) == sorted(train, key=samples.index)
    assert abs(len(validation) - fraction * count) <= 1
    assert split_validation(samples, fraction, seed) == (train, validation)


def test_different_seeds_give_different_splits() -> None:
    samples = [Sample(Path(f"{index}.png"), False, "good") for index in range(50)]
    assert len({split_validation(samples, 0.2, seed)[1] for seed in range(20)}) == 20


def test_the_split_of_a_seed_is_constant_over_versions() -> None:
    # Fixed values: for an existing model, the same images must be selected again.
    assert sorted(choose([str(index) for index in range(100)], 5, seed=0)) == [44, 61, 68, 72, 92]


@pytest.mark.parametrize("seed", range(10))
def test_copies_are_in_the_same_part(tmp_path: Path, seed: int) -> None:
    samples = put_samples(tmp_path, [0, 1, 1, 2, 3, 3, 3, 4, 5, 6])
    train, validation = split_validation(samples, 0.3, seed)
    assert not {sample.path.read_bytes() for sample in train} & {sample.path.read_bytes() for sample in validation}
    assert len(validation) == 3


def test_copies_are_split_if_all_files_are_copies(tmp_path: Path) -> None:
    train, validation = split_validation(put_samples(tmp_path, [0, 0, 0]))
    assert (len(train), len(validation)) == (2, 1)
    pairs = put_samples(tmp_path / "pairs", [0, 0, 1, 1])
    train, validation = split_validation(pairs)
    assert {sample.path for sample in validation} in (
        {p.path for p in pairs[:2]},
        {p.path for p in pairs[2:]},
    )


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_rejected(count: int) -> None:
    with pytest.raises(DataError, match=f"found {count} good images, but at least 2 are needed"):
        split_validation([Sample(Path("a.png"), False, "good")] * count)


def test_unreadable_files_do_not_prevent_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = put_samples(tmp_path, [1] * 6)

    def fail(path: Path) -> str:
        raise ImageError(path, "a test")

    monkeypatch.setattr("metalad.data.content.content_hash", fail)
    train, validation = split_validation(samples, 0.3, 0)
    assert len(train) + len(validation) == 6


def test_subsampled_indices_are_all_or_evenly_spaced_from_the_first_to_the_last() -> None:
    assert subsampled_indices(3, 512).tolist() == [0, 1, 2]
    many = subsampled_indices(10_000, 512)
    assert len(many) == 512
    assert (many[0], many[-1]) == (0, 9999)
    assert np.ptp(np.diff(many)) <= 1
