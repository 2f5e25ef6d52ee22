"""The errors of the client: one tree, each with the server's code, hint and request id.

    PylonError
      ClosedError              the client or the iterator was closed
      UnreadableRow            the row was inserted, but this caller may not read it
      RowMismatch              a row does not fit the class that it was to become
      APIError
        APIConnectionError     no answer; the idempotency key of the request is known
          APITimeoutError
        SocketRefused          the server refused a message on a socket, or the socket
        APIStatusError         an answer with an error status
          BadRequestError (400) TransactionFailed AuthenticationError (401)
          PermissionDeniedError (403) NotFoundError (404) ConflictError (409, 412)
          ResyncRequired (410) UnprocessableEntityError (422) RateLimitError (429)
          InternalServerError (500 and above)

Called by all modules of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

_TEXT_CHARS: Final = 200  # of a body that is no error of Pylon's


class PylonError(Exception):
    """The base of all errors of this package."""


class ClosedError(PylonError):
    """The client, the window or the connection was closed and cannot be used any more."""


class RowMismatch(PylonError):
    """A row of the server does not fit the class that the caller has named."""


class UnreadableRow(PylonError):
    """The insert succeeded, but the read policy hides the row from this caller.

    `row_id` is the id of the new row.
    """

    def __init__(self, entity: str, row_id: str) -> None:
        super().__init__(
            f"{entity} {row_id} was inserted, but this caller may not read it, so there is no row "
            "to return; insert_many() and transaction() return ids only"
        )
        self.row_id = row_id


class APIError(PylonError):
    """The server was asked, and did not do it.

    Attributes:
        code: the stable code of the server's error; None where there was no answer of Pylon.
        hint: how to mend it, if the server says so.
        request_id: the server's log has the request under this id.
        body: the decoded error, with the members that belong to the code.
    """

    code: str | None = None
    hint: str | None = None
    request_id: str | None = None
    body: Mapping[str, Any] = {}  # replaced, never changed


class APIConnectionError(APIError):
    """No answer came: the server may have carried out the request, or not.

    `idempotency_key` is the key that the request had. The same request with the same key is carried
    out once, whatever became of the first.
    """

    def __init__(self, message: str, idempotency_key: str | None = None) -> None:
        super().__init__(message)
        self.idempotency_key = idempotency_key


class APITimeoutError(APIConnectionError, TimeoutError):
    """No answer came within the timeout."""


class SocketRefused(APIError):
    """The server refused a subscription, or closed a socket for good."""

    def __init__(self, body: Mapping[str, Any], close_code: int | None = None) -> None:
        self.body = body
        self.code = _text(body.get("code"))
        self.hint = _text(body.get("hint"))
        self.close_code = close_code
        said = _text(body.get("message")) or f"the server closed the socket with {close_code}"
        super().__init__(f"{self.code}: {said}" if self.code else said)


class APIStatusError(APIError):
    """The server answered with an error status."""

    def __init__(
        self, status: int, headers: Mapping[str, str], content: bytes, what: str = "the request"
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self.body = _error_of(content)
        self.code = _text(self.body.get("code"))
        self.hint = _text(self.body.get("hint"))
        self.request_id = headers.get("x-request-id")
        said = _text(self.body.get("message"))
        if said is None:
            said = content[:_TEXT_CHARS].decode("utf-8", "replace").strip() or "no text"
        hint = "" if self.hint is None else f" ({self.hint})"
        super().__init__(f"{what}: {status} {self.code or ''}: {said}{hint}".replace(" : ", ": "))


class BadRequestError(APIStatusError):
    """400: the request has a form or a value that the server does not take."""


class TransactionFailed(BadRequestError):
    """One operation of the transaction was refused, so none was carried out.

    `operation` is its number, counted from 0.
    """

    operation: int = 0


class AuthenticationError(APIStatusError):
    """401: no session, or one that has ended."""


class PermissionDeniedError(APIStatusError):
    """403: a policy or the scope of a key forbids it."""


class NotFoundError(APIStatusError):
    """404: there is no such row, or the caller may not read it."""


class ConflictError(APIStatusError):
    """409 or 412: another row has the value, or the row has changed since."""


class ResyncRequired(APIStatusError):
    """410: the change log no longer reaches back to the cursor. Begin with a snapshot (since=0)."""


class UnprocessableEntityError(APIStatusError):
    """422: the idempotency key was used for another request."""


class RateLimitError(APIStatusError):
    """429: too many requests."""


class InternalServerError(APIStatusError):
    """500 and above: the server failed, or cannot answer now."""


_BY_STATUS: Final[dict[int, type[APIStatusError]]] = {
    400: BadRequestError, 401: AuthenticationError, 403: PermissionDeniedError,
    404: NotFoundError, 409: ConflictError, 410: ResyncRequired, 412: ConflictError,
    422: UnprocessableEntityError, 429: RateLimitError,
}


def status_error(
    status: int, headers: Mapping[str, str], content: bytes, what: str
) -> APIStatusError:
    """Return the error of an answer. `what`: the request, for the message."""
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = InternalServerError if status >= 500 else APIStatusError
    return kind(status, headers, content, what)


def _error_of(content: bytes) -> Mapping[str, Any]:
    try:
        decoded = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return {}
    if isinstance(decoded, dict):
        error = decoded.get("error", decoded)
        if isinstance(error, dict):
            return error
    return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
