"""Bodies and answers of the administrators' routes of users. `pylon.openapi` derives their
schemas.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType

_CHARS: Final = 1_024


class CreateUserBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new user. Without a password they sign in by a code, a link or a provider."""

    email: Annotated[str, Meta(min_length=1, max_length=_CHARS)]
    password: Annotated[str, Meta(min_length=1, max_length=_CHARS)] | None = None
    name: Annotated[str, Meta(max_length=_CHARS)] | None = None
    verified: bool = False


class LockUserBody(msgspec.Struct, frozen=True, kw_only=True):
    """Why a user is locked."""

    reason: Annotated[str, Meta(max_length=200)] | None = None


class SetPasswordBody(msgspec.Struct, frozen=True, kw_only=True):
    """The new password of a user."""

    password: Annotated[str, Meta(min_length=1, max_length=_CHARS)]


CREATE_USER: Final = BodyType(CreateUserBody, '{"email": "ada@example.com"}')
LOCK_USER: Final = BodyType(LockUserBody, '{"reason": "..."}', is_lenient=True)
SET_PASSWORD: Final = BodyType(SetPasswordBody, '{"password": "..."}')


class UserAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An account, as administrators see it. Times are Unix seconds."""

    user_id: str
    email: str | None
    is_verified: bool
    sign_in_methods: list[str]
    has_totp: bool
    created_at: int
    last_sign_in_at: int | None
    locked_at: int | None
    lock_reason: str | None


class LockAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A user was locked or unlocked."""

    locked: bool
    revoked_sessions: int


class PasswordSetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The password was set."""

    changed: bool
    revoked_sessions: int


class TotpResetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether there was an authenticator to forget."""

    reset: bool
