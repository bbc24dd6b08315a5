"""Damaged, impossible and malicious requests, by kind; each is made from a random number generator."""

import base64
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from benchmarks.load.client import BOUNDARY, FORM, form_of, request_of

Maker = Callable[[random.Random, bytes], bytes]
"""Makes a request from random numbers and the content of a good image file."""

PATHS = (
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "%00",
    "C:\\windows\\win.ini",
    "file:///etc/passwd",
    "....//....//etc/passwd",
    "%2e%2e%2f" * 20,
    "a" * 3000,
)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *extra: bytes, data: bytes | None = None) -> bytes:
    """Return a PNG with a size in its header and other pixels, or none."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes(10_000)) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _bombs() -> list[bytes]:
    zeros = zlib.compress(bytes(50_000_000), 9)
    bmp = (
        b"BM" + struct.pack("<IHHI", 1 << 30, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, *[0] * 6)
    )
    tiff = io.BytesIO()
    Image.new("L", (16, 16)).save(tiff, "TIFF")
    large_tiff = bytearray(tiff.getvalue())
    for tag in (256, 257):  # width and height
        entry = large_tiff.index(struct.pack("<H", tag), struct.unpack("<I", large_tiff[4:8])[0])
        large_tiff[entry : entry + 12] = struct.pack("<HHII", tag, 4, 1, 90_000)
    jpeg = io.BytesIO()
    Image.new("L", (16, 16)).save(jpeg, "JPEG")
    start = jpeg.getvalue().index(b"\xff\xc0")
    large_jpeg = jpeg.getvalue()[: start + 5] + struct.pack(">HH", 65000, 65000) + jpeg.getvalue()[start + 9 :]
    return [
        png(60_000, 60_000),
        png(2**31 - 1, 2**31 - 1),
        png(0, 0),
        png(40_000, 1, data=zeros),
        png(6_000, 6_000, data=zeros),
        png(64, 64, chunk(b"zTXt", b"k\0\0" + zeros)),
        png(64, 64, chunk(b"iCCP", b"p\0\0" + zeros)),
        png(64, 64, chunk(b"iTXt", b"k\0\1\0\0\0" + zeros)),
        bmp,
        bytes(large_tiff),
        large_jpeg,
        b"RIFF\xff\xff\xff\x7fWEBPVP8X\n\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
    ]


BOMBS = _bombs()
ZIPPED = gzip.compress(bytes(20_000_000))


def _flipped(rng: random.Random, image: bytes) -> bytes:
    damaged = bytearray(image)
    for _ in range(rng.randrange(1, 200)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return request_of(bytes(damaged))


def _damaged_form(rng: random.Random, image: bytes) -> bytes:
    form = form_of((b"a.png", image[:2000]))
    cut = form[: rng.randrange(len(form))]
    noise = bytes(rng.randrange(256) for _ in range(300))
    body, kind = rng.choice(
        [
            (cut, FORM),
            (form, "multipart/form-data"),
            (form, "multipart/form-data; boundary=other"),
            (form, f"multipart/form-data; boundary={'x' * 300}"),
            (noise, FORM),
            (form_of(*[(b"x", b"")] * 500), FORM),
            (b"--" + BOUNDARY + b"\r\n" + b"X-A: b\r\n" * 2000 + b"\r\n\r\n--" + BOUNDARY + b"--\r\n", FORM),
            (form.replace(b"form-data; name", b"form-data; filename*=utf-8''%2e%2e%2fx; name"), FORM),
        ]
    )
    return request_of(body, kind)


def _json(rng: random.Random, image: bytes) -> bytes:
    text = base64.b64encode(image[: rng.randrange(2000)]).decode()
    body = rng.choice(
        [
            '{"images": [',
            "[" * 100_000,
            '{"images": ' + "[" * 5000 + "]" * 5000 + "}",
            json.dumps({"images": [text]}),
            json.dumps({"images": [text + "!"]}),
            json.dumps({"images": 3}),
            json.dumps({"images": [{"name": 3, "content": text}]}),
            json.dumps({"images": [{"name": "\ud800", "content": text}]}),
            json.dumps(["x"] * 2000),
            "9" * 10_000,
            "null",
            "NaN",
            '"\\ud800"',
        ]
    )
    return request_of(body.encode("utf-8", "replace"), "application/json")


def _not_http(rng: random.Random, image: bytes) -> bytes:
    noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 400)))
    good = request_of(image[:100])
    return rng.choice(
        [
            noise + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/predict HTTP/1.1\r\n\r\n",
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
            b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            good.replace(b"Content-Length: 100", b"Content-Length: -5"),
            good.replace(b"Content-Length: 100", b"Content-Length: 1e3"),
            good.replace(b"Content-Length: 100", b"Content-Length: 100\r\nContent-Length: 101"),
            good.replace(b"Content-Length: 100", b"Content-Length: 100\r\nTransfer-Encoding: chunked"),
            good.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked"),
            good.replace(b"Content-Length: 100", b"Transfer-Encoding: gzip, chunked"),
            good.replace(b"Host: localhost", b"Host: localhost\r\nHost: other"),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise + b"\r\n\r\n",
        ]
    )


def _parameters(rng: random.Random, image: bytes) -> bytes:
    query = rng.choice(
        [
            "threshold=nan",
            "threshold=-1",
            "threshold=1e999",
            "threshold=",
            "threshold=0x10",
            "include=everything",
            "model=other",
            "model=",
            "models=model",
            "%ff=%fe",
            "model=%ff%fe",
            "threshold=" + "9" * 3000,
        ]
    )
    return request_of(image, path=f"/v1/predict?{query}")


def _methods(rng: random.Random, _: bytes) -> bytes:
    method = rng.choice(["PUT", "DELETE", "TRACE", "PATCH", "OPTIONS", "CONNECT", "get", "X" * 200])
    path = rng.choice(["/v1/predict", "/", "/metrics", "*", "http://other/v1/predict", "/v1/models"])
    return request_of(b"", method=method, path=path)


def _path(rng: random.Random, image: bytes) -> bytes:
    trick = rng.choice(PATHS)
    target = trick.replace("\\", "%5c").replace(" ", "%20")
    return rng.choice(
        [
            request_of(b"", method="GET", path=f"/{target}"),
            request_of(b"", method="GET", path=f"/page/{target}"),
            request_of(b"", path=f"/v1/{target}"),
            request_of(image, path=f"/v1/predict?model={target}"),
            request_of(form_of((trick.encode(), image[:500])), FORM),
        ]
    )


KINDS: dict[str, Maker] = {
    "truncated image": lambda rng, image: request_of(image[: rng.randrange(1, len(image) - 20)]),
    "damaged image": _flipped,
    "no image": lambda rng, _: request_of(bytes(rng.randrange(256) for _ in range(rng.randrange(500)))),
    "decompression bomb": lambda rng, _: request_of(rng.choice(BOMBS)),
    "compressed body": lambda _, __: request_of(ZIPPED, headers={"Content-Encoding": "gzip"}),
    "huge length": lambda rng, _: request_of(
        b"x", headers={"Content-Length": str(rng.choice([10**8, 10**12, 10**30]))}
    ),
    "wrong type": lambda rng, image: request_of(image, rng.choice(["text/html", "video/mp4", "a", "/", "image"])),
    "wrong accept": lambda rng, image: request_of(image, headers={"Accept": rng.choice(["text/html", "image/gif"])}),
    "damaged form": _damaged_form,
    "damaged JSON": _json,
    "path trick": _path,
    "impossible parameter": _parameters,
    "wrong method": _methods,
    "invalid HTTP": _not_http,
}
"""Requests that must be answered, or whose connection must be closed."""
MAY_SUCCEED = frozenset({"damaged image", "damaged form", "wrong method", "path trick", "truncated image"})
"""Kinds that can turn out harmless: a flipped bit leaves an image, `OPTIONS *` may be answered."""
