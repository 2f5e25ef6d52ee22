"""Requests to a provider's token endpoint: how the client authenticates, and what comes back.

The client authenticates by the method that the metadata list: `client_secret_basic`, which is the
default of OpenID Connect, or `client_secret_post`. Apple's secret is a JWT that the private key
signs for each request.

Invariants: tokens and secrets are in no repr and no error. A refusal of the provider is reported by
its `error` code only if it is one of RFC 6749. Called by `workers.identity.providers.client`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_plus

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from pylon.provider_settings import ProviderSettings
from workers.identity.providers.fetch import Fetcher, FetchFailed
from workers.identity.providers.metadata import Metadata

_SECRET_LIFE_S: Final = 300
_MAX_LIFE_S: Final = 10 * 365 * 86_400
_CODES: Final = (
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client",
    "unsupported_grant_type", "invalid_scope", "bad_verification_code",
    "incorrect_client_credentials", "redirect_uri_mismatch",
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token endpoint gave. `lasts_s`: seconds that the access token is valid, if it said."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    id_token: str | None = field(repr=False)
    scope: str | None
    lasts_s: int | None


def request_tokens(
    settings: ProviderSettings, metadata: Metadata, fetcher: Fetcher, grant: Mapping[str, str],
    now_s: float,
) -> Tokens:
    """Exchange a code or a refresh token for tokens.

    Args:
        grant: the parameters of the grant, `grant_type` among them.
        now_s: seconds since the Unix epoch.

    Raises:
        FetchFailed: no answer, a refusal, or an answer that is no token response.
    """
    form, headers = dict(grant), {}
    secret = _client_secret(settings, now_s)
    methods = metadata.token_endpoint_auth_methods_supported
    if methods is None or "client_secret_basic" in methods:
        pair = f"{quote_plus(settings.client_id)}:{quote_plus(secret)}"
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    elif "client_secret_post" in methods:
        form |= {"client_id": settings.client_id, "client_secret": secret}
    else:
        raise FetchFailed(
            "the token endpoint takes neither client_secret_basic nor client_secret_post"
        )
    response = fetcher.fetch(metadata.token_endpoint, headers=headers, form=form)
    found = response.json_object()
    if response.status != 200 or "error" in found:
        code = found.get("error")
        shown = code if code in _CODES else "an unknown error"
        raise FetchFailed(f"the token endpoint refused: {shown} (status {response.status})")
    return _read_tokens(found)


def _client_secret(settings: ProviderSettings, now_s: float) -> str:
    if settings.private_key is None:
        return settings.client_secret or ""
    claims = {
        "iss": settings.team_id, "sub": settings.client_id, "aud": settings.issuer,
        "iat": int(now_s), "exp": int(now_s) + _SECRET_LIFE_S,
    }
    try:
        key = ECKey.import_key(settings.private_key)
        return jwt.encode(
            {"alg": "ES256", "kid": settings.key_id}, claims, key, algorithms=["ES256"]
        )
    except (JoseError, ValueError, TypeError):
        raise FetchFailed(
            f"PYLON_OAUTH_{settings.provider.upper()}_PRIVATE_KEY is no key of the curve P-256"
        ) from None


def _read_tokens(found: Mapping[str, Any]) -> Tokens:
    access = _text(found, "access_token")
    if access is None or str(found.get("token_type", "bearer")).lower() != "bearer":
        raise FetchFailed("the token endpoint gave no access token of type Bearer")
    lasts = found.get("expires_in")
    try:
        lasts_s = None if lasts is None else min(max(int(lasts), 0), _MAX_LIFE_S)
    except (TypeError, ValueError, OverflowError):
        lasts_s = None
    return Tokens(
        access, _text(found, "refresh_token"), _text(found, "id_token"), _text(found, "scope"),
        lasts_s,
    )


def _text(found: Mapping[str, Any], key: str) -> str | None:
    value = found.get(key)
    return value if isinstance(value, str) and value else None
