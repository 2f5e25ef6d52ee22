"""The sign-in page: forms that sign a browser in without any script, at ``/auth/``. The button for
passkeys alone needs one (`passkey_page`).

Each form is one line of `FORMS`: its fields, and the action of the identity process that it calls.
A form whose action this server does not have does not exist. An app may use its own pages instead;
these work from the first minute. With PYLON_CAPTCHA_PROVIDER some forms have the widget of a
captcha, which is a script of its service.

A form of another site must not sign its reader in as a stranger. So a form counts only from this
server's own pages (`own_pages`).
The page to return to (`next`) comes from anybody, so it is checked (`pylon.auth.redirects`).

Invariants: no answer is cached; no password and no code is ever in a page; a session's token is in
the cookie only. Called by falcon.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import falcon
import msgspec

from pylon import limits
from pylon.api.http import route_access as access
from pylon.api.http.body import read_body
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.parameters import read_text
from pylon.api.http.route_access import Methods
from pylon.api.identity import passkey_page
from pylon.api.identity.forwarding import call_route, decode_form, facts_of
from pylon.api.identity.own_pages import require_own_page
from pylon.api.identity.page_html import (
    Field,
    Link,
    PageStyle,
    captcha_html,
    form_html,
    page_html,
)
from pylon.api.identity.provider_links import provider_links
from pylon.api.identity.provider_texts import provider_error_text
from pylon.api.identity.routes import PAGES, ROUTE_BY_ACTION
from pylon.api.services import IdentityServices
from pylon.auth.captcha_services import captcha_service
from pylon.auth.cookies import MFA, cookie_value, identity_cookie_name
from pylon.auth.redirects import check_redirect
from pylon.bus.identity import IdentityAnswer
from pylon.errors import PayloadTooLarge, PylonError, TotpRequired
from pylon.rates import address_subject

RESET_LINK: Final = "/reset-password"  # of the mail with a link for a new password
_HOME: Final = "/"
_HTML: Final = "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Form:
    """A form of the page.

    Attributes:
        name: the last part of its path.
        action: of the identity process.
        sent: what the page says after an answer without a session.
        then: the form that follows such an answer; it keeps the values.
        link: the text of the links to it; empty: the other forms have none.
    """

    name: str
    title: str
    action: str
    fields: tuple[Field, ...]
    button: str
    sent: str = ""
    then: str = ""
    link: str = ""


_EMAIL: Final = Field("email", "E-mail address", "email")
FORMS: Final[tuple[Form, ...]] = (
    Form(
        "", "Sign in", "password_login",
        (_EMAIL, Field("password", "Password", "password")), "Sign in", link="Sign in by password",
    ),
    Form(
        "register", "Create an account", "password_register",
        (Field("displayName", "Your name", "name"), _EMAIL,
         Field("password", "Password", "new-password")),
        "Create the account", link="Create an account", then="confirm",
    ),
    Form(
        "confirm", "Confirm your address", "verify_email",
        (Field("email", "", "hidden"), Field("code", "Code of the mail", "code")), "Confirm",
        sent="Your address is confirmed. You can sign in now.",
    ),
    Form(
        "code", "Sign in by a code", "send_magic_code", (_EMAIL,), "Send me a code",
        then="enter-code", link="Get a code by e-mail",
    ),
    Form(
        "enter-code", "Enter the code", "verify_magic_code",
        (Field("email", "", "hidden"), Field("code", "Code of the mail", "code")), "Sign in",
    ),
    Form(
        "link", "Sign in by a link", "send_magic_link", (_EMAIL,), "Send me a link",
        link="Get a link by e-mail", sent="If the address can sign in here, a link is on its way.",
    ),
    Form(
        "reset", "Forgotten password", "password_reset_request", (_EMAIL,), "Send me a link",
        link="I have forgotten my password",
        sent="If the address has an account here, a link for a new password is on its way.",
    ),
    Form(
        "new-password", "New password", "password_reset",
        (Field("token", "", "hidden"), Field("newPassword", "New password", "new-password")),
        "Set the password", sent="The password is set.",
    ),
    Form(
        "second-factor", "Enter your code", "totp_challenge",
        (Field("challenge", "", "hidden"),
         Field("code", "Code of your authenticator app, or a backup code", "code"),
         Field("trust_device", "Do not ask again on this device", "check")),
        "Sign in",
    ),
)
_PASSKEY_FORM: Final = Form(
    passkey_page.NAME, "Sign in with a passkey", "passkey_login_finish", passkey_page.FIELDS,
    passkey_page.BUTTON,
)
_FORM_BY_NAME: Final = {form.name: form for form in FORMS}
_SECOND_FACTOR: Final = "second-factor"
_WITH_PROVIDERS: Final = ("", "register")  # forms beside which the providers are
# Actions that ask for a captcha, if the server does.
_WITH_CAPTCHA: Final = (
    "password_register", "send_magic_code", "send_magic_link", "password_reset_request",
)
_WITH_PASSKEY: Final = ("", _SECOND_FACTOR, passkey_page.NAME)  # forms beside which the button is


def sign_in_pages(services: IdentityServices) -> Iterable[tuple[str, object, Methods]]:
    """Yield the path, the resource and the access of each form, and of the link of a mail; nothing
    where PYLON_AUTH_PAGE turns the page off."""
    config = services.app.config
    if not config.auth_page:
        return
    style = PageStyle(config.auth_page_accent, config.auth_page_surface)
    has_passkeys = passkey_page.has_passkeys(config)
    if has_passkeys:
        yield from passkey_page.passkey_pages(services)
    for form in (*FORMS, *((_PASSKEY_FORM,) if has_passkeys else ())):
        if form.action in ROUTE_BY_ACTION:
            methods: Methods = {"GET": access.OPEN, "POST": access.SESSION_WRITE}
            resource = _FormResource(services, form, style)
            yield f"{PAGES}{form.name}", resource, methods
            if form.action == "password_reset":
                yield RESET_LINK, _LinkResource(resource), {"GET": access.OPEN}


class _FormResource:
    """One form: `GET` shows it, `POST` is what it sends."""

    def __init__(self, services: IdentityServices, form: Form, style: PageStyle) -> None:
        self._services = services
        self._form = form
        self._style = style
        self._has_passkeys = passkey_page.has_passkeys(services.app.config)
        self._captcha = captcha_service(services.app.config)
        self._site_key = services.app.config.captcha_site_key or ""
        rate = ROUTE_BY_ACTION[form.action].rate
        self._rate = None if rate is None else rate(services.app.config)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Show the form. The query may have `next`, and the values of hidden fields."""
        next_page = self._next_page(req, resp, read_text(req, "next"))
        if next_page is None:
            return
        hidden = [field.name for field in self._form.fields if field.kind == "hidden"]
        values = {name: read_text(req, name) or "" for name in hidden}
        if self._form.name == _SECOND_FACTOR and not values["challenge"]:
            values["challenge"] = self._challenge_of(req)
        failed = read_text(req, "oauth_error") if self._form.name == "" else None
        text = "" if failed is None else provider_error_text(failed)
        self._show(resp, self._form, next_page, values, text=text)

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Call the action with the fields of the form."""
        require_own_page(req)
        raw = read_body(req)
        if len(raw) > limits.IDENTITY_BODY_BYTES:
            raise PayloadTooLarge(
                f"The body has {len(raw)} bytes (limit {limits.IDENTITY_BODY_BYTES})"
            )
        values = decode_form(raw)
        next_page = self._next_page(req, resp, values.get("next"))
        if next_page is None:
            return
        try:
            answer = self._call(req, values, next_page)
        except TotpRequired as error:
            challenge = str(error.details.get("challenge", ""))
            self._show(
                resp, _FORM_BY_NAME[_SECOND_FACTOR], next_page, {"challenge": challenge}
            )
        except PylonError as error:
            self._show(resp, self._form, next_page, values, error)
        else:
            self._go_on(resp, answer, next_page, values)

    def _challenge_of(self, req: falcon.Request) -> str:
        """Return the challenge of a sign-in with a provider, which a cookie has."""
        name = identity_cookie_name(MFA, self._services.requests.cookie.name)
        return cookie_value(req.env.get("HTTP_COOKIE"), name) or ""

    def _next_page(
        self, req: falcon.Request, resp: falcon.Response, given: str | None
    ) -> str | None:
        """Return the page to go to after the sign-in, or show that it is not trusted."""
        try:
            return check_redirect(given or _HOME, self._services.requests.origins, "next")
        except PylonError as error:
            self._show_text(resp, "Not possible", error.message, error.status)
            return None

    def _call(
        self, req: falcon.Request, values: Mapping[str, str], next_page: str
    ) -> IdentityAnswer:
        """Raises: the error that the body, the rate or the flow has."""
        services = self._services
        caller = caller_of(req, services.requests)
        address = address_of(req, services.requests)
        if self._rate is not None:
            services.requests.limiter.require(self._rate, address_subject(address))
        body: dict[str, Any] = {
            field.name: True if field.kind == "check" else values[field.name]
            for field in self._form.fields if values.get(field.name)
        }
        if self._captcha is not None and values.get(self._captcha.field):
            body["captcha"] = values[self._captcha.field]
        if self._form.action == "send_magic_link" and next_page != _HOME:
            body["callback"] = next_page
        route = ROUTE_BY_ACTION[self._form.action]
        assert route.body is not None
        facts = facts_of(req, services, caller, address)
        return call_route(
            services, route, msgspec.json.encode(route.body.convert(body)), {},
            msgspec.structs.replace(facts, is_trusted_origin=True),
        )

    def _go_on(
        self, resp: falcon.Response, answer: IdentityAnswer, next_page: str,
        values: Mapping[str, str],
    ) -> None:
        for line in answer.cookies:
            resp.append_header("set-cookie", line)
        if answer.session_token is not None:
            cookie = self._services.requests.cookie
            resp.append_header("set-cookie", cookie.set(answer.session_token))
            resp.status = 303
            resp.set_header("location", next_page)
            resp.set_header("cache-control", "no-store")
        elif self._form.then:
            self._show(resp, _FORM_BY_NAME[self._form.then], next_page, values)
        else:
            self._show_text(resp, self._form.title, self._form.sent, 200)

    def _show(
        self, resp: falcon.Response, form: Form, next_page: str, values: Mapping[str, str],
        error: PylonError | None = None, text: str = "",
    ) -> None:
        """Show a form, with what was wrong with the last one, or with the return of a provider
        (`text`)."""
        has_button = self._has_passkeys and form.name in _WITH_PASSKEY
        captcha = self._captcha if form.action in _WITH_CAPTCHA else None
        query = "" if next_page == _HOME else "?" + urlencode({"next": next_page})
        fields = (*form.fields, Field("next", "", "hidden"))
        shown = "" if form is _PASSKEY_FORM else form_html(
            f"{PAGES}{form.name}", fields, form.button, {**values, "next": next_page},
            has_error=error is not None,
            widget="" if captcha is None else captcha_html(captcha, self._site_key),
        )
        scripts = [passkey_page.script_path()] if has_button else []
        if captcha is not None:
            scripts.append(captcha.script_url)
        self._send(resp, 200 if error is None else int(error.status), next_page, page_html(
            self._style, form.title, error=text if error is None else error.message,
            providers=(
                provider_links(self._services.app.config, next_page)
                if form.name in _WITH_PROVIDERS else ()
            ),
            form=shown + (passkey_page.button_html(next_page) if has_button else ""),
            scripts=scripts,
            links=[
                Link(other.link, f"{PAGES}{other.name}{query}") for other in FORMS
                if other.link and other is not form and other.action in ROUTE_BY_ACTION
            ],
        ), has_script=has_button, widget_sources="" if captcha is None else captcha.sources)
        if error is not None and error.retryable:
            resp.set_header("retry-after", str(error.retry_after_s))

    def _show_text(self, resp: falcon.Response, title: str, text: str, status: int) -> None:
        self._send(resp, status, _HOME, page_html(self._style, title, text=text, links=[
            Link("Back to the sign-in", PAGES)
        ]))

    def _send(
        self, resp: falcon.Response, status: int, next_page: str, page: bytes, *,
        has_script: bool = False, widget_sources: str = "",
    ) -> None:
        resp.status = status
        resp.data = page
        resp.content_type = _HTML
        for name, value in self._style.headers(
            next_page, has_script=has_script, widget_sources=widget_sources
        ):
            resp.set_header(name, value)


class _LinkResource:
    """Shows a form whose hidden values are in the link of a mail."""

    def __init__(self, resource: _FormResource) -> None:
        self.on_get = self.on_head = resource.on_get
