"""An authenticator for passkeys in software, written from the standard (WebAuthn level 3, 6 and 7).

It makes one passkey, answers challenges as a browser sends them, and lies where a test says so: the
origin, the domain, the counter, the flags.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

PRESENT, VERIFIED, BACKED_UP, ATTESTED = 0x01, 0x04, 0x18, 0x40
ORIGIN: Final = "https://app.example.com"
DOMAIN: Final = "app.example.com"


def encode(raw: bytes) -> str:
    """Return base64url, as browsers write it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(slots=True)
class SoftPasskey:
    """One passkey. `counts`: its counter moves; else it stays 0, as that of a synced passkey."""

    origin: str = ORIGIN
    domain: str = DOMAIN
    flags: int = PRESENT | VERIFIED
    counts: bool = True
    count: int = 0
    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    credential_id: bytes = field(default_factory=lambda: os.urandom(32))
    handle: str | None = None

    @property
    def id(self) -> str:
        return encode(self.credential_id)

    def register(self, options: dict[str, Any], **lies: Any) -> dict[str, Any]:
        """Return the answer to the options of `navigator.credentials.create`."""
        self.handle = options["user"]["id"]
        public = (
            b"\0" * 16 + len(self.credential_id).to_bytes(2, "big") + self.credential_id
            + cbor2.dumps(self._cose())
        )
        data = self._authenticator_data(ATTESTED, lies) + public
        attestation = {"fmt": "none", "attStmt": {}, "authData": data}
        return self._credential({
            "clientDataJSON": self._client_data("webauthn.create", options, lies),
            "attestationObject": encode(cbor2.dumps(lies.get("attestation", attestation))),
            "transports": ["internal", "hybrid", "telepathy"],
        })

    def answer(self, options: dict[str, Any], **lies: Any) -> dict[str, Any]:
        """Return the answer to the options of `navigator.credentials.get`."""
        if self.counts:
            self.count += 1
        data = self._authenticator_data(0, lies)
        client = self._client_data("webauthn.get", options, lies)
        signed = data + hashlib.sha256(decode(client)).digest()
        return self._credential({
            "clientDataJSON": client, "authenticatorData": encode(data),
            "signature": encode(self._sign(signed)),
            "userHandle": lies.get("handle", self.handle),
        })

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id, "rawId": self.id, "type": "public-key", "response": response,
            "authenticatorAttachment": "platform", "clientExtensionResults": {},
        }

    def _client_data(self, kind: str, options: dict[str, Any], lies: dict[str, Any]) -> str:
        return encode(json.dumps({
            "type": lies.get("kind", kind),
            "challenge": lies.get("challenge", options["challenge"]),
            "origin": lies.get("origin", self.origin), "crossOrigin": lies.get("cross", False),
        }).encode())

    def _authenticator_data(self, flags: int, lies: dict[str, Any]) -> bytes:
        domain = hashlib.sha256(lies.get("domain", self.domain).encode()).digest()
        given = lies.get("flags", self.flags) | flags
        count: int = lies.get("count", self.count)
        return domain + bytes([given]) + count.to_bytes(4, "big")

    def _sign(self, data: bytes) -> bytes:
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(hashes.SHA256()))
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self.key.sign(data)

    def _cose(self) -> dict[int, Any]:
        """Return the public key in the form of RFC 9053."""
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            point = self.key.public_key().public_numbers()
            return {1: 2, 3: -7, -1: 1, -2: point.x.to_bytes(32, "big"),
                    -3: point.y.to_bytes(32, "big")}
        if isinstance(self.key, rsa.RSAPrivateKey):
            numbers = self.key.public_key().public_numbers()
            return {1: 3, 3: -257, -1: numbers.n.to_bytes(256, "big"),
                    -2: numbers.e.to_bytes(3, "big")}
        raw = self.key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return {1: 1, 3: -8, -1: 6, -2: raw}
