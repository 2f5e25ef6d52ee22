"""The online list of stolen passwords, against a server of the test."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from pylon.auth.password_rules import PasswordRules, new_password
from pylon.errors import PwnedPassword
from workers.identity import pwned_ranges
from workers.identity.pwned_ranges import pwned_ranges as make_check

STOLEN, PADDED = "viele kleine Leute", "viele kleine Orte"


def hash_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest().upper()


class Handler(BaseHTTPRequestHandler):
    status = 200
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Add-Padding"]))
        self.send_response(self.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        lines = [f"{'A' * 35}:3"]
        for text, count in ((STOLEN, 12), (PADDED, 0)):
            if self.path.endswith(hash_of(text)[:5]):
                lines.append(f"{hash_of(text)[5:]}:{count}")
        self.wfile.write("\r\n".join(lines).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.status = 200
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/range"
        server.shutdown()


def test_a_stolen_password_is_refused_and_its_hash_stays_here(url: str) -> None:
    rules = PasswordRules(10, "app", is_stolen_online=make_check(url))
    with pytest.raises(PwnedPassword):
        rules.check(new_password(STOLEN))
    rules.check(new_password(PADDED))
    rules.check(new_password("viele kleine Dinge"))
    assert Handler.asked[0] == (f"/range/{hash_of(STOLEN)[:5]}", "true")


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_a_service_that_answers_nothing_refuses_nobody(url: str, status: int) -> None:
    Handler.status = status
    assert not make_check(url)(STOLEN)
    assert len(Handler.asked) == 1


def test_a_service_that_is_away_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(pwned_ranges, "HIBP_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        assert not make_check(f"http://127.0.0.1:{port}")(STOLEN)
    assert not make_check(f"http://127.0.0.1:{port}")(STOLEN)
