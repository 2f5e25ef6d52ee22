"""Frames: the binary message that carries a document to its subscribers (spec/realtime.md §6.2).

    u8 0x10 | u16be length | entity, UTF-8 | u16be length | row id, UTF-8 | Loro bytes

The payload is a snapshot or an update; receivers import either. The server never sends the reserved
type 0x11, because the published server never sent it to old clients. Called by
`workers.ws.documents`.
"""

from __future__ import annotations

from typing import Final

DOCUMENT: Final = 0x10
_NAME_MAX_BYTES: Final = 65_535


def encode(entity: str, row_id: str, payload: bytes) -> bytes | None:
    """Return the message; None if a name is too long, and then the caller sends nothing."""
    parts = [bytes((DOCUMENT,))]
    for name in (entity, row_id):
        raw = name.encode()
        if len(raw) > _NAME_MAX_BYTES:
            return None
        parts += [len(raw).to_bytes(2, "big"), raw]
    return b"".join((*parts, payload))
