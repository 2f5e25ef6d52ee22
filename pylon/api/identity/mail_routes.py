"""The routes of codes, links and e-mail changes. See `pylon.api.identity.routes`."""

from __future__ import annotations

from typing import Final

from pylon import errors
from pylon.api.identity import mail_bodies
from pylon.api.identity.route import IdentityRoute

_MAIL: Final = (errors.EmailNotConfigured, errors.RateLimited)  # of routes that send a mail
_CAPTCHA: Final = (errors.CaptchaRequired, errors.CaptchaFailed)
_SIGN_IN: Final = (errors.TotpRequired, errors.AccountLocked)  # of routes that end in a session

MAIL_ROUTES: Final[tuple[IdentityRoute, ...]] = (
    IdentityRoute(
        "POST", "/api/auth/magic/send", "send_magic_code", "anyone", "Mail a code to sign in by",
        {200: mail_bodies.Sent}, mail_bodies.SEND, (*_MAIL, *_CAPTCHA, errors.InvalidEmail),
        hides_account=True,
    ),
    IdentityRoute(
        "POST", "/api/auth/magic/verify", "verify_magic_code", "anyone", "Sign in by a code",
        {200: mail_bodies.SignedIn}, mail_bodies.VERIFY_CODE,
        (errors.InvalidEmail, errors.InvalidCode, errors.RateLimited, errors.DisposableEmail,
         *_SIGN_IN),
    ),
    IdentityRoute(
        "POST", "/api/auth/magic-link/send", "send_magic_link", "anyone",
        "Mail a link to sign in by", {200: mail_bodies.Sent}, mail_bodies.SEND_LINK,
        (*_MAIL, *_CAPTCHA, errors.InvalidEmail, errors.UntrustedRedirect), hides_account=True,
    ),
    IdentityRoute(
        "GET", "/api/auth/magic-link/verify", "open_magic_link", "anyone",
        "The page of a link to sign in by", {200: None, 302: None, 400: None, 401: None},
        params=("token",),
    ),
    IdentityRoute(
        "POST", "/api/auth/magic-link/verify", "verify_magic_link", "anyone", "Sign in by a link",
        {200: mail_bodies.SignedIn, 302: None}, mail_bodies.LINK,
        (errors.InvalidToken, errors.DisposableEmail, *_SIGN_IN),
        takes_form=True, takes_any_origin=True,  # the form has its nonce
    ),
    IdentityRoute(
        "POST", "/api/auth/email/send-verification", "send_verification", "session",
        "Mail a code that verifies the caller's address", {200: mail_bodies.Sent},
        raises=(*_MAIL, errors.UserNotFound, errors.MissingEmail),
    ),
    IdentityRoute(
        "POST", "/api/auth/email/verify", "verify_email", "anyone",
        "Verify an address by a code; it signs nobody in", {200: mail_bodies.EmailVerified},
        mail_bodies.CODE,
        (errors.AuthRequired, errors.InvalidEmail, errors.InvalidCode, errors.RateLimited,
         errors.UserNotFound, errors.MissingEmail, errors.EmailTaken),
    ),
    IdentityRoute(
        "POST", "/api/auth/email/change/request", "request_email_change", "fresh",
        "Mail a link that changes the caller's address", {200: mail_bodies.Sent},
        mail_bodies.CHANGE_EMAIL,
        (*_MAIL, errors.InvalidEmail, errors.DisposableEmail, errors.UserNotFound),
    ),
    IdentityRoute(
        "GET", "/email-change/confirm", "open_email_change", "anyone",
        "The page of a link that changes an address", {200: None, 400: None, 401: None},
        params=("token",),
    ),
    IdentityRoute(
        "POST", "/api/auth/email/change/confirm", "confirm_email_change", "anyone",
        "Change the address of an account by a link",
        {200: mail_bodies.EmailChanged, 302: None}, mail_bodies.LINK,
        (errors.InvalidToken, errors.EmailTaken, *_SIGN_IN),
        takes_form=True, takes_any_origin=True,
    ),
    IdentityRoute(
        "GET", "/email-change/revert", "open_email_revert", "anyone",
        "The page of a link that takes a change of an address back",
        {200: None, 400: None, 401: None}, params=("token",),
    ),
    IdentityRoute(
        "POST", "/api/auth/email/change/revert", "revert_email_change", "anyone",
        "Take the change of an address back by a link",
        {200: mail_bodies.EmailReverted, 302: None}, mail_bodies.LINK,
        (errors.InvalidToken, errors.EmailTaken, *_SIGN_IN),
        takes_form=True, takes_any_origin=True,
    ),
)
