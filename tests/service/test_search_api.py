"""The REST API over real HTTP on a real database."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from request_parts import picture


def search(client: httpx.Client, image: bytes, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/search", files={"image": image}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_indexed_image_finds_itself(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    path = images["hats"][5]
    found = search(client, path.read_bytes(), k="4")
    assert len(found["matches"]) == 4
    best = found["matches"][0]
    assert (best["path"], best["dataset"], best["label"]) == (str(path), "hats", f"{path.parent.name} <i>")
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert best["metadata"] == {"price": 5}
    scores = [match["score"] for match in found["matches"]]
    assert scores == sorted(scores, reverse=True)


def test_form_and_json_say_the_same(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    image = images["shoes"][3].read_bytes()
    filters = {"datasets": ["shoes", "hats"], "where": "price < 9", "k": 7, "exact": True}
    form = search(client, image, **{**filters, "k": "7", "exact": "true"})
    for text in (base64.b64encode(image).decode(), "data:image/png;base64," + base64.encodebytes(image).decode()):
        answer = client.post("/v1/search", json={"image": text, **filters})
        assert answer.status_code == 200
        assert answer.json() == form
    assert {match["dataset"] for match in form["matches"]} <= {"shoes", "hats"}
    assert all(match["metadata"]["price"] < 9 for match in form["matches"])


def test_every_answer_says_what_is_a_match(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    found = search(client, images["hats"][0].read_bytes(), k="48")
    threshold = found["threshold"]
    assert threshold is not None, "the model of these tests is calibrated"
    assert [match["is_match"] for match in found["matches"]] == [m["score"] >= threshold for m in found["matches"]]
    assert all(0 <= match["confidence"] < 1 for match in found["matches"])
    assert found["no_match"] is False
    nothing = search(client, images["hats"][0].read_bytes(), where="price > 1000")
    assert nothing == {"no_match": True, "threshold": threshold, "matches": []}
    weak = next(match for match in found["matches"] if not match["is_match"])
    unlike = search(client, images["hats"][0].read_bytes(), where=f"path = '{weak['path']}'")
    assert unlike["no_match"] is True
    assert unlike["matches"] == [weak]


def test_more_like_an_item_leaves_it_out(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    best = search(client, images["shoes"][0].read_bytes(), k="1")["matches"][0]
    answer = client.post("/v1/search", json={"id": best["id"], "k": 47})
    assert answer.status_code == 200
    matches = answer.json()["matches"]
    assert len(matches) == 47
    assert best["id"] not in {match["id"] for match in matches}


def test_several_pictures_are_one_query(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    pictures = [images["hats"][0].read_bytes(), images["shoes"][0].read_bytes()]
    alone = [
        {match["id"]: match["score"] for match in search(client, picture, k="48")["matches"]} for picture in pictures
    ]
    form = [("images", picture) for picture in pictures]
    answer = client.post("/v1/search", files=form, data={"k": "48"})
    assert answer.status_code == 200, answer.text
    found = answer.json()["matches"]
    for match in found:
        assert match["score"] == pytest.approx(sum(scores[match["id"]] for scores in alone) / 2, abs=2e-3)
    text = {"images": [base64.b64encode(picture).decode() for picture in pictures], "k": 48}
    assert client.post("/v1/search", json=text).json() == answer.json()

    first, second = found[0]["id"], found[1]["id"]
    answer = client.post("/v1/search", json={"ids": [first, second], "k": 48})
    assert {first, second}.isdisjoint(match["id"] for match in answer.json()["matches"])
    assert len(answer.json()["matches"]) == 46
    answer = client.post("/v1/search", files=form[:1], data={"ids": [first, second], "k": "48"})
    assert len(answer.json()["matches"]) == 46
    assert client.post("/v1/search", json={"ids": [first, "0" * 32]}).status_code == 404
    for wrong in (
        {"ids": []},
        {"ids": [first] * 11},
        {"ids": [first], "id": first},
        {"ids": [first], "guarantee": 0.9},
    ):
        answer = client.post("/v1/search", json=wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request"), wrong


def test_a_vector_is_a_query(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    picture = images["hats"][0].read_bytes()
    vector = client.post("/v1/embed", files={"image": picture}).json()["embedding"]
    found = client.post("/v1/search", json={"vector": vector, "k": 7, "where": "price < 9"})
    assert found.status_code == 200, found.text
    assert found.json() == search(client, picture, k="7", where="price < 9")
    for wrong in ([], vector[:-1], [0] * len(vector), ["1"], [*vector[:-1], None], {"id": "", "vector": vector}):
        body = wrong if isinstance(wrong, dict) else {"vector": wrong}
        answer = client.post("/v1/search", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request"), wrong
    assert client.post("/v1/search", json={"vector": [1e308] * len(vector)}).status_code == 200
    assert client.post("/v1/search", json={"id": ""}).status_code == 404


def test_several_images_of_which_each_is_a_query(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    pictures = [images["hats"][0].read_bytes(), images["shoes"][0].read_bytes(), images["hats"][1].read_bytes()]
    alone = [search(client, picture, k="6", where="price < 9") for picture in pictures]
    form = [("images", picture) for picture in pictures]
    answer = client.post("/v1/search", files=form, data={"k": "6", "each": "true", "where": "price < 9"})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"answers": alone}
    text = {"images": [base64.b64encode(picture).decode() for picture in pictures], "k": 6, "each": True}
    assert client.post("/v1/search", json={**text, "where": "price < 9"}).json() == {"answers": alone}
    for wrong in ({"image": text["images"][0], "each": True}, {**text, "ids": [alone[0]["matches"][0]["id"]]}):
        answer = client.post("/v1/search", json=wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


def test_ranges_and_choices(client: httpx.Client) -> None:
    (price,) = client.get("/v1/columns").json()["columns"]
    assert (price["name"], price["kind"], price["low"], price["high"]) == ("price", "number", 0, 15)
    assert price["choices"][0] == {"value": 0, "items": 3}


def test_a_name_with_quotes_and_tags_is_a_filter_like_any_other(
    client: httpx.Client, images: dict[str, list[Path]]
) -> None:
    name = "<b>O'Brien & sons</b>"
    found = search(client, images[name][0].read_bytes(), datasets=name, k="48")
    assert len(found["matches"]) == 16
    assert {match["dataset"] for match in found["matches"]} == {name}


def test_an_embedding_searches_like_its_image(
    client: httpx.Client, images: dict[str, list[Path]], toy_run: Path
) -> None:
    from unimetric import Embedder

    path = images["hats"][7]
    form = client.post("/v1/embed", files={"image": path.read_bytes()}).json()
    text = client.post("/v1/embed", json={"image": base64.b64encode(path.read_bytes()).decode()}).json()
    assert text == form
    assert form["size"] == len(form["embedding"]) == 16
    assert form["embedding"] == pytest.approx(Embedder.from_pretrained(toy_run).encode(path)[0].tolist(), abs=0.02)
    assert form["model"] == client.get("/v1/datasets").json()["model"]


def test_what_can_be_searched(client: httpx.Client) -> None:
    said = client.get("/v1/datasets").json()
    assert {entry["name"]: entry["items"] for entry in said["datasets"]} == {
        "hats": 16, "shoes": 16, "<b>O'Brien & sons</b>": 16,
    }  # fmt: skip
    assert said["items"] == 48
    assert said["columns"] == {"price": "number"}
    assert (said["max_upload_bytes"], said["max_pixels"], said["writable"]) == (300_000, 1_000_000, False)


def test_examples_and_their_pictures(client: httpx.Client) -> None:
    items = client.get("/v1/items", params={"n": 5}).json()["items"]
    assert len({item["id"] for item in items}) == 5
    for item in items:
        assert client.get(f"/v1/items/{item['id']}").json() == item
        answer = client.get("/" + item["image"])
        assert answer.headers["content-type"] == "image/jpeg"
        assert "max-age" in answer.headers["cache-control"]
        assert answer.content.startswith(b"\xff\xd8")
        again = client.get("/" + item["image"], headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_every_answer_shuts_other_pages_out(client: httpx.Client) -> None:
    for path in ("/", "/app.js", "/v1/datasets", "/v1/items/x", "/nothing", "/metrics"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8765", "10.0.0.1", ""])
def test_foreign_names_are_refused(client: httpx.Client, host: str) -> None:
    answer = client.get("/v1/datasets", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8765"])
def test_names_of_this_machine_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/datasets", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_cannot_search(client: httpx.Client) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    answer = client.post("/v1/search", files={"image": picture()}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_page")


def test_numbers_for_prometheus(client: httpx.Client) -> None:
    def counted() -> float:
        line = 'unimetric_requests_total{method="POST",route="/v1/embed",status="200"} '
        return next(
            (float(row[len(line) :]) for row in client.get("/metrics").text.splitlines() if row.startswith(line)), 0
        )

    before = counted()
    client.post("/v1/embed", files={"image": picture()})
    assert counted() == before + 1
    text = client.get("/metrics").text
    for name in ("unimetric_batch_images_count", "unimetric_ready 1.0", "process_resident_memory_bytes"):
        assert name in text
    client.get("/whatever/one")
    assert "whatever" not in client.get("/metrics").text


def test_health(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_a_guarantee_is_a_set_or_is_refused_in_one_line(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    image = images["hats"][0].read_bytes()
    answer = client.post("/v1/search", files={"image": image}, data={"guarantee": "0.95", "where": "price < 3"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    for fields, word in (({"guarantee": 1}, "guarantee is 1"), ({"guarantee_delta": 0.1}, "give guarantee as well")):
        answer = client.post("/v1/search", json={"image": base64.b64encode(image).decode(), **fields})
        assert answer.status_code == 422
        assert word in answer.json()["error"]["message"]
    item = search(client, image)["matches"][0]["id"]
    answer = client.post("/v1/search", json={"id": item, "guarantee": 0.95})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    answer = client.post("/v1/search", files={"image": image}, data={"guarantee": "0.99999"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_calibrated")


def test_answers_and_items_in_the_order_of_a_column(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    picture = images["hats"][0].read_bytes()
    everything = search(client, picture, k="1000", group_copies="false")["matches"]
    for descending in ("false", "true"):
        expected = sorted(everything, key=lambda match: match["metadata"]["price"], reverse=descending == "true")
        expected.sort(key=lambda match: not match["is_match"])
        found = search(client, picture, k="9", sort="price", descending=descending, group_copies="false")["matches"]
        assert [match["metadata"]["price"] for match in found] == [match["metadata"]["price"] for match in expected[:9]]
        assert [match["is_match"] for match in found] == [match["is_match"] for match in expected[:9]]
    wrong = client.post("/v1/search", files={"image": picture}, data={"sort": "prize"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "invalid_request")
    query = {"sort": "price", "where": "price > 2", "n": 4, "offset": 1}
    items = client.get("/v1/items", params=query).raise_for_status().json()["items"]
    prices = sorted(match["metadata"]["price"] for match in everything if match["metadata"]["price"] > 2)
    assert [item["metadata"]["price"] for item in items] == prices[1:5]
    assert client.get("/v1/items", params={"sort": "prize"}).status_code == 422


@pytest.mark.parametrize("nothing", [{}, {"images": None}, {"ids": None, "vector": None}])
def test_a_query_of_nothing_is_refused(client: httpx.Client, nothing: dict[str, None]) -> None:
    answer = client.post("/v1/search", json={"k": 1, **nothing})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert "send either image, id or vector" in answer.json()["error"]["message"]
