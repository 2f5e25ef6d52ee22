"""Passkeys in a real Chromium with a virtual authenticator, and the recipe of docs/passkeys.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page
from tests.support.manifests import sign_in_app
from tests.support.server import PylonServer

RECIPE = (Path(__file__).parent.parent / "docs/passkeys.md").read_text()
IS_PAGE = "location.pathname === '/auth/' && document.readyState === 'complete'"
EVE = {"email": "eve@example.com", "password": "battery horse staple 7"}


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    made = PylonServer(tmp_path_factory.mktemp("passkeys"), sign_in_app())
    own = f"http://localhost:{made.port}"
    made.env |= {
        "PYLON_WEBAUTHN_ORIGIN": own, "PYLON_CORS_ORIGIN": own, "PYLON_COOKIE_SECURE": "false",
    }
    try:
        yield made.start()
    finally:
        made.close()


def recipe() -> str:
    found = re.findall(r"^```js\n(.*?)^```", RECIPE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def add_authenticator(page: Page, *, is_user_verified: bool = True) -> str:
    page.command("WebAuthn.enable")
    made = page.command("WebAuthn.addVirtualAuthenticator", {"options": {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True,
        "hasUserVerification": True, "isUserVerified": is_user_verified,
        "automaticPresenceSimulation": True,
    }})
    return str(made["authenticatorId"])


def press_passkey(page: Page) -> None:
    page.wait("the button", "document.getElementById('passkey').hidden === false")
    page.run("document.querySelector('#passkey button').click()")


def test_a_person_adds_a_passkey_and_signs_in_with_it_alone(
    server: PylonServer, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    base = f"http://localhost:{server.port}"
    status, made, _ = server.request("POST", "/api/auth/password/register", EVE)
    assert status == 200, made
    with Browser(program("chromium", "chromium"), tmp_path / "eve") as browser:
        page = browser.open(f"{base}/auth/?next=/api/auth/me")
        authenticator = add_authenticator(page)
        page.wait("the form", "document.querySelector('form') !== null")
        page.run(f"document.getElementById('email').value = {json.dumps(EVE['email'])}")
        page.run(f"document.getElementById('password').value = {json.dumps(EVE['password'])}")
        page.run("document.querySelector('form button').click()")
        page.wait("who she is", "location.pathname === '/api/auth/me'")
        assert page.run(f"(async () => {{ {recipe()}; return registered; }})()") is True
        kept = page.command("WebAuthn.getCredentials", {"authenticatorId": authenticator})
        [credential] = kept["credentials"]
        assert credential["isResidentCredential"] and credential["rpId"] == "localhost"

        page.command("Network.enable")
        page.command("Network.clearBrowserCookies")
        # The passkey is offered in the field of the address, and the simulated person takes it.
        page.run(f"location.href = {json.dumps(f'{base}/auth/?next=/api/auth/session')}")
        page.wait("the offer was taken", "location.pathname === '/api/auth/session'")
        assert json.loads(page.run("document.body.innerText"))["session"]["user_id"] == (
            made["user_id"]
        )
        assert page.console == []

        # A browser that offers none has the button.
        page.command("Page.enable")
        page.command("Page.addScriptToEvaluateOnNewDocument", {
            "source": "delete PublicKeyCredential.isConditionalMediationAvailable",
        })
        page.command("Network.clearBrowserCookies")
        page.run(f"location.href = {json.dumps(f'{base}/auth/?next=/api/auth/me')}")
        page.wait("the page", IS_PAGE)
        press_passkey(page)
        page.wait("who she is", "location.pathname === '/api/auth/me'")
        assert json.loads(page.run("document.body.innerText"))["user_id"] == made["user_id"]
        assert page.console == []

        page.command("WebAuthn.setUserVerified", {
            "authenticatorId": authenticator, "isUserVerified": False,
        })
        page.run(f"location.href = {json.dumps(f'{base}/auth/')}")
        page.wait("the page", IS_PAGE)
        press_passkey(page)
        page.wait("a refusal", "document.querySelector('[role=alert]') !== null")
        assert page.run("location.pathname") == "/auth/"


def test_without_scripts_the_page_has_no_button_and_works_as_before(
    server: PylonServer, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    base = f"http://localhost:{server.port}"
    with Browser(program("chromium", "chromium"), tmp_path / "plain") as browser:
        page = browser.open("about:blank")
        page.command("Emulation.setScriptExecutionDisabled", {"value": True})
        page.command("Page.navigate", {"url": f"{base}/auth/"})
        page.wait("the page", "document.readyState === 'complete' && document.forms.length === 2")
        shown = "getComputedStyle(document.getElementById('passkey')).display"
        assert page.run(shown) == "none"
