"""Request bodies of codes, links and e-mail changes (spec/http.md §3.11.2, §3.11.4).

A form of a page of a link has the members `token` and `nonce` (`workers.identity.link_forms`).
Called by the table of routes and by the flows; `pylon.openapi` derives their schemas.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingCode, MissingEmail, MissingToken

_Email = Annotated[
    str, Meta(max_length=1_000), Refusal(MissingEmail, InvalidData, expected="an e-mail address"),
]
_Code = Annotated[
    str, Meta(max_length=100), Refusal(MissingCode, InvalidData, expected="the code of the mail"),
]
_Token = Annotated[
    str, Meta(max_length=200), Refusal(MissingToken, InvalidData, expected="the token of the link"),
]


class SendBody(msgspec.Struct, frozen=True, kw_only=True):
    """The address that gets a code. `captcha`: the token of a widget, if the server asks for it."""

    email: _Email
    captcha: str | None = None


class VerifyCodeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A code, and the address that it was sent to."""

    email: _Email
    code: _Code


class SendLinkBody(msgspec.Struct, frozen=True, kw_only=True):
    """The address that gets a link, and the page that the link leads to."""

    email: _Email
    callback: Annotated[str, Meta(max_length=2_000)] | None = None
    captcha: str | None = None


class CodeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The code that was sent to the caller's own address.

    `email`: the address, of a caller without a session; with one it is not read.
    """

    code: _Code
    email: Annotated[str, Meta(max_length=1_000)] | None = None


class LinkBody(msgspec.Struct, frozen=True, kw_only=True):
    """The token of a link."""

    token: _Token
    nonce: Annotated[str, Meta(max_length=200)] = ""


class ChangeEmailBody(msgspec.Struct, frozen=True, kw_only=True):
    """The new address of the account."""

    new_email: _Email = msgspec.field(name="newEmail")


_EMAIL_EXAMPLE: Final = '{"email": "ann@example.com"}'
SEND: Final = BodyType(SendBody, _EMAIL_EXAMPLE)
VERIFY_CODE: Final = BodyType(
    VerifyCodeBody, '{"email": "ann@example.com", "code": "123456"}'
)
SEND_LINK: Final = BodyType(SendLinkBody, _EMAIL_EXAMPLE)
CODE: Final = BodyType(CodeBody, '{"code": "123456"}')
LINK: Final = BodyType(LinkBody, '{"token": "..."}')
CHANGE_EMAIL: Final = BodyType(ChangeEmailBody, '{"newEmail": "ann@example.com"}')


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A mail is on its way. `dev_*`: in dev mode only."""

    sent: bool
    email: str | msgspec.UnsetType = msgspec.UNSET
    dev_code: str | msgspec.UnsetType = msgspec.UNSET
    dev_token: str | msgspec.UnsetType = msgspec.UNSET
    dev_url: str | msgspec.UnsetType = msgspec.UNSET


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A session of a sign-in by mail. `credentials_dropped`: the address was not verified before,
    so what somebody had used with it no longer works."""

    token: str
    user_id: str
    expires_at: int
    credentials_dropped: bool | msgspec.UnsetType = msgspec.UNSET


class EmailVerified(msgspec.Struct, frozen=True, kw_only=True):
    """The address of the caller is verified."""

    verified: bool
    email_verified: str | None = msgspec.field(name="emailVerified")


class EmailChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The account has the address; its other sessions have ended."""

    changed: bool
    email: str
    token: str
    user_id: str
    expires_at: int


class EmailReverted(msgspec.Struct, frozen=True, kw_only=True):
    """The account has its former address again, and no password."""

    reverted: bool
    email: str
    token: str
    user_id: str
    expires_at: int
