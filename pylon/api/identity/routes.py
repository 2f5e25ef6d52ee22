"""The routes of sign-in: the action of the identity process that each one calls, and its callers.

`ROUTES` is the only list; `mail_routes`, `user_routes`, `provider_routes`, `passkey_routes`
and `jwt_routes` have parts of it.
`pylon.api.identity.forwarding` makes falcon resources of it, `pylon.openapi.identity` operations,
and the identity process reads from it which actions need a fresh sign-in. A new flow is one line
here, its body and its answer in a module of bodies, and one line in `workers.identity.actions`.

Invariants: a pair of method and path stands here once, and so does an action. Bodies and answers
are structs, so the OpenAPI document describes what is sent.
"""

from __future__ import annotations

import re
from typing import Final

from pylon import errors
from pylon.api.identity import api_key_bodies as keys
from pylon.api.identity import mail_bodies
from pylon.api.identity import org_bodies as orgs
from pylon.api.identity import password_bodies as bodies
from pylon.api.identity import totp_bodies as totp
from pylon.api.identity.account_bodies import AccountDeleted, AccountExport, AuditEntry
from pylon.api.identity.guest_bodies import UPGRADE, Upgraded
from pylon.api.identity.jwt_routes import JWT_ROUTES
from pylon.api.identity.mail_routes import MAIL_ROUTES
from pylon.api.identity.passkey_routes import PASSKEY_ROUTES
from pylon.api.identity.provider_routes import PROVIDER_ROUTES
from pylon.api.identity.route import IdentityRoute
from pylon.api.identity.user_routes import USER_ROUTES

TOTP_ERRORS: Final = (
    errors.InvalidTotpCode, errors.MissingCode, errors.InvalidData, errors.RateLimited,
)
_ORG_ERRORS: Final = (errors.OrgNotConfigured, errors.OrgNotFound, errors.MissingTotp)

