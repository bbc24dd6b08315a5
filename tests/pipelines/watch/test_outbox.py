"""Commands and MQTT messages: for each result at least once, in order, also after a crash."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metalad.pipelines.watch import mqtt, outbox
from metalad.pipelines.watch.log import Log, Outbox
from metalad.pipelines.watch.mqtt import PASSWORD, Publisher
from metalad.pipelines.watch.mqtt import Broker as Address
from metalad.pipelines.watch.outbox import CommandRunner
from metalad.results.prediction import SavedPrediction
from metalad.runtime.errors import ConfigError
from tests.pipelines.watch.broker import Broker


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "results.sqlite")


def add(log: Log, name: str, *outboxes: Outbox, score: float = 2.0) -> None:
    saved = SavedPrediction(Path(name), score, 1.0, score > 1, (), None, None, None, (8, 8))
    log.add(None, None, [saved], model=None, outboxes=outboxes)


def states(log: Log, column: Outbox) -> list[str | None]:
    return [row[0] for row in log._database.execute(f"SELECT {column} FROM results ORDER BY id")]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Commands


def run_commands(log: Log, command: str, timeout: float = 30.0) -> None:
    runner = CommandRunner(log, command, timeout)
    runner.start()
    runner.drain()
    runner.close()
    assert runner.failure is None


def test_a_command_gets_the_path_and_the_result_without_a_shell(log: Log, tmp_path: Path) -> None:
    odd = tmp_path / "-rf $(touch bad); 'x'\n.png"
    odd.write_bytes(b"x")
    add(log, str(odd), "command")
    add(log, "camera:0[now]", "command")
    add(log, "good.png", "command", score=0.5)
    script = tmp_path / "alarm.py"
    script.write_text(
        "import json, os, sys\n"
        "found = [sys.argv[1:], json.load(sys.stdin)['id'], os.environ['METALAD_PATH'], os.environ['METALAD_SCORE']]\n"
        f"open({str(tmp_path / 'alarms')!r}, 'a').write(json.dumps(found) + chr(10))\n"
    )
    run_commands(log, f"'{sys.executable}' '{script}' --level 2")
    lines = [json.loads(line) for line in (tmp_path / "alarms").read_text().splitlines()]
    assert lines == [
        [["--level", "2", str(odd)], 1, str(odd), "2.0"],
        [["--level", "2", "camera:0[now]"], 2, "camera:0[now]", "2.0"],
    ]
    assert states(log, "command") == ["done", "done", None]
    assert not (tmp_path / "bad").exists()
    log.close()


def test_a_failed_command_is_recorded_and_not_repeated(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    add(log, "a.png", "command")
    run_commands(log, "sh -c 'echo no lamp >&2; exit 3'")
    assert states(log, "command") == ["failed: it ended with code 3: no lamp"]
    assert "the command for a.png failed: it ended with code 3: no lamp" in caplog.text
    log.close()


def test_a_command_that_takes_too_long_is_ended_with_its_processes(log: Log) -> None:
    add(log, "a.png", "command")
    start = time.monotonic()
    run_commands(log, "sh -c 'sleep 60 & sleep 60'", timeout=0.1)
    assert time.monotonic() - start < 10
    assert states(log, "command") == ["failed: it took more than 0.1 s"]
    log.close()


def test_a_command_that_was_interrupted_is_run_again(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STOP_SECONDS", 0.2)
    add(log, "a.png", "command")
    started = tmp_path / "started"
    runner = CommandRunner(log, f"sh -c 'echo x >> {started}; test -e {tmp_path}/second || sleep 60'", 60.0)
    runner.start()
    until(started.exists)
    runner.close()
    assert states(log, "command") == ["pending"]
    (tmp_path / "second").touch()
    run_commands(log, f"sh -c 'echo x >> {started}; test -e {tmp_path}/second || sleep 60'")
    assert states(log, "command") == ["done"]
    assert started.read_text() == "x\nx\n"
    log.close()


def test_a_bug_in_the_thread_is_kept_for_the_thread_that_scores(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    add(log, "a.png", "command")
    monkeypatch.setattr(CommandRunner, "_executed", lambda *_: 1 // 0)
    runner = CommandRunner(log, "true", 1.0)
    runner.start()
    runner.drain()
    runner.close()
    assert isinstance(runner.failure, ZeroDivisionError)
    log.close()


@pytest.mark.parametrize(
    ("command", "text"), [("", "is empty"), ("no-such-program x", "there is no program no-such"), ("'a", "quotation")]
)
def test_an_impossible_command_is_refused(log: Log, command: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        CommandRunner(log, command, 1.0)
    log.close()


# MQTT


def publish(log: Log, broker: Broker, url: str = "mqtt://127.0.0.1:{}/line/1", timeout: float = 10.0) -> None:
    publisher = Publisher(log, Address.of(url.format(broker.port)))
    publisher.start()
    publisher.drain(timeout=timeout)
    publisher.close()
    assert publisher.failure is None


def test_results_are_published_in_order_with_all_entries(log: Log) -> None:
    broker = Broker()
    for number in range(50):  # more than may be on the way at once
        add(log, f"{number}.png", "mqtt", score=number / 10)
    add(log, "old.png")
    publish(log, broker)
    assert [topic for topic, _ in broker.messages] == ["line/1"] * 50
    payloads = [payload for _, payload in broker.messages]
    assert payloads == [result.to_dict() for result in log.results()][:50]
    assert states(log, "mqtt") == ["done"] * 50 + [None]
    broker.close()
    log.close()


def test_user_and_password_are_sent(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    broker = Broker()
    add(log, "a.png", "mqtt")
    publish(log, broker, "mqtt://us%40er@127.0.0.1:{}/t")
    assert b"us@er" in broker.connects[0]
    assert b"secret" in broker.connects[0]
    assert "secret" not in repr(Address.of("mqtt://user@host/t"))
    broker.close()
    log.close()


def test_messages_without_acknowledgment_are_sent_again(log: Log) -> None:
    broker = Broker(drop=2)
    for number in range(5):
        add(log, f"{number}.png", "mqtt")
    publish(log, broker, timeout=20.0)
    assert {payload["id"] for _, payload in broker.messages} == {1, 2, 3, 4, 5}
    assert len(broker.messages) > 5
    assert states(log, "mqtt") == ["done"] * 5
    broker.close()
    log.close()


def test_what_a_broker_missed_is_published_by_the_next_process(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    away = Broker()
    away.close()
    add(log, "a.png", "mqtt")
    publish(log, away, f"mqtt://127.0.0.1:{away.port}/t", timeout=0.5)
    assert states(log, "mqtt") == ["pending"]
    assert "results are kept and published later" in caplog.text
    assert "1 results are not yet published" in caplog.text
    broker = Broker()
    publish(log, broker)
    assert [payload["path"] for _, payload in broker.messages] == ["a.png"]
    assert states(log, "mqtt") == ["done"]
    broker.close()
    log.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://host/a/b", ("host", 1883, "a/b", False, None)),
        ("mqtts://me@host:9000/a%20b", ("host", 9000, "a b", True, "me")),
    ],
)
def test_a_url_of_a_broker(url: str, expected: tuple[object, ...]) -> None:
    address = Address.of(url)
    assert (address.host, address.port, address.topic, address.encrypted, address.user) == expected
    assert str(address) == url.replace("me@", "").replace("%20", " ").replace("host/", "host:1883/")


@pytest.mark.parametrize(
    "url", ["host", "http://host/t", "mqtt://host", "mqtt://host/#", "mqtt://host:x/t", "mqtt:///t"]
)
def test_an_impossible_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"mqtt://user@host:1883/topic"):
        Address.of(url)


def test_encryption_checks_the_certificate(log: Log) -> None:
    publisher = Publisher(log, Address.of("mqtts://host/t"))
    context = publisher._client._ssl_context
    assert context.check_hostname
    assert context.verify_mode == 2
    assert mqtt.PORTS["mqtts"] == 8883
    assert os.environ.get(PASSWORD) is None
    log.close()
