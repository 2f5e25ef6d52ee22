"""The public keys of a provider (JWKS, RFC 7517), and the one that signed a token.

Invariants: only public keys for the four accepted algorithms are kept. Symmetric keys never are, so
nobody can sign a token with something that is public. RSA keys have 2,048 bits at least. Called by
`workers.identity.providers.client` and `id_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from workers.identity.providers.fetch import Fetcher, FetchFailed

Key = RSAKey | ECKey | OKPKey

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
_TYPE_OF: Final = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_CURVE_OF: Final = {"ES256": "P-256", "EdDSA": "Ed25519"}
_RSA_MIN_BITS: Final = 2_048
_KEYS: Final = 64  # of one set; further ones are ignored


class KeySet:
    """The keys of a provider at one moment."""

    def __init__(self, entries: list[Mapping[str, Any]]) -> None:
        self._keys = [
            (entry, key) for entry in entries[:_KEYS] if (key := _import_key(entry)) is not None
        ]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key of a token's header; None if there is none, or none that is clear."""
        found = [
            key for entry, key in self._keys
            if entry.get("kty") == _TYPE_OF[algorithm]
            and entry.get("alg", algorithm) == algorithm
            and entry.get("crv") == _CURVE_OF.get(algorithm)
            and (kid is None or entry.get("kid") == kid)
        ]
        return found[0] if len(found) == 1 or (found and kid is not None) else None


def load_key_set(url: str, fetcher: Fetcher) -> KeySet:
    """Fetch the keys of a provider.

    Raises:
        FetchFailed: they cannot be fetched, or none can be used.
    """
    response = fetcher.fetch(url, headers={"accept": "application/jwk-set+json, application/json"})
    entries = response.json_object().get("keys") if response.status == 200 else None
    if not isinstance(entries, list):
        raise FetchFailed(f"the answer of jwks_uri is no key set (status {response.status})")
    keys = KeySet([entry for entry in entries if isinstance(entry, dict)])
    if not len(keys):
        raise FetchFailed("the key set of jwks_uri has no key for " + ", ".join(ALGORITHMS))
    return keys


def _import_key(entry: Mapping[str, Any]) -> Key | None:
    if entry.get("use", "sig") != "sig" or entry.get("kty") not in _TYPE_OF.values():
        return None
    public = {name: value for name, value in entry.items() if name in (
        "kty", "kid", "n", "e", "crv", "x", "y"
    )}
    try:
        key = JWKRegistry.import_key(public)
        if isinstance(key, RSAKey) and key.raw_value.key_size < _RSA_MIN_BITS:
            return None
    except (JoseError, ValueError, TypeError, KeyError):  # a malformed key
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None
