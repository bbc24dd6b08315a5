"""A small MQTT broker for one client at a time: it acknowledges published messages, and keeps them."""

import json
import socket
import struct
import threading
from typing import Any


class Broker:
    """Listens on a port of this machine.

    connects: the bytes of each CONNECT packet. messages: topic and payload of each PUBLISH, also of repeated ones.
    """

    def __init__(self, port: int = 0, *, drop: int = 0) -> None:
        """Listen; close the connection without an acknowledgment after the first `drop` messages, each time."""
        self.connects: list[bytes] = []
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self._drop = drop
        self._server = socket.create_server(("127.0.0.1", port))
        self.port: int = self._server.getsockname()[1]
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # A blocked accept() ends only when the socket is shut down.
        self._server.shutdown(socket.SHUT_RDWR)
        if self._client is not None:
            self._client.close()
        self._thread.join(5)
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._server.accept()
            except OSError:
                return
            with self._client as client, client.makefile("rb") as file:
                try:
                    while self._answer(client, file):
                        pass
                except OSError:
                    pass

    def _answer(self, client: socket.socket, file: Any) -> bool:
        first = file.read(1)
        if not first:
            return False
        length, shift = 0, 0
        while True:
            (byte,) = file.read(1)
            length |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                break
        body = file.read(length)
        kind = int(first[0]) >> 4
        if kind == 1:
            self.connects.append(body)
            client.sendall(b"\x20\x02\x00\x00")
        elif kind == 3:
            (size,) = struct.unpack_from(">H", body)
            topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
            assert first[0] >> 1 & 3 == 1, "QoS 1 is expected"
            self.messages.append((topic, json.loads(rest[2:])))
            if self._drop > 0:
                self._drop -= 1
                return False
            client.sendall(b"\x40\x02" + rest[:2])
        elif kind == 12:
            client.sendall(b"\xd0\x00")
        return kind != 14
