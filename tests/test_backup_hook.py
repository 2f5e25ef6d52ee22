"""The alert hook of backups: a command or a URL, bounded, without secrets."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.archive.hook import HookEvent, call_hook

EVENT = HookEvent("backup.failed", "upload", "no route", "s3://b/x", "2026-11-28T12:00:00.000Z")


def make_script(folder: Path, text: str) -> str:
    path = folder / "hook.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Any]]]:
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/bad" else 204)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def test_command_gets_the_event_on_stdin_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLON_ADMIN_TOKEN", "secret")
    script = make_script(tmp_path, 'cat > "$1"; env > "$2"')
    problem = call_hook(f"{script} '{tmp_path}/the event' {tmp_path}/env", EVENT)
    assert problem is None
    assert json.loads((tmp_path / "the event").read_text()) == {
        "event": "backup.failed", "step": "upload", "error": "no route", "place": "s3://b/x",
        "at": "2026-11-28T12:00:00.000Z",
    }
    assert "secret" not in (tmp_path / "env").read_text()


def test_command_that_fails_is_reported_with_its_words(tmp_path: Path) -> None:
    script = make_script(tmp_path, "echo no pager >&2; exit 3")
    assert call_hook(script, EVENT) == "it ended with 3: no pager"
    missing = call_hook(str(tmp_path / "none"), EVENT)
    assert missing is not None and "No such file" in missing


def test_command_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BACKUP_HOOK_S", 0.2)
    script = make_script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    assert call_hook(script, EVENT) == "it took longer than 0.2 s and was killed"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_url_gets_the_event_by_post(receiver: tuple[str, list[Any]]) -> None:
    url, got = receiver
    assert call_hook(f"{url}/alerts", EVENT) is None
    assert got[0]["event"] == "backup.failed"
    assert call_hook(f"{url}/bad", EVENT) == "it answered 500"
    unreachable = call_hook("http://127.0.0.1:1/x", EVENT)
    assert unreachable is not None
