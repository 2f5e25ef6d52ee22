"""The body and the answer of `POST /api/auth/reauth`. `pylon.openapi` derives their schemas."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon.api.identity.passkey_bodies import Credential
from pylon.body_types import BodyType

_PASSWORD_CHARS: Final = 2_048


class ReauthBody(msgspec.Struct, frozen=True, kw_only=True):
    """The password, a code of the authenticator app or a backup code, or the answer of a passkey to
    a challenge of `POST /api/auth/passkey/login/begin`."""

    password: Annotated[str, Meta(max_length=_PASSWORD_CHARS)] | None = None
    code: Annotated[str, Meta(max_length=40)] | None = None
    credential: Credential | None = None


REAUTH: Final = BodyType(ReauthBody, '{"password": "..."}')


class ReauthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """When the user last proved who they are, in Unix seconds."""

    auth_time: int
