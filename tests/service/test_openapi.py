"""The description of the API, and Schemathesis trying it out against the running service."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Server


@pytest.fixture(scope="module")
def description(server: Server) -> dict[str, Any]:
    with server.client() as client:
        return dict(client.get("/openapi.json").json())


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, what) for path, methods in description["paths"].items() for method, what in methods.items()]


def test_it_is_complete(description: dict[str, Any]) -> None:
    found = {(method.upper(), path) for path, method, _ in operations(description)}
    assert found == {
        ("POST", "/v1/search"), ("POST", "/v1/embed"), ("GET", "/v1/datasets"), ("GET", "/v1/items"),
        ("POST", "/v1/items"), ("GET", "/v1/items/{id}"), ("DELETE", "/v1/items/{id}"), ("GET", "/v1/items/{id}/image"),
        ("GET", "/v1/items/{id}/original"),
        ("GET", "/v1/status"), ("GET", "/v1/columns"), ("GET", "/healthz"), ("GET", "/readyz"),
        ("GET", "/metrics"),
    }  # fmt: skip
    for _, _, what in operations(description):
        assert what["summary"]
        for status, answer in what["responses"].items():
            assert answer["description"]
            if int(status) >= 400:
                assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
    # These are part of the examples of others.
    parts = ("Dataset", "Failure", "IndexingState", "Refused", "UpgradeState")
    for name, schema in description["components"]["schemas"].items():
        assert schema.get("examples") or name in parts, name
    for name in ("IndexingState", "UpgradeState"):
        fields = description["components"]["schemas"][name]["properties"]
        assert all(values["description"] for values in fields.values())


def test_its_examples_work(description: dict[str, Any], client: httpx.Client) -> None:
    for path in ("/v1/search", "/v1/embed"):
        content = description["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
        for example in content["application/json"]["schema"]["examples"]:
            answer = client.post(path, json=example)
            assert answer.status_code == (404 if "id" in example else 200), answer.text
    assert base64.b64decode(example["image"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("examples", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_schemathesis_finds_no_fault(examples: int, server: Server, tmp_path: Path) -> None:
    """Hundreds of requests, valid ones and others, judged by the description."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    refusals = [400, 401, 403, 404, 405, 409, 413, 415, 422]
    (tmp_path / "schemathesis.toml").write_text(f"[checks.negative_data_rejection]\nexpected-statuses = {refusals}\n")
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json",
            # What is valid by its schema may still be no image, no condition and no item: refusing it is right.
            # Without a token, this service, which accepts no changes, says so with 403 instead of asking for one.
            "--checks", "all", "--exclude-checks", "positive_data_acceptance,missing_required_header",
            "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", "1",
            "--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off", "--no-color",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
