"""When a file that has arrived is read; times are numbers, nothing waits."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.pipelines.watch.arrivals import Arrivals, ReadyFile
from metalad.pipelines.watch.log import Stamp

A = Stamp(100, 1, 1, 7)
B = Stamp(200, 2, 2, 7)


def ready(arrivals: Arrivals, now: float, files: dict[str, Stamp], limit: int = 10) -> list[ReadyFile]:
    return list(arrivals.ready(now, files.get, limit))


def test_a_file_is_ready_when_it_has_not_changed_for_the_settle_time() -> None:
    arrivals, files = Arrivals(settle=2.0, patience=30.0), {"a.png": A}
    arrivals.observe("a.png", A, 10.0)
    assert arrivals.next_due() == 12
    assert ready(arrivals, 11.9, files) == []
    assert ready(arrivals, 12.0, files) == [("a.png", A, False)]
    arrivals.finish("a.png", A)
    assert len(arrivals) == 0
    assert arrivals.next_due() is None


def test_a_file_that_grows_settles_again_even_without_a_notice() -> None:
    arrivals, files = Arrivals(settle=2.0, patience=30.0), {"a.png": A}
    arrivals.observe("a.png", A, 0.0)
    files["a.png"] = B
    assert ready(arrivals, 2.0, files) == []
    assert ready(arrivals, 3.9, files) == []
    assert ready(arrivals, 4.0, files) == [("a.png", B, False)]


def test_the_number_of_a_file_does_not_count() -> None:
    """Some network drives give another one at every call."""
    arrivals, files = Arrivals(settle=2.0, patience=30.0), {"a.png": A}
    arrivals.observe("a.png", A, 0.0)
    files["a.png"] = replace(A, inode=8)
    assert len(ready(arrivals, 2.0, files)) == 1


def test_a_file_that_cannot_be_decoded_is_tried_until_patience_ends() -> None:
    arrivals, files = Arrivals(settle=1.0, patience=10.0), {"a.png": A}
    arrivals.observe("a.png", A, 0.0)
    tries = []
    for tenth in range(0, 200):
        for file in ready(arrivals, tenth / 10, files):
            tries.append((tenth / 10, file.is_last))
            if not file.is_last:
                arrivals.reject("a.png", A, tenth / 10)
            else:
                arrivals.finish("a.png", A)
    assert tries == [(1, False), (2, False), (4, False), (8, False), (10, True)]


def test_a_rejected_file_that_changes_has_full_patience_again() -> None:
    arrivals, files = Arrivals(settle=1.0, patience=5.0), {"a.png": A}
    arrivals.observe("a.png", A, 0.0)
    assert len(ready(arrivals, 4.0, files)) == 1
    arrivals.reject("a.png", A, 4.0)
    files["a.png"] = B
    assert ready(arrivals, 5.0, files) == []
    assert ready(arrivals, 6.0, files) == [("a.png", B, False)]


def test_a_new_version_waits_until_the_version_in_work_is_finished() -> None:
    arrivals, files = Arrivals(settle=1.0, patience=30.0), {"a.png": A}
    arrivals.observe("a.png", A, 0.0)
    assert len(ready(arrivals, 1.0, files)) == 1
    files["a.png"] = B
    arrivals.observe("a.png", B, 1.5)
    assert ready(arrivals, 5.0, files) == []
    arrivals.finish("a.png", A)
    assert ready(arrivals, 6.0, files) == [("a.png", B, False)]


def test_a_deleted_file_is_forgotten_and_the_limit_holds() -> None:
    arrivals, files = Arrivals(settle=1.0, patience=30.0), {name: A for name in ("a.png", "b.png", "c.png", "d.png")}
    for name in files:
        arrivals.observe(name, A, 0.0)
    del files["a.png"]
    assert [file.path for file in ready(arrivals, 2.0, files, 2)] == ["b.png", "c.png"]
    assert [file.path for file in ready(arrivals, 2.0, files, 2)] == ["d.png"]
    assert "a.png" not in arrivals


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["write", "delete", "look", "reject"])), max_size=40))
def test_any_order_of_events_ends_with_each_existing_file_ready_once(events: list[tuple[str, str]]) -> None:
    arrivals, now, version = Arrivals(settle=1.0, patience=1000.0), 0.0, 0
    files, work, scored = dict[str, Stamp](), dict[str, Stamp](), dict[str, Stamp]()
    for name, event in events:
        now += 0.4
        if event == "write":
            version += 1
            files[name] = Stamp(version, version, version, 0)
            arrivals.observe(name, files[name], now)
        elif event == "delete":
            files.pop(name, None)
        elif event == "look":
            work |= {file.path: file.stamp for file in ready(arrivals, now, files)}
        elif name in work:
            arrivals.reject(name, work.pop(name), now)
    for name, stamp in work.items():
        arrivals.finish(name, stamp)
        scored[name] = stamp
    for _ in range(50):
        now += 100
        for file in ready(arrivals, now, files):
            assert scored.get(file.path) != file.stamp
            scored[file.path] = file.stamp
            arrivals.finish(file.path, file.stamp)
    assert len(arrivals) == 0
    assert {name: scored[name] for name in files} == files
