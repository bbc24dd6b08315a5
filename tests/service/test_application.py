"""The endpoints: results, several models, limits, tokens, metrics, the description."""

import base64
import hashlib
import io
import json
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metalad
from metalad.service import predictions
from metalad.service.scoring import Scored
from tests.service.clients import TOKEN, TestClient, as_json, client_of, png
from tests.service.pictures import picture

GOOD, SQUARE = picture(200), picture(201, [(20, 30, 16, 255)])


@pytest.fixture(scope="module")
def path(model: metalad.Model) -> Path:
    assert model.path is not None
    return model.path


@pytest.fixture(scope="module")
def client(path: Path) -> Iterator[TestClient]:
    with client_of(path) as started:
        yield started


def post(client: TestClient, content: bytes, query: str = "", **headers: str) -> Any:
    return client.post(f"/v1/predict{query}", content=content, headers=headers)


def problem(response: Any) -> str:
    """Return the detail of a problem, which must be complete."""
    assert response.headers["content-type"] == "application/problem+json"
    values = response.json()
    assert values["status"] == response.status_code
    assert values["title"]
    assert "Traceback" not in response.text
    return str(values["detail"])


# Results


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (png(SQUARE), ".png"),
        (png(SQUARE, "JPEG", quality=80), ".jpg"),
        (png(SQUARE, "TIFF"), ".tif"),
        (png(SQUARE[:, :, 0].astype(np.uint16) * 200), ".png"),
    ],
    ids=["png", "jpeg", "tiff", "16 bits"],
)
def test_scores_and_regions_are_those_of_predict_bit_for_bit(
    client: TestClient, path: Path, tmp_path: Path, content: bytes, suffix: str
) -> None:
    file = tmp_path / f"image{suffix}"
    file.write_bytes(content)
    (offline,) = metalad.predict(path, [file], tmp_path / "out", maps=False, overlays=False)
    (result,) = post(client, content).json()["results"]
    expected = offline.to_dict()
    assert result["score"] == expected["score"]
    for name in ("threshold", "is_anomalous", "height", "width", "regions", "notes", "caution"):
        assert result.get(name) == expected.get(name)


def test_a_defect_is_found_at_its_place_and_a_threshold_moves_the_verdict(client: TestClient) -> None:
    (result,) = post(client, png(SQUARE)).json()["results"]
    assert result["is_anomalous"]
    left, top, width, height = result["regions"][0]["box"]
    assert abs(left + width / 2 - 38) < 6
    assert abs(top + height / 2 - 28) < 6
    above = post(client, png(SQUARE), f"?threshold={result['score'] * 1.01}").json()["results"][0]
    assert (above["is_anomalous"], above["score"]) == (False, result["score"])
    assert not post(client, png(GOOD)).json()["results"][0]["is_anomalous"]


def test_forms_json_and_raw_bodies_give_the_same_results_in_order(client: TestClient) -> None:
    contents = (png(GOOD), png(SQUARE), png(picture(202)))
    names = ("good.png", "../../etc/passwd", "C:\\x\x00y.png")
    single = [post(client, content).json()["results"][0] for content in contents]
    named = client.post("/v1/predict", **as_json(*contents, names=names)).json()
    form = client.post("/v1/predict", files=[("f", pair) for pair in zip(names[:2], contents[:2], strict=True)]).json()
    assert [result["name"] for result in named["results"]] == list(names)
    assert [{**result, "name": "image"} for result in named["results"]] == single
    assert form["results"] == named["results"][:2]
    assert form["model"] == "tiny"
    assert re.fullmatch("[0-9a-f]{64}", form["hash"])


def test_an_empty_file_is_called_empty(client: TestClient) -> None:
    alone = client.post("/v1/predict", content=b"", headers={"content-type": "image/png"})
    in_form = client.post("/v1/predict", files={"file": ("empty.png", b"")})
    for answer in (alone, in_form):
        assert answer.status_code == 422
        assert "the file is empty (0 bytes)" in answer.text


def test_an_unreadable_image_among_others_is_a_result_and_alone_a_problem(client: TestClient) -> None:
    answer = client.post("/v1/predict", **as_json(png(GOOD), b"no image"))
    assert answer.status_code == 200
    good, bad = answer.json()["results"]
    assert good["score"] > 0
    assert bad == {"name": "image 2", "error": bad["error"], "status": 422}
    alone = post(client, b"no image")
    assert (alone.status_code, problem(alone)) == (422, f"the image cannot be scored: {bad['error']}")
    none = client.post("/v1/predict", **as_json(b"x", b"y"))
    assert (none.status_code, problem(none)) == (422, "none of 2 images can be scored")


