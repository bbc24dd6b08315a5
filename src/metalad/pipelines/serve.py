"""Serve trained models over HTTP until the process is stopped."""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from metalad.runtime.errors import ConfigError, RunError
from metalad.runtime.packages import require_packages
from metalad.runtime.progress import logger
from metalad.runtime.settings import whole_number

if TYPE_CHECKING:
    import uvicorn

    from metalad.service.models import Registry
    from metalad.service.settings import Settings

NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
NEEDED |= {"prometheus_client": "prometheus-client"}
MIN_TOKEN = 16
OPEN_FILES = 4096
"""Wanted limit on open files; each connection is one."""


def serve(
    models: Sequence[str | Path],
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    token_file: str | Path | None = None,
    insecure: bool = False,
    queue: int = 64,
    timeout: float = 30.0,
    upload_timeout: float = 30.0,
    max_megabytes: float = 32.0,
    max_megapixels: float = 50.0,
    keep_feedback: str | Path | None = None,
    device: str = "auto",
) -> None:
    """Serve models over HTTP, with a page at `/`; SIGTERM or Ctrl-C ends it after the accepted requests are answered.

    A model whose file changes is loaded again; a file that cannot be loaded leaves the old model in service.

    Args:
        models: run folders, model files or exported files; `NAME=PATH` gives a model another name than its folder's.
        port: TCP port; 0 for a free one, which is printed.
        host: address to listen on; another one than this machine's own needs `token_file` or `insecure`.
        token_file: a file with a secret of 16 characters or more, which clients must send as
            `Authorization: Bearer TOKEN`.
        insecure: listen on any address without a token, and answer requests for any host name.
        queue: images at once in the service, in upload, waiting or computed; further requests are answered with 429.
        timeout: seconds from the end of an upload to its answer.
        upload_timeout: seconds to send a request.
        max_megabytes: maximum size of a request, in millions of bytes.
        max_megapixels: maximum size of an image, in millions of pixels, checked before it is decoded.
        keep_feedback: a folder that gets the pictures that a person marks on the page as good or as a defect; without
            it, nothing is stored.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        ConfigError: a package is missing, the address needs a token, or an impossible setting. ModelFileError: no
            usable model. RunError: the port cannot be used.
    """
    require_packages("`metalad serve`", NEEDED, "install metalad[serve]")
    import uvicorn

    from metalad.service.application import create_application
    from metalad.service.memory import limit_arenas
    from metalad.service.models import Registry
    from metalad.service.protocol import KEEP_ALIVE_SECONDS, protocol_with
    from metalad.service.settings import Settings

    token = None if token_file is None else read_token(Path(token_file))
    _require_protection(host, token, insecure)
    settings = Settings(
        models=tuple(str(model) for model in models),
        device=device,
        queue=queue,
        timeout=timeout,
        upload_timeout=upload_timeout,
        max_megabytes=max_megabytes,
        max_megapixels=max_megapixels,
        token=token,
        any_host=insecure,
        keep_feedback=None if keep_feedback is None else Path(keep_feedback),
    )
    with contextlib.closing(_bound(host, port)) as listener:
        limit_arenas()
        registry = Registry.load(settings.models, settings.device)
        application = create_application(settings, registry)
        for name in ("uvicorn.error", "python_multipart.multipart"):  # they warn of each damaged request
            logging.getLogger(name).setLevel(logging.ERROR)
        _raise_limit_on_files()
        config = uvicorn.Config(
            application,
            http=protocol_with(settings.upload_timeout, settings.max_bytes),
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=round(settings.upload_timeout + settings.timeout + 10),
        )
        server = _server(config, lambda: _announce(listener, settings, registry))
        server.run(sockets=[listener])


def read_token(path: Path) -> str:
    """Return the token in a file, without white space around it; a warning is logged if others may read the file.

    Raises:
        ConfigError: the file cannot be read, or the token is too short or has characters that a header cannot have.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise ConfigError(f"cannot read the token in {path}: {reason}") from error
    if len(token) < MIN_TOKEN or not all("!" <= character <= "~" for character in token):
        raise ConfigError(
            f"{path} must hold {MIN_TOKEN} or more ASCII characters without spaces; "
            f"write one with `openssl rand -hex 32 > {path}`"
        )
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("other users may read %s; protect it with `chmod 600`", path)
    return token


def _require_protection(host: str, token: str | None, insecure: bool) -> None:
    if token is not None and insecure:
        raise ConfigError("token_file and insecure exclude each other; give one")
    from metalad.service.settings import is_loopback

    if token is None and not insecure and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines; give --token-file FILE, or --insecure to serve everyone"
        )


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; bound before the models are loaded, so that a used port is reported at once.

    Raises:
        ConfigError: no such address. RunError: the port is in use, or needs more rights.
    """
    if not 0 <= whole_number("port", port) <= 65535:
        raise ConfigError(f"port is {port}; it must be a number from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"host is {host!r}: {error.strerror or error}; give an address of this machine") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise RunError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from error
    listener.set_inheritable(False)
    return listener


def _raise_limit_on_files() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _announce(listener: socket.socket, settings: "Settings", registry: "Registry") -> None:
    host, port = listener.getsockname()[:2]
    for served in registry.served.values():
        model, header = served.model, served.model.header
        height, width = model.engine.image_size
        logger.info(
            "model %s: %s, trained on %d good images, %d x %d pixels, threshold %.4g",
            *(served.name, header.method, header.images["training"], height, width, model.threshold()),
        )
        if caution := model.caution():
            logger.warning("model %s: %s", served.name, caution)
    if settings.any_host:
        logger.warning("anyone who reaches this address may use the service; protect it with --token-file")
    shown = f"[{host}]" if ":" in host else host
    protection = "with a token" if settings.token else "for everyone" if settings.any_host else "for this machine"
    logger.info("listening on http://%s:%d %s; the page is at /, the description at /docs", shown, port, protection)


def _server(config: "uvicorn.Config", announce: Callable[[], None]) -> "uvicorn.Server":
    import uvicorn

    class Server(uvicorn.Server):
        """Announces when it listens, and ends normally after a signal, or without the answers after a second one."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            if self.force_exit:  # each request that is canceled would be logged with a traceback
                for name in ("uvicorn.error", "asyncio"):
                    logging.getLogger(name).setLevel(logging.CRITICAL)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                announce()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            with super().capture_signals():
                yield
                self._captured_signals.clear()  # else the signal would be raised again and end the process

    return Server(config)
