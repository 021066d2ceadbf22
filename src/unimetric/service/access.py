"""Bearer tokens for reading and for writing."""

import hmac
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from unimetric.errors import UserError
from unimetric.service.failures import ServiceError
from unimetric.service.options import ServiceConfig

TOKEN_VARIABLE = "UNIMETRIC_TOKEN"  # noqa: S105 - the variable's name
"""The environment variable with the token for changes."""

READ_TOKEN_VARIABLE = "UNIMETRIC_READ_TOKEN"  # noqa: S105 - the variable's name
"""The environment variable with the token for reading."""

_bearer = HTTPBearer(
    auto_error=False,
    description=f"The token in the service's {TOKEN_VARIABLE}; for reading, the one in {READ_TOKEN_VARIABLE}.",
)

_Credentials: TypeAlias = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


@dataclass(frozen=True)
class Access:
    """The tokens that requests have to carry: for changes, which permits reading too, and for reading.

    None where nothing can be changed, or everybody may read.
    """

    write: str | None = field(default=None, repr=False)
    read: str | None = field(default=None, repr=False)

    def reading(self) -> list[Any]:
        """Return the dependencies of routes that show something of the database or of the service."""
        return [] if self.read is None else [Depends(self._check_read)]

    def writing(self) -> list[Any]:
        """Return the dependencies of routes that change the database."""
        return [Depends(self._check_write)]

    async def _check_read(self, credentials: _Credentials = None) -> None:
        if not self._is_one_of(_token(credentials), self.read, self.write):
            raise _unauthorized()

    async def _check_write(self, credentials: _Credentials = None) -> None:
        given = _token(credentials)
        if self.write is None and (given or self.read is None):
            raise ServiceError(403, "read_only", "this service accepts no changes; start it with --writable")
        if self._is_one_of(given, self.write):
            return
        if self._is_one_of(given, self.read):
            raise ServiceError(403, "read_only", f"this token permits reading only; use the one in {TOKEN_VARIABLE}")
        raise _unauthorized()

    @staticmethod
    def _is_one_of(given: str, *tokens: str | None) -> bool:
        """Compare with every token, in a time that does not depend on them."""
        same = [hmac.compare_digest(given.encode(), token.encode()) for token in tokens if token is not None]
        return any(same)


def access_of(config: ServiceConfig, write: str | None, read: str | None) -> Access:
    """Return the tokens that a configuration asks for; a `ValueError` if one is missing, or both are the same."""
    if config.writable and not write:
        raise ValueError("token is empty: without one, everybody could write")
    if config.read_token and not read:
        raise ValueError("read_token is empty: without one, everybody could read")
    access = Access(write if config.writable else None, read if config.read_token else None)
    if access.read is not None and access.read == access.write:
        raise ValueError("token and read_token are the same: every reader could write")
    return access


def tokens_from_environment(config: ServiceConfig) -> tuple[str | None, str | None]:
    """Return the tokens for changes and for reading in the environment; a `UserError` if one cannot be used."""
    write = _from_environment("--writable", TOKEN_VARIABLE) if config.writable else None
    read = _from_environment("--read_token", READ_TOKEN_VARIABLE) if config.read_token else None
    if read is not None and read == write:
        raise UserError(
            f"{TOKEN_VARIABLE} and {READ_TOKEN_VARIABLE} have the same value, so that every reader could write; "
            "use two tokens"
        )
    return write, read


def _from_environment(option: str, variable: str) -> str:
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(
            f"{option}: the environment variable {variable} is empty; set it to the token that clients send, for "
            f"instance with: export {variable}=$(openssl rand -hex 32)"
        )
    if not (token.isascii() and token.isprintable()):
        raise UserError(
            f"{option}: the token in {variable} has characters that an HTTP header cannot carry; use ASCII letters and "
            "digits"
        )
    return token


def _token(credentials: HTTPAuthorizationCredentials | None) -> str:
    return "" if credentials is None else credentials.credentials


def _unauthorized() -> ServiceError:
    message = "the bearer token is missing or wrong; send the header Authorization: Bearer TOKEN"
    return ServiceError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})
