"""Redirects: the pages to which a sign-in may send a browser (spec/identity.md §1.6).

A page to return to comes from the query of a request, so anybody can choose it. It is either a path
of this server, or a URL whose origin is trusted (`pylon.auth.origin`).

Invariants: browsers read each accepted URL as this module does. So a URL has no user info, no
backslash, no space, no control character, not even a percent-encoded one, and no fragment; a path
begins with exactly one slash. Called by the flows of the identity process.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlencode, urlsplit

from pylon import setting_values
from pylon.auth.origin import Origins
from pylon.errors import SHOWN_CHARS, UntrustedRedirect

_URL_CHARS: Final = 2_048
_CONTROL: Final = re.compile(r"%(?:[01][0-9a-f]|7f)", re.IGNORECASE)
_ALLOWED: Final = re.compile(r"[!$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")  # RFC 3986 without "#"


def check_redirect(
    url: str, origins: Origins, parameter: str = "callback", native: Collection[str] = ()
) -> str:
    """Return a URL that a browser may be sent to.

    Args:
        parameter: the name of the parameter that has the URL, for the error.
        native: further URLs, of native apps, which count exactly as they are.

    Raises:
        UntrustedRedirect: it is neither a path of this server, nor of a trusted origin, nor listed.
    """
    if url in native or (
        len(url) <= _URL_CHARS and _ALLOWED.fullmatch(url) is not None
        and _CONTROL.search(url) is None and (_is_path(url) or _is_trusted(url, origins))
    ):
        return url
    raise UntrustedRedirect(
        f'"{parameter}" is neither a path of this server nor a URL of a trusted origin: '
        f"{url[:SHOWN_CHARS]!r}",
        hint="Send a path that begins with one slash, or add the origin to PYLON_CORS_ORIGIN, "
        "PYLON_CSRF_ORIGINS or auth.trusted_origins in the manifest; PYLON_NATIVE_CALLBACKS has "
        "the URLs of native apps",
    )


def with_parameters(url: str, parameters: Mapping[str, str]) -> str:
    """Return a URL that `check_redirect` accepted, with more parameters in its query."""
    if not parameters:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(parameters)}"


def _is_path(url: str) -> bool:
    return url.startswith("/") and not url.startswith("//")


def _is_trusted(url: str, origins: Origins) -> bool:
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or "@" in parts.netloc:
            return False
        return origins.allows(setting_values.origin(f"{parts.scheme}://{parts.netloc}"))
    except ValueError:  # an unbalanced bracket, or a host or port that is none
        return False
