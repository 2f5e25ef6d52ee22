"""A supervisor over stand-in workers as a process, for tests of its start, drain and control."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pylon.control import ControlClient
from pylon.errors import NotRunning
from tests.support import stores
from tests.support.ports import reserve_base_port
from tests.support.wait import WAIT_S, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
MANIFEST = {
    "manifest_version": 1, "name": "demo", "version": "1",
    "entities": [{"name": "Todo", "fields": [
        {"name": "title", "type": "string", "optional": False, "unique": True}],
        "indexes": [], "relations": []}],
    "policies": [{"name": "p", "entity": "Todo", "allowRead": "true", "allowWrite": "true"}],
    "routes": [], "queries": [], "actions": [],
}


class Supervised:
    """A supervisor over stand-in workers, in a folder of its own."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pylon.manifest.json").write_text(json.dumps(MANIFEST))
        self.port = reserve_base_port()
        self.db_path = folder / "data" / "app.db"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYLON_", "LIMIT_"))}
        self.env = {
            **clean, "PYTHONPATH": str(ROOT), "PYLON_CORS_ORIGIN": "http://localhost:3000",
            "PYLON_RATE_LIMIT_MAX": "0", "PYLON_RATE_LIMIT_MAX_AUTHED": "0",
            "PYLON_ADMIN_TOKEN": "x" * 40, "PYLON_BIND": "127.0.0.1",
            "PYLON_PORT": str(self.port), **stores.settings_at(self.db_path),
            "PYLON_RUNTIME_DIR": str(folder / "run"), "PYLON_HTTP_WORKERS": "1",
            "PYLON_DRAIN_SECS": "5", **env,
        }
        self.process: subprocess.Popen[str] | None = None

    @property
    def control(self) -> ControlClient:
        return ControlClient(self.folder / "run" / "control.sock", 20.0)

    def start(self, *, ready: bool = True) -> Supervised:
        with (self.folder / "log").open("a") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.stand_in_supervisor"], text=True,
                cwd=self.folder, env=self.env, stdout=out, stderr=out,
            )
        if ready:
            wait_until("ready", lambda: self.status().get("ready"))
        return self

    def status(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return self.control.ask("status")
        except NotRunning:
            return {}

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log().splitlines() if line.startswith("{")]
        return [found for found in map(json.loads, lines) if found["event"] == name]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


Maker = Callable[..., Supervised]


@contextmanager
def supervised_maker(folder: Path) -> Iterator[Maker]:
    """A function that makes supervisors in `folder`; the end of the block kills those that run."""
    made: list[Supervised] = []

    def make(name: str = "a", **env: str) -> Supervised:
        made.append(Supervised(folder / name, **env))
        return made[-1]

    try:
        yield make
    finally:
        for supervised in made:
            if supervised.process is not None and supervised.process.poll() is None:
                supervised.process.kill()
                supervised.process.wait()
