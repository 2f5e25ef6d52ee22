"""The client of sign-in providers against two providers that others wrote.

`oidc-provider` (node) is certified by the OpenID Foundation: it demands PKCE, announces the
parameter `iss`, and refuses a code that was used. `oidc-provider-mock` (Python) says of a user what
a test tells it.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey

from pylon.clock import SystemClock, SystemRandom
from pylon.errors import OauthTokenExchangeFailed
from pylon.provider_settings import ProviderSettings
from tests.conftest import IN_CI
from tests.support import certified_provider
from tests.support.certified_provider import Browser
from tests.support.ports import reserve_base_port
from workers.identity.providers.client import Provider, new_start
from workers.identity.providers.fetch import Fetcher

REDIRECT = "http://127.0.0.1:4321/api/auth/callback/local"
SECRET = "s3cr3t:+% of the client"
KEYS: dict[str, Any] = {
    "RS256": lambda: RSAKey.generate_key(2048), "PS256": lambda: RSAKey.generate_key(2048),
    "ES256": lambda: ECKey.generate_key("P-256"), "EdDSA": lambda: OKPKey.generate_key("Ed25519"),
}


def provider_of(issuer: str) -> Provider:
    settings = ProviderSettings(
        "local", client_id="pylon", client_secret=SECRET, issuer=issuer,
        scopes="openid email profile offline_access",
    )
    return Provider(settings, Fetcher(allows_private=True), SystemClock())


@pytest.fixture(scope="module")
def package() -> Path:
    try:
        return certified_provider.install()
    except certified_provider.UnavailableError as ex:
        if IN_CI and shutil.which("npm") is not None:  # Debian 12 has no node that is new enough
            pytest.fail(f"in CI nothing installable is skipped: {ex}")
        pytest.skip(str(ex))


@pytest.mark.parametrize(("algorithm", "method", "only_userinfo"), [
    ("RS256", "client_secret_basic", True), ("PS256", "client_secret_post", False),
    ("ES256", "client_secret_basic", False), ("EdDSA", "client_secret_basic", True),
])
def test_a_certified_provider(
    package: Path, algorithm: str, method: str, only_userinfo: bool
) -> None:
    key = {**KEYS[algorithm]().as_dict(private=True), "use": "sig", "alg": algorithm}
    usual = {**KEYS["RS256"]().as_dict(private=True), "use": "sig", "kid": "usual"}
    with certified_provider.run(
        package, client_id="pylon", client_secret=SECRET, redirect=REDIRECT, method=method,
        algorithm=algorithm, only_userinfo=only_userinfo, keys=[key, usual],
    ) as issuer:
        provider, start = provider_of(issuer), new_start(SystemRandom())
        url = provider.authorization_url(start, REDIRECT) + "&prompt=consent"
        back = Browser().sign_in(url, "ada", REDIRECT)
        assert back["state"] == start.state and back["iss"] == issuer
        with pytest.raises(OauthTokenExchangeFailed):  # another sign-in has another verifier
            provider.redeem(back["code"], new_start(SystemRandom()), REDIRECT, back["iss"])
        back = Browser().sign_in(url, "ada", REDIRECT)
        with pytest.raises(OauthTokenExchangeFailed):
            provider.redeem(back["code"], start, REDIRECT, None)
        found = provider.redeem(back["code"], start, REDIRECT, back["iss"])
        assert (found.profile.subject, found.profile.email) == ("ada", "ada@example.com")
        assert found.profile.is_email_verified
        assert found.tokens.refresh_token is not None
        assert provider.refresh(found.tokens.refresh_token).access_token
        with pytest.raises(OauthTokenExchangeFailed):  # the code was used
            provider.redeem(back["code"], start, REDIRECT, back["iss"])


@pytest.fixture
def mock(processes: None) -> Iterator[str]:
    port = reserve_base_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_listens(port)
        yield url
    finally:
        process.kill()
        process.wait(10)


def _wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/jwks")
            connection.getresponse()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        finally:
            connection.close()


def test_what_the_mock_says_of_a_user(mock: str) -> None:
    for verified, counts in ((True, True), (False, False), ("true", False), (None, False)):
        claims = {"email": "ada@example.com", "name": "Ada"}
        if verified is not None:
            claims["email_verified"] = verified  # type: ignore[assignment]
        request = urllib.request.Request(
            f"{mock}/users/u1", json.dumps(claims).encode(),
            {"content-type": "application/json"}, method="PUT",
        )
        urllib.request.urlopen(request, timeout=10).close()
        provider, start = provider_of(mock), new_start(SystemRandom())
        status, location, body = Browser().send(
            provider.authorization_url(start, REDIRECT), {"sub": "u1"}
        )
        assert location is not None and location.startswith(REDIRECT), (status, body[:500])
        back = {k: v[0] for k, v in parse_qs(urlsplit(location).query).items()}
        profile = provider.redeem(back["code"], start, REDIRECT, back.get("iss")).profile
        assert (profile.subject, profile.email) == ("u1", "ada@example.com")
        assert profile.is_email_verified is counts
