"""A tiny WSGI app under gunicorn's arbiter and our worker class, for the tests of the server.

`python -m tests.support.echo_server FD WORKERS [LIMIT=VALUE ...]` serves on the listening socket
FD, with other limits where a test does not want to wait for the real ones. The app says what it was
asked, and can answer in every way that a server must know how to send.
"""


from __future__ import annotations

from pylon.runtime.gevent_patch import patch, restore_forking

if __name__ == "__main__":  # tests import the module for its constants
    patch()

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gunicorn.app.base import BaseApplication

from pylon import limits
from pylon.bus.file_beat import FileBeat
from pylon.clock import SystemClock
from workers.http.arbiter import BeatingArbiter, Listener
from workers.http.server import HttpWorker

STREAM = [b"first,", b"", b"second,", b"third"]
LARGE_BYTES = 8 * 1024 * 1024
released = Event()  # of the requests to /held
held: list[str] = []


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer by path; the default is a line that tells the request."""
    plain = [("Content-Type", "text/plain")]
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path in ("/204", "/304"):
        start_response(f"{path[1:]} Without Body", [("X-Kind", "none")])
        return []
    if path == "/stream":
        parts = [] if query == "empty" else STREAM
        length = str(sum(map(len, parts)))
        start_response("200 OK", [*plain, ("Content-Length", length)] if query else plain)
        return iter(parts)
    if path == "/endless":
        start_response("200 OK", plain)
        return _endless()
    if path == "/large":
        start_response("200 OK", plain)
        return [b"x" * LARGE_BYTES]
    if path == "/process":
        start_response("200 OK", plain)
        return [str(os.getpid()).encode()]
    if path == "/held-count":
        start_response("200 OK", plain)
        return [str(len(held)).encode()]
    if path == "/wait":
        gevent.sleep(float(query))
    elif path == "/held":
        held.append(path)
        released.wait()
    elif path == "/release":
        released.set()
    elif path == "/broken":
        raise RuntimeError("on purpose")
    elif path == "/broken-stream":
        start_response("200 OK", plain)
        return _broken()
    elif path.endswith("/unread"):
        start_response("200 OK", plain)
        return [b"unread"]
    elif path == "/split":
        start_response("200 OK", [("X-Split", "a\r\nX-Injected: 1")])
        return [b"never sent"]
    body = environ["wsgi.input"].read()
    start_response("200 OK", plain)
    return [_line(environ).encode("latin-1") + b" body=" + body]


def _line(environ: dict[str, Any]) -> str:
    target = environ["PATH_INFO"]
    if environ["QUERY_STRING"]:
        target += "?" + environ["QUERY_STRING"]
    return (
        f"{environ['REQUEST_METHOD']} {target} host={environ.get('HTTP_HOST', '-')}"
        f" x={environ.get('HTTP_X_PROBE', '-')} cookie={environ.get('HTTP_COOKIE', '-')}"
    )


def _endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 65_536


def _broken() -> Iterator[bytes]:
    yield b"begun"
    raise RuntimeError("on purpose")


class EchoApplication(BaseApplication):  # type: ignore[misc]
    def load_config(self) -> None:
        for name, value in {
            "workers": int(workers), "accesslog": None,
            "worker_class": HttpWorker, "control_socket_disable": True,
            "graceful_timeout": 10, "worker_tmp_dir": "/dev/shm", "loglevel": "warning",
        }.items():
            self.cfg.set(name, value)

        self.numbers = iter(range(1, 1_000))
        self.cfg.set("pre_fork", self.number)

    def number(self, arbiter: Any, worker: Any) -> None:
        worker.number = next(self.numbers)

    def load(self) -> Any:
        return app


if __name__ == "__main__":
    _, fd, workers, *settings = sys.argv
    for setting in settings:
        name, _, value = setting.partition("=")
        setattr(limits, name, type(getattr(limits, name))(value))
    restore_forking()
    beat = Path(tempfile.mkdtemp()) / "arbiter"
    BeatingArbiter(EchoApplication(), FileBeat(beat, SystemClock()), Listener(int(fd))).run()
