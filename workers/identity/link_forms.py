"""Link forms: the pages of links, the cookie that binds a form to its page, and public URLs.

The cookie `<app>_ml` has a random value. `magic-link/send` sets it in the browser that asks for a
link, and a page of a link sets it if the browser has none. A form must repeat it (`nonce`).

Called by the flows of links.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from pylon.auth.cookies import MAGIC_LINK, identity_cookie_name, session_cookie
from pylon.bus.identity import IdentityAnswer
from pylon.errors import CsrfRejected
from pylon.limits import LINK_PAGE_S
from workers.identity.identity import Call, Identity
from workers.identity.pages import button_page


@dataclass(frozen=True, slots=True)
class LinkCookie:
    """The cookie of links. `short_name`: as `CallFacts.cookies` has it."""

    short_name: str

    def read(self, call: Call) -> str:
        """Return its value, or an empty text."""
        return call.facts.cookies.get(self.short_name, "")

    def set(self, identity: Identity, value: str, life_s: int) -> str:
        """Return the Set-Cookie value."""
        config = identity.app.config
        session = session_cookie(config, identity.app.manifest).name
        name = identity_cookie_name(self.short_name, session)
        secure = "; Secure" if config.cookie_secure else ""
        return f"{name}={value}; Path=/; HttpOnly{secure}; SameSite=Lax; Max-Age={life_s}"


NONCE_COOKIE: Final = LinkCookie(MAGIC_LINK)


def link_page(
    identity: Identity, call: Call, title: str, text: str, button: str, action: str, token: str,
    leads_to: str | None = None,
) -> IdentityAnswer:
    """Return the page of a link, with a form that is bound to this browser.

    Args:
        leads_to: where the answer to the form redirects; by default PYLON_DASHBOARD_URL.
    """
    nonce = NONCE_COOKIE.read(call)
    cookies: tuple[str, ...] = ()
    if not nonce:
        nonce = identity.app.random.token_hex(32)
        cookies = (NONCE_COOKIE.set(identity, nonce, LINK_PAGE_S),)
    return button_page(
        title, text, button, action, token, nonce,
        leads_to or identity.app.config.dashboard_url, cookies,
    )


def require_own_form(call: Call, nonce: str) -> None:
    """Raise unless a form came from a page of `link_page` in the same browser.

    Raises:
        CsrfRejected: another site may have sent it.
    """
    expected = NONCE_COOKIE.read(call)
    if not expected or not hmac.compare_digest(expected.encode(), nonce.encode()):
        raise CsrfRejected(
            "This page is too old, or the browser takes no cookies",
            hint="Open the link of the mail again",
        )


def public_url(identity: Identity, path: str, **query: str) -> str:
    """Return a URL of this server as its clients reach it."""
    config = identity.app.config
    base = config.public_url or f"http://localhost:{config.port}"
    return f"{base.rstrip('/')}{path}?{urlencode(query)}"
