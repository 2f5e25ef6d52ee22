"""Link URLs: where the links of mails lead.

Each kind of link has a page of this server. An app may name a page of its own in the manifest's
`auth.urls`, as a URL or a path of this server; the page then sends the token to the route of the
kind (docs/auth.md). The token is the query parameter `token`.

Called by the flows that send links.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from workers.identity.identity import Identity

_PATHS: Final = {
    "reset": "/reset-password",
    "magic_link": "/api/auth/magic-link/verify",
    "email_change": "/email-change/confirm",
}


def link_url(identity: Identity, kind: str, token: str) -> str:
    """Return the URL of a link.

    Args:
        kind: a key of the manifest's `auth.urls`.
    """
    page = identity.app.manifest.auth.urls.get(kind, _PATHS[kind])
    if page.startswith("/"):
        config = identity.app.config
        page = (config.public_url or f"http://localhost:{config.port}").rstrip("/") + page
    return f"{page}{'&' if '?' in page else '?'}{urlencode({'token': token})}"
