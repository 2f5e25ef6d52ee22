"""Bodies and answers of TOTP and trusted devices (spec/identity.md §1.5).

Called by `pylon.api.identity.routes` and the flows of the identity process.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pylon.api.identity.passkey_bodies import Credential
from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingCode

_CODE_CHARS: Final = 64  # spaces and dashes may stand between its characters
_CHALLENGE_CHARS: Final = 100
_EXPECTED: Final = f"a text of at most {_CODE_CHARS} characters"

Code = Annotated[
    str, Meta(min_length=1, max_length=_CODE_CHARS),
    Refusal(MissingCode, InvalidData, expected=_EXPECTED),
]


class EnrollBody(msgspec.Struct, frozen=True, kw_only=True):
    """The code of the authenticator app before, if there is one."""

    code: Annotated[
        str, Meta(max_length=_CODE_CHARS), Refusal(InvalidData, expected=_EXPECTED)
    ] = ""


class VerifyBody(msgspec.Struct, frozen=True, kw_only=True):
    """The code of an authenticator app."""

    code: Code
    trust_device: bool = False


class CodeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A code of the authenticator app, or a backup code."""

    code: Code


class ChallengeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to the challenge of a sign-in: a code, or the answer of a passkey."""

    challenge: Annotated[
        str, Meta(min_length=1, max_length=_CHALLENGE_CHARS),
        Refusal(InvalidData, expected=f"a text of at most {_CHALLENGE_CHARS} characters"),
    ]
    code: Annotated[
        str, Meta(max_length=_CODE_CHARS), Refusal(MissingCode, InvalidData, expected=_EXPECTED)
    ] = ""
    credential: Credential | None = None
    trust_device: bool = False


class EnrollAnswer(msgspec.Struct, frozen=True):
    """A secret that waits for its first code. `url`: for a QR code."""

    secret: str
    url: str
    issuer: str
    account: str


class VerifyAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A right code. The first one of a new secret (`enrolled`) gives the session a new token."""

    verified: bool
    enrolled: bool
    trust_device: bool
    token: str | None = None
    user_id: str | None = None
    expires_at: int | None = None


class DisableAnswer(msgspec.Struct, frozen=True):
    """The account has no authenticator app any more."""

    disabled: bool


class BackupCodesAnswer(msgspec.Struct, frozen=True):
    """New backup codes. The server shows them once."""

    codes: list[str]


class TrustedDevice(msgspec.Struct, frozen=True):
    """A browser that is not asked for a code. The times are ISO 8601, in UTC."""

    id: str
    label: str
    created_at: str
    expires_at: str


class TrustedDevicesAnswer(msgspec.Struct, frozen=True):
    """The trusted devices of the caller."""

    devices: list[TrustedDevice]


class RevokedAnswer(msgspec.Struct, frozen=True):
    """How many devices are no longer trusted."""

    revoked: int


class SessionAnswer(msgspec.Struct, frozen=True):
    """The session of a sign-in."""

    token: str
    user_id: str
    expires_at: int


ENROLL: Final = BodyType(EnrollBody, '{"code": "123456"}')
VERIFY: Final = BodyType(VerifyBody, '{"code": "123456"}')
CODE: Final = BodyType(CodeBody, '{"code": "123456"}')
CHALLENGE: Final = BodyType(ChallengeBody, '{"challenge": "mfa_...", "code": "123456"}')