def test_pictures_by_accept_and_by_include(client: TestClient) -> None:
    picture_ = post(client, png(SQUARE), accept="image/png")
    assert picture_.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(picture_.content)) as overlay:
        assert overlay.size == (80, 60)
        assert np.abs(np.asarray(overlay, np.int16) - SQUARE).max() > 50  # an outline
    plain = post(client, png(SQUARE)).json()["results"][0]
    assert float(picture_.headers["metalad-score"]) == plain["score"]
    assert picture_.headers["metalad-anomalous"] == "true"
    full = post(client, png(SQUARE), "?include=overlay,map,input").json()["results"][0]
    starts = {name: full[name].partition(";")[0] for name in ("overlay", "map", "input")}
    assert starts == {"overlay": "data:image/jpeg", "map": "data:image/png", "input": "data:image/jpeg"}
    assert {**plain, **{name: full[name] for name in starts}} == full
    two_images = dict(as_json(png(GOOD), png(GOOD)))
    two_images["headers"] = two_images["headers"] | {"Accept": "image/png"}
    two = client.post("/v1/predict", **two_images)
    assert two.status_code == 406
    assert post(client, png(GOOD), accept="text/html").status_code == 406


def test_the_white_level_of_the_model_applies(tmp_path: Path) -> None:
    images = [picture(seed)[:, :, 0].astype(np.uint16) * 16 for seed in range(12)]
    fitted = metalad.fit(images, method="variation_model", image_size=(48, 64))
    assert fitted.header.white_level == 4095
    fitted.save(tmp_path / "model.safetensors")
    with client_of(tmp_path / "model.safetensors") as served:
        (result,) = post(served, png(images[0])).json()["results"]
    assert result["score"] == fitted.predict(images[0]).score


def test_several_models_are_described_and_chosen_by_name(path: Path, model: metalad.Model) -> None:
    with client_of(path, models=(f"a={path}", f"b={path}")) as served:
        values = served.get("/v1/models").json()
        assert [entry["name"] for entry in values["models"]] == ["a", "b"]
        entry = values["models"][1]
        assert entry["out_of_fold_scores"] == [float(score) for score in model.out_of_fold_scores()]
        assert (entry["threshold"], entry["image_size"]) == (model.threshold, [48, 64])
        assert (entry["images"], entry["error"], entry["method"]) == (30, None, "variation_model")
        assert post(served, png(GOOD), "?model=b").json()["model"] == "b"
        assert problem(post(served, png(GOOD))) == "several models are served; add ?model=NAME, one of a, b"
        assert post(served, png(GOOD), "?model=c").status_code == 404


# Limits and errors


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("?threshold=nan", 422, "threshold is 'nan'"),
        ("?threshold=0", 422, "a score above 0"),
        ("?treshold=3", 422, "did you mean threshold?"),
        ("?include=all", 422, "include has 'all'"),
        ("?model=%2e%2e%2fx", 404, "there is no such model"),
    ],
)
def test_impossible_parameters_are_refused(client: TestClient, query: str, status: int, reason: str) -> None:
    answer = post(client, png(GOOD), query)
    assert answer.status_code == status
    assert reason in problem(answer)


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    assert client.get("/v1/predict").status_code == 405
    assert client.get("/v1/predict").headers["allow"] == "POST"
    for address in ("/nothing", "/v1", "/page/../settings.py", "/%2e%2e/%2e%2e/etc/passwd", "/page/%00"):
        answer = client.get(address)
        assert (answer.status_code, problem(answer)) == (404, "there is nothing at this path; see /docs")


def test_a_body_over_the_limit_is_refused_before_it_is_read(path: Path) -> None:
    with client_of(path, max_megabytes=0.1) as served:
        announced = served.post("/v1/predict", content=b"", headers={"Content-Length": "100001"})
        assert announced.status_code == 413
        assert announced.json()["limit"] == 100_000
        chunked = served.post("/v1/predict", content=bytes(100_001))
        assert chunked.status_code == 413
        compressed = served.post("/v1/predict", content=b"x", headers={"Content-Encoding": "gzip"})
        assert compressed.status_code == 415


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header has a size, and whose pixels are too few."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_the_number_of_pixels_is_checked_before_an_image_is_decoded(path: Path) -> None:
    with client_of(path, max_megapixels=0.0048) as served:
        assert post(served, png(GOOD)).status_code == 200  # 60 x 80 pixels
        assert post(served, png(picture(1)[:, :79])).status_code == 200
        large = post(served, bomb(80, 61))
        assert (large.status_code, problem(large)) == (
            413,
            "the image cannot be scored: 61 × 80 pixels are more than the limit of 4,800",
        )
        assert post(served, bomb(100_000, 100_000)).status_code == 422
        assert post(served, bomb(80, 60)).status_code == 422  # truncated


