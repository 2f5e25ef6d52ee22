"""The node: its files, ports, versions, processes, WAL and backups.

`NodeState` has what the running server says of itself; the checks that need it say so without it.
Called by `pylonctl doctor`.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import field

import pylon
from pylon import limits
from pylon.config import Config
from pylon.data_dir import KEY_FILE, data_dir_problems, data_dir_warnings
from pylon.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, size_text
from pylon.files.disk import FileFolder
from pylon.storage.bundle.record import read_record

_LIBRARIES: Final = ("apsw", "psycopg", "gevent", "gunicorn", "falcon", "pyzmq", "msgspec", "loro")
_LOWEST_PYTHON: Final = (3, 11)
_DAY_S: Final = 86_400
_BACKUP_OLD_S: Final = 2 * _DAY_S
_BACKUP_LAGS: Final = 10  # periods of the continuous backup
_BACKUP_LAG_S: Final = 60.0
_WAL_HELD_S: Final = 60.0
_CONNECT_S: Final = 2.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # nosec B104 # it connects, and binds nothing


class NodeState(msgspec.Struct, frozen=True):
    """The running server. `status`: the answer of the control socket. `values`: samples of its
    metrics without labels, by name."""

    pid: int
    ports: Mapping[str, int]
    status: Mapping[str, Any]
    values: Mapping[str, float] = field(default_factory=dict)


def check_files(config: Config) -> Iterator[Finding]:
    """Check owners and modes of the data directory and its files."""
    for problem in data_dir_problems(config):
        yield Finding(ERROR, "files.use", problem, "a start is refused", "as the text says")
    for warning in data_dir_warnings(config):
        yield Finding(
            WARNING, "files.mode", warning, "the files hold what the policies protect",
            "as the text says",
        )
    folder = config.data_dir
    if config.in_memory or not folder.is_dir():
        return
    owner = folder.stat().st_uid
    db_path = Path(config.db_path).absolute()
    names = [db_path.name + end for end in ("", "-wal", "-shm", ".pid", ".log", ".backup.json")]
    foreign = [
        path for path in (*(db_path.with_name(name) for name in names), folder / KEY_FILE)
        if path.exists() and path.stat().st_uid != owner
    ]
    for path in foreign:
        yield Finding(
            ERROR, "files.owner",
            f"{path} belongs to uid {path.stat().st_uid}, its folder to uid {owner}",
            "the server runs as the owner of the folder and cannot open the file",
            f"chown --reference={folder} {path}",
        )
    key = folder / KEY_FILE
    if key.exists() and key.stat().st_mode & 0o077:
        yield Finding(
            ERROR, "files.key", f"other users may read {key}",
            "with the key they can forge codes and read stored tokens of sign-in",
            f"chmod 600 {key}, and change the key (docs/security.md)",
        )
    if not foreign:
        yield Finding(OK, "files.owner", f"all files of {folder} belong to uid {owner}")


def check_ports(
    config: Config, node: NodeState | None, problems: list[str]
) -> Iterator[Finding]:
    """Check that the ports are free, or that the server answers on them.

    Args:
        problems: of ports, if no server runs (`pylonctl check-config` finds them).
    """
    if node is None:
        for problem in problems:
            yield Finding(
                ERROR, "ports.free", problem, "a start is refused",
                "end the program that has the port (ss -ltnp), or set another port",
            )
        if not problems:
            yield Finding(OK, "ports.free", f"the ports from {config.port} on are free")
        return
    host = _ANY.get(config.bind, config.bind)
    for role, port in node.ports.items():
        try:
            with socket.create_connection((host, port), timeout=_CONNECT_S):
                yield Finding(OK, "ports.answer", f"{host}:{port} ({role}) takes connections")
        except OSError as ex:
            yield Finding(
                ERROR, "ports.answer", f"{host}:{port} ({role}): {ex.strerror or ex}",
                "clients of this role get nothing", "see the log of the role (pylonctl logs)",
            )


def check_versions(node: NodeState | None, sqlite_version: str | None) -> Iterator[Finding]:
    """Check the versions of Python, of the libraries, and of the server that runs."""
    python = platform.python_version()
    is_old = sys.version_info < _LOWEST_PYTHON
    yield Finding(
        ERROR if is_old else OK, "versions.python", f"Python {python} ({sys.executable})",
        "Pylon needs 3.11 or later" if is_old else "", "install a later Python" if is_old else "",
    )
    found = [f"{name} {_version_of(name)}" for name in _LIBRARIES]
    if sqlite_version is not None:
        found.insert(0, f"SQLite {sqlite_version}")
    yield Finding(NOTE, "versions.libraries", ", ".join(found))
    if node is not None and node.status.get("version") != pylon.__version__:
        yield Finding(
            WARNING, "versions.server",
            f"the server is {node.status.get('version')}, this pylonctl is {pylon.__version__}",
            "the new version is installed and does not run", "restart the server",
        )


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


def check_processes(node: NodeState | None) -> Iterator[Finding]:
    """Check that each role has its workers, and that they stay up."""
    if node is None:
        yield Finding(NOTE, "processes.roles", "no server runs on this data directory")
        return
    for role, state in node.status.get("roles", {}).items():
        wanted, ready = int(state["wanted"]), int(state["ready"])
        what = f"{role}: {ready} of {wanted} workers are ready"
        if state.get("failing") or ready < wanted:
            yield Finding(
                ERROR, "processes.roles", what, "their clients wait or get 503",
                f"pylonctl logs --role {role} --level warning",
            )
        else:
            yield Finding(OK, "processes.roles", what)
    restarts = int(node.status.get("restarts", 0))
    if restarts:
        yield Finding(
            WARNING, "processes.restarts", f"{restarts} workers have died since the start",
            "the requests that they ran failed", "pylonctl logs --event child.died",
        )
    quarantined = node.values.get("pylon_quarantined_fingerprints", 0.0)
    if quarantined:
        yield Finding(
            ERROR, "processes.quarantine", f"{quarantined:.0f} requests are quarantined",
            "they have killed workers, and are refused",
            "pylonctl logs --event request.quarantined",
        )


def check_wal(config: Config, node: NodeState | None) -> Iterator[Finding]:
    """Check the size of SQLite's WAL, and whether a reader holds it."""
    if config.database_url is not None or config.in_memory:
        return
    path = Path(config.db_path + "-wal")
    size_bytes = path.stat().st_size if path.is_file() else 0
    if node is not None:
        size_bytes = int(node.status.get("wal_bytes", 0))
    what = f"the WAL has {size_text(size_bytes)}"
    held_s = 0.0 if node is None else node.values.get("pylon_wal_held_seconds", 0.0)
    if held_s:
        what += f"; a reader holds it for {held_s:.0f} s"
    if held_s > _WAL_HELD_S or size_bytes > 4 * limits.WAL_LIMIT_BYTES:
        yield Finding(
            WARNING, "database.wal", what,
            "it grows while a reader needs its beginning, until the disk is full",
            f"end the program that reads the file: fuser -v {config.db_path}",
        )
    elif node is None and size_bytes:
        yield Finding(
            NOTE, "database.wal", what + ", and no server runs",
            "the last server was killed; the next start goes on from there",
        )
    else:
        yield Finding(OK, "database.wal", what)


