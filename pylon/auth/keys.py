"""Keys: the keys that are derived from the server's secret keys, and what they protect.

`PYLON_SECRET_KEY` (see `secret_key`) is the one secret of an installation. HKDF-SHA256 derives a
key for each use of it. `Keys.mac` is HMAC-SHA256, for short secrets (six-digit codes, backup codes)
that a reader of the database could otherwise guess. `Keys.seal` is AES-256-GCM, for values that the
server needs in clear again. Random values of 256 bits need neither: `hash_token` is their SHA-256.

A sealed value is the text `v1.<kid>.<nonce>.<ciphertext>`, in base64url. `kid` names the secret key
it was sealed by. The table, the column and the user are authenticated with it, so a value that is
copied to another place does not open there.

During a change of the secret key there are several. The newest one makes MACs and seals; all of
them check and open.

Invariants: no key is in a repr, a log or an error. Only `seal` and `open` import cryptography,
which costs 6.5 MB: only the identity process calls them. MACs and derived keys need the standard
library alone. Called by the identity process; the supervisor uses the probe.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pylon.errors import SealBroken

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_SALT: Final = b"pylon"
_VERSION: Final = "v1"
_NONCE_BYTES: Final = 12
_KID_BYTES: Final = 4
_PROBE: Final = "pylon secret key"


def hash_token(token: str) -> str:
    """Return the SHA-256, as 64 hex characters, of a token with 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True)
class _SecretKey:
    """One secret key: its name, and the pseudorandom key that HKDF has extracted from it."""

    kid: str
    extracted: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> _SecretKey:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a secret key has {KEY_BYTES} bytes, not {len(secret)}")
        extracted = hmac.digest(_SALT, secret, "sha256")
        return cls(_expand(extracted, "kid")[:_KID_BYTES].hex(), extracted)


class Keys:
    """The derived keys of one installation. Made once a process; any thread or greenlet uses it."""

    __slots__ = ("_ciphers", "_secrets")

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """
        Args:
            secrets: secret keys of 32 bytes, the newest first.

        Raises:
            ValueError: there is none, or one has another length.
        """
        self._secrets = tuple(_SecretKey.of(secret) for secret in secrets)
        if not self._secrets:
            raise ValueError("no secret key")
        self._ciphers: dict[str, AESGCM] = {}

    def __repr__(self) -> str:
        return f"Keys({', '.join(self.kids)})"

    @property
    def kids(self) -> tuple[str, ...]:
        """Return the names of the secret keys, the newest first. A name does not reveal its key."""
        return tuple(secret.kid for secret in self._secrets)

    def derive(self, label: str) -> bytes:
        """Return 32 bytes that belong to this label alone, by HKDF-SHA256 of the newest key."""
        return _expand(self._secrets[0].extracted, label)

    def mac(self, purpose: str, *parts: str) -> str:
        """Return the MAC of some texts by the newest key, as 64 hex characters.

        Args:
            purpose: separates the uses; a MAC of one purpose is none of another.

        Raises:
            ValueError: a text contains NUL, which separates the texts.
        """
        return _mac(self._secrets[0], purpose, parts)

    def macs(self, purpose: str, *parts: str) -> list[str]:
        """Return the MACs of the same texts by each key, the newest first: for look-ups of what an
        earlier key may have made. See `mac`."""
        return [_mac(secret, purpose, parts) for secret in self._secrets]

    def seal(self, table: str, column: str, user_id: str, value: bytes) -> str:
        """Return a value encrypted for one place. See the module.

        Args:
            table: without prefix, as in `pylon.storage.auth_tables`.
            user_id: of the row's user, or another text that names the row; may be empty.

        Raises:
            ValueError: a text of the place contains `|`, or NUL.
        """
        secret = self._secrets[0]
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher(secret).encrypt(nonce, value, _place(table, column, user_id))
        return ".".join((_VERSION, secret.kid, _encode(nonce), _encode(sealed)))

    def open(self, table: str, column: str, user_id: str, sealed: str) -> bytes:
        """Return a value that `seal` has encrypted for this place, by any of the keys.

        Raises:
            SealBroken: it was changed, belongs to another place, or its key is not here.
        """
        from cryptography.exceptions import InvalidTag

        where = f"{table}.{column}"
        version, _, rest = sealed.partition(".")
        kid, _, rest = rest.partition(".")
        nonce, _, text = rest.partition(".")
        if version != _VERSION or not text:
            raise SealBroken(f"{where} holds no sealed value")
        secret = next((known for known in self._secrets if known.kid == kid), None)
        if secret is None:
            raise SealBroken(
                f"{where} is sealed by the secret key {kid[:8]!r}, and this server has "
                f"{', '.join(self.kids)}",
                hint="set PYLON_SECRET_KEY_PREVIOUS to the key before",
            )
        try:
            return self._cipher(secret).decrypt(
                _decode(nonce), _decode(text), _place(table, column, user_id)
            )
        except (InvalidTag, ValueError):
            raise SealBroken(f"{where} was changed after it was sealed") from None

    def is_current(self, sealed: str) -> bool:
        """Whether the newest key has sealed this value."""
        return sealed.startswith(f"{_VERSION}.{self._secrets[0].kid}.")

    def probe(self) -> str:
        """Return a text by which `knows_probe` recognises the newest key later. It reveals
        nothing of the key, so the database may hold it."""
        return f"{_VERSION}.{self._secrets[0].kid}.{self.mac('probe', _PROBE)}"

    def knows_probe(self, probe: str) -> bool:
        """Whether one of the keys has made this text."""
        return any(
            hmac.compare_digest(probe.encode(), f"{_VERSION}.{kid}.{mac}".encode())
            for kid, mac in zip(self.kids, self.macs("probe", _PROBE), strict=True)
        )

    def load_ciphers(self) -> None:
        """Import cryptography, which takes 40 ms: before the process serves."""
        for secret in self._secrets:
            self._cipher(secret)

    def _cipher(self, secret: _SecretKey) -> AESGCM:
        cipher = self._ciphers.get(secret.kid)
        if cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            cipher = self._ciphers[secret.kid] = AESGCM(_expand(secret.extracted, "seal"))
        return cipher


def _expand(extracted: bytes, label: str) -> bytes:
    """Return the first block of HKDF-Expand (RFC 5869, 2.3)."""
    return hmac.digest(extracted, label.encode() + b"\x01", "sha256")


def _mac(secret: _SecretKey, purpose: str, parts: Iterable[str]) -> str:
    texts = (purpose, *parts)
    if any("\0" in text for text in texts):
        raise ValueError("a text of a MAC contains NUL")
    return hmac.digest(
        _expand(secret.extracted, "mac"), "\0".join(texts).encode("utf-8", "surrogatepass"),
        "sha256",
    ).hex()


def _place(*texts: str) -> bytes:
    if any("|" in text or "\0" in text for text in texts):
        raise ValueError(f"the place of a sealed value contains | or NUL: {texts!r}")
    return "|".join(texts).encode()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Raises ValueError."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as ex:
        raise ValueError(str(ex)) from None
