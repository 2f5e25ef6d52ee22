"""Request bodies and answers of sign-in by password (spec/identity.md §1.3).

A password that is missing is refused by the flow, after it has looked at the address; so the struct
takes a body without one, and the route says that it is required. `captcha` is the token of a
widget, for servers that ask for one (PYLON_CAPTCHA_PROVIDER).

Called by `pylon.api.identity.routes` and by the flows.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from pylon.api.identity.guest_bodies import Carried
from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingEmail, MissingField

_TEXT: Final = Refusal(InvalidData, InvalidData, expected="text", names_field=True)
_EMAIL: Final = Refusal(MissingEmail, InvalidData, expected="text", names_field=True)
_FIELD: Final = Refusal(MissingField, InvalidData, expected="text", names_field=True)
Filled = Annotated[str, msgspec.Meta(min_length=1)]


class RegisterBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new account."""

    email: Annotated[Filled, _EMAIL]
    password: Annotated[str | None, _TEXT] = None
    display_name: Annotated[str | None, _TEXT] = msgspec.field(name="displayName", default=None)
    captcha: Annotated[str | None, _TEXT] = None

    def __repr__(self) -> str:
        return "RegisterBody()"


class LoginBody(msgspec.Struct, frozen=True, kw_only=True):
    """A sign-in. `totp`: the code of the authenticator, so that one request has both factors."""

    email: Annotated[Filled, _EMAIL]
    password: Annotated[str | None, _TEXT] = None
    totp: Annotated[str | None, _TEXT] = None

    def __repr__(self) -> str:
        return "LoginBody()"


class ChangeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new password in place of the current one."""

    current_password: Annotated[str | None, _TEXT] = msgspec.field(
        name="currentPassword", default=None
    )
    new_password: Annotated[str | None, _TEXT] = msgspec.field(name="newPassword", default=None)

    def __repr__(self) -> str:
        return "ChangeBody()"


class ResetRequestBody(msgspec.Struct, frozen=True, kw_only=True):
    """The address to which a link for a new password goes."""

    email: Annotated[Filled, _EMAIL]
    captcha: Annotated[str | None, _TEXT] = None

    def __repr__(self) -> str:
        return "ResetRequestBody()"


class ResetBody(msgspec.Struct, frozen=True, kw_only=True):
    """The token of the link, and the new password."""

    token: Annotated[Filled, _FIELD]
    new_password: Annotated[Filled, _FIELD] = msgspec.field(name="newPassword")

    def __repr__(self) -> str:
        return "ResetBody()"


class SignedIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A new session. `expires_at`: Unix seconds, 0 for never. `carried`: what became of the rows of
    the guest that has signed in."""

    token: str
    user_id: str
    expires_at: int
    carried: Carried | None = None


class Registered(SignedIn, frozen=True, kw_only=True, omit_defaults=True):
    verification_email_sent: bool
    dev_code: str | None = None  # in dev mode only


class VerificationRequired(msgspec.Struct, frozen=True, kw_only=True):
    """The same for a new address and for one that is taken; the mail says which it is."""

    verification_required: bool
    email: str


class Changed(SignedIn, frozen=True, kw_only=True):
    changed: bool
    revoked_sessions: int


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    sent: bool


class ResetDone(SignedIn, frozen=True, kw_only=True, omit_defaults=True):
    reset: bool
    revoked_sessions: int
    credentials_dropped: bool = False


REGISTER: Final = BodyType(RegisterBody, '{"email": "ann@example.com", "password": "..."}')
LOGIN: Final = BodyType(LoginBody, '{"email": "ann@example.com", "password": "..."}')
CHANGE: Final = BodyType(ChangeBody, '{"currentPassword": "...", "newPassword": "..."}')
RESET_REQUEST: Final = BodyType(ResetRequestBody, '{"email": "ann@example.com"}')
RESET: Final = BodyType(ResetBody, '{"token": "...", "newPassword": "..."}')
