"""Passkeys: the options that a browser gets, and the checks of what it sends back (WebAuthn).

The library `webauthn` parses and verifies. This module decides what is allowed: the domain and the
origins of PYLON_WEBAUTHN_RP_ID and PYLON_WEBAUTHN_ORIGIN, user verification, and no attestation by
certificates, since none is asked for. A page within a frame of another site is refused.

Invariants: it reads and writes no store. All faults of an answer give one error, whatever they are.
The counter is compared by the caller, after the signature was verified: else a stranger could
report a copied passkey. Called by `passkey_proofs` and the flows of passkeys.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import (
    base64url_to_bytes,
    bytes_to_base64url,
    options_to_json_dict,
    parse_attestation_object,
    parse_client_data_json,
)
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AttestationConveyancePreference,
    AttestationFormat,
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from pylon.config import Config
from pylon.errors import PasskeyRegisterFailed, PasskeyVerifyFailed, WebauthnNotConfigured
from pylon.limits import PASSKEY_CHALLENGE_S
from pylon.setting_values import ANDROID_ORIGIN

_ALGORITHMS: Final = [
    COSEAlgorithmIdentifier.ECDSA_SHA_256, COSEAlgorithmIdentifier.EDDSA,
    COSEAlgorithmIdentifier.RSASSA_PKCS1_v1_5_SHA_256,
]
_LOCAL: Final = re.compile(r"https?://localhost(?::[0-9]{1,5})?")
_TRANSPORTS: Final = frozenset({"usb", "nfc", "ble", "internal", "hybrid", "smart-card", "cable"})
_ID_BYTES: Final = 1_023  # WebAuthn, 5.8.3
_KEY_BYTES: Final = 2_048  # an RSA key of 8,192 bits has under 1,100
_HANDLE_BYTES: Final = 64
# What parsing of bytes that anybody can choose raises, in the library and below it.
_FAULTS: Final = (
    WebAuthnException, ValueError, TypeError, LookupError, AttributeError, RecursionError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The domain that passkeys belong to, and the pages that may use them.

    `takes_localhost`: every page of localhost may (dev mode).
    """

    domain: str
    origins: tuple[str, ...]
    takes_localhost: bool = False

    def allowed(self, origin: str) -> list[str]:
        """Return the origins that an answer may come from."""
        if self.takes_localhost and _LOCAL.fullmatch(origin) is not None:
            return [origin]
        return list(self.origins)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a browser has sent: its JSON, and what the client data in it says."""

    credential: dict[str, Any] = field(repr=False)
    credential_id: str
    challenge: str
    origin: str


@dataclass(frozen=True, slots=True)
class NewPasskey:
    """A passkey to store."""

    credential_id: str
    public_key: bytes
    sign_count: int
    aaguid: str
    is_backed_up: bool
    transports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """A signature that is right."""

    sign_count: int
    is_backed_up: bool


def relying_party(config: Config) -> RelyingParty:
    """Return what the settings allow.

    Raises:
        WebauthnNotConfigured
    """
    if config.webauthn_origin:
        hosts = [
            each.partition("://")[2].partition(":")[0] for each in config.webauthn_origin
            if not each.startswith(ANDROID_ORIGIN)
        ]
        return RelyingParty(config.webauthn_rp_id or hosts[0], config.webauthn_origin)
    if config.dev_mode:
        return RelyingParty(config.webauthn_rp_id or "localhost", (), takes_localhost=True)
    raise WebauthnNotConfigured(
        "This server does not know which pages may use passkeys",
        hint="Set PYLON_WEBAUTHN_ORIGIN to their origins",
    )


def user_handle(user_id: str) -> bytes:
    """Return what a passkey keeps of its user: the id, or its hash if that is too long."""
    raw = user_id.encode()
    return raw if len(raw) <= _HANDLE_BYTES else hashlib.sha256(raw).digest()


def registration_options(
    party: RelyingParty, app_name: str, user_id: str, user_name: str, challenge: str,
    known: Sequence[str],
) -> dict[str, Any]:
    """Return the options of `navigator.credentials.create`, as JSON.

    Args:
        known: the credential ids of the user, whose authenticators make no second passkey.
    """
    return options_to_json_dict(generate_registration_options(
        rp_id=party.domain, rp_name=app_name, user_id=user_handle(user_id), user_name=user_name,
        challenge=base64url_to_bytes(challenge), timeout=PASSKEY_CHALLENGE_S * 1_000,
        attestation=AttestationConveyancePreference.NONE,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        supported_pub_key_algs=_ALGORITHMS,
        exclude_credentials=[
            PublicKeyCredentialDescriptor(id=base64url_to_bytes(each)) for each in known
        ],
    ))


def sign_in_options(party: RelyingParty, challenge: str) -> dict[str, Any]:
    """Return the options of `navigator.credentials.get`, as JSON. The browser lets the user choose
    among the passkeys of the domain."""
    return options_to_json_dict(generate_authentication_options(
        rp_id=party.domain, challenge=base64url_to_bytes(challenge),
        timeout=PASSKEY_CHALLENGE_S * 1_000,
        user_verification=UserVerificationRequirement.REQUIRED,
    ))


def read_answer(credential: Mapping[str, Any] | str) -> Answer:
    """Return the answer of a browser, parsed and not yet verified.

    Raises:
        ValueError: it has another form, or comes from a frame of another site.
    """
    try:
        if isinstance(credential, str):
            credential = msgspec.json.decode(credential, type=dict[str, Any])
        given = dict(credential)
        client = parse_client_data_json(
            base64url_to_bytes(given["response"]["clientDataJSON"])
        )
        answer = Answer(
            given, str(given["id"]), bytes_to_base64url(client.challenge), str(client.origin)
        )
    except _FAULTS as ex:
        raise ValueError("the answer cannot be read") from ex
    if client.cross_origin:
        raise ValueError("the page is in a frame of another site")
    return answer


def verify_new(party: RelyingParty, answer: Answer) -> NewPasskey:
    """Return the passkey of an answer to `registration_options`.

    Raises:
        PasskeyRegisterFailed
    """
    try:
        made = verify_registration_response(
            credential=answer.credential,
            expected_challenge=base64url_to_bytes(answer.challenge),
            expected_rp_id=party.domain, expected_origin=party.allowed(answer.origin),
            require_user_verification=True, supported_pub_key_algs=_ALGORITHMS,
        )
        attestation = parse_attestation_object(made.attestation_object)
        has_certificates = bool(attestation.att_stmt.x5c)
        transports = answer.credential["response"].get("transports")
    except _FAULTS as ex:
        raise register_failed() from ex
    if (
        made.fmt not in (AttestationFormat.NONE, AttestationFormat.PACKED) or has_certificates
        or len(made.credential_id) > _ID_BYTES or len(made.credential_public_key) > _KEY_BYTES
    ):
        raise register_failed()
    found = transports if isinstance(transports, list) else []
    return NewPasskey(
        bytes_to_base64url(made.credential_id), made.credential_public_key, made.sign_count,
        made.aaguid, made.credential_backed_up,
        tuple(sorted({each for each in found if isinstance(each, str)} & _TRANSPORTS)),
    )


def verify_answer(
    party: RelyingParty, answer: Answer, user_id: str, public_key: bytes
) -> Verified:
    """Verify an answer to `sign_in_options` by the key of the passkey that it names.

    Raises:
        PasskeyVerifyFailed
    """
    try:
        handle = answer.credential["response"].get("userHandle")
        if handle is not None and base64url_to_bytes(handle) != user_handle(user_id):
            raise verify_failed()
        made = verify_authentication_response(
            credential=answer.credential,
            expected_challenge=base64url_to_bytes(answer.challenge),
            expected_rp_id=party.domain, expected_origin=party.allowed(answer.origin),
            credential_public_key=public_key, credential_current_sign_count=0,
            require_user_verification=True,
        )
    except _FAULTS as ex:
        raise verify_failed() from ex
    return Verified(made.new_sign_count, made.credential_backed_up)


def register_failed() -> PasskeyRegisterFailed:
    """Return the error of every passkey that is not accepted, whatever the reason."""
    return PasskeyRegisterFailed("The passkey was not accepted", hint="Begin again")


def verify_failed() -> PasskeyVerifyFailed:
    """Return the error of every passkey that does not sign in, whatever the reason."""
    return PasskeyVerifyFailed(
        "The passkey does not sign in here", hint="Try again, or sign in in another way"
    )
