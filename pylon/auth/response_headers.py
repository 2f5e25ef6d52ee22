"""Headers that every answer has, of whatever port, status and process: security and CORS.

`Strict-Transport-Security` is among them if PYLON_PUBLIC_URL is https: browsers then refuse to
speak plain HTTP with that host for a year. The headers that depend on the request's Origin come
from `pylon.auth.origin.Origins.cors`.

`SocketHeaders` joins both for the ports of the socket roles.

Called by the API's middleware, the HTTP server and the socket roles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pylon.auth.origin import Headers, Origins
from pylon.config import Config

_SECURITY: Final[Headers] = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("x-xss-protection", "1; mode=block"),
    ("referrer-policy", "strict-origin-when-cross-origin"),
    (
        "permissions-policy",
        "accelerometer=(), camera=(), geolocation=(), gyroscope=(), microphone=(), payment=(), "
        "usb=()",
    ),
)
_HSTS: Final[Headers] = (("strict-transport-security", "max-age=31536000"),)
# The published server has the lists of methods and fields in every answer, not in preflights only.
_CORS: Final[Headers] = (
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
    ("vary", "Origin"),
)

_TUS_SENT: Final = (
    "Range, If-Range, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata, "
    "Upload-Checksum"
)
_TUS_READ: Final = (
    "Location, Accept-Ranges, Content-Range, Content-Length, Content-Disposition, Tus-Resumable, "
    "Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm, Upload-Offset, "
    "Upload-Length, Upload-Expires"
)


def security_headers(config: Config) -> Headers:
    """Return the security headers, which are the same for all answers."""
    is_https = (config.public_url or "").lower().startswith("https://")
    return (*_SECURITY, *(_HSTS if is_https else ()))


def fixed_headers(config: Config) -> Headers:
    """Return the security and CORS headers that do not depend on the request."""
    return (*security_headers(config), *_CORS)


def api_headers(config: Config) -> Headers:
    """Return the headers of every answer of the API, which no cache may keep."""
    return (*fixed_headers(config), ("cache-control", "no-store"))


def file_headers(config: Config) -> Headers:
    """Return the headers of every answer of the routes of files: pages send and read more fields
    there, those of ranges and of tus."""
    further = {
        "access-control-allow-headers": _TUS_SENT, "access-control-expose-headers": _TUS_READ,
    }
    return tuple(
        (name, f"{value}, {further[name]}" if name in further else value)
        for name, value in api_headers(config)
    )


def unread_headers(config: Config, origins: Origins) -> Headers:
    """Return the headers of the HTTP server's own answers: it may not know the page's origin."""
    return (*api_headers(config), *origins.cors(None))


@dataclass(frozen=True, slots=True)
class SocketHeaders:
    """The headers of the answers of a socket port. Built once for each worker."""

    fixed: Headers
    origins: Origins

    def of(self, origin: str | None) -> Headers:
        """Return the headers of the answer to a request with this Origin header.

        Args:
            origin: None if the request has none, or was not read.
        """
        return (*self.fixed, *self.origins.cors(origin))


def socket_headers(config: Config, origins: Origins) -> SocketHeaders:
    """Return the headers of a socket port, which has fewer methods than the API."""
    return SocketHeaders((*security_headers(config), ("vary", "Origin")), origins)
