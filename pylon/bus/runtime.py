"""The runtime folder, with the sockets of the bus, the control socket and the manifest.

The supervisor creates it with mode 0700, so that no other user can use the bus, and removes it at
exit. Children get its path by `pylon.bus.child`.

Invariants: every socket path fits into a Unix socket address. A start takes over or removes a
folder that a killed supervisor left. It refuses a folder that other users may write to. Called by
`supervisor.main`, `pylon.startup` and `workers.boot`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from pylon.config import Config
from pylon.data_dir import folder_problem
from pylon.errors import StartRefused
from pylon.private_folders import (
    collect_dead_folders,
    make_private_folder,
    remove_private_folder,
)

_PREFIX: Final = "pylon-"
_PATH_BYTES_MAX: Final = 107  # sun_path holds 108, with a zero at the end
# One for each worker, or for each arbiter.
_LONGEST_NAME: Final = "passing-siblings-000"
_OWN_PATTERNS: Final = ("passing-*", "addresses-*", "shards-*", "arbiter-*", "dev-problems*")
_SERVER_SOCKETS: Final = (
    "writes", "changes", "signals_in", "signals_out", "status", "rooms", "room_updates",
    "control.sock",
)
_OWN_FILES: Final = (
    *_SERVER_SOCKETS, "manifest.json", "rates", "hints", "cluster-key", "identity",
)


class Runtime(msgspec.Struct, frozen=True):
    """The paths in a runtime folder. Creating the object touches no file."""

    dir: Path

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self.dir / name}"

    @property
    def server_sockets(self) -> tuple[Path, ...]:
        """Return the paths of the sockets that the supervisor binds."""
        return tuple(self.dir / name for name in _SERVER_SOCKETS)

    @property
    def writes(self) -> Path:
        """Return the path of the writer's socket (`pylon.bus.frames`)."""
        return self.dir / "writes"

    @property
    def changes(self) -> str:
        return self._endpoint("changes")

    @property
    def signals_in(self) -> str:
        return self._endpoint("signals_in")

    @property
    def signals_out(self) -> str:
        return self._endpoint("signals_out")

    @property
    def status(self) -> str:
        return self._endpoint("status")

    @property
    def rooms(self) -> str:
        return self._endpoint("rooms")

    @property
    def room_updates(self) -> str:
        return self._endpoint("room_updates")

    def shards(self, worker: str) -> str:
        """Return the endpoint of a shards worker."""
        return self._endpoint(f"shards-{worker}")

    @property
    def identity(self) -> str:
        """Return the endpoint of the identity process."""
        return self._endpoint("identity")

    @property
    def hints(self) -> Path:
        """Return the path of the journal of cursor hints (`pylon.changelog.hint_journal`)."""
        return self.dir / "hints"

    def arbiter(self, worker: str) -> Path:
        """Return the path of an arbiter's beat (`pylon.bus.file_beat`). `worker` is its name."""
        return self.dir / f"arbiter-{worker}"

    @property
    def control_socket(self) -> Path:
        return self.dir / "control.sock"

    @property
    def manifest(self) -> Path:
        """Return the path of the validated manifest that every worker loads."""
        return self.dir / "manifest.json"

    @property
    def dev_problems(self) -> Path:
        """Return the path of the problems of a saved app (`pylon.dev_problems`)."""
        return self.dir / "dev-problems"

    @property
    def cluster_key(self) -> Path:
        """Return the path of this node's key pair (`pylon.cluster.keys`)."""
        return self.dir / "cluster-key"

    @property
    def rates(self) -> Path:
        """Return the path of the table of `pylon.limiter`, which all workers map."""
        return self.dir / "rates"

    def remove(self) -> None:
        """Remove Pylon's files, and then the folder if it is empty."""
        remove_private_folder(self.dir, (*_OWN_FILES, *_OWN_PATTERNS))


def make_runtime_dir(config: Config, environ_dir: str | None = None) -> Runtime:
    """Create the folder: PYLON_RUNTIME_DIR, else $RUNTIME_DIRECTORY, else a new private one.

    Args:
        environ_dir: the value of RUNTIME_DIRECTORY (systemd), if any.

    Raises:
        StartRefused: it cannot be created, is too long for a socket path, or is not private.
    """
    configured, setting = _configured_dir(config, environ_dir)
    if configured is None:
        path = make_private_folder(_PREFIX)
    else:
        path = Path(configured).absolute()
        _make_private(path, setting)
    _refuse_long(path)
    _unlink_own(path)  # a killed supervisor left it
    collect_dead_folders(_PREFIX, (*_OWN_FILES, *_OWN_PATTERNS))
    return Runtime(path)


def refuse_unfit_runtime_dir(config: Config, environ_dir: str | None = None) -> None:
    """Raise if `make_runtime_dir` would raise, without creating anything.

    Raises:
        StartRefused: as `make_runtime_dir`.
    """
    configured, setting = _configured_dir(config, environ_dir)
    path = Path(configured or Path(tempfile.gettempdir(), _PREFIX)).absolute()
    if configured is not None and os.path.lexists(path):
        _refuse_shared(path, setting)
    elif configured is not None and (problem := folder_problem(path)) is not None:
        raise StartRefused(f"{setting} is {path}: {problem}")
    _refuse_long(path)


def _configured_dir(config: Config, environ_dir: str | None) -> tuple[str | None, str]:
    """Return the configured folder, if any, and the name of its variable."""
    if config.runtime_dir:
        return config.runtime_dir, "PYLON_RUNTIME_DIR"
    return (environ_dir or "").split(":")[0] or None, "RUNTIME_DIRECTORY"


def _refuse_long(path: Path) -> None:
    longest = len(os.fsencode(path / _LONGEST_NAME))
    if longest > _PATH_BYTES_MAX:
        raise StartRefused(
            f"The runtime directory {path} makes socket paths of {longest} bytes; at most "
            f"{_PATH_BYTES_MAX} work: set PYLON_RUNTIME_DIR to a shorter path"
        )


def _unlink_own(path: Path) -> None:
    for name in _OWN_FILES:
        (path / name).unlink(missing_ok=True)
    for pattern in _OWN_PATTERNS:
        for found in path.glob(pattern):
            found.unlink(missing_ok=True)


def _make_private(path: Path, setting: str) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as ex:
        raise StartRefused(f"{setting} is {path}: {ex.strerror or ex}") from ex
    _refuse_shared(path, setting)
    path.chmod(0o700)


def _refuse_shared(path: Path, setting: str) -> None:
    try:
        own, found = path.lstat(), path.stat()
    except OSError as ex:
        raise StartRefused(f"{setting} is {path}: {ex.strerror or ex}") from ex
    # A symlink of another user may lead to any folder of this user; a start removes files in it.
    if found.st_uid != os.geteuid() or own.st_uid not in (0, os.geteuid()):
        raise StartRefused(f"{setting} is {path}, which belongs to another user: choose another")
    if not stat.S_ISDIR(found.st_mode):
        raise StartRefused(f"{setting} is {path}, which is not a folder")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022 and mode & stat.S_ISVTX:  # /tmp: chmod would be bad advice
        raise StartRefused(
            f"{setting} is {path}, which is for everybody's files: choose a folder of its own in it"
        )
    if mode & 0o022:
        raise StartRefused(
            f"{setting} is {path}, which others may write to: chmod 700 {path}"
        )
