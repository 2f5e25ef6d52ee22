"""Run `pylonctl` as a process in the folder of an app.

The fixture `ctl` of `tests/conftest.py` gives such a runner to a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import stores
from tests.support.manifests import notes_app
from tests.support.ports import reserve_base_port

Ctl = Callable[..., subprocess.CompletedProcess[str]]
GOOD = {"PYLON_CORS_ORIGIN": "https://app.example.com", "PYLON_ADMIN_TOKEN": "t" * 40}


def make_ctl(folder: Path) -> Ctl:
    """Return a function that runs `pylonctl` in `folder`, which gets the notes app.

    Keyword arguments of the function are environment variables, besides `stdin`.
    """
    (folder / "pylon.manifest.json").write_text(json.dumps(notes_app()))
    port = str(reserve_base_port())
    store = stores.settings_at(folder / ".pylon" / "dev.db")

    def run(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        clean = {
            k: v for k, v in os.environ.items()
            if not k.startswith("PYLON_") and k != "DATABASE_URL"
        }
        if "DATABASE_URL" in {**store, **env}:  # where a start demands a key
            clean["PYLON_SECRET_KEY"] = stores.SECRET_KEY
        return subprocess.run(
            [sys.executable, "-m", "pylon.cli.main", *args], input=stdin, cwd=folder,
            env={**clean, "PYLON_PORT": port, "PYLON_BIND": "127.0.0.1", **GOOD, **store, **env},
            text=True, capture_output=True, timeout=60, check=False,
        )

    return run


def decode_output(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON that the command printed."""
    body: dict[str, Any] = json.loads(done.stdout)
    return body
