"""The session cookie: its name, how it is set, cleared and read (spec/http.md §4.3).

Invariants: it is HttpOnly always; Secure whenever it is SameSite=None, whatever the settings
say. A browser gets it only on an answer to a request that carries an Origin header, so that
scripts and native apps never hold an ambient credential they did not ask for (§3.11).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pylon.config import Config
from pylon.manifest.model import Manifest

_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9\-_]")
_LONGEST_S: Final = 34_560_000  # 400 days: what browsers cut longer lifetimes to
_SAME_SITE: Final = {"lax": "Lax", "strict": "Strict", "none": "None"}


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """The cookie of one app. Built once at start."""

    name: str
    attributes: str  # what follows the value, Max-Age excepted
    max_age_s: int

    def set(self, token: str) -> str:
        """The Set-Cookie value that stores a token."""
        return f"{self.name}={token}; {self.attributes}; Max-Age={self.max_age_s}"

    def cleared(self) -> str:
        """The Set-Cookie value that makes a browser forget it."""
        return f"{self.name}=; {self.attributes}; Max-Age=0"


def session_cookie(config: Config, manifest: Manifest) -> SessionCookie:
    """The cookie that the settings and the manifest ask for."""
    parts = ["Path=/"]
    if config.cookie_domain:
        parts.append(f"Domain={config.cookie_domain}")
    parts.append("HttpOnly")
    if config.cookie_secure or config.cookie_same_site == "none":
        parts.append("Secure")
    parts.append(f"SameSite={_SAME_SITE[config.cookie_same_site]}")
    return SessionCookie(
        name=config.cookie_name or cookie_name(manifest.name),
        attributes="; ".join(parts),
        max_age_s=manifest.auth.session_expires_in_s or _LONGEST_S,
    )


def cookie_name(app_name: str) -> str:
    """`<app name>_session`, with what a cookie name cannot hold turned into `_`."""
    return f"{_NOT_IN_A_NAME.sub('_', app_name) or 'pylon'}_session"


def cookie_value(header: str | None, name: str) -> str | None:
    """The value of the first cookie called `name` in a Cookie header, unquoted; or None."""
    if not header:
        return None
    for pair in header.split(";"):
        key, separator, value = pair.partition("=")
        if separator and key.strip() == name:
            return value.strip().strip('"')
    return None
