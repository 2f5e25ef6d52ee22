"""The session cookie: its name, its attributes, and reading it from a request (spec/http.md §4.3).

Invariants: the cookie is HttpOnly. A SameSite=None cookie is Secure, whatever the settings are. The
server sets it only in answers to requests with an Origin header, so scripts and native apps do not
get an ambient credential (§3.11).

Two different session cookies count as none. A neighbouring host can set a second one for the whole
domain or for a longer path, and a request does not tell them apart. So the API clears both, and the
user signs in again.

Called by the API and by socket handshakes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pylon.auth.tokens import UnprivilegedToken
from pylon.config import Config
from pylon.manifest.model import Manifest

_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9\-_]")
_LONGEST_S: Final = 34_560_000  # 400 days: what browsers cut longer lifetimes to
_PATHS_CLEARED: Final = 4
_DOMAINS_CLEARED: Final = 4
_HOST_NAME: Final = re.compile(r"(?:[a-z0-9_\-]+\.)+[a-z][a-z0-9\-]*", re.IGNORECASE)
_SAME_SITE: Final = {"lax": "Lax", "strict": "Strict", "none": "None"}


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """The cookie of one app. Built once at start."""

    name: str
    attributes: str  # all but Max-Age, as they follow the value
    max_age_s: int
    domain: str | None = None
    flags: str = "HttpOnly"  # the attributes without Path and Domain

    def set(self, token: str) -> str:
        """Return the Set-Cookie value that stores a token."""
        return f"{self.name}={token}; {self.attributes}; Max-Age={self.max_age_s}"

    def cleared(self) -> str:
        """Return the Set-Cookie value that clears the cookie."""
        return f"{self.name}=; {self.attributes}; Max-Age=0"

    def cleared_everywhere(self, host: str | None, path: str) -> list[str]:
        """Return the Set-Cookie values that clear every cookie of this name.

        A browser clears a cookie only by its domain and path, and a request names neither. So the
        values cover each domain and path that the cookies of this request can have.

        Args:
            host: the Host header.
            path: the path of the request.
        """
        domains = [""]
        name = (host or "").partition(":")[0].lower()
        named = [] if self.domain is None else [self.domain.lstrip(".").lower()]
        while _HOST_NAME.fullmatch(name):
            named.append(name)
            name = name.partition(".")[2]
        domains += [f"; Domain={each}" for each in dict.fromkeys(named)]
        steps = path.split("/")[1:_PATHS_CLEARED]
        paths = ["/", *("/" + "/".join(steps[:n]) for n in range(1, len(steps) + 1))]
        return [
            f"{self.name}=; Path={each}{domain}; {self.flags}; Max-Age=0"
            for domain in domains[:_DOMAINS_CLEARED + 1]
            for each in dict.fromkeys(paths) if _is_plain_path(each)
        ]


def session_cookie(config: Config, manifest: Manifest) -> SessionCookie:
    """Return the cookie that the settings and the manifest define."""
    flags = ["HttpOnly"]
    if config.cookie_secure or config.cookie_same_site == "none":
        flags.append("Secure")
    flags.append(f"SameSite={_SAME_SITE[config.cookie_same_site]}")
    domain = [f"Domain={config.cookie_domain}"] if config.cookie_domain else []
    return SessionCookie(
        name=config.cookie_name or cookie_name(manifest.name),
        attributes="; ".join(["Path=/", *domain, *flags]),
        max_age_s=manifest.auth.session_expires_in_s or _LONGEST_S,
        domain=config.cookie_domain or None,
        flags="; ".join(flags),
    )


def cookie_name(app_name: str) -> str:
    """Return `<app name>_session`, with `_` for each character that a cookie name forbids."""
    return f"{_NOT_IN_A_NAME.sub('_', app_name) or 'pylon'}_session"


def cookie_value(header: str | None, name: str) -> UnprivilegedToken | None:
    """Return the unquoted value of the cookie `name`.

    Returns:
        None without such a cookie, and if two of them differ.
    """
    values = _values(header, name)
    if not values or values.count(values[0]) != len(values):
        return None
    return UnprivilegedToken(values[0])


# The cookies of sign-in besides the session's: short name, and the end of the cookie's name, which
# begins as the session's does. One that browsers must know by a fixed name has that name.
DEVICE: Final = "device"  # marks a device that has signed in before
OAUTH: Final = "oauth"  # binds the state of a provider's sign-in to the browser
MAGIC_LINK: Final = "ml"  # the browser that asked for a magic link
MFA: Final = "mfa"  # the challenge of a second factor, for our own page
TRUSTED_DEVICE: Final = "trusted_device"
_SUFFIXES: Final = {DEVICE: "_dev", OAUTH: "_oauth", MAGIC_LINK: "_ml", MFA: "_mfa"}
_TRUSTED_DEVICE_COOKIE: Final = "pylon_trusted_device"
_SESSION_SUFFIX: Final = "_session"


def identity_cookie_name(kind: str, session_name: str) -> str:
    """Return the name of a cookie of sign-in, from its short name and the session cookie's name."""
    if kind == TRUSTED_DEVICE:
        return _TRUSTED_DEVICE_COOKIE
    return session_name.removesuffix(_SESSION_SUFFIX) + _SUFFIXES[kind]


def identity_cookies(header: str | None, session_name: str) -> dict[str, str]:
    """Return the cookies of sign-in of a request by their short names."""
    if not header:
        return {}
    found = {
        kind: cookie_value(header, identity_cookie_name(kind, session_name))
        for kind in (*_SUFFIXES, TRUSTED_DEVICE)
    }
    return {kind: str(value) for kind, value in found.items() if value is not None}


def has_conflict(header: str, name: str) -> bool:
    """Whether a Cookie header holds two different cookies called `name`."""
    if header.count(name) < 2:  # the usual case
        return False
    return len(set(_values(header, name))) > 1


def _values(header: str | None, name: str) -> list[str]:
    if not header:
        return []
    values = []
    for pair in header.split(";"):
        key, separator, value = pair.partition("=")
        if separator and key.strip() == name:
            values.append(value.strip().strip('"'))
    return values


def _is_plain_path(path: str) -> bool:
    return path.isascii() and path.isprintable() and ";" not in path