def test_a_full_queue_answers_429_and_a_slow_answer_504(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, started = threading.Event(), threading.Event()

    def waiting(*_: Any) -> Scored:
        started.set()
        release.wait(10)
        return Scored("image", '{"name": "image"}', score=1.0, threshold=2.0, is_anomalous=False)

    monkeypatch.setattr(predictions, "score_upload", waiting)
    answers: list[Any] = []
    with client_of(path, queue=2, timeout=0.5) as served:
        threads = [threading.Thread(target=lambda: answers.append(post(served, b"x"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert started.wait(10)
        while "metalad_queue_images 2.0" not in served.get("/metrics").text:
            time.sleep(0.01)
        full = post(served, b"x")
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        assert "the queue is full with 2 images" in problem(full)
        for thread in threads:
            thread.join(10)
        assert [answer.status_code for answer in answers] == [504, 504]
        release.set()
        assert post(served, b"x").status_code == 200  # the slots are free again
        assert "metalad_queue_images 0.0" in served.get("/metrics").text


def test_an_unexpected_error_is_a_problem_without_a_traceback(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Scored:
        raise RuntimeError("secret")

    monkeypatch.setattr(predictions, "score_upload", broken)
    with client_of(path) as served:
        answer = post(served, b"x")
        assert (answer.status_code, problem(answer)) == (500, "an internal error; the log of the service describes it")
        assert served.get("/healthz").json() == {"status": "ok"}
        assert 'path="/v1/predict",status="500"} 1.0' in served.get("/metrics").text


# Protection


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", f"Bearer {TOKEN.upper()}"],
)
def test_without_the_token_everything_answers_401(path: Path, header: str) -> None:
    with client_of(path, token=TOKEN) as served:
        headers = {"Authorization": header} if header else {}
        for method, address in (("POST", "/v1/predict"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/no")):
            answer = served.request(method, address, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"][:6]) == (401, "Bearer")
            problem(answer)


def test_with_the_token_the_service_answers_for_any_host(path: Path) -> None:
    with client_of(path, token=TOKEN) as served:
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": "inspection.example"}
        assert served.post("/v1/predict", content=png(GOOD), headers=headers).status_code == 200
        for address in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert served.get(address).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.2"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "rebound.example"}, 421),
        ({"Host": "localhost.example"}, 421),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost:8000"}, 200),
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_without_a_token_other_hosts_and_other_sites_are_refused(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.post("/v1/predict", content=png(GOOD), headers=headers).status_code == status


def test_insecure_accepts_any_host(path: Path) -> None:
    with client_of(path, any_host=True) as served:
        assert served.get("/v1/models", headers={"Host": "other.example"}).status_code == 200


# Metrics and description


def test_metrics_count_requests_verdicts_and_scores(path: Path) -> None:
    with client_of(path) as served:
        post(served, png(GOOD))
        served.post("/v1/predict", **as_json(png(SQUARE), b"x"))
        served.get("/not/here")
        text = served.get("/metrics").text
    for line in (
        'metalad_images_total{model="tiny",verdict="ok"} 1.0',
        'metalad_images_total{model="tiny",verdict="anomalous"} 1.0',
        'metalad_images_total{model="tiny",verdict="unreadable"} 1.0',
        'metalad_requests_total{method="POST",path="/v1/predict",status="200"} 2.0',
        'metalad_requests_total{method="GET",path="other",status="404"} 1.0',
        'metalad_request_seconds_count{path="/v1/predict"} 2.0',
        'metalad_score_to_threshold_bucket{le="1.0",model="tiny"} 1.0',
        'metalad_score_to_threshold_count{model="tiny"} 2.0',
        'metalad_model_reload_failed{model="tiny"} 0.0',
        "metalad_queue_limit 64.0",
    ):
        assert f"{line}\n" in text


def test_the_description_has_each_path_and_each_member_of_the_answers(client: TestClient) -> None:
    values = client.get("/openapi.json").json()
    assert values["openapi"].startswith("3.1")
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(values)))
    schemas = values["components"]["schemas"]
    assert references <= set(schemas)
    for path in values["paths"]:
        assert client.get(path).status_code in (200, 405)
    result = post(client, png(SQUARE), "?include=overlay,map,input").json()
    assert set(result) == set(schemas["Prediction"]["properties"])
    assert set(result["results"][0]) | {"notes", "error", "status", "caution"} == set(schemas["Result"]["properties"])
    assert set(result["results"][0]["regions"][0]) == set(schemas["Region"]["properties"])
    models = client.get("/v1/models").json()
    assert set(models) == set(schemas["Models"]["properties"])
    assert set(models["models"][0]) == set(schemas["Model"]["properties"])
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    (style,) = re.findall("<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|src=|https?://", page.text)
    for path in values["paths"]:
        assert path in page.text
