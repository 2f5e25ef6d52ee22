"""A sign-in provider in a thread of the test, whose every answer a test may falsify.

`Issuer` behaves well until told otherwise: discovery, keys, codes bound to client, redirect URI and
PKCE challenge, ID tokens, userinfo, refresh tokens. `answers[path]` replaces a whole answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

Answer = Callable[[BaseHTTPRequestHandler], None]
CLIENT_ID, CLIENT_SECRET = "pylon-client", "s3cr3t of the client:+%"


@cache
def usual_key() -> RSAKey:
    """The key of every issuer; making one takes 0.3 s."""
    return RSAKey.generate_key(2048, {"kid": "k1"})


def json_answer(value: Any, status: int = 200) -> Answer:
    """An answer with JSON."""
    return raw_answer(json.dumps(value).encode(), status, "application/json")


def raw_answer(
    body: bytes, status: int = 200, content_type: str = "text/html", **headers: str
) -> Answer:
    """An answer with these bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("content-type", content_type)
        handler.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@dataclass
class Seen:
    """A request that came."""

    path: str
    headers: dict[str, str]
    form: dict[str, str]


@dataclass
class Issuer:
    """The provider. `claims` and `userinfo` change what it says; None removes a claim."""

    url: str
    key: RSAKey = field(default_factory=usual_key)
    user: dict[str, Any] = field(default_factory=lambda: {
        "sub": "user-1", "email": "ada@example.com", "email_verified": True, "name": "Ada",
    })
    metadata: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] | None = None  # None: the user
    claims_in_token: bool = True
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    refresh_tokens: set[str] = field(default_factory=set)
    sign: Callable[[Issuer, dict[str, Any]], str] | None = None  # replaces the signature
    now_s: Callable[[], float] = time.time
    extra: dict[str, str] = field(default_factory=dict)  # parameters of the redirect

    def paths(self) -> list[str]:
        return [each.path for each in self.seen]

    def authorize(self, url: str, **changes: str) -> dict[str, str]:
        """The user agrees: the parameters that the browser brings back. `url` is the authorization
        URL of the client."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        code = secrets.token_urlsafe(16)
        self.codes[code] = query | changes
        return {"code": code, "state": query["state"], **self.extra}

    def id_token(self, nonce: str | None) -> str:
        """A token of now; `claims` wins over everything."""
        now = int(self.now_s())
        claims: dict[str, Any] = {
            "iss": self.url, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce,
            **(self.user if self.claims_in_token else {"sub": self.user["sub"]}), **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.sign is not None:
            return self.sign(self, claims)
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length") or 0)
        body = handler.rfile.read(length).decode()
        path = urlsplit(handler.path).path
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self.seen.append(Seen(path, {k.lower(): v for k, v in handler.headers.items()}, form))
        answer = self.answers.get(path) or self._usual(path, self.seen[-1])
        answer(handler)

    def _usual(self, path: str, seen: Seen) -> Answer:
        if path == "/.well-known/openid-configuration":
            return json_answer({
                "issuer": self.url, "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token", "userinfo_endpoint": f"{self.url}/userinfo",
                "jwks_uri": f"{self.url}/jwks", **self.metadata,
            })
        if path == "/jwks":
            return json_answer({"keys": [{**self.key.as_dict(private=False), "use": "sig"}]})
        if path == "/token":
            return self._token(seen)
        if path == "/userinfo":
            if not seen.headers.get("authorization", "").startswith("Bearer at-"):
                return json_answer({"error": "invalid_token"}, 401)
            return json_answer(self.user if self.userinfo is None else self.userinfo)
        return raw_answer(b"<h1>not here</h1>", 404)

    def _token(self, seen: Seen) -> Answer:
        if not _is_client(seen):
            return json_answer({"error": "invalid_client"}, 401)
        if seen.form["grant_type"] == "refresh_token":
            if seen.form["refresh_token"] not in self.refresh_tokens:
                return json_answer({"error": "invalid_grant"}, 400)
            return json_answer(self._tokens(None))
        asked = self.codes.pop(seen.form["code"], None)
        verifier = seen.form.get("code_verifier", "")
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        if (
            asked is None or asked["redirect_uri"] != seen.form["redirect_uri"]
            or asked["code_challenge"] != digest.rstrip(b"=").decode()
            or asked["code_challenge_method"] != "S256"
        ):
            return json_answer({"error": "invalid_grant"}, 400)
        return json_answer(self._tokens(asked["nonce"]))

    def _tokens(self, nonce: str | None) -> dict[str, Any]:
        refresh = secrets.token_urlsafe(16)
        self.refresh_tokens.add(refresh)
        return {
            "access_token": f"at-{secrets.token_urlsafe(16)}", "token_type": "Bearer",
            "expires_in": 3600, "refresh_token": refresh, "scope": "openid email",
            "id_token": self.id_token(nonce),
        }


def _is_client(seen: Seen) -> bool:
    given = seen.headers.get("authorization", "")
    if given.startswith("Basic "):
        name, _, secret = base64.b64decode(given[6:]).decode().partition(":")
        return (unquote_plus(name), unquote_plus(secret)) == (CLIENT_ID, CLIENT_SECRET)
    return (seen.form.get("client_id"), seen.form.get("client_secret")) == (
        CLIENT_ID, CLIENT_SECRET
    )


@contextmanager
def serve_issuer() -> Iterator[Issuer]:
    """Run an issuer on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                issuer.handle(self)
            except OSError:  # the client cut the answer
                self.close_connection = True

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    issuer = Issuer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
