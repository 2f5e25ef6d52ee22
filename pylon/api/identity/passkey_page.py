"""The button for passkeys on the sign-in page: its script, and the challenge that it asks for.

The page shows the button only if this server is configured for passkeys (PYLON_WEBAUTHN_ORIGIN),
and hidden: the script shows it in a browser that has passkeys. The script is one file of this
server, `passkey.js`; the page's policy allows no other script. It sends the answer of the passkey
as the form `/auth/passkey`, so a refusal is a page like that of every other form.

Invariant: a challenge is made for the server's own pages only. Called by `sign_in_page`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

import falcon

from pylon.api.http import route_access as access
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.route_access import Methods
from pylon.api.identity.forwarding import call_route, facts_of
from pylon.api.identity.own_pages import require_own_page
from pylon.api.identity.page_html import Field, form_html
from pylon.api.identity.routes import PAGES, ROUTE_BY_ACTION
from pylon.api.services import IdentityServices
from pylon.config import Config

NAME: Final = "passkey"  # of the form
BUTTON: Final = "Sign in with a passkey"
FIELDS: Final = (Field("credential", "", "hidden"),)
_SCRIPT: Final = f"{PAGES}passkey.js"
_BEGIN: Final = f"{PAGES}passkey/begin"
_FILE: Final = Path(__file__).with_name("passkey.js")
_DIGEST_CHARS: Final = 12


def has_passkeys(config: Config) -> bool:
    """Whether the pages of this server may use passkeys."""
    return bool(config.webauthn_origin) or config.dev_mode


def button_html(next_page: str) -> str:
    """Return the button as HTML: a form that the script shows and fills in."""
    form = form_html(
        f"{PAGES}{NAME}", (*FIELDS, Field("next", "", "hidden")), BUTTON, {"next": next_page},
        has_error=False,
    )
    return form.replace("<form ", f'<form id="{NAME}" data-begin="{_BEGIN}" hidden ', 1)


def script_path() -> str:
    """Return the path of the script. It changes with the script, so browsers may keep the file."""
    return f"{_SCRIPT}?v={hashlib.sha256(_read_script()).hexdigest()[:_DIGEST_CHARS]}"


def passkey_pages(services: IdentityServices) -> Iterable[tuple[str, object, Methods]]:
    """Yield the path, the resource and the access of the script, and of its challenge."""
    yield _SCRIPT, _ScriptResource(), {"GET": access.OPEN}
    yield _BEGIN, _BeginResource(services), {"POST": access.SESSION_WRITE}


class _ScriptResource:
    """The script."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send the script; the query is its version."""
        resp.data = _read_script()
        resp.content_type = "text/javascript; charset=utf-8"
        resp.set_header("cache-control", "public, max-age=86400")

    on_head = on_get


class _BeginResource:
    """The challenge that the script asks for."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send the options of the browser."""
        require_own_page(req)
        services = self._services
        facts = facts_of(
            req, services, caller_of(req, services.requests), address_of(req, services.requests)
        )
        answer = call_route(services, ROUTE_BY_ACTION["passkey_login_begin"], b"{}", {}, facts)
        resp.data = answer.body
        resp.content_type = answer.content_type
        resp.set_header("cache-control", "no-store")


@cache
def _read_script() -> bytes:
    return _FILE.read_bytes()
