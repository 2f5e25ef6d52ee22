"""What a provider says of itself: its endpoints and abilities (OpenID Connect Discovery 1.0).

A provider of OAuth 2 has no discovery: its metadata are its settings.

Invariants: the issuer of a document is exactly the configured one, so no document of another
provider is taken (mix-up). Every endpoint passes the checks of `fetch` before it is used. Called by
`workers.identity.providers.client`.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from pylon.provider_settings import ProviderSettings
from workers.identity.providers.fetch import Fetcher, FetchFailed

_MICROSOFT: Final = "https://login.microsoftonline.com/"
_TENANT_MARK: Final = "{tenantid}"
_GUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_WELL_KNOWN: Final = "/.well-known/openid-configuration"


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a discovery document that this server uses; others are ignored."""

    issuer: str | None = None
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str | None = None
    jwks_uri: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] | None = None
    authorization_response_iss_parameter_supported: bool = False

    def issuer_of(self, tenant: object) -> str | None:
        """Return the issuer that an ID token must name.

        Args:
            tenant: the claim `tid` of the token. Microsoft's metadata for several tenants name
                none: each token has the issuer of the tenant of its user.
        """
        if self.issuer is None or _TENANT_MARK not in self.issuer:
            return self.issuer
        if not isinstance(tenant, str) or _GUID.fullmatch(tenant) is None:
            return None
        return self.issuer.replace(_TENANT_MARK, tenant)


def load_metadata(settings: ProviderSettings, fetcher: Fetcher) -> Metadata:
    """Fetch and check the metadata of a provider.

    Raises:
        FetchFailed: they cannot be fetched, or fail a check.
    """
    if settings.issuer is None:
        return Metadata(
            authorization_endpoint=settings.authorization_endpoint or "",
            token_endpoint=settings.token_endpoint or "",
            userinfo_endpoint=settings.userinfo_endpoint,
            token_endpoint_auth_methods_supported=("client_secret_post",),
        )
    response = fetcher.fetch(settings.issuer.rstrip("/") + _WELL_KNOWN)
    if response.status != 200:
        raise FetchFailed(f"discovery of {settings.provider}: status {response.status}")
    try:
        found = msgspec.convert(response.json_object(), Metadata)
    except msgspec.ValidationError as ex:
        raise FetchFailed(f"discovery of {settings.provider}: {ex}") from None
    if not _is_issuer(settings, found.issuer):
        raise FetchFailed(
            f"discovery of {settings.provider} names another issuer than {settings.issuer}"
            + "; only the slash at the end differs" * (
                (found.issuer or "").rstrip("/") == settings.issuer.rstrip("/")
            )
        )
    if found.jwks_uri is None:
        raise FetchFailed(f"discovery of {settings.provider} names no jwks_uri")
    fetcher.check_url(found.authorization_endpoint)
    return found


def _is_issuer(settings: ProviderSettings, issuer: str | None) -> bool:
    if issuer is None or settings.provider != "microsoft":
        return issuer == settings.issuer
    # The metadata name the tenant by its id, or by a mark if several tenants may sign in.
    tenant = issuer.removeprefix(_MICROSOFT).removesuffix("/v2.0")
    named = settings.tenant or "common"
    if issuer != f"{_MICROSOFT}{tenant}/v2.0":
        return False
    if _GUID.fullmatch(named) is not None:
        return tenant == named
    return tenant == _TENANT_MARK or _GUID.fullmatch(tenant) is not None
