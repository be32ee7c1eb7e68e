"""Errors as OpenAI's API has them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from neoxkit.errors import NeoxkitError
from neoxkit.serve.service import BusyError, ClosingError, CutError

RETRY_AFTER = {"retry-after": "1"}
"""Seconds after which to ask again: an answer that ends makes room, and most take seconds."""

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""What kind of error a status is; of the others, those from 500 on are the server's, and those below the request's."""


class ApiError(Exception):
    """A request that is refused: the status, what is wrong and what to do, and the parameter it is about."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as it is told."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as the answer to a request."""
        return JSONResponse(self.body(), self.status, self.headers)


def from_service(error: BaseException) -> ApiError:
    """What is told of an error that ended what was asked."""
    if isinstance(error, BusyError):
        return ApiError(str(error), 429, code="too_many_requests", headers=RETRY_AFTER)
    if isinstance(error, (ClosingError, CutError)):
        return ApiError(str(error), 503, code="shutting_down")
    if isinstance(error, NeoxkitError) and error.exit_code == NeoxkitError.exit_code:
        return ApiError(str(error))
    if isinstance(error, NeoxkitError):
        return ApiError(f"the engine has failed: {error}", 500, code="engine_failed")
    return ApiError("the engine has failed; the server's log says of what", 500, code="engine_failed")


async def of_http(request: Request, error: Exception) -> Response:
    """What no route wants: an unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return ApiError(f"there is nothing at {path}; the API begins with /v1", 404, code="unknown_url").response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{path} takes {allowed}, not {request.method}"
        return ApiError(message, 405, code="method_not_supported", headers=error.headers).response()
    return ApiError(error.detail, error.status_code, headers=error.headers).response()


async def of_api(request: Request, error: Exception) -> Response:
    """A request that an endpoint refuses."""
    assert isinstance(error, ApiError)
    return error.response()


OURS = ApiError("the server failed on this request; its log says how", 500, code="internal_error")
"""A mistake of ours."""
