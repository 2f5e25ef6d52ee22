"""Origins: the pages that may read answers (CORS), send writes (CSRF) and use a session cookie.

`Origins` is the one list of trusted pages: PYLON_CORS_ORIGIN, PYLON_CSRF_ORIGINS and the manifest's
`auth.trusted_origins` together. CORS, CSRF, cookies on event streams and WebSockets, and redirects
ask it. In dev mode every loopback origin is trusted too, on any port, and no other one: any web
page can send requests to a developer's server.

CORS (spec/identity.md §1.13): an answer to a listed origin names that origin, and an answer to
another origin names none. An answer to a request without Origin names the first listed one, as the
published server does. Each answer has `Vary: Origin`, since it depends on it.

CSRF (spec/http.md §4.4): a state-changing request without a bearer token may depend on a cookie, so
its page must be on the list. A request without Origin and Referer is not a browser's cross-site
request and passes, unless Sec-Fetch-Site says `cross-site`: a page or an extension can make a
browser omit both. With a session cookie the body must have a type that a form cannot send.

Invariants: origins are compared exactly, as browsers spell them; `null` is never listed. A header
of a response never contains an origin that is not on the list.

falcon's CORSMiddleware does not fit: it does not see the requests that the HTTP server itself
refuses, nor those of the socket roles. Built once for each process. Called by the API and by the
socket roles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pylon import setting_values
from pylon.config import Config
from pylon.errors import SHOWN_CHARS, CsrfRejected
from pylon.manifest.model import Manifest

Headers = tuple[tuple[str, str], ...]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
PREFLIGHT_MAX_AGE_S: Final = "600"
_LOOPBACK: Final = re.compile(
    r"https?://(?:(?:[a-z0-9\-]+\.)*localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?"
)
# Types of bodies that a page sends to another site only after a preflight: JSON in its forms, and
# the bytes of documents.
_SAFE_TYPE: Final = re.compile(
    r"application/(?:(?:[a-z0-9.\-]+\+)?json|x-ndjson|ndjson|jsonl|json-seq|octet-stream)"
)


@dataclass(frozen=True, slots=True)
class Origins:
    """The trusted origins. `main`: the first of PYLON_CORS_ORIGIN; None in dev mode."""

    allowed: frozenset[str]
    any_loopback: bool = False
    main: str | None = None

    def allows(self, origin: str | None) -> bool:
        """Whether a page with this Origin header is trusted."""
        return origin is not None and (
            origin in self.allowed
            or (self.any_loopback and _LOOPBACK.fullmatch(origin) is not None)
        )

    def allows_cookie(self, origin: str | None, fetch_site: str | None) -> bool:
        """Whether the session cookie of a socket's or stream's request counts.

        A browser leaves Origin out of a same-origin GET, and then says so in Sec-Fetch-Site.

        Args:
            origin: the Origin header.
            fetch_site: the Sec-Fetch-Site header.
        """
        if origin is None:
            return fetch_site is not None and fetch_site.strip() == "same-origin"
        return self.allows(origin)

    def cors(self, origin: str | None) -> Headers:
        """Return the headers that let the page of an Origin header read the answer, or none.

        Args:
            origin: None if the request has no Origin header, or was not read.
        """
        if origin is None:
            origin = self.main
        if origin is None or not self.allows(origin):
            return ()
        return (
            ("access-control-allow-origin", origin), ("access-control-allow-credentials", "true"),
        )

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
        if has_bearer or method in SAFE_METHODS:
            return
        if origin is None:
            if referer is None:
                if fetch_site is None or fetch_site.strip().lower() != "cross-site":
                    return
                raise CsrfRejected(
                    "CSRF gate rejected a cross-site request (Sec-Fetch-Site) that names neither "
                    "Origin nor Referer — send one of them, from a trusted origin, or a bearer "
                    "token"
                )
            origin = origin_of(referer)
        if not self.allows(origin):
            raise CsrfRejected(
                f'CSRF gate rejected origin "{origin[:SHOWN_CHARS]}" — add it to '
                "manifest.auth.trustedOrigins (or PYLON_CSRF_ORIGINS)"
            )


def check_body_type(content_type: str | None) -> None:
    """Check that a body that came with a session cookie is none that a form of a page can send.

    Raises:
        CsrfRejected: the type is text/plain, a form's, missing, or another one that is not JSON.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if _SAFE_TYPE.fullmatch(kind) is None:
        raise CsrfRejected(
            f'CSRF gate rejected a body of type "{kind[:SHOWN_CHARS]}" with a session cookie — '
            "send JSON with Content-Type: application/json, or a bearer token"
        )


def origins(config: Config, manifest: Manifest) -> Origins:
    """Return the trusted origins of the settings and the manifest."""
    named = {*config.cors_origin, *config.csrf_origins, *manifest.auth.trusted_origins}
    listed = [_spelled(origin) for origin in config.cors_origin if origin not in ("*", "null")]
    return Origins(
        allowed=frozenset(_spelled(origin) for origin in named) - {"*", "null", ""},
        any_loopback=config.dev_mode,
        main=listed[0] if listed and not config.dev_mode else None,
    )


def origin_of(url: str) -> str:
    """Return `scheme://host[:port]` of a URL, or ``null``, as browsers write it, without them."""
    try:
        parts = urlsplit(url)
    except ValueError:  # an unbalanced bracket in the host
        return "null"
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else "null"


def _spelled(named: str) -> str:
    """Return an origin as browsers spell it: `https://a.example:443` as `https://a.example`."""
    try:
        return setting_values.origin(named)
    except ValueError:  # the manifest has a warning about it; it equals no Origin header
        return named.strip().lower().rstrip("/")
