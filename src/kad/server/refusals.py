"""Errors as the OpenAI API writes them: a status, and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kad.errors import KadError, LogitsError, OptionError

_LONGEST = 1000


class Busy(Exception):
    """As many requests as allowed are already in the line."""


class ClientGone(Exception):
    """The client has closed the connection."""


@dataclass
class Refusal(Exception):
    """A request that is refused.

    Attributes:
        status: the HTTP status.
        message: what the request has, what is allowed, what to do.
        param: the field of the request that is wrong.
        code: a word for programs.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        said = self.message  # which may quote the request
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        return {"error": {"message": said, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an answer."""
        headers = {"Retry-After": "1"} if self.status == 429 else None
        return JSONResponse(self.body(), self.status, headers)


def refusal_of(error: BaseException) -> Refusal:
    """The refusal for an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Busy):
        return Refusal(429, "Too many requests are in the line. Try again in a moment.", code="busy")
    if isinstance(error, ClientGone):
        return Refusal(499, "The client has closed the connection.")  # nobody reads this
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, f"{error.detail}.", code="not_found" if error.status_code == 404 else None)
    if isinstance(error, LogitsError) or not isinstance(error, KadError):
        text = str(error) if isinstance(error, LogitsError) else f"{type(error).__name__}. The server's log says more."
        return Refusal(500, f"The models could not answer: {text}")
    text = str(error)
    return Refusal(400, text.replace("`", "'") if isinstance(error, OptionError) else text)


def _invalid(error: RequestValidationError) -> Refusal:
    """The first thing that is wrong with the fields of a request."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if not _is_arm(part))
    if first["type"] in ("json_invalid", "model_attributes_type", "dict_type") and len(first["loc"]) <= 2:
        return Refusal(400, "The body must be a JSON object, sent with Content-Type: application/json.")
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:80]
        return Refusal(400, f"Unknown field {name!r}. This server does not know it.", name, "unknown_field")
    message = str(first["msg"]).removeprefix("Value error, ")
    return Refusal(400, f"{place}: {message}." if place else f"{message}.", place or None)


def _is_arm(part: int | str) -> bool:
    """Whether a part of a place is no field but an arm of a union: "str", "constrained-str", "list[int]"."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("str", "int", "float"))


def install(app: FastAPI) -> None:
    """Make an application answer every error in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return refusal_of(error).response()

    for kind in (Refusal, Busy, ClientGone, KadError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