def check_backup(config: Config, node: NodeState | None, now_s: float) -> Iterator[Finding]:
    """Check the continuous backup if there is one, else the age of the last bundle; and files."""
    yield from _check_files(config)
    if config.backup_url is not None:
        yield from _check_continuous_backup(config, node)
        return
    record = read_record(Path(config.db_path).absolute())
    if record is None:
        yield Finding(
            WARNING, "backup.age", "no backup is known", "a broken disk takes all data with it",
            "pylonctl backup DIR by a timer, or PYLON_BACKUP_URL (docs/operations/backup.md)",
        )
        return
    age_s = now_s - record.at_s
    what = (f"the last backup is {age_s / 3_600:.0f} h old: {record.target}, "
            f"{size_text(record.size_bytes)}")
    if age_s > _BACKUP_OLD_S:
        yield Finding(
            WARNING, "backup.age", what, "what came later is lost with the disk",
            "see why the timer fails: systemctl status pylon-backup.timer pylon-backup.service",
        )
    else:
        yield Finding(OK, "backup.age", what)


def _check_files(config: Config) -> Iterator[Finding]:
    if any(FileFolder(config.files_folder).keys()):
        yield Finding(
            WARNING, "backup.files",
            f"no backup of Pylon has the files that clients uploaded ({config.files_folder})",
            "a broken disk takes them with it; their records are in the backups",
            "copy the folder after each bundle, for example by rsync (docs/files.md)",
        )


def _check_continuous_backup(config: Config, node: NodeState | None) -> Iterator[Finding]:
    if node is None:
        yield Finding(NOTE, "backup.lag", "no server runs, so nothing is shipped now")
        return
    lag_s = node.values.get("pylon_backup_lag_seconds", 0.0)
    failures = node.values.get("pylon_backup_failures_total", 0.0)
    what = f"the continuous backup is {lag_s:.0f} s behind; {failures:.0f} failures since the start"
    if lag_s > _BACKUP_LAGS * config.backup_interval_s + _BACKUP_LAG_S:
        yield Finding(
            ERROR, "backup.lag", what, "what is not shipped is lost with the disk",
            "see why: pylonctl logs --event \"backup.*\" --level warning",
        )
    else:
        yield Finding(OK, "backup.lag", what)


def check_user(config: Config) -> Iterator[Finding]:
    """Note as whom the doctor runs, if that hides something."""
    folder = config.data_dir
    if os.geteuid() != 0 and folder.exists() and folder.stat().st_uid != os.geteuid():
        yield Finding(
            NOTE, "files.user", f"this user is no owner of {folder}",
            "some checks see less than the server does", "sudo pylonctl doctor",
        )
