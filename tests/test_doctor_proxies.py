"""pylonctl doctor --url: nginx as shipped is sound; each line that somebody forgets is found."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.conftest import need_program
from tests.support.manifests import notes_app
from tests.support.nginx import moved
from tests.support.ports import reserve_base_port
from tests.support.server import PylonServer
from tests.support.wait import wait_until

Change = Callable[[str], str]


class Stand:
    """A server, and nginx in front of it with a changed configuration."""

    def __init__(self, nginx: str, folder: Path) -> None:
        self._nginx = nginx
        self._folder = folder
        self.port = reserve_base_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = PylonServer(folder / "server", notes_app(), {
            "PYLON_TRUST_PROXY_HOPS": "1", "PYLON_SSE_URL": f"{self.url}/events"})

    def examine(self, change: Change = str, *args: str, url: str | None = None) -> dict[str, str]:
        """The levels of the doctor's findings about the proxy."""
        text = change(moved(self.port, self.server.port, logs=self._folder))
        conf, pid_file = self._folder / "nginx.conf", self._folder / "nginx.pid"
        conf.write_text(f"daemon off; pid {pid_file}; events {{}} http {{ {text} }}")
        command = [self._nginx, "-p", str(self._folder), "-e", str(self._folder / "error.log"),
                   "-c", str(conf)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until("nginx listens", lambda: is_open(self.port))
                return self.ask(url or self.url, *args)
            finally:
                process.terminate()

    def ask(self, url: str, *args: str) -> dict[str, str]:
        done = self.server.ctl("doctor", "--json", "--url", url, *args)
        findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        order = ("ok", "note", "warning", "error")
        found: dict[str, str] = {}
        for each in findings:
            if each["check"].startswith("proxy."):
                level = found.get(each["check"], "ok")
                found[each["check"]] = max(level, each["level"], key=order.index)
        return found


@pytest.fixture(scope="module")
def stand(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    made = Stand(need_program("nginx", "nginx-light"), tmp_path_factory.mktemp("stand"))
    with closing(made.server):
        made.server.start()
        yield made


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_shipped_configuration_is_sound(stand: Stand) -> None:
    assert stand.examine() == {
        "proxy.http": "ok", "proxy.urls": "ok", "proxy.websocket": "ok", "proxy.stream": "ok"}


def test_missing_upgrade_is_found(stand: Stand) -> None:
    found = stand.examine(lambda conf: re.sub(r"proxy_set_header Upgrade [^;]*;", "", conf))
    assert found["proxy.websocket"] == "error"


def test_missing_host_is_found(stand: Stand) -> None:
    found = stand.examine(
        lambda conf: conf.replace("proxy_set_header Host $http_host;",
                                  "proxy_set_header Host other.example;"))
    assert found["proxy.urls"] == "warning"


def test_short_timeout_is_found_by_watching(stand: Stand) -> None:
    found = stand.examine(
        lambda conf: re.sub(r"proxy_read_timeout \w+;", "proxy_read_timeout 1s;", conf),
        "--watch", "4")
    assert (found["proxy.timeout"], found["proxy.websocket"]) == ("warning", "ok")


def test_unknown_proxy_is_found(stand: Stand) -> None:
    before = stand.server.env["PYLON_TRUST_PROXY_HOPS"]
    stand.server.env["PYLON_TRUST_PROXY_HOPS"] = "0"
    try:
        assert stand.examine()["proxy.forwarded"] == "warning"
    finally:
        stand.server.env["PYLON_TRUST_PROXY_HOPS"] = before


def test_a_url_that_nobody_serves_or_without_tls_is_found(stand: Stand) -> None:
    assert stand.ask(f"http://127.0.0.1:{reserve_base_port()}") == {"proxy.http": "error"}
    assert stand.examine(url=stand.url.replace("http:", "https:")) == {"proxy.http": "error"}


class Gatherer:
    """A proxy that passes on the head of each answer, and gathers the body of an event stream."""

    def __init__(self, port: int, server_port: int) -> None:
        self._port = server_port
        self._listener = socket.create_server(("127.0.0.1", port))
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        request = client.recv(65_536)
        offset = 2 if b"event-stream" in request else 0
        place = ("127.0.0.1", self._port + offset)
        with suppress(OSError), client, socket.create_connection(place) as server:
            server.sendall(request)
            gathered = b""
            while piece := server.recv(65_536):
                gathered += piece
                head, end, body = gathered.partition(b"\r\n\r\n")
                if offset and end and body:
                    client.sendall(head + end)
                    client.recv(1)  # until the client has had enough
                    return
                if not offset:
                    client.sendall(piece)


def test_gathered_stream_is_found(stand: Stand) -> None:
    with closing(Gatherer(stand.port, stand.server.port)):
        found = stand.ask(stand.url)
    assert (found["proxy.stream"], found["proxy.http"]) == ("error", "ok")
