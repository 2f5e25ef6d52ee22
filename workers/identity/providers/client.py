"""One configured provider: where to send a browser, and who came back.

    start    authorization_url(...)  the URL of the provider, with state, nonce and PKCE challenge
    return   redeem(...)             code -> tokens -> ID token or userinfo -> Profile
    later    refresh(...)            a new access token

PKCE (S256), state and nonce go with every sign-in, whether or not the provider asks for them. The
caller keeps `Start` until the browser comes back, and sees to it that each is used once.

Invariants: all requests of one call end within `limits.PROVIDER_REQUEST_S` together. Every failure
is one error of `pylon.errors.providers` with a fixed text; the reason goes to the log, and names
neither codes nor tokens. Called by the flows of `workers.identity`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import gevent

from pylon import limits, log
from pylon.app import App
from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.errors import (
    InvalidIdToken,
    OauthProviderBroken,
    OauthTokenExchangeFailed,
    ProviderKeysUnavailable,
    ProviderNotFound,
    PylonError,
    RefreshFailed,
)
from pylon.provider_settings import ProviderSettings
from workers.identity.providers.documents import CachedDocument
from workers.identity.providers.fetch import Fetcher, FetchFailed
from workers.identity.providers.id_tokens import (
    Claims,
    Expected,
    IdTokenInvalid,
    check_native_nonce,
    verify_id_token,
)
from workers.identity.providers.key_sets import Key, KeySet, load_key_set
from workers.identity.providers.metadata import Metadata, load_metadata
from workers.identity.providers.profiles import (
    Profile,
    primary_address,
    read_profile,
    subject_of,
)
from workers.identity.providers.token_endpoint import Tokens, request_tokens

T = TypeVar("T")

_STATE_PREFIX: Final = "pylon_"
_SECRET_BYTES: Final = 32
_log = log.get_logger("providers")


@dataclass(frozen=True, slots=True)
class Start:
    """The secrets of one sign-in. The browser carries the state; the rest stays here."""

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A sign-in that the provider confirmed."""

    profile: Profile
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class NativeSignIn:
    """The user of an ID token, and when the token ends (Unix time)."""

    profile: Profile
    expires_at_s: int


def new_start(random: RandomSource) -> Start:
    """Return new secrets for one sign-in, of 256 bits each."""
    return Start(
        _STATE_PREFIX + random.token_hex(_SECRET_BYTES), random.token_hex(_SECRET_BYTES),
        random.token_hex(_SECRET_BYTES),
    )


