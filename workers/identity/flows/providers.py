"""Sign-in with a provider: the start, and the return of the browser (spec/identity.md §1.6).

    GET  /api/auth/providers           who can be offered
    GET  /api/auth/login/<provider>    stores a state, and names the provider's page
    GET  /api/auth/callback/<provider> the browser comes back: a redirect to the app
    POST /api/auth/callback/<provider> the same by JSON for an app, or by a form (Apple)
    POST /api/auth/exchange            a native app gets the session for its code

The return uses the state up, asks the provider who the user is, and lets `provider_accounts` decide
which account that is. `sign_in.finish_sign_in` ends every sign-in, the question for a second factor
included.

Invariants: a redirect leads only to pages that the start has checked. It carries an error as a code
with a fixed text: neither the provider's words nor ours of an unexpected kind. Codes, states and
tokens are in no log. Called by `workers.identity.execution`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

import msgspec

from pylon import limits
from pylon.api.identity.provider_bodies import (
    ExchangeBody,
    LoginAnswer,
    NativeBody,
    ProviderAnswer,
    ProviderReturn,
    ReturnAnswer,
)
from pylon.api.identity.provider_texts import provider_error_text
from pylon.api.identity.routes import PAGES
from pylon.auth.cookies import MFA, identity_cookie_name, session_cookie
from pylon.auth.freshness import require_fresh
from pylon.auth.keys import hash_token
from pylon.auth.origin import origins
from pylon.auth.redirects import check_redirect, with_parameters
from pylon.auth.transactions import carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    AccessDenied,
    AuthRequired,
    CsrfRejected,
    InvalidIdToken,
    InvalidQuery,
    MissingCallback,
    MissingField,
    ProviderNotFound,
    PylonError,
    RecordExists,
    TotpRequired,
)
from pylon.storage.auth_ops import PutRecord
from workers.identity.exchange_codes import check_challenge, make_code, take_code
from workers.identity.identity import Call, Identity
from workers.identity.oauth_states import Pending, begin, browser_cookie, put_state, take_state
from workers.identity.provider_accounts import link_account, sign_in_account
from workers.identity.providers.client import Confirmed, Provider
from workers.identity.rates import START_IP, VERIFY_IP, take_rates

_TRUE: Final = ("1", "true")
_LEEWAY_S: Final = 60  # of the time of an ID token
_NO_REFERRER: Final = (("referrer-policy", "no-referrer"),)


def list_providers(identity: Identity, call: Call) -> IdentityAnswer:
    """Return the providers that a client may offer."""
    return json_answer([
        ProviderAnswer(name, f"{_public_url(identity)}/api/auth/login/{name}")
        for name in sorted(identity.providers)
    ])


def start_sign_in(identity: Identity, call: Call) -> IdentityAnswer:
    """Store a state, and name the page of the provider; with `redirect=1` send the browser there.

    With `link=1` the return links the provider to the account of the session.

    Raises:
        ProviderNotFound, MissingCallback, UntrustedRedirect, OauthProviderBroken
        AuthRequired, ReauthRequired: of `link=1`.
    """
    provider = _provider(identity, call)
    callback = call.params.get("callback")
    if not callback:
        raise MissingCallback("Add callback=<URL>: the page to return to after the sign-in")
    trusted = origins(identity.app.config, identity.app.manifest)
    native = identity.app.config.native_callbacks
    check_redirect(callback, trusted, native=native)
    error_callback = call.params.get("error_callback") or callback
    check_redirect(error_callback, trusted, "error_callback", native)
    links = call.params.get("link") in _TRUE
    challenge = call.params.get("challenge")
    if challenge is not None:
        check_challenge(challenge)
    elif callback in native:
        raise MissingField('A native app needs "challenge"', field="challenge")
    if challenge is not None and links:
        raise InvalidQuery("link=1 takes no challenge", hint="Link a provider from a page")
    if links:
        _require_fresh_session(identity, call)
    start, redirect_uri = begin(identity), _redirect_uri(identity, provider)
    url = provider.authorization_url(start, redirect_uri)
    is_cross_site = provider.settings.response_mode == "form_post"
    browser, cookie = browser_cookie(identity, call, is_cross_site=is_cross_site)
    pending = Pending(
        provider=provider.name, nonce=start.nonce, verifier=start.verifier,
        redirect_uri=redirect_uri, callback=callback, error_callback=error_callback,
        browser=hash_token(browser), user_id=call.facts.auth.user_id if links else None,
        family=call.facts.family if links else None, challenge=challenge,
    )
    carry_out(identity.writer.submit, [
        *take_rates(identity, (START_IP, call.facts.address)), put_state(identity, start, pending)
    ])
    if call.params.get("redirect") in _TRUE:
        return IdentityAnswer(status=302, location=url, cookies=(cookie,), headers=_NO_REFERRER)
    return json_answer(LoginAnswer(url, start.state), cookies=(cookie,))


def finish_by_redirect(identity: Identity, call: Call) -> IdentityAnswer:
    """Finish a sign-in whose browser came back by a link (GET).

    Raises:
        ProviderNotFound, OauthInvalidState: other errors go into the redirect.
    """
    return _finish_by_redirect(identity, call, ProviderReturn(
        state=call.params.get("state"), code=call.params.get("code"),
        error=call.params.get("error"), iss=call.params.get("iss"),
    ))


def finish_by_post(identity: Identity, call: Call) -> IdentityAnswer:
    """Finish a sign-in by JSON, for an app that read the parameters itself, or by Apple's form.

    Raises:
        ProviderNotFound, OauthInvalidState, MissingField, AccessDenied, OauthTokenExchangeFailed,
        OauthEmailNotVerified, AlreadyLinked, UserCreateFailed
        TotpRequired, AccountLocked: of the end of every sign-in.
    """
    given = call.decode(ProviderReturn)
    if call.facts.is_form:
        return _finish_by_redirect(identity, call, given)
    provider = _provider(identity, call)
    for name in ("state", "code"):
        if not getattr(given, name) and not given.error:
            raise MissingField(f'"{name}" is required', field=name)
    pending = take_state(identity, call, provider.name, given.state, takes_origin=True)
    if pending.challenge is not None:
        code = _finish_for_app(identity, provider, pending, pending.challenge, given)
        return json_answer(ReturnAnswer(provider=provider.name, code=code))
    return _finish(identity, call, provider, pending, given)


def exchange(identity: Identity, call: Call) -> IdentityAnswer:
    """Give a native app the session for the code of a redirect.

    Raises:
        InvalidCode: the code or the verifier is wrong.
        RateLimited, OauthEmailNotVerified, UserCreateFailed, TotpRequired, AccountLocked
    """
    body = call.decode(ExchangeBody)
    rates = take_rates(identity, (VERIFY_IP, call.facts.address))
    if rates:
        carry_out(identity.writer.submit, rates)
    profile, tokens = take_code(identity, body.code, body.verifier)
    return sign_in_account(identity, call, profile, tokens)


def sign_in_native(identity: Identity, call: Call) -> IdentityAnswer:
    """Sign in with an ID token that a native app got from the provider. A token is good once.

    Raises:
        ProviderNotFound, InvalidIdToken, ProviderKeysUnavailable, RateLimited
        OauthEmailNotVerified, UserCreateFailed, TotpRequired, AccountLocked
    """
    provider, given = _provider(identity, call), call.decode(NativeBody)
    rates = take_rates(identity, (START_IP, call.facts.address))
    if rates:
        carry_out(identity.writer.submit, rates)
    found = provider.verify_native(given.id_token, given.nonce)
    try:
        carry_out(identity.writer.submit, [PutRecord("tokens", {
            "hash": hash_token(given.id_token), "purpose": "native_id_token", "attempts": 0,
            "created_at": identity.now_s(), "expires_at": found.expires_at_s + _LEEWAY_S,
        })])
    except RecordExists:
        raise InvalidIdToken(f"The ID token of {provider.name} was used before") from None
    return sign_in_account(identity, call, found.profile, None)


def _finish_by_redirect(identity: Identity, call: Call, given: ProviderReturn) -> IdentityAnswer:
    provider = _provider(identity, call)
    pending = take_state(identity, call, provider.name, given.state, takes_origin=False)
    try:
        if pending.challenge is not None:
            code = _finish_for_app(identity, provider, pending, pending.challenge, given)
            return _redirect(with_parameters(pending.callback, {"code": code}))
        answer = _finish(identity, call, provider, pending, given)
    except TotpRequired as ex:
        challenge = str(ex.details["challenge"])
        if pending.error_callback.startswith(PAGES):  # our own page reads no fragment
            return _redirect(
                with_parameters(f"{PAGES}second-factor", {"next": pending.callback}),
                cookies=(_challenge_cookie(identity, challenge),),
            )
        # A fragment reaches no server and no log.
        fragment = f"#mfa={quote(challenge, safe='')}"
        return _redirect(_error_url(pending, ex.code) + fragment)
    except PylonError as ex:
        return _redirect(_error_url(pending, ex.code))
    return _redirect(pending.callback, answer.session_token, answer.cookies)


def _finish(
    identity: Identity, call: Call, provider: Provider, pending: Pending, given: ProviderReturn
) -> IdentityAnswer:
    """Ask the provider who the user is, and sign them in, or link the account.

    Raises: see `finish_by_post`.
    """
    confirmed = _redeem(provider, pending, given)
    if pending.user_id is not None:
        link_account(identity, call, confirmed, pending.user_id, pending.family)
        return json_answer(ReturnAnswer(provider=provider.name, linked=True))
    return sign_in_account(identity, call, confirmed.profile, confirmed.tokens)


def _finish_for_app(
    identity: Identity, provider: Provider, pending: Pending, challenge: str,
    given: ProviderReturn,
) -> str:
    """Ask the provider who the user is, and return a code for it. Raises: see `_redeem`."""
    confirmed = _redeem(provider, pending, given)
    tokens = confirmed.tokens if provider.settings.store_tokens else None
    return make_code(identity, challenge, confirmed.profile, tokens)


def _redeem(provider: Provider, pending: Pending, given: ProviderReturn) -> Confirmed:
    """Ask the provider who the user is.

    Raises:
        AccessDenied, MissingField, OauthTokenExchangeFailed
    """
    if given.error:
        raise AccessDenied(f"The sign-in with {provider.name} was cancelled")
    if not given.code:
        raise MissingField('"code" is required', field="code")
    confirmed = provider.redeem(
        given.code, pending.start(given.state or ""), pending.redirect_uri, given.iss
    )
    return _with_name(confirmed, given.user)


def _with_name(confirmed: Confirmed, user: str | None) -> Confirmed:
    """Add the name that Apple's form has at the first sign-in. Nobody vouches for it."""
    if user is None or confirmed.profile.name is not None:
        return confirmed
    try:
        found: Any = msgspec.json.decode(user)
        parts = (found["name"]["firstName"], found["name"]["lastName"])
        name = " ".join(part for part in parts if isinstance(part, str)).strip()
    except (ValueError, LookupError, TypeError, RecursionError):
        return confirmed
    return replace(confirmed, profile=replace(confirmed.profile, name=name[:100] or None))


