"""A stage with a sign-in provider, and a browser that keeps the cookies of one person."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from falcon import testing

from pylon.storage.auth_ops import Condition
from tests.support.api import ApiStage, serve_api
from tests.support.issuers import CLIENT_ID, CLIENT_SECRET, Issuer, serve_issuer
from tests.support.manifests import sign_in_app

ORIGIN = "http://localhost:3000"
CALLBACK = f"{ORIGIN}/done"
ERRORS = f"{ORIGIN}/failed"
NAME = "local"


@dataclass
class Browser:
    """A person's browser: cookies by name, without their attributes."""

    stage: ApiStage
    issuer: Issuer
    cookies: dict[str, str] = field(default_factory=dict)

    def send(
        self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> testing.Result:
        """Send a request with the cookies, and keep those of the answer."""
        sent = dict(headers or {})
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        answer = self.stage.call(method, target, body, headers=sent)
        for cookie in answer.cookies.values():
            if cookie.max_age == 0:
                self.cookies.pop(cookie.name, None)
            else:
                self.cookies[cookie.name] = cookie.value
        return answer

    def begin(self, **more: str) -> str:
        """Begin a sign-in; the URL of the provider."""
        query = urlencode({
            "callback": CALLBACK, "error_callback": ERRORS, "redirect": "1", **more
        })
        answer = self.send("GET", f"/api/auth/login/{NAME}?{query}")
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def agree(self, url: str) -> str:
        """Sign in at the provider; the target that it sends the browser back to."""
        return f"/api/auth/callback/{NAME}?{urlencode(self.issuer.authorize(url))}"

    def sign_in(self, **more: str) -> dict[str, str]:
        """A whole sign-in by redirects; the parameters of the page that it ends at, `page` too."""
        return landed(self.send("GET", self.agree(self.begin(**more))))

    def me(self) -> dict[str, Any]:
        found: dict[str, Any] = self.send("GET", "/api/auth/me").json
        return found

    @property
    def user_id(self) -> str | None:
        return self.me()["user_id"]


def landed(answer: testing.Result) -> dict[str, str]:
    """The target of a redirect: its parameters, `page` and `fragment`."""
    assert answer.status_code == 302, answer.text
    parts = urlsplit(answer.headers["location"])
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return {
        **query, "page": f"{parts.scheme}://{parts.netloc}{parts.path}", "fragment": parts.fragment
    }


@dataclass
class ProviderStage:
    """The app, the provider, and what the store has."""

    stage: ApiStage
    issuer: Issuer

    def browser(self) -> Browser:
        """A new person's browser."""
        return Browser(self.stage, self.issuer)

    def records(self, table: str, **equal: Any) -> list[dict[str, Any]]:
        """The records of an auth table with these values."""
        where = [Condition(name, "=", value) for name, value in equal.items()]
        return self.stage.identity.store.point(lambda reader: reader.records(table, where))

    def users(self) -> list[dict[str, Any]]:
        """The rows of the user entity."""
        answer = self.stage.call("GET", "/api/entities/User", token=ADMIN)
        found = answer.json
        return found if isinstance(found, list) else list(found.get("data", found))

    def row(self, user_id: str) -> dict[str, Any]:
        raw = self.stage.identity.store.point(lambda reader: reader.get("User", user_id))
        assert raw is not None
        found: dict[str, Any] = json.loads(raw)
        return found


ADMIN = "admin-token-for-tests-0123456789abcdef"


@contextmanager
def serve_provider_stage(
    folder: Path, environ: Mapping[str, str] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Iterator[ProviderStage]:
    """A dev server whose provider `local` is an issuer of the test."""
    with serve_issuer() as issuer, serve_api(folder, manifest or sign_in_app(), {
        "PYLON_DEV_MODE": "true", "PYLON_CORS_ORIGIN": ORIGIN,
        "PYLON_OAUTH_LOCAL_ISSUER": issuer.url, "PYLON_OAUTH_LOCAL_CLIENT_ID": CLIENT_ID,
        "PYLON_OAUTH_LOCAL_CLIENT_SECRET": CLIENT_SECRET, **(environ or {}),
    }) as stage:
        issuer.now_s = lambda: stage.clock.wall_ns() / 1e9
        yield ProviderStage(stage, issuer)