class Provider:
    """One provider of the settings. Its metadata and keys are fetched when they are needed."""

    def __init__(self, settings: ProviderSettings, fetcher: Fetcher, clock: Clock) -> None:
        self.settings = settings
        self._fetcher = fetcher
        self._clock = clock
        self._metadata = CachedDocument(lambda: load_metadata(settings, fetcher), clock)
        self._keys: CachedDocument[KeySet] = CachedDocument(self._load_keys, clock)

    @property
    def name(self) -> str:
        """The name in URLs: google, github, ..."""
        return self.settings.provider

    def authorization_url(self, start: Start, redirect_uri: str) -> str:
        """Return the URL that the browser signs in at.

        Raises:
            OauthProviderBroken: the provider's metadata cannot be read.
        """
        metadata = self._attempt(self._metadata.get, lambda: OauthProviderBroken(
            f"The sign-in provider {self.name} cannot be used now",
            hint="Try again later; the server's log says why",
        ))
        digest = hashlib.sha256(start.verifier.encode()).digest()
        query = {
            "client_id": self.settings.client_id, "redirect_uri": redirect_uri,
            "response_type": "code", "scope": self.settings.scopes, "state": start.state,
            "nonce": start.nonce, "code_challenge_method": "S256",
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        }
        if self.settings.response_mode is not None:
            query["response_mode"] = self.settings.response_mode
        if self.settings.store_tokens and self.name == "google":
            query |= {"access_type": "offline", "prompt": "consent"}  # else no refresh token
        url = metadata.authorization_endpoint
        return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"

    def redeem(
        self, code: str, start: Start, redirect_uri: str, issuer: str | None
    ) -> Confirmed:
        """Exchange the code of a browser that came back, and check who the user is.

        Args:
            redirect_uri: the one of the authorization request.
            issuer: the parameter `iss` of the response (RFC 9207); None: there was none.

        Raises:
            OauthTokenExchangeFailed: the provider refused, did not answer, or a check failed.
        """
        return self._attempt(
            lambda: self._redeem(code, start, redirect_uri, issuer),
            lambda: OauthTokenExchangeFailed(
                f"The sign-in provider {self.name} did not confirm the sign-in",
                hint="Begin the sign-in again",
            ),
        )

    def refresh(self, refresh_token: str) -> Tokens:
        """Exchange a refresh token for a new access token.

        Raises:
            RefreshFailed: the provider refused, or did not answer.
        """
        grant = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return self._attempt(
            lambda: self._request_tokens(self._metadata.get(), grant),
            lambda: RefreshFailed(f"The sign-in provider {self.name} gave no new access token"),
        )

    def verify_native(self, id_token: str, nonce: str | None) -> NativeSignIn:
        """Check an ID token that a native app got from the provider itself.

        Args:
            nonce: of the app, if it had one. The token has it, or its SHA-256 as hex (Apple).

        Raises:
            ProviderNotFound: no native client ids are set.
            InvalidIdToken: a check failed.
            ProviderKeysUnavailable: the provider's keys cannot be fetched.
        """
        if not self.settings.native_client_ids:
            raise ProviderNotFound(
                f'The sign-in provider "{self.name}" takes no ID tokens of native apps',
                hint=f"Set PYLON_{self.name.upper()}_NATIVE_CLIENT_IDS",
            )
        clients = (*self.settings.native_client_ids, self.settings.client_id)
        try:
            claims = self._attempt(
                lambda: self._verify(self._metadata.get(), id_token, clients, None),
                lambda: ProviderKeysUnavailable(
                    f"The keys of the sign-in provider {self.name} cannot be fetched now"
                ),
            )
            check_native_nonce(claims, nonce)
        except IdTokenInvalid as ex:
            _log.info("id_token.refused", provider=self.name, reason=str(ex))
            raise InvalidIdToken(f"The ID token of {self.name} is not valid here") from None
        return NativeSignIn(
            read_profile(self.settings, claims["sub"], [claims]), int(claims["exp"])
        )

    def _attempt(self, call: Callable[[], T], error: Callable[[], PylonError]) -> T:
        """Run requests within the time limit; a failure is logged and raised as `error`."""
        limit = gevent.Timeout(limits.PROVIDER_REQUEST_S)
        try:
            with limit:
                return call()
        except gevent.Timeout as ex:
            if ex is not limit:
                raise
            reason = f"no answer within {limits.PROVIDER_REQUEST_S:g} s"
        except FetchFailed as ex:
            reason = str(ex)
        _log.warning("provider.failed", provider=self.name, reason=reason)
        raise error()

    def _redeem(
        self, code: str, start: Start, redirect_uri: str, issuer: str | None
    ) -> Confirmed:
        metadata = self._metadata.get()
        if self.settings.is_oidc:
            _check_response_issuer(metadata, issuer)
        tokens = self._request_tokens(metadata, {
            "grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri,
            "code_verifier": start.verifier,
        })
        if not self.settings.is_oidc:
            return Confirmed(self._profile_by_userinfo(metadata, tokens), tokens)
        if tokens.id_token is None:
            raise FetchFailed("the token endpoint gave no ID token")
        try:
            claims = self._verify(
                metadata, tokens.id_token, (self.settings.client_id,), start.nonce
            )
        except IdTokenInvalid as ex:
            raise FetchFailed(f"the ID token is refused: {ex}") from None
        sources: list[dict[str, Any]] = [claims]
        if self.settings.email not in claims and metadata.userinfo_endpoint is not None:
            userinfo = self._fetch_object(metadata.userinfo_endpoint, tokens)
            if userinfo.get("sub") != claims["sub"]:
                raise FetchFailed("userinfo is of another user (sub) than the ID token")
            sources.append(userinfo)
        return Confirmed(read_profile(self.settings, claims["sub"], sources), tokens)

    def _profile_by_userinfo(self, metadata: Metadata, tokens: Tokens) -> Profile:
        userinfo = self._fetch_object(metadata.userinfo_endpoint or "", tokens)
        subject = subject_of(self.settings, userinfo)
        if subject is None:
            raise FetchFailed("userinfo names no user")
        profile = read_profile(self.settings, subject, [userinfo])
        if self.settings.emails_endpoint is None:
            return profile
        entries = self._fetcher.fetch(
            self.settings.emails_endpoint, headers=_bearer(tokens)
        ).json()
        email, is_verified = primary_address(entries) or (None, False)
        name = profile.name or userinfo.get("login")
        return Profile(
            self.name, subject, email, is_verified, name if isinstance(name, str) else None,
            profile.avatar_url,
        )

    def _fetch_object(self, url: str, tokens: Tokens) -> dict[str, Any]:
        response = self._fetcher.fetch(url, headers=_bearer(tokens))
        if response.status != 200:
            raise FetchFailed(f"userinfo: status {response.status}")
        return response.json_object()

    def _request_tokens(self, metadata: Metadata, grant: dict[str, str]) -> Tokens:
        return request_tokens(self.settings, metadata, self._fetcher, grant, self._now_s())

    def _verify(
        self, metadata: Metadata, token: str, client_ids: tuple[str, ...], nonce: str | None
    ) -> Claims:
        expected = Expected(
            lambda claims: metadata.issuer_of(claims.get("tid")), client_ids, nonce
        )
        return verify_id_token(token, expected, self._find_key, self._now_s())

    def _find_key(self, kid: str | None, algorithm: str) -> Key | None:
        """Return a key; an unknown id makes the keys be fetched again, at most once a minute."""
        found = self._keys.get().find(kid, algorithm)
        return found or self._keys.get_newer().find(kid, algorithm)

    def _load_keys(self) -> KeySet:
        return load_key_set(self._metadata.get().jwks_uri or "", self._fetcher)

    def _now_s(self) -> float:
        return self._clock.wall_ns() / NS_PER_S


def make_providers(app: App) -> dict[str, Provider]:
    """Return the configured providers by name. Nothing is fetched yet."""
    config = app.config
    if not config.sign_in_providers:
        return {}  # reading the certificates of the system takes 0.1 s
    fetcher = Fetcher(allows_private=config.dev_mode)
    return {
        each.provider: Provider(each, fetcher, app.clock) for each in config.sign_in_providers
    }


def _check_response_issuer(metadata: Metadata, issuer: str | None) -> None:
    """Check that a response came from this provider, not from another one (RFC 9207)."""
    if issuer is None and metadata.authorization_response_iss_parameter_supported:
        raise FetchFailed("the response lacks the parameter iss that the provider announces")
    if issuer is not None and issuer != metadata.issuer and metadata.issuer_of("") is not None:
        raise FetchFailed("the response names another issuer (iss) than the provider's")


def _bearer(tokens: Tokens) -> dict[str, str]:
    return {"authorization": f"Bearer {tokens.access_token}"}
