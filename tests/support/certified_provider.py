"""`oidc-provider`, an OpenID provider that the OpenID Foundation has certified, run by node.

`install()` puts the npm package into the cache of the tests, once (5 s, 4 MB). `run()` starts it in
a process of its own; `Browser` signs in at its forms, as a user would. It needs node 20, npm and
the registry of npm.
"""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

PACKAGE: Final = "oidc-provider@9.13.3"
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylon-tests"
_STEP_S: Final = 180
_PROGRAM: Final = """
import { createServer } from 'node:http';
import Provider from 'oidc-provider';
const settings = JSON.parse(process.argv[1]);
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{
      client_id: settings.client_id, client_secret: settings.client_secret,
      redirect_uris: [settings.redirect], grant_types: ['authorization_code', 'refresh_token'],
      token_endpoint_auth_method: settings.method,
      id_token_signed_response_alg: settings.algorithm,
    }],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
    conformIdTokenClaims: settings.only_userinfo,
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
    jwks: { keys: settings.keys },
    pkce: { required: () => true },
    findAccount: (ctx, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, name: id }),
    }),
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
"""


class UnavailableError(Exception):
    """The provider cannot be installed here; the text says why."""


def install() -> Path:
    """The folder with the package, from the cache or a fresh one.

    Raises:
        UnavailableError: see there.
    """
    final = _CACHE / PACKAGE.replace("@", "-")
    if final.exists():
        return final
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise UnavailableError(f"{program} is not installed (apt-get install nodejs npm)")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as name:
        folder = Path(name) / "package"
        folder.mkdir()
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        try:
            done = subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE],
                cwd=folder, capture_output=True, text=True, timeout=_STEP_S,
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"npm install: not in {_STEP_S} s") from None
        if done.returncode != 0:
            raise UnavailableError(f"npm install: {done.stderr.strip()[-200:]}")
        try:
            folder.rename(final)
        except OSError:  # somebody else was quicker
            if not final.exists():
                raise
    return final


@contextmanager
def run(folder: Path, **settings: Any) -> Iterator[str]:
    """Run the provider; its issuer. `settings`: see the program."""
    process = subprocess.Popen(
        ["node", "--input-type=module", "-e", _PROGRAM, json.dumps(settings)], cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        assert process.stdout is not None
        issuer = process.stdout.readline().strip()
        assert issuer, process.communicate(timeout=10)[1][-2_000:]
        yield issuer
    finally:
        process.kill()
        process.communicate(timeout=10)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class Browser:
    """A browser without JavaScript: cookies, links, forms."""

    def __init__(self) -> None:
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.cookies), _NoRedirect
        )

    def send(self, url: str, form: dict[str, str] | None = None) -> tuple[int, str | None, str]:
        """Send one request: its status, Location and body."""
        data = None if form is None else urlencode(form).encode()
        try:
            answer: IO[bytes] = self._opener.open(url, data, timeout=10)
        except urllib.error.HTTPError as ex:
            answer = ex
        with answer:
            found: Any = answer
            return found.status, found.headers.get("location"), answer.read().decode()

    def sign_in(self, url: str, user: str, until: str) -> dict[str, str]:
        """Sign in and agree, beginning at an authorization URL; the parameters that come back to
        the URL that begins with `until`."""
        for _ in range(12):
            if url.startswith(until):
                return {k: v[0] for k, v in parse_qs(urlsplit(url).query).items()}
            status, location, body = self.send(url)
            if location is None:
                action = re.search(r'<form[^>]+action="([^"]+)"', body)
                assert status == 200 and action, (status, body[:500])
                form = {"prompt": "login", "login": user, "password": "x"}
                if 'name="login"' not in body:
                    form = {"prompt": "consent"}
                url = urljoin(url, action[1])
                status, location, body = self.send(url, form)
                assert location is not None, (status, body[:500])
            url = urljoin(url, location)
        raise AssertionError(f"no end of redirects: {url}")


if __name__ == "__main__":
    try:
        print(f"{PACKAGE} is in {install()}")
    except UnavailableError as ex:
        raise SystemExit(f"{PACKAGE} cannot be installed here: {ex}") from None
