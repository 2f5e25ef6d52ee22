"""Bodies and answers of sign-in with a provider (spec/identity.md §1.6).

Called by `pylon.api.identity.routes` and the flows; `pylon.openapi` derives their schemas.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingField

_Text = Annotated[str, Meta(max_length=4_096)]


class ProviderAnswer(msgspec.Struct, frozen=True):
    """A provider that a client may offer, and where its sign-in begins."""

    provider: str
    auth_url: str


class LoginAnswer(msgspec.Struct, frozen=True):
    """The page of the provider, and the state that comes back from it."""

    redirect: str
    state: str


class ProviderReturn(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters with which a provider sends the browser back.

    `user` is the text of JSON that Apple's form has at the first sign-in.
    """

    state: _Text | None = None
    code: _Text | None = None
    error: _Text | None = None
    iss: _Text | None = None
    user: _Text | None = None

    def __repr__(self) -> str:
        return "ProviderReturn()"


RETURN: Final = BodyType(ProviderReturn, '{"state": "...", "code": "..."}')


class ReturnAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The session of the user, or the account that was linked."""

    provider: str
    token: str | None = None
    user_id: str | None = None
    expires_at: int | None = None
    linked: bool = False
    code: str | None = None  # for an app that has sent a challenge, in place of the session
    credentials_dropped: bool = False  # somebody had registered the address without proof


class ExchangeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The code of a redirect to a native app, and the secret behind its challenge."""

    code: Annotated[
        str, Meta(min_length=1, max_length=200),
        Refusal(MissingField, InvalidData, expected="the code of the redirect"),
    ]
    verifier: Annotated[
        str, Meta(min_length=1, max_length=200),
        Refusal(MissingField, InvalidData, expected="the verifier of the challenge"),
    ]

    def __repr__(self) -> str:
        return "ExchangeBody()"


EXCHANGE: Final = BodyType(ExchangeBody, '{"code": "exc_...", "verifier": "..."}')


class NativeBody(msgspec.Struct, frozen=True, kw_only=True):
    """An ID token that a native app got from the provider itself."""

    id_token: Annotated[
        str, Meta(min_length=1, max_length=32_768),
        Refusal(MissingField, InvalidData, expected="the text of an ID token"),
    ]
    nonce: _Text | None = None

    def __repr__(self) -> str:
        return "NativeBody()"


NATIVE: Final = BodyType(NativeBody, '{"id_token": "...", "nonce": "..."}')


class LinkedAccount(msgspec.Struct, frozen=True):
    """An account of a provider that signs the user in."""

    provider: str
    account_id: str
    email: str | None
    created_at: int


class UnlinkedAnswer(msgspec.Struct, frozen=True):
    """The provider does not sign the user in any more."""

    unlinked: bool
    provider: str


class AccessTokenAnswer(msgspec.Struct, frozen=True):
    """An access token of the provider, for requests of the app to it."""

    access_token: str
    expires_at: int | None
    scope: str | None
    provider: str
