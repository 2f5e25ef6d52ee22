"""The routes of users for administrators, and of a renewed sign-in. See
`pylon.api.identity.routes`.
"""

from __future__ import annotations

from typing import Final

from pylon import errors
from pylon.api.identity.reauth_bodies import REAUTH, ReauthAnswer
from pylon.api.identity.route import IdentityRoute
from pylon.api.identity.user_bodies import (
    CREATE_USER,
    LOCK_USER,
    SET_PASSWORD,
    LockAnswer,
    PasswordSetAnswer,
    TotpResetAnswer,
    UserAnswer,
)

_PASSWORD: Final = (
    errors.WeakPassword, errors.PasswordTooLong, errors.PwnedPassword, errors.Unavailable,
)

USER_ROUTES: Final[tuple[IdentityRoute, ...]] = (
    IdentityRoute(
        "POST", "/api/auth/reauth", "reauth", "session",
        "Prove anew who the user is, for changes that need a fresh sign-in",
        {200: ReauthAnswer}, REAUTH, (
            errors.AccountLocked, errors.InvalidCredentials, errors.RateLimited,
            errors.SessionExpired, errors.Unavailable,
        ),
    ),
    IdentityRoute(
        "GET", "/api/admin/auth/users", "admin_list_users", "admin", "The newest users, or one",
        {200: list[UserAnswer]}, raises=(errors.UserNotFound,), params=("user",),
    ),
    IdentityRoute(
        "POST", "/api/admin/auth/users", "admin_create_user", "admin", "Make a user",
        {201: UserAnswer}, CREATE_USER, (
            *_PASSWORD, errors.InvalidEmail, errors.InvalidName, errors.EmailTaken,
            errors.UserCreateFailed,
        ),
    ),
    IdentityRoute(
        "POST", "/api/admin/auth/users/{user_id}/lock", "admin_lock_user", "admin",
        "Lock a user, by id or address: their sessions and keys end",
        {200: LockAnswer}, LOCK_USER, (errors.UserNotFound,),
    ),
    IdentityRoute(
        "POST", "/api/admin/auth/users/{user_id}/unlock", "admin_unlock_user", "admin",
        "Unlock a user", {200: LockAnswer}, raises=(errors.UserNotFound,),
    ),
    IdentityRoute(
        "POST", "/api/admin/auth/users/{user_id}/password", "admin_set_password", "admin",
        "Set the password of a user: their sessions end",
        {200: PasswordSetAnswer}, SET_PASSWORD, (*_PASSWORD, errors.UserNotFound),
    ),
    IdentityRoute(
        "POST", "/api/admin/auth/users/{user_id}/reset-totp", "admin_reset_totp", "admin",
        "Forget the authenticator app and the backup codes of a user",
        {200: TotpResetAnswer}, raises=(errors.UserNotFound,),
    ),
)
