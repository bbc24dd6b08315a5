from pathlib import Path

import pytest
from _pytest.nodeid import NodeId

from metalad.runtime.packages import disable_telemetry
from tests.slow import SLOW

disable_telemetry()  # before test modules import onnxruntime
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark slow tests."""
    if item.nodeid.removeprefix("tests/").startswith(SLOW):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, run the tests of a file in one process, unless they have groups of their own.

    Groups with slow tests start first, so that quick ones remain when a process has nothing else to run.

    The scheduler of pytest-xdist reads the group from the end of a test's id. pytest-xdist 3.8 cannot add it there: it
    sets an attribute that pytest 9.2 has no more.
    """
    if not config.getoption("loadgroup", default=False):
        return
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        marker = item.get_closest_marker("xdist_group")
        group = marker.args[0] if marker else item.path.relative_to(config.rootpath).as_posix()
        item._id = NodeId.parse(f"{item.nodeid}@{group}")
        groups.setdefault(group, []).append(item)
    in_order = sorted(groups.values(), key=lambda group: not any(item.get_closest_marker("slow") for item in group))
    items[:] = [item for group in in_order for item in group]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout, which is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real images at {SHARED_DATA}")
    return SHARED_DATA
