"""Origins: the pages that may read answers (CORS) and that may send writes (CSRF).

CORS (spec/http.md §4.5) allows one configured origin; the server never reflects an origin. CSRF
(§4.4): a state-changing request without a bearer token may depend on a cookie, so its page must be
on the list. A request without Origin and Referer is not a browser's cross-site request and passes,
unless Sec-Fetch-Site says `cross-site`: a page or an extension can make a browser omit both. In dev
mode every origin passes.

falcon's CORSMiddleware does not fit: it answers requests with an Origin header only, and the wire
has the same headers in every answer. Built once for each process. Called by the API and by socket
handshakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pylon import setting_values
from pylon.config import Config
from pylon.errors import SHOWN_CHARS, CsrfRejected
from pylon.manifest.model import Manifest

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins that may send state-changing requests."""

    allowed: frozenset[str]
    any_origin: bool

    def allows(self, origin: str | None) -> bool:
        """Whether a request with this Origin header may depend on a cookie."""
        return origin is not None and (self.any_origin or _normal(origin) in self.allowed)

    def check(
        self, method: str, origin: str | None, referer: str | None, *, has_bearer: bool,
        fetch_site: str | None = None,
    ) -> None:
        """Check that a request is safe, carries a bearer token, or comes from a listed origin.

        Args:
            fetch_site: the Sec-Fetch-Site header.

        Raises:
            CsrfRejected: a state-changing request from an origin that is not on the list.
        """
        if self.any_origin or has_bearer or method in SAFE_METHODS:
            return
        if origin is None:
            if referer is None:
                if fetch_site is None or fetch_site.strip().lower() != "cross-site":
                    return
                raise CsrfRejected(
                    "CSRF gate rejected a cross-site request (Sec-Fetch-Site) that names neither "
                    "Origin nor Referer — send one of them, from an origin in "
                    "manifest.auth.trustedOrigins (or PYLON_CSRF_ORIGINS), or a bearer token"
                )
            origin = origin_of(referer)
        if not self.allows(origin):
            raise CsrfRejected(
                f'CSRF gate rejected origin "{origin[:SHOWN_CHARS]}" — add it to '
                "manifest.auth.trustedOrigins (or PYLON_CSRF_ORIGINS)"
            )


def origins(config: Config, manifest: Manifest) -> Origins:
    """Return the origins of the settings and the manifest."""
    named = {*config.csrf_origins, *manifest.auth.trusted_origins}
    if config.cors_origin:
        named.add(config.cors_origin)
    return Origins(
        allowed=frozenset(_spelled(origin) for origin in named),
        any_origin=config.dev_mode or "*" in named,
    )


def origin_of(url: str) -> str:
    """Return `scheme://host[:port]` of a URL, or ``null``, as browsers write it, without them."""
    try:
        parts = urlsplit(url)
    except ValueError:  # an unbalanced bracket in the host
        return "null"
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else "null"


def cors_headers(config: Config) -> tuple[tuple[str, str], ...]:
    """Return the CORS headers, which are the same for all answers."""
    allow = config.cors_origin or "null"
    headers = [
        ("access-control-allow-origin", allow),
        ("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS"),
        (
            "access-control-allow-headers",
            "Content-Type, Authorization, X-Filename, If-Match, If-None-Match, Idempotency-Key, "
            "X-Request-Id",
        ),
        (
            "access-control-expose-headers",
            "X-Pylon-Change-Seq, ETag, Idempotency-Replayed, X-Request-Id, Retry-After, "
            "RateLimit, RateLimit-Policy",
        ),
    ]
    if allow != "*":
        headers.append(("access-control-allow-credentials", "true"))
        headers.append(("vary", "Origin"))
    return tuple(headers)


def _spelled(named: str) -> str:
    """Return an origin as browsers spell it: `https://a.example:443` as `https://a.example`."""
    try:
        return setting_values.origin(named)
    except ValueError:  # the manifest has a warning about it; it equals no Origin header
        return _normal(named)


def _normal(origin: str) -> str:
    return origin.strip().lower().rstrip("/")
