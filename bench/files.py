"""Uploads and downloads of large files: memory and speed of a server on this machine.

    python -m bench.files [--mib 1024] [--at-once 50] [--workers 3]

Starts a server in a temporary folder, sends `at-once` files of `mib` MiB at the same time, and
reads them back. Prints the MiB a second of both, and how much the memory of the HTTP workers grew.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wire import Wire

MIB = 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go; default is TMPDIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        server = PylonServer(Path(folder) / "server", notes_app(), {
            "PYLON_HTTP_WORKERS": str(options.workers), "PYLON_WS_WORKERS": "0",
            "PYLON_SSE_WORKERS": "0", "PYLON_SHARD_WORKERS": "0", "PYLON_IDENTITY_WORKERS": "0",
            "PYLON_FILE_MAX_BYTES": str(options.mib * MIB),
        }).start()
        try:
            measure(server, options.mib, options.at_once)
        finally:
            server.close()


def measure(server: PylonServer, size_mib: int, at_once: int) -> None:
    """Send the files, and read them back."""
    tokens = [
        server.request("POST", "/api/auth/session", {"user_id": f"u{n // 4}"}, token=ADMIN_TOKEN)
        [1]["token"] for n in range(at_once)
    ]
    piece = os.urandom(MIB)
    urls: list[tuple[str, str]] = []

    def send(token: str) -> None:
        with Wire(server.port, timeout_s=3_600) as wire:
            wire.send(
                f"POST /api/files/upload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Length: {size_mib * MIB}\r\n\r\n".encode()
            )
            for _ in range(size_mib):
                wire.send(piece)
            made = wire.read_response()
            assert made.status == 201, made
            urls.append((token, made.json["url"]))

    def read(token: str, url: str) -> None:
        with Wire(server.port, timeout_s=3_600) as wire:
            wire.send(
                f"GET {url} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            left = size_mib * MIB
            wire.read_until(b"\r\n\r\n")
            while left > 0:
                left -= len(wire.sock.recv(MIB)) or left

    report("uploads", server, size_mib * at_once, [lambda t=t: send(t) for t in tokens])
    report("downloads", server, size_mib * at_once, [lambda f=f: read(*f) for f in urls])


def report(name: str, server: PylonServer, total_mib: int, jobs: list[Callable[[], None]]) -> None:
    """Run the jobs at once, and print their speed and what they cost."""
    pids = server.pids("http")
    before = peak = rss_bytes(pids)
    started_s = time.monotonic()
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            peak = max(peak, rss_bytes(pids))
            thread.join(0.1)
    elapsed_s = time.monotonic() - started_s
    print(
        f"{name}: {len(jobs)} at once, {total_mib} MiB in {elapsed_s:.1f} s, "
        f"{total_mib / elapsed_s:.0f} MiB/s, RSS + {(peak - before) / MIB:.0f} MiB"
    )


def rss_bytes(pids: list[int]) -> int:
    """Return the resident memory of some processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
