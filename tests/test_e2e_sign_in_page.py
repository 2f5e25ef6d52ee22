"""The sign-in page in a real Chromium, and the recipes of docs/auth.md against a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page
from tests.support.manifests import sign_in_app
from tests.support.server import PylonServer

ADA = {"email": "ada@example.com", "password": "correct horse battery"}
RECIPES = (Path(__file__).parent.parent / "docs/auth.md").read_text()
# Every input that a person sees has a label, the page has a language, one heading and a main part.
IS_ACCESSIBLE = """
document.documentElement.lang === "en" && document.title !== ""
  && document.querySelectorAll("h1").length === 1 && document.querySelectorAll("main").length === 1
  && [...document.querySelectorAll("input:not([type=hidden])")].every(i => i.labels.length === 1)
  && [...document.querySelectorAll("button, a")].every(e => e.textContent.trim() !== "")
"""


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    made = PylonServer(tmp_path_factory.mktemp("page"), sign_in_app(), {
        "PYLON_AUTH_PAGE_ACCENT": "#aa3300", "PYLON_AUTH_PAGE_SURFACE": "#fdf6e3",
    })
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def user_id(server: PylonServer) -> str:
    """The user of the recipes."""
    status, body, _ = server.request("POST", "/api/auth/password/register", ADA)
    assert status == 200, body
    return str(body["user_id"])


def recipe(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def fill(page: Page, **values: str) -> None:
    """Type into the form of the page, and press its button."""
    for name, value in values.items():
        page.run(f"document.getElementById({json.dumps(name)}).value = {json.dumps(value)}")
    page.run("document.querySelector('form button').click()")


def test_a_person_makes_an_account_and_signs_in(
    server: PylonServer, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    base = f"http://127.0.0.1:{server.port}"
    with Browser(program("chromium", "chromium"), tmp_path / "eve") as browser:
        page = browser.open(f"{base}/auth/?next=/api/auth/me")
        page.wait("the form", "document.querySelector('form') !== null")
        assert page.run(IS_ACCESSIBLE)
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(253, 246, 227)"
        assert page.run("getComputedStyle(document.querySelector('button')).backgroundColor") == (
            "rgb(170, 51, 0)"
        ), "the style counts under the page's own policy"
        page.run("[...document.links].find(a => a.textContent === 'Create an account').click()")
        page.wait("the other form", "document.title === 'Create an account'")
        assert page.run(IS_ACCESSIBLE)
        fill(page, displayName="Eve", email="eve@example.com", password="battery horse staple 7")
        page.wait("who she is", "location.pathname === '/api/auth/me'")
        eve = json.loads(page.run("document.body.innerText"))["user_id"]
        assert eve
        assert "session" not in page.run("document.cookie"), "no script reads it"

        again = browser.open(f"{base}/auth/?next=/api/auth/me")
        again.wait("the form", "document.querySelector('form') !== null")
        fill(again, email="eve@example.com", password="not this one")
        again.wait("a refusal", "document.querySelector('[role=alert]') !== null")
        assert again.run(IS_ACCESSIBLE)
        assert again.run("document.getElementById('email').value") == "eve@example.com"
        assert again.run("document.getElementById('password').value") == ""
        fill(again, password="battery horse staple 7")
        again.wait("who she is", "location.pathname === '/api/auth/me'")
        assert json.loads(again.run("document.body.innerText"))["user_id"] == eve

        script = recipe("js").replace("const {user_id}", "var {user_id}")
        assert again.run(f"(async () => {{ {script}; return user_id; }})()") == eve


@pytest.mark.parametrize("command", [
    pytest.param(["bash", "-euc", recipe("bash")], id="native app"),
    pytest.param([sys.executable, "-c", recipe("python")], id="script"),
])
def test_a_recipe_signs_in(
    server: PylonServer, user_id: str, command: list[str],
    program: Callable[[str, str], str],
) -> None:
    if command[0] == "bash":
        program("curl", "curl")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "URL": f"http://127.0.0.1:{server.port}", "EMAIL": ADA["email"],
             "PASSWORD": ADA["password"]},
    )
    assert done.returncode == 0, done.stderr
    assert user_id in done.stdout
