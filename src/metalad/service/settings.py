"""The settings of the service, checked when it starts."""

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path

from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import number, whole_number


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the service serves, and its limits.

    models: each a path, or `NAME=PATH`. queue: images at once in the service: in upload, waiting or computed.
    timeout: seconds from the end of the upload to the answer. upload_timeout: seconds for receiving a request.
    max_megabytes: of a request's body. max_megapixels: of an image. token: clients must send it; None for no token.
    any_host: accept every `Host` header; otherwise those of this machine alone (against DNS rebinding).
    keep_feedback: folder of the feedback store, None for no feedback. reload: seconds between two checks of the files.
    """

    models: tuple[str, ...]
    device: str = "auto"
    queue: int = 64
    timeout: float = 30.0
    upload_timeout: float = 30.0
    max_megabytes: float = 32.0
    max_megapixels: float = 50.0
    token: str | None = None
    any_host: bool = False
    keep_feedback: Path | None = None
    reload: float = 2.0

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no model to serve; give a run folder or a model file")
        if whole_number("queue", self.queue) < 1:
            raise ConfigError(f"queue is {self.queue}; it must be at least 1")
        for name in ("timeout", "upload_timeout", "max_megabytes", "max_megapixels", "reload"):
            value = number(name, getattr(self, name))
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value:g}; it must be above 0")

    @property
    def max_bytes(self) -> int:
        """The maximum size of a request's body, in bytes."""
        return round(self.max_megabytes * 1e6)

    @property
    def max_queue_bytes(self) -> int:
        """The maximum size of all bodies in the service together: eight times that of one."""
        return 8 * self.max_bytes

    @property
    def max_pixels(self) -> int:
        """The maximum number of pixels of an image."""
        return round(self.max_megapixels * 1e6)

    @property
    def max_images(self) -> int:
        """The maximum number of images of a request: half of the queue."""
        return max(1, self.queue // 2)


def is_loopback(host: str) -> bool:
    """Return whether a name or an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
