"""Signed links: the right to read one file until a time, for whoever has the link.

The signature is HMAC-SHA256 by a key that HKDF derives from PYLON_SECRET_KEY. It covers the method,
the id, the variant (inline or download) and the end of the right. A link that was changed in any of
these does not count. Links of the key before count during its change (`Keys.macs`), and no longer
when that key has gone.

HEAD counts as GET. Called by `pylon.api.files`.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from pylon import limits
from pylon.auth.keys import Keys
from pylon.errors import LinkInvalid

_MAX_S: Final = limits.FILE_LINK_S
_PURPOSE: Final = "files"
_EXPIRES: Final = re.compile(r"[0-9]{1,12}", re.ASCII)


def sign(keys: Keys, file_id: str, variant: str, expires_at_s: int) -> str:
    """Return the signature for a GET, as 64 hex characters."""
    return keys.mac(_PURPOSE, "GET", file_id, variant, str(expires_at_s))


def is_signed(
    keys: Keys, file_id: str, variant: str, expires: str, signature: str, now_s: int
) -> bool:
    """Whether a link gives the right to read the file now."""
    if _EXPIRES.fullmatch(expires) is None or not 0 <= int(expires) - now_s <= _MAX_S:
        return False
    return any(
        hmac.compare_digest(made.encode(), signature.encode("utf-8", "surrogateescape"))
        for made in keys.macs(_PURPOSE, "GET", file_id, variant, expires)
    )


def invalid_link() -> LinkInvalid:
    """Return the error for a link that does not count, whatever the reason."""
    return LinkInvalid("The link has expired, or was changed")
