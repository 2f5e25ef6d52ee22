"""Running server: finds the supervisor of a data directory and its control socket.

The supervisor writes ``{"pid", "runtime_dir", "ports", "started_at_s"}`` to `<db_path>.pid` and
holds a lock on the file. A file without a lock belonged to a supervisor that was killed. Called by
the verbs that need a running server, or must know whether one runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from pylon.config import Config
from pylon.control import ControlClient
from pylon.data_dir_lock import is_locked, pidfile_of
from pylon.errors import NotRunning

_SILENCE_S = 3600.0  # between two lines: a drain can be slow, and a dead peer closes the socket


class Running(msgspec.Struct, frozen=True):
    """A live supervisor, as its pidfile describes it."""

    pid: int
    runtime_dir: str
    ports: dict[str, int]
    started_at_s: float

    def control(self, timeout_s: float = _SILENCE_S) -> ControlClient:
        """Return a client of its control socket."""
        return ControlClient(Path(self.runtime_dir) / "control.sock", timeout_s)


@dataclass(frozen=True, slots=True)
class Starting:
    """A process holds the lock and has not written the pidfile yet."""

    pidfile: Path


def find_running(config: Config) -> Running | Starting | None:
    """Return the supervisor that holds the data directory of `config`, or None."""
    db_path = Path(config.db_path)
    if not is_locked(db_path):
        return None
    pidfile = pidfile_of(db_path)
    try:
        return msgspec.json.decode(pidfile.read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return Starting(pidfile)


def require_running(config: Config) -> Running:
    """Return the running supervisor.

    Raises:
        NotRunning: no supervisor holds the data directory, or it has not written its pidfile yet.
    """
    found = find_running(config)
    if found is None:
        raise NotRunning(f"nothing runs on {config.db_path} (PYLON_DB_PATH)")
    if isinstance(found, Starting):
        raise NotRunning(f"{found.pidfile} is held, but says nothing yet: try again in a moment")
    return found
