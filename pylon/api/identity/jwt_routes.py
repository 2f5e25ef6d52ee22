"""The routes of JWTs. See `pylon.api.identity.routes`."""

from __future__ import annotations

from typing import Final

from pylon import errors
from pylon.api.identity import jwt_bodies as bodies
from pylon.api.identity.route import IdentityRoute

_ERRORS: Final = (errors.JwtNotConfigured, errors.InvalidScope, errors.LimitExceeded)

JWT_ROUTES: Final[tuple[IdentityRoute, ...]] = (
    IdentityRoute(
        "POST", "/api/auth/jwt", "jwt_mint", "session", "Make a JWT of the caller",
        {200: bodies.JwtAnswer}, bodies.MINT_JWT, (*_ERRORS, errors.AccountLocked),
    ),
    IdentityRoute(
        "POST", "/api/admin/auth/jwt", "admin_jwt_mint", "admin", "Make a JWT of a user",
        {200: bodies.JwtAnswer}, bodies.ADMIN_JWT,
        (*_ERRORS, errors.MissingUserId, errors.UserNotFound),
    ),
)
