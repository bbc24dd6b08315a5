from pathlib import Path

import pytest

from tests.slow import SLOW

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark slow tests."""
    if item.nodeid.removeprefix("tests/").startswith(SLOW):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, run the tests of a file in one process, unless they have groups of their own."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(item.config.rootpath).as_posix()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout, which is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real images at {SHARED_DATA}")
    return SHARED_DATA
