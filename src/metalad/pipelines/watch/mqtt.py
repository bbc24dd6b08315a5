"""Publish each result by MQTT, at least once."""

import json
import os
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from metalad.pipelines.watch.log import Log
from metalad.pipelines.watch.outbox import IDLE_SECONDS, Worker
from metalad.runtime.errors import ConfigError, RunError
from metalad.runtime.packages import require_packages
from metalad.runtime.progress import logger

PASSWORD = "METALAD_MQTT_PASSWORD"
"""Environment variable with the password, which would be visible to other users on the command line."""
PORTS = {"mqtt": 1883, "mqtts": 8883}
IN_FLIGHT = 20
"""Messages that are sent before the first of them is acknowledged."""
MAX_DELAY = 60
EXAMPLE = "mqtt://user@host:1883/topic"


@dataclass(frozen=True)
class Broker:
    """Where results are published."""

    host: str
    port: int
    topic: str
    encrypted: bool
    user: str | None
    password: str | None = field(repr=False)

    @classmethod
    def of(cls, url: str) -> "Broker":
        """Return the broker and the topic of a URL such as `mqtt://user@host:1883/topic`, or `mqtts` with TLS.

        Raises:
            ConfigError: the URL has another scheme, no host, or no valid topic.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"the URL of mqtt is not valid: {error}; write it as {EXAMPLE}") from error
        topic = unquote(parts.path.removeprefix("/"))
        if parts.scheme not in PORTS or not parts.hostname:
            raise ConfigError(f"the URL of mqtt must be like {EXAMPLE}, or mqtts:// with TLS")
        if not topic or any(c in topic for c in "#+\0"):
            raise ConfigError(f"the URL of mqtt needs a topic without # and +, such as {EXAMPLE}")
        user = None if parts.username is None else unquote(parts.username)
        password = os.environ.get(PASSWORD) if parts.password is None else unquote(parts.password)
        return cls(parts.hostname, port or PORTS[parts.scheme], topic, parts.scheme == "mqtts", user, password)

    def __str__(self) -> str:
        """Return the address without user and password."""
        return f"{'mqtts' if self.encrypted else 'mqtt'}://{self.host}:{self.port}/{self.topic}"


class Publisher(Worker):
    """Publishes the results whose column `mqtt` is pending, as JSON with QoS 1, in their order.

    A result is done when the broker has acknowledged it. What is not acknowledged when the process ends is published
    again by the next one, so that a subscriber may get a result twice, with the same `id`.

    is_reported: an error has stated how many results are not published.

    Raises:
        ConfigError: the package paho-mqtt is not installed.
    """

    def __init__(self, log: Log, broker: Broker) -> None:
        super().__init__("metalad-mqtt")
        # paho.mqtt.enums came with version 2.
        require_packages("mqtt", {"paho.mqtt.enums": "paho-mqtt 2 or newer"}, "install metalad[mqtt]")
        from paho.mqtt.client import MQTT_ERR_SUCCESS, Client
        from paho.mqtt.enums import CallbackAPIVersion

        self._log, self._broker, self._success = log, broker, MQTT_ERR_SUCCESS
        self._sent: dict[int, int] = {}
        self._acknowledged: deque[int] = deque()
        self.is_reported = self._is_lost = False
        self._client: Any = Client(
            CallbackAPIVersion.VERSION2, client_id=f"metalad-{socket.gethostname()}-{os.getpid()}"
        )
        self._client.max_inflight_messages_set(IN_FLIGHT)
        self._client.reconnect_delay_set(1, MAX_DELAY)
        if broker.user is not None:
            self._client.username_pw_set(broker.user, broker.password)
        if broker.encrypted:
            self._client.tls_set_context(ssl.create_default_context())
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_connect_fail = self._not_connected
        self._client.on_publish = self._published

    def start(self) -> None:
        """Start the threads; connecting is tried until it succeeds."""
        self._client.connect_async(self._broker.host, self._broker.port)
        self._client.loop_start()
        super().start()

    def close(self) -> None:
        """End the threads; what is not published then is published by the next process."""
        super().close()
        self._client.disconnect()
        self._client.loop_stop()
        self._store_acknowledged()
        if (left := self.left()) and not self.is_reported:
            logger.warning("%d results are not yet published to %s; the next start does it", left, self._broker)

    def left(self) -> int:
        """Return the number of results that are not yet published."""
        return self._log.count_pending("mqtt")

    def require_published(self) -> None:
        """Check that all results are published.

        Raises:
            RunError: some are not.
        """
        if left := self.left():
            self.is_reported = True
            raise RunError(
                f"{left} results are not published, because {self._broker} does not acknowledge them; they are in the "
                "log, and the next start with the same broker publishes them"
            )

    def _step(self) -> bool:
        """Send the next results; return False if there are none, or no room for them on the way."""
        self._store_acknowledged()
        room = IN_FLIGHT - len(self._sent)
        if room > 0 and self._client.is_connected():
            for result in self._log.pending("mqtt", max(self._sent.values(), default=0), room):
                message = self._client.publish(self._broker.topic, json.dumps(result.to_dict()), qos=1)
                if message.rc != self._success:
                    break
                self._sent[message.mid] = result.id
        if self._draining and self._log.count_pending("mqtt"):
            self._wake.wait(IDLE_SECONDS)
            return True
        return bool(self._acknowledged)

    def _store_acknowledged(self) -> None:
        while self._acknowledged:
            id = self._sent.pop(self._acknowledged.popleft(), None)
            if id is not None:
                self._log.finish("mqtt", id)
                self.advanced = time.monotonic()

    # Called by the client's thread, which holds a lock that `publish` needs: no lock is taken here.

    def _published(self, _client: Any, _data: Any, mid: int, *_: Any) -> None:
        self._acknowledged.append(mid)
        self._wake.set()

    def _connected(self, _client: Any, _data: Any, _flags: Any, reason: Any, *_: Any) -> None:
        if reason.is_failure:
            self._warn_once(f"the connection is refused: {reason}")
            return
        if self._is_lost:
            logger.info("connected to %s again", self._broker)
        self._is_lost = False
        self._wake.set()

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: Any, *_: Any) -> None:
        if reason.is_failure and not self._stopping.is_set():
            self._warn_once(str(reason))

    def _not_connected(self, *_: Any) -> None:
        checks = "the address and the certificate" if self._broker.encrypted else "the address"
        self._warn_once(f"cannot connect; check {checks}")

    def _warn_once(self, reason: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            logger.warning("%s: %s; results are kept and published later", self._broker, reason)
