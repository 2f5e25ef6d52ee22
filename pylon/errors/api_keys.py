"""Errors about API keys: what a key may not do, and how it is declared.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class ScopeDenied(PylonError):
    """The API key lacks the scope that the request needs; or the caller may only read, and the
    request changes something. The error has the scope as `scope`.

    Remedy: make a key with that scope. The scopes of a key are fixed.
    """

    code = "SCOPE_DENIED"
    status = 403


class InvalidScope(PylonError):
    """A scope of a new API key is unknown, or names an entity that the manifest lacks.

    Remedy: use `*`, `entity:<Name or *>:<read, write, delete or *>`, `fn:<name or *>`,
    `files:<read or write>`, `rooms`, `sync` and `shards`.
    """

    code = "INVALID_SCOPE"
    status = 400


class ApiKeyAuthForbidden(PylonError):
    """The route takes sessions only, and the request came with an API key or a JWT.

    Remedy: sign in, and send the session's token or cookie.
    """

    code = "API_KEY_AUTH_FORBIDDEN"
    status = 403
