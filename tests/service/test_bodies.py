"""Images of a request's body: forms, JSON and raw files."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalad.service.bodies import Upload, uploads_of
from metalad.service.problems import Problem

FORM = 'multipart/form-data; boundary="b"'
NAMES = st.text(st.characters(exclude_characters='"\\\r\n', exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


def form(*files: tuple[str, bytes]) -> bytes:
    parts = (
        f'--b\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    )
    return b"".join(parts) + b"--b--\r\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=300)), min_size=1, max_size=5))
def test_a_form_gives_its_files_byte_for_byte(files: list[tuple[str, bytes]]) -> None:
    files = [(name, content) for name, content in files if b"\r\n--b" not in b"\r\n" + content]
    if files:
        assert uploads_of(FORM, form(*files), 5) == [Upload(name, content) for name, content in files]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=300)), min_size=1, max_size=5), st.booleans())
def test_json_gives_its_images_byte_for_byte(files: list[tuple[str, bytes]], named: bool) -> None:
    texts = [base64.b64encode(content).decode() for _, content in files]
    items = [{"name": name, "content": text} for (name, _), text in zip(files, texts, strict=True)] if named else texts
    found = uploads_of("application/json; charset=utf-8", json.dumps({"images": items}).encode(), 5)
    assert [upload.content for upload in found] == [content for _, content in files]
    expected = [name for name, _ in files] if named else [f"image {n}" for n in range(1, len(files) + 1)]
    assert [upload.name for upload in found] == expected
    assert uploads_of("application/json", json.dumps(items).encode(), 5) == found


def test_base64_may_have_lines_as_command_line_tools_write_them() -> None:
    content = bytes(range(200))
    body = json.dumps({"images": [base64.encodebytes(content).decode()]}).encode()
    assert body.count(b"\\n") > 1
    assert [upload.content for upload in uploads_of("application/json", body, 1)] == [content]


@pytest.mark.parametrize("kind", ["", "image/png", "IMAGE/x-unknown", "application/octet-stream; x=y"])
def test_other_bodies_are_one_image(kind: str) -> None:
    assert uploads_of(kind, b"\0abc", 1) == [Upload("image", b"\0abc")]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([FORM, "multipart/form-data", "multipart/form-data; boundary=" + "x" * 300, "application/json"]),
    st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda noise: form(("a", b"x"))[:40] + noise)),
)
def test_any_bytes_give_images_or_a_problem(kind: str, body: bytes) -> None:
    status, found = 200, [Upload("", b"")]
    try:
        found = uploads_of(kind, body, 3)
    except Problem as problem:
        status = problem.status
    assert status in (200, 400, 413, 422)
    assert 1 <= len(found) <= 3


@pytest.mark.parametrize(
    ("kind", "body", "status", "reason"),
    [
        ("text/html", b"x", 415, "the type 'text/html' is not supported"),
        ("image/png", b"", 422, r"the file is empty \(0 bytes\); send the content of an image file"),
        (FORM, form(("a", b""))[:-6], 400, "the form ends before its last boundary"),
        (FORM, form(*[("a", b"")] * 4), 413, "more than 3 images"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n--b--\r\n', 422, "no image"),
        (FORM, b"--b\r\nA: b\r\n\r\nx\r\n" * 17 + b"--b--\r\n", 422, "more than 16 parts without a file name"),
        (FORM, b"--c\r\n", 400, "the form is damaged"),
        ("application/json", b"[" * 100_000, 400, "the body is not valid JSON"),
        ("application/json", b'{"images": [1]}', 422, "image 1 is not a string in base64"),
        ("application/json", b'{"images": ["!"]}', 422, "image 1 is not valid base64"),
        ("application/json", b'{"images": ["", "", "", ""]}', 413, "more than 3 images"),
        ("application/json", b'{"images": [{"name": 1, "content": ""}]}', 422, "the name of image 1 is not a string"),
        ("application/json", b'{"image": []}', 422, "JSON must be"),
    ],
)
def test_a_body_that_is_refused_states_why(kind: str, body: bytes, status: int, reason: str) -> None:
    with pytest.raises(Problem, match=reason) as error:
        uploads_of(kind, body, 3)
    assert error.value.status == status
