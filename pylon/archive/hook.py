"""The alert hook of backups (PYLON_BACKUP_HOOK): a command, or a URL.

A command gets one JSON object on stdin, a URL gets it by POST:

    {"event": "backup.failed" or "backup.recovered", "step": …, "error": …, "place": …, "at": …}

Bound: `limits.BACKUP_HOOK_S`; then the command is killed. It gets no secret: of the environment it
has PATH, HOME and LANG only. Called by `supervisor.shipper` and by `pylonctl backup`.
"""

from __future__ import annotations

import os
import shlex
import subprocess  # nosec B404 # the operator's own command, without a shell
from typing import Final

import msgspec

from pylon import limits

_KEPT_NAMES: Final = ("PATH", "HOME", "LANG")
_SHOWN_CHARS: Final = 300


class HookEvent(msgspec.Struct, frozen=True):
    """The event that a hook gets. `at`: ISO 8601."""

    event: str
    step: str
    error: str
    place: str
    at: str


def call_hook(hook: str, event: HookEvent) -> str | None:
    """Call the hook. Return why that failed; None: it worked."""
    body = msgspec.json.encode(event)
    if hook.startswith(("http://", "https://")):
        return _post(hook, body)
    return _run(hook, body)


def _post(url: str, body: bytes) -> str | None:
    import urllib3  # not before the template has patched what it takes from ssl and queue

    try:
        with urllib3.PoolManager(num_pools=1) as pool:
            response = pool.request(
                "POST", url, body=body, headers={"Content-Type": "application/json"},
                timeout=urllib3.Timeout(total=limits.BACKUP_HOOK_S), retries=False,
            )
    except (urllib3.exceptions.HTTPError, OSError) as ex:
        return str(ex)[:_SHOWN_CHARS]
    return None if response.status < 300 else f"it answered {response.status}"


def _run(command: str, body: bytes) -> str | None:
    environ = {name: os.environ[name] for name in _KEPT_NAMES if name in os.environ}
    try:
        done = subprocess.run(  # nosec B603
            shlex.split(command), input=body, env=environ, timeout=limits.BACKUP_HOOK_S,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {limits.BACKUP_HOOK_S:g} s and was killed"
    except (OSError, ValueError) as ex:
        return str(ex)[:_SHOWN_CHARS]
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip()[-_SHOWN_CHARS:]
    return f"it ended with {done.returncode}: {said}"
