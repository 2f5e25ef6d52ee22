"""Bodies and answers of passkeys (spec/identity.md §1.7).

A browser's answer comes in one of two forms: as `credential`, the JSON that `toJSON()` of the
browser gives, or as its members beside each other, as the published server takes them. All bytes
are base64url. Called by `pylon.api.identity.routes` and the flows of the identity process.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidName, MissingName

_BYTES_CHARS: Final = 32_768  # of base64url; an attestation without certificates has under 2,000
_NAME_CHARS: Final = 400  # bytes that a name may have before it is cleaned
_ID_CHARS: Final = 1_364  # of 1,023 bytes, the most that WebAuthn allows

_Bytes = Annotated[str, Meta(max_length=_BYTES_CHARS)]
_Id = Annotated[str, Meta(max_length=_ID_CHARS)]
# The text of its JSON counts too: a form has only texts.
Credential = Annotated[dict[str, Any], Meta(description="toJSON() of the browser's answer")] | (
    Annotated[str, Meta(max_length=_BYTES_CHARS)]
)


class BeginBody(msgspec.Struct, frozen=True):
    """Nothing."""


class RegisterBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new passkey, as the browser has made it."""

    credential: Credential | None = None
    name: Annotated[str, Meta(max_length=_NAME_CHARS)] | None = None
    challenge: _Bytes | None = None
    credential_id: _Id | None = msgspec.field(name="credentialId", default=None)
    client_data: _Bytes | None = msgspec.field(name="clientDataJSON", default=None)
    attestation: _Bytes | None = msgspec.field(name="attestationObject", default=None)


class SignInBody(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a passkey to a challenge."""

    credential: Credential | None = None
    credential_id: _Id | None = msgspec.field(name="credentialId", default=None)
    authenticator_data: _Bytes | None = msgspec.field(name="authenticatorData", default=None)
    client_data: _Bytes | None = msgspec.field(name="clientDataJSON", default=None)
    signature: _Bytes | None = None
    user_handle: _Bytes | None = msgspec.field(name="userHandle", default=None)


class RenameBody(msgspec.Struct, frozen=True, kw_only=True):
    """Another name of a passkey."""

    name: Annotated[
        str, Meta(min_length=1, max_length=_NAME_CHARS),
        Refusal(MissingName, InvalidName, expected="text of 1 to 100 characters"),
    ]


class RegisterOptions(msgspec.Struct, frozen=True, rename="camel"):
    """A challenge for a new passkey. `options`: for `navigator.credentials.create`."""

    challenge: str
    rp_id: str
    user_id: str
    user_name: str
    options: dict[str, Any]


class SignInOptions(msgspec.Struct, frozen=True, rename="camel"):
    """A challenge for a sign-in. `options`: for `navigator.credentials.get`."""

    challenge: str
    rp_id: str
    options: dict[str, Any]


class RegisteredAnswer(msgspec.Struct, frozen=True):
    """The passkey signs its user in from now on."""

    registered: bool
    id: str
    name: str


class PasskeyAnswer(msgspec.Struct, frozen=True):
    """A passkey of the caller. `backed_up`: a service of its maker keeps a copy. The times are Unix
    seconds."""

    id: str
    name: str
    created_at: int
    last_used_at: int | None
    backed_up: bool
    transports: list[str]


class RenamedAnswer(msgspec.Struct, frozen=True):
    """The passkey has another name."""

    id: str
    name: str


class DeletedAnswer(msgspec.Struct, frozen=True):
    """The passkey signs nobody in any more."""

    deleted: bool


BEGIN: Final = BodyType(BeginBody, "{}")
REGISTER: Final = BodyType(RegisterBody, '{"credential": {...}, "name": "My phone"}')
SIGN_IN: Final = BodyType(SignInBody, '{"credential": {...}}')
RENAME: Final = BodyType(RenameBody, '{"name": "My phone"}')
