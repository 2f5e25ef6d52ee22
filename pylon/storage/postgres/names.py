"""Names in PostgreSQL: how identifiers are written, and the objects that are Pylon's own.

PostgreSQL cuts an identifier after 63 bytes, and tells so in a notice only. So `fitting_name` cuts
long names of indexes itself: they end in a digest of the whole name, and stay distinct. Names of
tables and columns are never cut; a manifest with a longer one is refused.

Called by every module of this package that writes SQL.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from pylon import limits
from pylon.storage.core.names import quote

__all__ = [
    "DOCUMENT_SEQUENCE", "MARK_SEQUENCE", "NAME_BYTES", "SEQ_SEQUENCE", "TEXT", "WORDS_COLUMN",
    "fitting_name", "quote",
]

NAME_BYTES: Final = limits.SQL_NAME_BYTES  # NAMEDATALEN - 1 of every usual build
_DIGEST_DIGITS: Final = 12

TEXT: Final = 'TEXT COLLATE "C"'  # orders by code points
WORDS_COLUMN: Final = "_words"  # the words of a searchable row, as a tsvector
SEQ_SEQUENCE: Final = "_pylon_seq"  # of changes; taken under the lock of the writers
DOCUMENT_SEQUENCE: Final = "_pylon_document_seq"  # of updates of documents
MARK_SEQUENCE: Final = "_pylon_mark_seq"


def fitting_name(name: str) -> str:
    """Return the name under which PostgreSQL keeps an index: `name`, or its beginning, `_` and 12
    hexadecimal digits of its SHA-256."""
    encoded = name.encode()
    if len(encoded) <= NAME_BYTES:
        return name
    digest = sha256(encoded).hexdigest()[:_DIGEST_DIGITS]
    start = encoded[: NAME_BYTES - _DIGEST_DIGITS - 1].decode(errors="ignore")
    return f"{start}_{digest}"
