"""The environment of a child process, as the supervisor writes it and the child reads it.

A child also gets every PYLON_* setting with its resolved value, so that `pylon.config.load` gives
it exactly the supervisor's settings. Called by `supervisor.children`, `workers.boot`,
`workers.template` and `workers.http.arbiter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from pylon.errors import StartRefused


class ChildEnv(msgspec.Struct, frozen=True):
    """The identity of a child. `worker` is unique within the role: "1", "2", ..."""

    role: str
    worker: str
    runtime_dir: Path
    listen_fd: int | None  # None for a role without a port
    supervisor_pid: int

    def to_environ(self) -> dict[str, str]:
        """Return the variables to add to the child's environment."""
        return {
            "PYLON_WORKER": f"{self.role}/{self.worker}",
            "PYLON_RUNTIME_DIR": str(self.runtime_dir),
            "PYLON_LISTEN_FD": "" if self.listen_fd is None else str(self.listen_fd),
            "PYLON_SUPERVISOR_PID": str(self.supervisor_pid),
        }

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ChildEnv:
        """Read the variables.

        Raises:
            StartRefused: no supervisor has started this process.
        """
        try:
            role, _, worker = environ["PYLON_WORKER"].partition("/")
            listen_fd = environ["PYLON_LISTEN_FD"]
            return cls(
                role, worker, Path(environ["PYLON_RUNTIME_DIR"]),
                int(listen_fd) if listen_fd else None, int(environ["PYLON_SUPERVISOR_PID"]),
            )
        except (KeyError, ValueError) as ex:
            raise StartRefused(
                f"A worker is started by the supervisor only ({ex}): use pylonctl start"
            ) from ex
