"""Bodies and answers of the routes of API keys (spec/identity.md §1.8).

Called by `pylon.api.identity.routes`, and by the flows of keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon import limits
from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingUserId

_EXAMPLE: Final = '{"name": "backup", "scopes": "entity:*:read", "expires_at": null}'


class CreateApiKeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """The key that a user wants."""

    name: str = "untitled"
    scopes: Annotated[Any, Meta(
        description="A text with spaces or commas, or a list; null: all that its owner may do",
        extra_json_schema={"anyOf": [
            {"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"},
        ]},
    )] = None
    expires_at: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Unix seconds; null: never"),
        Refusal(InvalidData, expected="Unix seconds, or null"),
    ] = None


class AdminApiKeyBody(CreateApiKeyBody, frozen=True, kw_only=True):
    """The key that an administrator makes for a user."""

    user_id: Annotated[str, Refusal(MissingUserId, InvalidData)]


class RotateApiKeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """How the secret of a key is replaced."""

    overlap_s: Annotated[
        int,
        Meta(ge=0, le=limits.KEY_OVERLAP_S, description="How long the old secret goes on"),
        Refusal(InvalidData, expected=f"a number of seconds from 0 to {limits.KEY_OVERLAP_S}"),
    ] = 0


class ApiKeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A key, as its owner sees it."""

    id: str
    user_id: str
    prefix: str
    name: str
    scopes: str | None
    expires_at: int | None
    last_used_at: int | None
    created_at: int


class NewApiKeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A new key, or a new secret: the only answer with its text, `key`."""

    key: str
    id: str
    prefix: str
    name: str
    scopes: str | None
    expires_at: int | None
    created_at: int


class RevokedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Something has ended."""

    revoked: bool = True


ADMIN_API_KEY: Final = BodyType(AdminApiKeyBody, '{"user_id": "...", "scopes": "rooms"}')
CREATE_API_KEY: Final = BodyType(CreateApiKeyBody, _EXAMPLE)
ROTATE_API_KEY: Final = BodyType(RotateApiKeyBody, '{"overlap_s": 3600}')
