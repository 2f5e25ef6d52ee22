"""Seats: who lost the connection may show that the seat of a sid is its own.

A token is the sid and an HMAC over the shard and the sid, under a key that this process has for
itself; so there is nothing to remember, and nothing that outlives the seats. It is good for as
long as the shard keeps the seat (`allow_reconnection_s`). Called by `workers.shards.door`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

KEY_BYTES: Final = 32


class Seats:
    """Makes and reads the tokens of one process."""

    __slots__ = ("_key",)

    def __init__(self, key_hex: str) -> None:
        """Args: `key_hex`: `KEY_BYTES` random bytes, as hex."""
        self._key = bytes.fromhex(key_hex)

    def token(self, shard_id: str, sid: str) -> str:
        """What brings `sid` back to its seat in a shard."""
        name = base64.urlsafe_b64encode(sid.encode()).decode().rstrip("=")
        return f"{name}.{self._proof(shard_id, sid)}"

    def sid_of(self, shard_id: str, token: str) -> str | None:
        """Whose seat a token is for; None where it is none of ours for this shard."""
        name, _, proof = token.partition(".")
        try:
            padded = name + "=" * (-len(name) % 4)
            sid = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        except (binascii.Error, ValueError):
            return None
        # Text that is not ASCII cannot be compared in constant time, and is no proof anyway.
        if not proof.isascii() or not hmac.compare_digest(proof, self._proof(shard_id, sid)):
            return None
        return sid

    def _proof(self, shard_id: str, sid: str) -> str:
        text = f"{len(shard_id)}:{shard_id}{sid}".encode()
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
