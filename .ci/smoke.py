"""Use the app that `make run` serves as a first visitor would; fail loudly."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

BASE = "http://localhost:4321"
START_S = 120.0


def call(method: str, path: str, body: object = None, token: str | None = None) -> Any:
    """One JSON request."""
    request = urllib.request.Request(BASE + path, method=method)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_until_ready() -> None:
    """Ask /readyz until it says yes."""
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            call("GET", "/readyz")
        except (urllib.error.URLError, ConnectionError) as ex:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"not ready after {START_S:g} s: {ex}") from ex
            time.sleep(0.2)
        else:
            return


def main() -> None:
    """Ready, guest, insert, list, page."""
    wait_until_ready()
    seeded = call("GET", "/api/entities/Todo")
    assert seeded["count"] == 3, f"a visitor sees the three shared seed rows: {seeded}"
    guest = call("POST", "/api/auth/guest", {})
    todo = {
        "title": "smoke", "done": False, "shared": False, "authorId": guest["user_id"],
        "createdAt": "2026-01-01T00:00:00Z",
    }
    made = call("POST", "/api/entities/Todo", todo, guest["token"])
    mine = call("GET", f"/api/entities/Todo/{made['id']}", None, guest["token"])
    assert mine["title"] == "smoke" and mine["done"] is False, mine
    assert call("GET", "/api/entities/Todo")["count"] == 3, "others do not see it"
    with urllib.request.urlopen(f"{BASE}/app/", timeout=10) as page:
        assert b"Todo" in page.read()
    print("smoke: ready, guest, insert, get, list, page: fine")


if __name__ == "__main__":
    main()
