"""A service of captchas in a thread of the test: its widget, and its protocol "siteverify".

It gives tokens to whoever loads the widget, takes each once, and knows one secret. `status` and
`body` replace its answers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

SECRET, SITE_KEY = "0x-the-secret-of-the-service", "0x-the-public-key"
# As the scripts of the services do: they look for the element, and write a token into the form.
_SCRIPT = """
document.querySelectorAll(".cf-turnstile").forEach(async (place) => {
  const answer = await fetch("%s/token?key=" + place.dataset.sitekey);
  const input = document.createElement("input");
  input.type = "hidden";
  input.name = "cf-turnstile-response";
  input.value = await answer.text();
  place.append("You are a person", input);
});
"""


@dataclass
class Siteverify:
    """The service."""

    url: str
    status: int = 200
    body: bytes | None = None
    tokens: set[str] = field(default_factory=set)
    asked: list[dict[str, str]] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        """The settings of a server that asks this service."""
        return {
            "PYLON_CAPTCHA_PROVIDER": "turnstile", "PYLON_CAPTCHA_SECRET": SECRET,
            "PYLON_CAPTCHA_SITE_KEY": SITE_KEY,
            "PYLON_CAPTCHA_VERIFY_URL": f"{self.url}/siteverify",
            "PYLON_CAPTCHA_SCRIPT_URL": f"{self.url}/api.js", "PYLON_DEV_MODE": "true",
        }

    def token(self) -> str:
        """The token that a person gets."""
        token = secrets.token_hex(16)
        self.tokens.add(token)
        return token

    def verify(self, form: dict[str, str]) -> dict[str, Any]:
        self.asked.append(form)
        if form["secret"] != SECRET:
            return {"success": False, "error-codes": ["invalid-input-secret"]}
        if form["response"] not in self.tokens:
            return {"success": False, "error-codes": ["timeout-or-duplicate"]}
        self.tokens.remove(form["response"])
        return {"success": True, "error-codes": [], "hostname": "localhost"}


@contextmanager
def serve_captchas() -> Iterator[Siteverify]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                self._send(200, service.token().encode(), "text/plain")
            else:
                self._send(200, (_SCRIPT % service.url).encode(), "text/javascript")

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"])).decode()
            found = service.verify({name: values[0] for name, values in parse_qs(raw).items()})
            body = json.dumps(found).encode() if service.body is None else service.body
            self._send(service.status, body, "application/json")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.send_header("access-control-allow-origin", "*")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service = Siteverify(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, daemon=True).start()
        yield service
        server.shutdown()
