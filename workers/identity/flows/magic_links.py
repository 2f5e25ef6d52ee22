"""Magic links: sign-in by a link from a mail (spec/identity.md §1.4).

Opening the link uses up nothing: it shows a page with a button (`workers.identity.pages`). Only the
browser that asked for the link, which a cookie tells, is signed in at once.
"""

from __future__ import annotations

import hmac
from typing import Final

from pylon.api.identity.mail_bodies import LinkBody, SendLinkBody
from pylon.auth.email_address import EmailAddress, parse_email
from pylon.auth.keys import hash_token
from pylon.auth.origin import origins
from pylon.auth.redirects import check_redirect, with_parameters
from pylon.auth.transactions import carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import InvalidToken, MissingToken, PylonError, TotpRequired
from workers.identity import rates
from workers.identity.captcha import require_captcha
from workers.identity.codes import SIGN_IN_LINK, Found, find_link, invalid_token, make_link
from workers.identity.identity import Call, Identity
from workers.identity.link_forms import NONCE_COOKIE, link_page, require_own_form
from workers.identity.link_urls import link_url
from workers.identity.mailboxes import sign_in_by_mailbox, typed_address
from workers.identity.pages import message_page
from workers.identity.rates import take_rates

LINK_S: Final = 900
PATH: Final = "/api/auth/magic-link/verify"


def send(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/magic-link/send"""
    body = call.decode(SendLinkBody)
    email = typed_address(identity, body.email)
    require_captcha(identity, call, body.captcha)
    data = {"email": email.text}
    if body.callback:
        data["callback"] = check_redirect(
            body.callback, origins(identity.app.config, identity.app.manifest)
        )
    nonce = identity.app.random.token_hex(32)
    if call.facts.is_trusted_origin:
        data["browser"] = hash_token(nonce)
    made = make_link(identity, SIGN_IN_LINK, LINK_S, email_key=email.key, data=data)
    url = link_url(identity, "magic_link", made.secret)
    carry_out(identity.writer.submit, [
        *take_rates(
            identity, (rates.SEND_IP, call.facts.address), (rates.SEND_ADDRESS, email.key),
            (rates.SEND_PAUSE, email.key),
        ),
        *made.steps, identity.mails.put("MAGIC_LINK", email.text, LINK_S, url=url),
    ])
    identity.wake_mail()
    answer: dict[str, bool | str] = {"sent": True}
    if identity.app.config.dev_mode:
        answer |= {"dev_token": made.secret, "dev_url": url}
    cookies = (NONCE_COOKIE.set(identity, nonce, LINK_S),) if "browser" in data else ()
    return json_answer(answer, cookies=cookies)


def open_link(identity: Identity, call: Call) -> IdentityAnswer:
    """GET /api/auth/magic-link/verify"""
    token = call.params.get("token", "")
    if not token:
        return message_page("Sign in", "The link is not complete.", MissingToken.status)
    try:
        found = find_link(identity, SIGN_IN_LINK, token)
    except InvalidToken as ex:
        return message_page("Sign in", f"{ex.message}. Ask for a new one.", ex.status)
    cookie = NONCE_COOKIE.read(call)
    asked_here = found.data.get("browser", "")
    if cookie and asked_here and hmac.compare_digest(hash_token(cookie), asked_here):
        return _redirected(identity, call, found)
    app = identity.app.manifest.name
    return link_page(
        identity, call, f"Sign in to {app}",
        f"You asked to sign in to {app} as {found.data['email']}.", "Sign in", PATH, token,
        found.data.get("callback"),
    )


def verify(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/magic-link/verify"""
    body = call.decode(LinkBody)
    if not call.facts.is_form:
        return _sign_in(identity, call, find_link(identity, SIGN_IN_LINK, body.token))
    try:
        require_own_form(call, body.nonce)
        return _redirected(identity, call, find_link(identity, SIGN_IN_LINK, body.token))
    except PylonError as ex:
        return message_page("Sign in", f"{ex.message}. Ask for a new one.", ex.status)


def _sign_in(identity: Identity, call: Call, found: Found) -> IdentityAnswer:
    email = _email_of(identity, found)
    return sign_in_by_mailbox(identity, call, email, "magic_link", found.use, invalid_token)


def _redirected(identity: Identity, call: Call, found: Found) -> IdentityAnswer:
    """Sign in, and answer a redirect to where the link leads."""
    target = found.data.get("callback") or identity.app.config.dashboard_url
    try:
        answer = _sign_in(identity, call, found)
    except TotpRequired as ex:
        target = with_parameters(target, {"oauth_error": ex.code})
        return IdentityAnswer(
            status=302, location=f"{target}#mfa={ex.details['challenge']}"
        )
    return IdentityAnswer(
        status=302, location=target, session_token=answer.session_token, cookies=answer.cookies
    )


def _email_of(identity: Identity, found: Found) -> EmailAddress:
    return parse_email(found.data["email"], is_dev=identity.app.config.dev_mode)
