"""Find the supervisor that runs on a data directory, and speak to it.

The supervisor writes ``{"pid", "runtime_dir", "ports", "started_at_s"}`` to `<db_path>.pid`
and holds a lock on it; a file without a lock is what a killed one left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from pylon.config import Config
from pylon.control import ControlClient
from pylon.data_dir_lock import is_locked, pidfile_of
from pylon.errors import NotRunning

_SILENCE_S = 3600.0  # a drain or a backup may say nothing for long; a dead end closes the socket


class Running(msgspec.Struct, frozen=True):
    """A supervisor that lives: what its pidfile says."""

    pid: int
    runtime_dir: str
    ports: dict[str, int]
    started_at_s: float

    def control(self, timeout_s: float = _SILENCE_S) -> ControlClient:
        """A client of its control socket."""
        return ControlClient(Path(self.runtime_dir) / "control.sock", timeout_s)


@dataclass(frozen=True, slots=True)
class Starting:
    """Somebody holds the lock and has not written the pidfile yet."""

    pidfile: Path


def find(config: Config) -> Running | Starting | None:
    """The supervisor that holds the data directory of `config`, or None."""
    db_path = Path(config.db_path)
    if not is_locked(db_path):
        return None
    pidfile = pidfile_of(db_path)
    try:
        return msgspec.json.decode(pidfile.read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return Starting(pidfile)


def require(config: Config) -> Running:
    """The running supervisor.

    Raises:
        NotRunning: none holds the data directory, or it has only just started.
    """
    found = find(config)
    if found is None:
        raise NotRunning(f"nothing runs on {config.db_path} (PYLON_DB_PATH)")
    if isinstance(found, Starting):
        raise NotRunning(f"{found.pidfile} is held, but says nothing yet: try again in a moment")
    return found