def _require_fresh_session(identity: Identity, call: Call) -> None:
    """Raise unless the caller has a session that is fresh, and asks for the link themselves.

    A page of another site could else lead a browser through the link while it is signed in at the
    provider as somebody else, who could sign in here afterwards.
    """
    facts = call.facts
    if facts.session_id is None or facts.auth.user_id is None or facts.auth.is_guest:
        raise AuthRequired("Login required", hint="Sign in before you link a provider")
    if facts.is_by_cookie and facts.is_cross_site and not facts.is_trusted_origin:
        raise CsrfRejected(
            "A page of another site must not begin to link a provider",
            hint="Ask for it from a page of a trusted origin by a request without redirect=1",
        )
    require_fresh(
        call.caller, identity.app.manifest.auth.reauth_s, identity.app.clock, identity.store.point
    )


def _provider(identity: Identity, call: Call) -> Provider:
    name = call.params.get("provider", "")
    found = identity.providers.get(name)
    if found is None:
        raise ProviderNotFound(
            "This sign-in provider is not configured",
            hint="GET /api/auth/providers lists those that are",
        )
    return found


def _redirect_uri(identity: Identity, provider: Provider) -> str:
    return provider.settings.redirect or (
        f"{_public_url(identity)}/api/auth/callback/{provider.name}"
    )


def _public_url(identity: Identity) -> str:
    """Return the URL of this server; a start makes sure that production has one."""
    config = identity.app.config
    return (config.public_url or f"http://localhost:{config.port_of('http')}").rstrip("/")


def _error_url(pending: Pending, code: str) -> str:
    return with_parameters(pending.error_callback, {
        "oauth_error": code, "oauth_error_message": provider_error_text(code),
    })


def _challenge_cookie(identity: Identity, challenge: str) -> str:
    """Return the Set-Cookie value that hands the challenge of a second factor to our own page."""
    cookie = session_cookie(identity.app.config, identity.app.manifest)
    name = identity_cookie_name(MFA, cookie.name)
    path = "/" if name.startswith("__Host-") else PAGES
    flags = "Secure; SameSite=Lax" if "Secure" in cookie.flags else "SameSite=Lax"
    return f"{name}={challenge}; Path={path}; Max-Age={limits.CHALLENGE_S}; HttpOnly; {flags}"


def _redirect(
    url: str, session_token: str | None = None, cookies: tuple[str, ...] = ()
) -> IdentityAnswer:
    return IdentityAnswer(
        status=302, location=url, session_token=session_token, cookies=cookies,
        headers=_NO_REFERRER,
    )
