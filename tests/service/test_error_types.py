"""Status and code depend on the type of an error only, and messages about this machine stay in the log."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest

import unimetric
from unimetric.data.images import ImageError
from unimetric.errors import UserError
from unimetric.service.failures import from_user_error, response_of

HOSTILE = [
    "the search database /srv/secret/db is damaged",
    "where the condition (where) cannot be read",
    "no item: not found, No space left, Permission denied, read_only, unauthorized",
    "two\nlines\r\n\x1b[31m and <script>alert(1)</script> \ud800",
    "",
    "x" * 100_000,
]

EXPECTED = {
    "UserError": (500, "failed"),
    "ArgumentError": (422, "invalid_request"),
    "ItemNotFoundError": (404, "item_not_found"),
    "NoOriginalError": (404, "no_original"),
    "FilterError": (422, "invalid_where"),
    "NotCalibratedError": (422, "not_calibrated"),
    "UnsupportedError": (422, "unsupported"),
    "DatabaseError": (409, "database_unusable"),
    "DatabaseMissingError": (409, "database_missing"),
    "ModelMismatchError": (409, "model_mismatch"),
    "ReplacedError": (503, "model_replaced"),
    "WriteError": (507, "cannot_write"),
    "NonFiniteError": (500, "not_finite"),
}
"""Errors with a meaning of their own for a client; all others are failures of the service."""


def all_errors() -> list[type[UserError]]:
    """Every class of user errors in the package."""
    for module in pkgutil.walk_packages(unimetric.__path__, "unimetric."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[UserError]] = [UserError]
    for kind in found:
        found += [other for other in kind.__subclasses__() if other.__module__.startswith("unimetric.")]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def errors() -> list[type[UserError]]:
    pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return all_errors()


def test_every_class_has_its_answer_whatever_its_message_is(errors: list[type[UserError]]) -> None:
    assert set(EXPECTED) <= {kind.__name__ for kind in errors}
    for kind in errors:
        assert kind.code.isidentifier()
        for message in HOSTILE:
            error = kind.__new__(kind)
            error.args = (message,)
            answer = from_user_error(error)
            expected = EXPECTED.get(kind.__name__, (500, kind.code))
            assert (answer.status, answer.code) == expected, (kind, message)
            body = json.loads(response_of(answer).body)
            assert set(body["error"]) == {"code", "message"}
            assert body["error"]["message"].isprintable()
            assert len(body["error"]["message"]) <= 500


def test_codes_are_not_shared(errors: list[type[UserError]]) -> None:
    """A program can tell the errors apart that have a status of their own."""
    codes = [code for _, code in EXPECTED.values()]
    assert len(codes) == len(set(codes))


def test_only_errors_about_the_request_are_quoted(
    errors: list[type[UserError]], caplog: pytest.LogCaptureFixture
) -> None:
    for kind in errors:
        caplog.clear()
        error = kind.__new__(kind)
        error.args = ("the file /srv/secret/db/items.lance",)
        answer = from_user_error(error)
        assert ("/srv/secret" in answer.message) == (answer.status in (404, 422))
        # 503 is an upgrade under way, which is no fault.
        assert ("/srv/secret" in caplog.text) == (answer.status not in (404, 422, 503))


def test_image_errors_are_not_user_errors() -> None:
    """Their reasons are turned into codes by `unimetric.service.pictures`."""
    assert not issubclass(ImageError, UserError)
