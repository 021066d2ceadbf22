"""Everything that people send by mistake or to do harm: a 4xx with one sentence, and the service goes on."""

from __future__ import annotations

import base64
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from request_parts import picture

from serving import Server


def check_refusal(answer: httpx.Response, status: int, code: str, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message"]
    assert body["error"]["code"] == code
    message = body["error"]["message"]
    assert "\n" not in message
    assert 10 < len(message) < 400
    for word in words:
        assert word in message


def enormous_png() -> bytes:
    """60,000 × 60,000 pixels in a few hundred bytes, and a megabyte of zeros for the first rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    buffer = BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes 300 times."""
    content = picture("JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * 300 + content[-2:]


PICTURES: dict[str, tuple[Callable[[], bytes], int, str, str]] = {
    "text": (lambda: b"Dear diary, nothing happened today.\n" * 9, 422, "not_an_image", "JPEG"),
    "nothing": (lambda: b"", 422, "empty_image", "0 bytes"),
    "truncated jpeg": (lambda: picture("JPEG", (300, 200))[:9000], 422, "truncated_image", "whole file"),
    "truncated png": (lambda: picture("PNG", (100, 100))[:9000], 422, "truncated_image", "whole file"),
    "header only": (lambda: picture("PNG")[:12], 422, "unreadable_image", ""),
    "damaged": (lambda: picture("PNG")[:200] + bytes(400), 422, "truncated_image", ""),
    "svg": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', 422, "not_an_image", "SVG"),
    "jp2": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(500), 422, "not_an_image", "JPEG 2000"),
    "pdf": (lambda: b"%PDF-1.7\n" + bytes(500), 422, "not_an_image", "PDF"),
    "gif": (lambda: animated("GIF"), 422, "animated_image", "single frame"),
    "webp": (lambda: animated("WEBP"), 422, "animated_image", "single frame"),
    "apng": (lambda: animated("PNG"), 422, "animated_image", "single frame"),
    "scans": (many_scans, 422, "unreadable_image", "scans"),
    "enormous": (enormous_png, 413, "too_many_pixels", "3,600,000,000"),
    "large": (lambda: picture("JPEG", (1001, 1000), quality=5), 413, "too_many_pixels", "1,000,000"),
    "heavy": (lambda: picture("PNG", (400, 300)), 413, "too_large", "300,000 bytes"),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("path", ["/v1/search", "/v1/embed"])
def test_pictures(client: httpx.Client, name: str, path: str) -> None:
    make, status, code, word = PICTURES[name]
    image = make()
    check_refusal(client.post(path, files={"image": ("photo.jpg", image, "image/jpeg")}), status, code, word)
    check_refusal(client.post(path, json={"image": base64.b64encode(image).decode()}), status, code, word)


def test_a_phones_picture_with_a_second_one_inside_is_a_picture(client: httpx.Client) -> None:
    image = Image.open(BytesIO(picture("JPEG")))
    buffer = BytesIO()
    image.save(buffer, "MPO", save_all=True, append_images=[image])
    assert client.post("/v1/search", files={"image": buffer.getvalue()}).status_code == 200


JSON_BODIES: dict[str, tuple[Any, int, str, str]] = {
    "neither": ({"k": 3}, 422, "invalid_request", "either image, id or vector"),
    "both": ({"image": "", "id": "x"}, 422, "invalid_request", "either image, id or vector"),
    "base64": ({"image": "%%%"}, 422, "invalid_base64", "base64"),
    "k 0": ({"id": "0" * 32, "k": 0}, 422, "invalid_request", "k is 0"),
    "k large": ({"id": "0" * 32, "k": 10**30}, 422, "invalid_request", "k"),
    "k text": ({"id": "0" * 32, "k": "5"}, 422, "invalid_request", "k is '5'"),
    "k half": ({"id": "0" * 32, "k": 2.5}, 422, "invalid_request", "k"),
    "no dataset": ({"id": "0" * 32, "datasets": []}, 422, "invalid_request", "datasets"),
    "typo": ({"id": "0" * 32, "dataset": ["hats"]}, 422, "invalid_request", "unknown field 'dataset'"),
    "list": ([1, 2], 422, "invalid_request", ""),
    "unknown id": ({"id": "0" * 32}, 404, "item_not_found", "0" * 32),
    "no id": ({"id": "../../etc/passwd"}, 404, "item_not_found", "etc"),
}


@pytest.mark.parametrize("name", JSON_BODIES)
def test_json(client: httpx.Client, name: str) -> None:
    body, status, code, word = JSON_BODIES[name]
    check_refusal(client.post("/v1/search", json=body), status, code, word)


RAW_BODIES: dict[str, tuple[str | None, bytes, int, str]] = {
    "no json": ("application/json", b"{", 400, "invalid_json"),
    "utf-16": ("application/json", '{"id": "x"}'.encode("utf-16"), 400, "invalid_json"),
    "two marks": ("application/json", b"\xef\xbb\xbf" * 2 + b"{}", 400, "invalid_json"),
    "empty json": ("application/json", b"", 400, "invalid_json"),
    "deep json": ("application/json", b"[" * 100_000, 400, "invalid_json"),
    "no utf-8": ("application/json", b'{"id": "\xff"}', 400, "invalid_json"),
    "surrogate": ("application/json", rb'{"id": "\ud800"}', 400, "invalid_json"),
    "image": ("image/png", b"...", 415, "unsupported_media_type"),
    "url-encoded": ("application/x-www-form-urlencoded", b"image=x", 415, "unsupported_media_type"),
    "no type": (None, b"{}", 415, "unsupported_media_type"),
    "no boundary": ("multipart/form-data", b"...", 400, "invalid_form"),
    "no form": ("multipart/form-data; boundary=x", b"...", 400, "invalid_form"),
    "empty form": ("multipart/form-data; boundary=x", b"--x--\r\n", 422, "invalid_request"),
    "cut form": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc',
        400,
        "invalid_form",
    ),
    "nameless": ("multipart/form-data; boundary=x", b"--x\r\n\r\nabc\r\n--x--\r\n", 400, "invalid_form"),
}


@pytest.mark.parametrize("name", RAW_BODIES)
def test_bodies(client: httpx.Client, name: str) -> None:
    kind, body, status, code = RAW_BODIES[name]
    headers = {} if kind is None else {"Content-Type": kind}
    check_refusal(client.post("/v1/search", content=body, headers=headers), status, code)


def test_a_byte_order_mark_before_json_is_skipped(client: httpx.Client) -> None:
    body = b'\xef\xbb\xbf{"id": "' + b"0" * 32 + b'"}'
    answer = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    check_refusal(answer, 404, "item_not_found")


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "k": ({"k": "many"}, "k is 'many'"),
    "exact": ({"exact": "perhaps"}, "exact"),
    "typo": ({"wehre": "price < 3"}, "did you mean 'where'"),
    "two ks": ({"k": ["1", "2"]}, "more than once"),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(client: httpx.Client, name: str) -> None:
    fields, word = FORMS[name]
    answer = client.post("/v1/search", files={"image": picture()}, data=fields)
    check_refusal(answer, 422, "invalid_request", word)


def test_a_form_without_an_image_and_with_two(client: httpx.Client) -> None:
    answer = client.post("/v1/search", files={"k": (None, "3")})
    check_refusal(answer, 422, "invalid_request", "either image, id or vector")
    answer = client.post("/v1/search", files=[("image", picture()), ("image", picture())])
    check_refusal(answer, 422, "invalid_request", "more than once")


def test_an_unknown_dataset(client: httpx.Client) -> None:
    answer = client.post("/v1/search", files={"image": picture()}, data={"datasets": "hat"})
    check_refusal(answer, 422, "invalid_request", "'hat'", "hats")


@pytest.mark.parametrize(
    "where",
    [
        "price <",
        "price < 3; DROP TABLE items",
        "1=1) OR (1=1",
        "prize < 3",
        "price < 'x",
        "SELECT 1",
        "",
        "\0",
        "(" * 5000,
    ],
)
def test_conditions(client: httpx.Client, where: str) -> None:
    answer = client.post("/v1/search", files={"image": picture()}, data={"where": where})
    check_refusal(answer, 422, "invalid_where")


@pytest.mark.parametrize("path", ["/v1/items/nothing", f"/v1/items/{'0' * 32}", f"/v1/items/{'0' * 32}/image"])
def test_unknown_items(client: httpx.Client, path: str) -> None:
    check_refusal(client.get(path), 404, "item_not_found")


@pytest.mark.parametrize(
    "path", ["/v1/items/..%2f..%2fetc%2fpasswd/image", "/../../etc/passwd", "/style.css/../x", "/docs"]
)
def test_no_path_is_ever_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_unknown_methods(client: httpx.Client) -> None:
    answer = client.put("/v1/search", content=b"")
    check_refusal(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert client.put(f"/v1/items/{'0' * 32}").headers["allow"] == "DELETE, GET, HEAD"


def test_head_is_get_without_the_body(client: httpx.Client) -> None:
    (item,) = client.get("/v1/items", params={"n": "1", "seed": "0"}).json()["items"]
    for path in ("/", "/v1/datasets", f"/v1/items/{item['id']}/image"):
        answer, whole = client.head(path), client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == whole.headers["content-length"] == str(len(whole.content))
    check = client.head("/v1/search")
    assert (check.status_code, check.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("params", [{"n": "0"}, {"n": "many"}, {"seed": "-1"}])
def test_parameters(client: httpx.Client, params: dict[str, str]) -> None:
    check_refusal(client.get("/v1/items", params=params), 422, "invalid_request", next(iter(params)))


def test_no_changes_unless_asked_for(client: httpx.Client) -> None:
    headers = {"Authorization": "Bearer x"}
    check_refusal(client.post("/v1/items", files={"image": picture()}, headers=headers), 403, "read_only", "--writable")
    check_refusal(client.delete(f"/v1/items/{'0' * 32}", headers=headers), 403, "read_only")
    check_refusal(client.delete(f"/v1/items/{'0' * 32}"), 403, "read_only", "--writable")


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    received = b""
    while data := connection.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_two_gigabytes_are_refused_before_they_are_sent(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2000000000\r\n\r\n" + bytes(1000)
        )
        status, body = read_answer(connection)
    assert status == 413
    assert json.loads(body)["error"]["code"] == "too_large"


@pytest.mark.parametrize("chunked", [True, False])
def test_two_gigabytes_are_cut_off(server: Server, chunked: bool) -> None:
    """A client that sends on regardless gets the reason and is then cut off."""

    def endless() -> Iterator[bytes]:
        for _ in range(20_000):
            yield bytes(100_000)

    headers = {"Content-Type": "application/json"} | ({} if chunked else {"Content-Length": "2000000000"})
    with server.client() as client:
        answer = client.post("/v1/search", content=endless(), headers=headers)
        check_refusal(answer, 413, "too_large", "300,000 bytes")
        assert client.get("/healthz").status_code == 200


def test_after_all_this_it_still_searches(client: httpx.Client, images: dict[str, list[Path]]) -> None:
    answer = client.post("/v1/search", files={"image": images["hats"][2].read_bytes()})
    assert answer.json()["matches"][0]["path"] == str(images["hats"][2])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/v1/items?datasets=hats", ["'datasets'", "did you mean 'dataset'"]),
        ("/v1/items?where=price<3&where=price>1", ["where is given more than once"]),
        ("/v1/datasets?n=3", ["'n'", "takes none here"]),
    ],
)
def test_parameters_that_would_be_ignored(client: httpx.Client, address: str, words: list[str]) -> None:
    check_refusal(client.get(address), 422, "invalid_request", *words)
    assert client.get("/v1/items?dataset=hats&dataset=shoes").status_code == 200


def test_a_search_takes_its_fields_from_the_body_only(client: httpx.Client) -> None:
    answer = client.post("/v1/search?k=1", files={"image": picture()})
    check_refusal(answer, 422, "invalid_request", "'k'", "takes none here")
