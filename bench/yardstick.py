"""The yardstick of other machines: one line of falcon under gunicorn's stock gevent worker, one
process. `http_load` measures it in the same run, so that figures can be compared as ratios."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

APP = (
    "import falcon\n"
    "class Health:\n"
    "    def on_get(self, req, resp): resp.media = {'status': 'ok'}\n"
    "app = falcon.App()\n"
    "app.add_route('/health', Health())\n"
)
START_S = 30.0


@contextmanager
def served(folder: str, port: int) -> Iterator[None]:
    """Serve it on loopback from `folder`, where its module is written."""
    with open(f"{folder}/yardstick_app.py", "w") as file:  # noqa: PTH123
        file.write(APP)
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "--no-control-socket",
         "-b", f"127.0.0.1:{port}", "--log-level", "error", "yardstick_app:app"], cwd=folder,
    )
    try:
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (urllib.error.URLError, TimeoutError) as ex:
                if time.monotonic() > deadline_s or process.poll() is not None:
                    raise SystemExit(f"the yardstick is not ready: {ex}") from ex
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)
