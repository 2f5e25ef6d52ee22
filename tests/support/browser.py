"""A real headless Chromium, driven over its DevTools protocol: pages that run our JavaScript."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import websocket

from tests.support.wait import WAIT_S, wait_until

# Without these Chromium talks to its maker's hosts; --no-sandbox because CI is root.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*",
)


class Page:
    """One tab. `run` evaluates JavaScript in it and gives the value back."""

    def __init__(self, socket_url: str) -> None:
        self._socket = websocket.create_connection(socket_url, timeout=30)
        self._next_id = 0
        self.console: list[str] = []
        self.command("Runtime.enable")

    def run(self, script: str) -> Any:
        """The value of `script`; a promise is awaited, an exception fails the test."""
        answer = self.command(
            "Runtime.evaluate",
            {"expression": script, "awaitPromise": True, "returnByValue": True},
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, what: str, script: str, timeout_s: float = WAIT_S) -> None:
        """Wait until `script` is true in the page."""
        wait_until(what, lambda: self.run(script), timeout_s)

    def close(self) -> None:
        self._socket.close()

    def command(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and return its result."""
        self._next_id += 1
        self._socket.send(
            json.dumps({"id": self._next_id, "method": method, "params": params or {}})
        )
        while True:
            message = json.loads(self._socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(message["params"]["exceptionDetails"]))
            if message.get("id") == self._next_id:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result


class Browser:
    """One Chromium process with a profile of its own: one visitor. A context manager."""

    def __init__(self, program: str, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        self._pages: list[Page] = []

    def __enter__(self) -> Browser:
        port_file = self._folder / "DevToolsActivePort"
        wait_until("Chromium is up", lambda: port_file.exists() and port_file.read_text())
        self._port = int(port_file.read_text().splitlines()[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        for page in self._pages:
            page.close()
        self._process.terminate()
        self._process.wait(WAIT_S)

    def open(self, url: str) -> Page:
        """A new tab at `url`."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/json/new?{url}", method="PUT"
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            target = json.loads(answer.read())
        page = Page(target["webSocketDebuggerUrl"])
        self._pages.append(page)
        return page
