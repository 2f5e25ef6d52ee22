"""Pages of links: what a browser shows for the link of a mail, without any script.

Mail scanners open links, so opening one does nothing: the page has one button, which sends a form.
The form repeats a value that the page has set as a cookie (`nonce`), so that no other site can send
it for somebody: a stranger's link in a hidden form would sign its reader in as the stranger.

Invariants: every value is escaped; nothing on a page comes from a request but the token. The
headers allow no script, no frame and no resource, and tell no other site the address, which has the
token. Called by the flows of links.
"""

from __future__ import annotations

import html
from typing import Final
from urllib.parse import urlsplit

from pylon.bus.identity import IdentityAnswer

_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'"
)
_HEADERS: Final = (
    ("referrer-policy", "no-referrer"),
    ("x-robots-tag", "noindex"),
)
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:20vh auto;padding:0 1rem;"
    "color-scheme:light dark}button{font:inherit;padding:.6rem 1.2rem}"
)


def button_page(
    title: str, text: str, button: str, action: str, token: str, nonce: str, leads_to: str,
    cookies: tuple[str, ...] = (),
) -> IdentityAnswer:
    """Return a page with one button, which posts the token to `action`.

    Args:
        leads_to: where the answer to the form redirects. Browsers apply form-action to it too.
    """
    fields = "".join(
        f'<input type="hidden" name="{name}" value="{html.escape(value)}">'
        for name, value in (("token", token), ("nonce", nonce))
    )
    return _page(title, (
        f"<p>{html.escape(text)}</p>"
        f'<form method="post" action="{html.escape(action)}">{fields}'
        f"<button>{html.escape(button)}</button></form>"
    ), 200, cookies, _origin_of(leads_to))


def message_page(title: str, text: str, status: int = 200) -> IdentityAnswer:
    """Return a page that says something."""
    return _page(title, f"<p>{html.escape(text)}</p>", status)


def _origin_of(url: str) -> str:
    """Return the origin of an absolute URL, or an empty text for a path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


def _page(
    title: str, body: str, status: int, cookies: tuple[str, ...] = (), form_origin: str = ""
) -> IdentityAnswer:
    policy = f"{_POLICY} {form_origin}".rstrip()
    return IdentityAnswer(
        (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
            f"<body><main><h1>{html.escape(title)}</h1>{body}</main></body></html>\n"
        ).encode(),
        status, content_type="text/html; charset=utf-8", cookies=cookies,
        headers=(("content-security-policy", policy), *_HEADERS),
    )
