"""The routes of sign-in with a provider. See `pylon.api.identity.routes`."""

from __future__ import annotations

from typing import Final

from pylon import errors
from pylon.api.identity import provider_bodies as bodies
from pylon.api.identity.route import IdentityRoute

_ERRORS: Final = (
    errors.ProviderNotFound, errors.MissingField, errors.AccessDenied,
    errors.OauthTokenExchangeFailed, errors.OauthEmailNotVerified, errors.AlreadyLinked,
    errors.UserCreateFailed, errors.TotpRequired, errors.AccountLocked, errors.DisposableEmail,
)

PROVIDER_ROUTES: Final[tuple[IdentityRoute, ...]] = (
    IdentityRoute(
        "GET", "/api/auth/providers", "providers", "anyone", "The sign-in providers",
        {200: list[bodies.ProviderAnswer]},
    ),
    IdentityRoute(
        "GET", "/api/auth/login/{provider}", "provider_login", "anyone",
        "Begin a sign-in with a provider", {200: bodies.LoginAnswer, 302: None},
        raises=(errors.ProviderNotFound, errors.MissingCallback, errors.UntrustedRedirect,
                errors.OauthProviderBroken, errors.AuthRequired, errors.ReauthRequired,
                errors.CsrfRejected, errors.RateLimited, errors.MissingField, errors.InvalidQuery),
        params=("callback", "error_callback", "redirect", "link", "challenge"),
    ),
    IdentityRoute(
        "GET", "/api/auth/callback/{provider}", "provider_return", "anyone",
        "Return from a provider; errors go to the page of the app", {302: None},
        raises=(errors.ProviderNotFound, errors.OauthInvalidState),
        params=("state", "code", "error", "iss"),
        takes_any_params=True,
    ),
    IdentityRoute(
        "POST", "/api/auth/callback/{provider}", "provider_return_post", "anyone",
        "Return from a provider: by JSON of an app, or by a form of the provider",
        {200: bodies.ReturnAnswer, 302: None}, bodies.RETURN,
        (*_ERRORS, errors.OauthInvalidState), takes_form=True, takes_any_origin=True,
    ),
    IdentityRoute(
        "POST", "/api/auth/native/{provider}", "provider_native", "anyone",
        "Sign in with an ID token that a native app got from Google or Apple",
        {200: bodies.ReturnAnswer}, bodies.NATIVE,
        (*_ERRORS, errors.InvalidIdToken, errors.ProviderKeysUnavailable,
         errors.RateLimited),
    ),
    IdentityRoute(
        "POST", "/api/auth/exchange", "provider_exchange", "anyone",
        "Exchange the code of a redirect to a native app for a session",
        {200: bodies.ReturnAnswer}, bodies.EXCHANGE,
        (errors.MissingField, errors.InvalidCode, errors.OauthEmailNotVerified,
         errors.UserCreateFailed, errors.TotpRequired, errors.AccountLocked, errors.RateLimited,
         errors.DisposableEmail),
    ),
    IdentityRoute(
        "GET", "/api/auth/accounts", "accounts", "session",
        "The accounts of providers that sign the caller in", {200: list[bodies.LinkedAccount]},
    ),
    IdentityRoute(
        "DELETE", "/api/auth/accounts/{provider}", "account_unlink", "session",
        "Unlink a provider", {200: bodies.UnlinkedAnswer},
        raises=(errors.AccountNotFound, errors.LastSignInMethod),
    ),
    IdentityRoute(
        "POST", "/api/auth/oauth/refresh/{provider}", "provider_token", "session",
        "An access token of a provider, for the app's own requests to it",
        {200: bodies.AccessTokenAnswer},
        raises=(errors.ProviderNotConfigured, errors.AccountNotFound, errors.NoRefreshToken,
                errors.RefreshFailed),
    ),
)
