"""Access to object storage: settings from the environment, the file system of a URI, and errors with a remedy."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs

from unimetric.errors import UserError, cause

S3_ATTEMPTS = 10
"""Times that a request to S3 is tried, with growing pauses, while the server answers 429, 500 or 503 or not at all."""

_VARIABLES = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
"""The variables that credentials and addresses come from, by scheme."""
_IDENTITY = (*_VARIABLES["s3"][:3], "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")
_SHOWN = ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL")
_ALIASES = {"gcs": "gs", "abfs": "az", "abfss": "az"}

_CONNECT_SECONDS = 10


class StorageError(UserError):
    """Object storage that cannot be reached, refuses the credentials, or fails in the middle of a file."""

    code: ClassVar[str] = "storage_unusable"


def access_remedy(place: str) -> str:
    """Return the things to check after a failure at a URI: the variables of its storage, without any secret."""
    scheme = place.partition("://")[0]
    names = _VARIABLES.get(_ALIASES.get(scheme, scheme))
    if names is None:
        return "check the address, the network and the credentials"
    states = [f"{name} is {_state(name)}" for name in names]
    return f"check the address, the network and the credentials: {', '.join(states)}"


@contextmanager
def explained_access(place: str, action: str) -> Iterator[None]:
    """Turn errors of object storage into a `StorageError`; an object that is missing when ``action`` is "read" stays a
    `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        if action == "read":
            _check_bucket_of(place)
            raise
        raise StorageError(f"cannot {action} {place}: there is no such bucket; {access_remedy(place)}") from None
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot {action} {place}: {cause(error)}; {access_remedy(place)}") from error


def check_bucket(place: str) -> None:
    """Check that the bucket of an ``s3://`` URI can be listed, or raise a `StorageError`; others pass unchecked."""
    if not place.startswith("s3://"):
        return
    system, inner = file_system(place)
    with explained_access(place, "reach"):
        # A listing returns the reason for a refusal; a question for the bucket itself does not.
        found = system.get_file_info(pa.fs.FileSelector(inner, allow_not_found=True))
    if not found:
        _check_bucket_of(place)


def _check_bucket_of(place: str) -> None:
    if not place.startswith("s3://"):
        return
    system, inner = file_system(place)
    bucket = inner.partition("/")[0]
    with explained_access(place, "reach"):
        missing = system.get_file_info(bucket).type == pa.fs.FileType.NotFound
    if missing:
        raise StorageError(f"cannot reach {place}: there is no bucket {bucket}; {access_remedy(place)}")


def s3_endpoint() -> str | None:
    """Return the address of the S3 server; None for that of AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def s3_region() -> str | None:
    """Return the region of the environment; None if AWS has to be asked for the bucket's."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    # A server of one's own has no regions, and looking for one would ask AWS.
    return region or ("us-east-1" if s3_endpoint() else None)


def file_system(place: str) -> tuple[Any, str]:
    """Return the file system of a URI, from pyarrow or else from fsspec, and the path in it.

    A `StorageError` if it cannot be reached, a `UserError` if the package for this kind of storage is missing.
    """
    scheme, _, inner = place.partition("://")
    if scheme == "s3":
        bucket = inner.partition("/")[0]
        if not bucket:
            raise StorageError(f"{place} names no bucket; write s3://BUCKET/NAME")
        with explained_access(place, "reach"):
            return _s3(bucket, s3_endpoint(), s3_region(), *map(os.environ.get, _IDENTITY)), inner
    try:
        return pa.fs.FileSystem.from_uri(place)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _fsspec_system(place)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot reach {place}: {cause(error)}; {access_remedy(place)}") from error


@lru_cache(maxsize=64)
def _s3(bucket: str, endpoint: str | None, region: str | None, *environment: str | None) -> Any:
    """Open a bucket. ``environment`` has the variables that pyarrow reads, so that a change of one opens it anew."""
    if endpoint is not None:
        # pyarrow tries for a minute.
        address = urlsplit(endpoint)
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), _CONNECT_SECONDS).close()
    return pa.fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or pa.fs.resolve_s3_region(bucket),
        retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
    )


def _fsspec_system(place: str) -> tuple[Any, str]:
    # Installed with torch; slow to import, and only needed for storage that pyarrow does not support.
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"cannot reach {place}: {cause(error)}; install fsspec's package for it") from error
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(system)), inner


def _state(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        return "not set"
    if name not in _SHOWN:
        return "set"
    # An address may hold a password.
    return value.rpartition("@")[2] if urlsplit(value).username else value
