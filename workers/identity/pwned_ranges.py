"""Pwned ranges: asks Have I Been Pwned whether a password was stolen (PYLON_HIBP=true).

It sends the first five digits of the password's SHA-1, and gets the rest of all hashes that begin
so, padded to a constant size. So the service learns neither the password nor its hash.

Invariants: without an answer within `HIBP_S` no password is refused, since nobody could sign up
while the service is away. Nothing of a password is logged. Called by `PasswordRules.check` in the
identity process, which alone imports urllib3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import urllib3

from pylon import __version__, log
from pylon.limits import HIBP_S

_URL: Final = "https://api.pwnedpasswords.com/range"
_PREFIX_CHARS: Final = 5
_BODY_BYTES: Final = 262_144
_log = log.get_logger("identity")


def pwned_ranges(url: str = _URL) -> Callable[[str], bool]:
    """Return the function that tells whether a password is in the service's list."""
    pool = urllib3.PoolManager(
        num_pools=1, maxsize=4, retries=False, timeout=urllib3.Timeout(total=HIBP_S),
        headers={"User-Agent": f"pylon/{__version__}", "Add-Padding": "true"},
    )

    def is_stolen(normal: str) -> bool:
        digest = hashlib.sha1(normal.encode(), usedforsecurity=False).hexdigest().upper()
        prefix, rest = digest[:_PREFIX_CHARS], digest[_PREFIX_CHARS:]
        try:
            answer = pool.request("GET", f"{url}/{prefix}", redirect=False, preload_content=False)
            try:
                body = answer.read(_BODY_BYTES, decode_content=True).decode("ascii", "replace")
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as ex:
            _log.warning("password.list_unreachable", reason=type(ex).__name__)
            return False
        if answer.status != 200:
            _log.warning("password.list_unreachable", reason=f"status {answer.status}")
            return False
        # Padding has the count 0.
        return any(
            line.partition(":")[0] == rest and line.strip() != f"{rest}:0"
            for line in body.splitlines()
        )

    return is_stolen
