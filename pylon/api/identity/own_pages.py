"""Own pages: whether a request comes from a page of this server itself.

A form of another site must not sign its reader in as a stranger. Browsers say where a request comes
from in `Sec-Fetch-Site`; older ones name the origin of the page. Called by the resources of the
sign-in page.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import falcon

from pylon.errors import CsrfRejected


def require_own_page(req: falcon.Request) -> None:
    """Check that a request comes from one of this server's own pages.

    Raises:
        CsrfRejected
    """
    fetch_site, origin = req.env.get("HTTP_SEC_FETCH_SITE"), req.env.get("HTTP_ORIGIN")
    if fetch_site is not None:
        if fetch_site.strip().lower() == "same-origin":
            return
    elif origin is not None and urlsplit(origin).netloc == req.env.get("HTTP_HOST"):
        return
    raise CsrfRejected("The form of a sign-in must come from the sign-in page itself")
