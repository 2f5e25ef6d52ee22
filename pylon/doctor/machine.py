"""The machine: limits of processes, the file system of the data, the clock.

Nothing here needs a running server. Called by `pylonctl doctor`.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pylon import limits
from pylon.clock import NS_PER_S, Clock
from pylon.config import Config
from pylon.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, size_text
from pylon.runtime import fd_budget

_NETWORK_TYPES: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ocfs2",
    "gfs2", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "virtiofs",
})
_PASSING_TYPES: Final = frozenset({"tmpfs", "ramfs"})
_INODES_FEW: Final = 1_000
_EARLIEST_S: Final = 1_735_689_600  # 2025-01-01: no clock of a server of this version is earlier
_AHEAD_S: Final = 60.0
_SAMPLE_S: Final = 0.1
_DRIFT_S: Final = 0.02
_TIME_ERROR: Final = 5  # of adjtimex: nothing keeps the clock right


def check_limits(pid: int | None) -> Iterator[Finding]:
    """Check the number of files that a process may open.

    Args:
        pid: the running supervisor, whose limit counts; None: that of this process.
    """
    hard = _hard_limit(pid)
    whose = "this shell" if pid is None else f"the server (pid {pid})"
    if hard is None or hard >= limits.HTTP_CONNECTIONS:
        shown = "any number of" if hard is None else str(hard)
        yield Finding(OK, "limits.files", f"a process of {whose} may open {shown} files")
        return
    yield Finding(
        WARNING, "limits.files", f"a process of {whose} may open {hard} files",
        f"each connection is a file, and a worker takes up to {limits.HTTP_CONNECTIONS}; clients "
        "beyond the limit wait",
        f"raise the limit ({fd_budget.REMEDY})",
    )


def _hard_limit(pid: int | None) -> int | None:
    text = Path(f"/proc/{pid or 'self'}/limits").read_text()
    found = re.search(r"^Max open files\s+\S+\s+(\S+)", text, re.MULTILINE)
    return None if found is None or found[1] == "unlimited" else int(found[1])


def check_disk(config: Config, used_bytes: int) -> Iterator[Finding]:
    """Check the file system of the data directory.

    Args:
        used_bytes: the size of the database and its WAL.
    """
    folder = next(p for p in (config.data_dir, *config.data_dir.parents) if p.exists())
    kind, options = mount_of(folder)
    if kind in _NETWORK_TYPES:
        yield Finding(
            ERROR, "disk.type", f"{folder} is on a network file system ({kind})",
            "SQLite's locks and shared memory do not work there: the database breaks",
            "move the data to a local disk (PYLON_DB_PATH), or use PostgreSQL (DATABASE_URL)",
        )
    elif kind in _PASSING_TYPES:
        yield Finding(
            WARNING, "disk.type", f"{folder} is in memory ({kind})",
            "the data are gone after a restart of the machine",
            "set PYLON_DB_PATH to a file on a disk",
        )
    else:
        yield Finding(OK, "disk.type", f"{folder} is on {kind}")
    if "ro" in options:
        yield Finding(
            ERROR, "disk.mode", f"{folder} is mounted read-only", "no write can be stored",
            "look for disk errors in the kernel's log (dmesg), and mount it read-write",
        )
    disk = os.statvfs(folder)
    yield _judge_space(config, folder, disk.f_bavail * disk.f_frsize, used_bytes)
    if disk.f_files:
        level = ERROR if disk.f_favail == 0 else WARNING if disk.f_favail < _INODES_FEW else OK
        yield Finding(
            level, "disk.inodes", f"{folder} has {disk.f_favail} inodes free",
            "" if level == OK else "without one no file can be made, also no WAL",
            "" if level == OK else "remove files that are not needed",
        )


def _judge_space(config: Config, folder: Path, free_bytes: int, used_bytes: int) -> Finding:
    what = f"{folder} has {size_text(free_bytes)} free; the database has {size_text(used_bytes)}"
    floor_bytes = config.disk_floor_bytes
    if free_bytes < max(floor_bytes, 1):
        return Finding(
            ERROR, "disk.space", what,
            f"below PYLON_DISK_FLOOR_BYTES ({size_text(floor_bytes)}) the server refuses writes",
            "free space on this disk, or enlarge it",
        )
    if free_bytes < 2 * used_bytes or free_bytes < 2 * floor_bytes:
        return Finding(
            WARNING, "disk.space", what,
            "a restore or a migration needs the size of the database twice",
            "free space on this disk, or enlarge it",
        )
    return Finding(OK, "disk.space", what)


def mount_of(folder: Path, table: str | None = None) -> tuple[str, frozenset[str]]:
    """Return the type and the options of the file system of a folder.

    Args:
        table: the text of /proc/self/mountinfo; None: read it.
    """
    if table is None:
        table = Path("/proc/self/mountinfo").read_text()
    real = folder.resolve()
    best: tuple[int, str, frozenset[str]] = (-1, "an unknown file system", frozenset())
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        parts, about = fields.split(), rest.split()
        place = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), parts[4]))
        # The last of two mounts on one place is the visible one.
        if real.is_relative_to(place) and len(place.parts) >= best[0]:
            options = frozenset(parts[5].split(",")) | frozenset(about[2].split(","))
            best = (len(place.parts), about[0], options)
    return best[1], best[2]


def check_clock(config: Config, clock: Clock) -> Iterator[Finding]:
    """Check that the wall clock is plausible and the monotonic clock runs."""
    now_s = clock.wall_ns() / NS_PER_S
    newest_s = max((path.stat().st_mtime for path in _data_files(config)), default=0.0)
    if now_s < _EARLIEST_S or newest_s > now_s + _AHEAD_S:
        yield Finding(
            ERROR, "clock.wall",
            f"the clock says {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now_s))} UTC"
            + (", and files of the database are later" if newest_s > now_s + _AHEAD_S else ""),
            "sessions, codes and JWTs end by the clock, and epochs begin with it",
            "set the clock (timedatectl set-ntp true), then restart",
        )
    else:
        yield Finding(OK, "clock.wall", "the clock is later than the files of the database")
    mono_s, wall_s = clock.monotonic_s(), clock.wall_ns() / NS_PER_S
    time.sleep(_SAMPLE_S)
    passed_s = clock.monotonic_s() - mono_s
    drift_s = abs(passed_s - (clock.wall_ns() / NS_PER_S - wall_s))
    if passed_s <= 0 or drift_s > _DRIFT_S:
        yield Finding(
            WARNING, "clock.steady",
            f"the wall clock and the monotonic clock differ by {drift_s * 1_000:.0f} ms in "
            f"{_SAMPLE_S * 1_000:.0f} ms",
            "something moves the clock in jumps; times of rows and sessions are wrong by as much",
            "let one program keep the time, and let it slew (chrony, systemd-timesyncd)",
        )
    else:
        yield Finding(OK, "clock.steady", "the wall clock and the monotonic clock agree")
    if _is_unsynchronised():
        yield Finding(
            NOTE, "clock.ntp", "the kernel knows of nothing that keeps the clock right",
            "it drifts by seconds a week; in a container the host may keep it",
            "timedatectl set-ntp true",
        )


def _data_files(config: Config) -> list[Path]:
    names = (config.db_path, config.db_path + "-wal", config.db_path + ".pid")
    return [Path(name) for name in names if Path(name).is_file()]


def _is_unsynchronised() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "adjtimex"):
        return False
    state: int = libc.adjtimex(ctypes.create_string_buffer(512))  # larger than `struct timex`
    return state == _TIME_ERROR
