"""The REST API over real HTTP on a real database."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import picture


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