ROUTES: Final[tuple[IdentityRoute, ...]] = (
    IdentityRoute(
        "POST", "/api/auth/password/register", "password_register", "anyone",
        "Make an account with a password",
        {200: bodies.Registered, 202: bodies.VerificationRequired}, bodies.REGISTER,
        raises=(
            errors.MissingEmail, errors.InvalidEmail, errors.MissingPassword, errors.WeakPassword,
            errors.PasswordTooLong, errors.PwnedPassword, errors.InvalidName, errors.EmailTaken,
            errors.UserCreateFailed, errors.RateLimited, errors.DisposableEmail,
            errors.CaptchaRequired, errors.CaptchaFailed,
        ),
        required=("password",),
    ),
    IdentityRoute(
        "POST", "/api/auth/password/login", "password_login", "anyone", "Sign in with a password",
        {200: bodies.SignedIn}, bodies.LOGIN,
        raises=(
            errors.MissingEmail, errors.MissingPassword, errors.InvalidCredentials,
            errors.TotpRequired, errors.InvalidTotpCode, errors.AccountLocked,
            errors.EmailNotVerified, errors.RateLimited,
        ),
        required=("password",),
    ),
    IdentityRoute(
        "POST", "/api/auth/password/change", "password_change", "session",
        "Replace the password; all other sessions end", {200: bodies.Changed}, bodies.CHANGE,
        raises=(
            errors.MissingPassword, errors.NoPasswordSet, errors.WrongPassword,
            errors.WeakPassword, errors.PasswordTooLong, errors.PwnedPassword, errors.RateLimited,
        ),
        required=("currentPassword", "newPassword"),
    ),
    IdentityRoute(
        "POST", "/api/auth/password/reset/request", "password_reset_request", "anyone",
        "Send a link for a new password, if the address has an account", {200: bodies.Sent},
        bodies.RESET_REQUEST,
        raises=(
            errors.MissingEmail, errors.EmailNotConfigured, errors.RateLimited,
            errors.CaptchaRequired, errors.CaptchaFailed,
        ),
        hides_account=True,
    ),
    IdentityRoute(
        "POST", "/api/auth/password/reset/complete", "password_reset", "anyone",
        "Set a new password by the token of a link, and sign in", {200: bodies.ResetDone},
        bodies.RESET,
        raises=(
            errors.MissingField, errors.InvalidToken, errors.WeakPassword, errors.PasswordTooLong,
            errors.PwnedPassword, errors.TotpRequired, errors.AccountLocked, errors.RateLimited,
        ),
    ),
    IdentityRoute(
        "POST", "/api/auth/upgrade", "upgrade", "user",
        "Make a guest's session a user's; outside dev mode for admins only",
        {200: Upgraded}, UPGRADE, (errors.Forbidden, errors.MissingUserId, errors.UpgradeFailed),
    ),
    IdentityRoute(
        "POST", "/api/auth/totp/enroll", "totp_enroll", "session",
        "Make a secret for an authenticator app, which waits for its first code",
        {200: totp.EnrollAnswer}, totp.ENROLL, TOTP_ERRORS,
    ),
    IdentityRoute(
        "POST", "/api/auth/totp/verify", "totp_verify", "session",
        "Take the first code of a secret, or prove who the caller is",
        {200: totp.VerifyAnswer}, totp.VERIFY,
        (*TOTP_ERRORS, errors.TotpNotEnrolled, errors.SessionExpired),
    ),
    IdentityRoute(
        "POST", "/api/auth/totp/disable", "totp_disable", "fresh",
        "Remove the authenticator app",
        {200: totp.DisableAnswer}, totp.CODE,
        (*TOTP_ERRORS, errors.TotpNotEnrolled, errors.ReauthRequired),
    ),
    IdentityRoute(
        "POST", "/api/auth/totp/backup-codes/regenerate", "totp_backup_codes", "fresh",
        "Make new backup codes", {200: totp.BackupCodesAnswer},
        raises=(errors.TotpNotEnrolled, errors.ReauthRequired),
    ),
    IdentityRoute(
        "POST", "/api/auth/totp/challenge", "totp_challenge", "anyone",
        "Answer the challenge of a sign-in with a code",
        {200: totp.SessionAnswer}, totp.CHALLENGE,
        (*TOTP_ERRORS, errors.InvalidChallenge, errors.AccountLocked),
    ),
    IdentityRoute(
        "GET", "/api/auth/trusted-devices", "trusted_devices", "session",
        "The browsers that are not asked for a code", {200: totp.TrustedDevicesAnswer},
    ),
    IdentityRoute(
        "DELETE", "/api/auth/trusted-devices", "trusted_devices_revoke", "session",
        "Trust no browser any more", {200: totp.RevokedAnswer},
    ),
    IdentityRoute(
        "DELETE", "/api/auth/trusted-devices/{device_id}", "trusted_device_revoke", "session",
        "Trust one browser no more", {200: totp.RevokedAnswer}, raises=(errors.NotFound,),
    ),
    IdentityRoute(
        "GET", "/api/auth/api-keys", "api_key_list", "session", "The caller's API keys",
        {200: list[keys.ApiKeyAnswer]},
    ),
    IdentityRoute(
        "POST", "/api/auth/api-keys", "api_key_create", "session", "Make an API key",
        {200: keys.NewApiKeyAnswer}, keys.CREATE_API_KEY,
        raises=(errors.InvalidScope, errors.InvalidName, errors.ReauthRequired),
    ),
    IdentityRoute(
        "DELETE", "/api/auth/api-keys/{key_id}", "api_key_revoke", "session",
        "Revoke an API key", {200: keys.RevokedAnswer}, raises=(errors.NotFound,),
    ),
    IdentityRoute(
        "POST", "/api/auth/api-keys/{key_id}/rotate", "api_key_rotate", "session",
        "Give an API key another secret", {200: keys.NewApiKeyAnswer}, keys.ROTATE_API_KEY,
        raises=(errors.NotFound, errors.ReauthRequired),
    ),
    IdentityRoute(
        "DELETE", "/api/auth/account", "delete_account", "fresh",
        "End the caller's account, with the rows that auth.on_delete names",
        {200: AccountDeleted},
        raises=(errors.LastOwner, errors.ReferenceInUse, errors.ReauthRequired),
    ),
    IdentityRoute(
        "GET", "/api/auth/account/export", "export_account", "session",
        "All that the server keeps of the caller's account, without secrets",
        {200: AccountExport},
    ),
    IdentityRoute(
        "DELETE", "/api/admin/auth/users/{user_id}", "admin_delete_account", "admin",
        "End the account of a user, with the rows that auth.on_delete names",
        {200: AccountDeleted}, raises=(errors.LastOwner, errors.ReferenceInUse, errors.NotFound),
    ),
    IdentityRoute(
        "GET", "/api/admin/auth/users/{user_id}/export", "admin_export_account", "admin",
        "All that the server keeps of the account of a user, without secrets",
        {200: AccountExport}, raises=(errors.NotFound,),
    ),
    IdentityRoute(
        "GET", "/api/auth/audit", "audit", "session",
        "The newest records of what happened to the caller's account",
        {200: list[AuditEntry]}, raises=(errors.InvalidQuery,), params=("limit",),
    ),
    IdentityRoute(
        "GET", "/api/auth/audit/tenant", "audit_tenant", "session",
        "The newest records of the selected organisation, for its owners and admins",
        {200: list[AuditEntry]}, params=("limit",),
        raises=(errors.InvalidQuery, errors.NoActiveTenant, errors.Forbidden),
    ),
    IdentityRoute(
        "GET", "/api/admin/auth/audit", "audit_all", "admin",
        "The newest records of all accounts, or of those that the parameters select",
        {200: list[AuditEntry]}, raises=(errors.InvalidQuery,),
        params=("user_id", "tenant_id", "action", "before", "limit"),
    ),
    *MAIL_ROUTES,
    *USER_ROUTES,
    IdentityRoute(
        "GET", "/api/admin/api-keys", "api_key_admin_list", "admin",
        "The API keys of a user, or of all", {200: list[keys.ApiKeyAnswer]}, params=("user_id",),
    ),
    IdentityRoute(
        "POST", "/api/admin/api-keys", "api_key_admin_create", "admin",
        "Make an API key for a user", {200: keys.NewApiKeyAnswer}, keys.ADMIN_API_KEY,
        raises=(errors.InvalidScope, errors.InvalidName, errors.MissingUserId,
                errors.UserNotFound),
    ),
    IdentityRoute(
        "DELETE", "/api/admin/api-keys/{key_id}", "api_key_admin_revoke", "admin",
        "Revoke an API key of a user", {200: keys.RevokedAnswer}, raises=(errors.NotFound,),
    ),
    IdentityRoute(
        "GET", "/api/auth/orgs", "org_list", "session", "The caller's organisations",
        {200: list[orgs.OrgAnswer]}, raises=(errors.OrgNotConfigured,),
    ),
    IdentityRoute(
        "POST", "/api/auth/orgs", "org_create", "session", "Make an organisation",
        {200: orgs.OrgAnswer}, orgs.ORG,
        raises=(errors.OrgNotConfigured, errors.MissingName, errors.InvalidName),
    ),
    IdentityRoute(
        "GET", "/api/auth/orgs/{org_id}", "org_get", "session", "An organisation of the caller",
        {200: orgs.OrgAnswer}, raises=_ORG_ERRORS,
    ),
    IdentityRoute(
        "PATCH", "/api/auth/orgs/{org_id}", "org_rename", "session", "Rename an organisation",
        {200: orgs.RenamedAnswer}, orgs.ORG,
        raises=(*_ORG_ERRORS, errors.Forbidden, errors.MissingName, errors.InvalidName),
    ),
    IdentityRoute(
        "DELETE", "/api/auth/orgs/{org_id}", "org_delete", "fresh",
        "Delete an organisation with its members and invites", {200: orgs.DeletedAnswer},
        raises=(*_ORG_ERRORS, errors.Forbidden, errors.ReauthRequired),
    ),
    IdentityRoute(
        "GET", "/api/auth/orgs/{org_id}/members", "org_members", "session",
        "The members of an organisation", {200: list[orgs.MemberAnswer]}, raises=_ORG_ERRORS,
    ),
    IdentityRoute(
        "PUT", "/api/auth/orgs/{org_id}/members/{user_id}", "org_role", "session",
        "Give a member another role", {200: orgs.RoleAnswer}, orgs.ROLE,
        raises=(*_ORG_ERRORS, errors.Forbidden, errors.BadRole, errors.LastOwner,
                errors.NoMember),
    ),
    IdentityRoute(
        "DELETE", "/api/auth/orgs/{org_id}/members/{user_id}", "org_remove", "session",
        "Remove a member, or leave", {200: orgs.RemovedAnswer},
        raises=(*_ORG_ERRORS, errors.Forbidden, errors.LastOwner, errors.NoMember),
    ),
    IdentityRoute(
        "GET", "/api/auth/orgs/{org_id}/invites", "invite_list", "session",
        "The invites that wait", {200: list[orgs.ListedInvite]},
        raises=(*_ORG_ERRORS, errors.Forbidden),
    ),
    IdentityRoute(
        "POST", "/api/auth/orgs/{org_id}/invites", "invite_create", "session",
        "Invite an address", {200: orgs.InviteAnswer}, orgs.INVITE,
        raises=(*_ORG_ERRORS, errors.Forbidden, errors.BadRole, errors.InvalidEmail,
                errors.EmailNotConfigured, errors.RateLimited),
    ),
    IdentityRoute(
        "DELETE", "/api/auth/orgs/{org_id}/invites/{invite_id}", "invite_revoke", "session",
        "Take an invite back", {200: keys.RevokedAnswer},
        raises=(*_ORG_ERRORS, errors.Forbidden, errors.NotFound),
    ),
    IdentityRoute(
        "POST", "/api/auth/invites/{token}/accept", "invite_accept", "session",
        "Join the organisation of an invite", {200: orgs.AcceptedAnswer},
        raises=(errors.OrgNotConfigured, errors.InviteNotFound, errors.InviteExpired,
                errors.AlreadyAccepted, errors.WrongEmail, errors.AlreadyMember),
    ),
    IdentityRoute(
        "GET", "/api/auth/invites/{token}/accept", "invite_open", "anyone",
        "The page of an invite, or the way to sign in", {200: None, 302: None, 400: None},
        raises=(errors.OrgNotConfigured,),
    ),
    IdentityRoute(
        "POST", "/api/auth/invites/accept", "invite_accept_by_form", "session",
        "Join the organisation of an invite, by the form of its page",
        {302: None, 200: None, 400: None}, mail_bodies.LINK,
        takes_form=True, takes_any_origin=True,  # the form has its nonce
    ),
    IdentityRoute(
        "POST", "/api/auth/select-org", "org_select", "session",
        "Work in an organisation, or in none", {200: orgs.TenantAnswer}, orgs.SELECT_ORG,
        raises=(errors.OrgNotConfigured, errors.MissingOrgId, errors.NoMember),
    ),
    *PROVIDER_ROUTES,
    *PASSKEY_ROUTES,
    *JWT_ROUTES,
)
PAGES: Final = "/auth/"  # of our own sign-in page (`pylon.api.identity.sign_in_page`)
ROUTE_BY_ACTION: Final = {route.action: route for route in ROUTES}


def matcher(routes: list[IdentityRoute]) -> re.Pattern[str]:
    """Return a pattern of the paths of the routes, whose parameters are one segment each."""
    paths = (re.sub(r"\{\w+\}", "[^/]+", route.path) for route in routes)
    return re.compile("|".join(paths) or "(?!)")


_FORMS: Final = matcher([route for route in ROUTES if route.takes_form])
_FOREIGN: Final = matcher([route for route in ROUTES if route.takes_any_origin])


def takes_form(path: str) -> bool:
    """Whether a POST to this path may carry a form."""
    return path.startswith(PAGES) or _FORMS.fullmatch(path) is not None


def takes_any_origin(path: str) -> bool:
    """Whether a POST to this path may come from a foreign page, or looks at its origin itself."""
    return path.startswith(PAGES) or _FOREIGN.fullmatch(path) is not None
