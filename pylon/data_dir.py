"""Data directory: checks that Pylon can write to it, and that other users cannot.

The database, its WAL, the log of `start --detach`, the pidfile and recordings lie in one folder.
They hold the data that the policies protect. Every Pylon process has the umask 077, so only the
owner may read new files. Files and folders of earlier versions, or of other programs, keep their
modes, because a backup program of another user may rely on them. The operator gets a warning with
the command that changes them. Production refuses a folder that everybody may write to: any user
could replace the database.

Called by `pylon.startup`, `pylon.cli` and the supervisor. Modules that make a file under a
predictable name call `open_private`.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Final

from pylon.config import Config
from pylon.disk_errors import start_error
from pylon.errors import StartRefused

KEY_FILE: Final = "secret.key"  # see `pylon.auth.secret_key`
PRIVATE_UMASK: Final = 0o077
_OTHERS_READ: Final = 0o004
_OTHERS_WRITE: Final = 0o002
_FILES: Final = ("", "-wal", "-shm", ".log", ".pid")


def keep_private() -> None:
    """Set the umask, so that only the owner may read new files of this process and its children."""
    os.umask(PRIVATE_UMASK)


def prepare_data_dir(config: Config) -> None:
    """Make the data directory if it is missing, and check that this process can write to it.

    Raises:
        StartRefused: it cannot be made or written to, or has another problem.
    """
    path = config.data_dir
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as ex:
        what = f"The data directory {path} (PYLON_DB_PATH sets it) cannot be written to"
        raise start_error(ex, path, what) from ex
    for problem in data_dir_problems(config):
        raise StartRefused(problem)
    refuse_root(config)


def refuse_root(config: Config) -> None:
    """Refuse that root serves the data of another user, who could not open the new files.

    Raises:
        StartRefused: this process is root, and the data directory belongs to somebody else.
    """
    owner = _owner(config.data_dir)
    if config.dev_mode or config.in_memory or os.geteuid() != 0 or owner in (None, 0):
        return
    raise StartRefused(
        f"root starts a server on {config.data_dir}, which belongs to {_user_name(owner)}: that "
        "user could not read the new files",
        hint="systemctl start pylon, or "
        f"setpriv --reuid={owner} --regid={owner} --clear-groups pylonctl start",
    )


def data_dir_problems(config: Config) -> list[str]:
    """Return the reasons why a start could not use the data directory. Changes nothing."""
    if config.in_memory:
        return []
    folder, db_path = config.data_dir, Path(config.db_path)
    where = f"PYLON_DB_PATH is {config.db_path}"
    if (problem := folder_problem(folder)) is not None:
        return [f"{where}: {problem}"]
    try:
        if db_path.is_dir():
            return [f"{where}, a folder: name a file in it"]
        if db_path.exists() and not db_path.is_file():
            return [f"{where}: it is not a plain file"]
        if db_path.is_file() and not os.access(db_path, os.R_OK | os.W_OK):
            return [f"{where}: the file is not writable"]
    except OSError as ex:
        return [f"{where}: {ex.strerror or ex}"]
    if not config.dev_mode and _is_open_to_all(folder):
        return [
            f"{where}: everybody may write to {folder}, and put another database there: "
            f"chmod 700 {folder}, or choose another folder"
        ]
    return []


def folder_problem(folder: Path) -> str | None:
    """Return the reason why this process cannot make files in a folder, or None.

    For a missing folder it checks the nearest existing parent. It leaves no file behind.
    """
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is not writable"
    try:
        with tempfile.TemporaryFile(dir=nearest):  # even root cannot write everywhere
            return None
    except OSError as ex:
        return f"no file can be made in {nearest}: {ex.strerror or ex}"


def data_dir_warnings(config: Config) -> list[str]:
    """Return warnings about access of other users, each with the command that ends it."""
    if config.in_memory:
        return []
    found = []
    folder, db_path = config.data_dir, Path(config.db_path).absolute()
    owner = _owner(folder)
    if os.geteuid() != 0 and owner not in (None, 0, os.geteuid()):
        found.append(
            f"the data directory {folder} belongs to another user (uid {owner}), who may replace "
            f"the database: chown {os.geteuid()} {folder}"
        )
    if not config.dev_mode and _mode(folder) & _OTHERS_WRITE:
        found.append(
            f"everybody may make files in the data directory {folder}: choose a folder of its "
            "own (PYLON_DB_PATH)"
        )
    elif not config.dev_mode and _is_entered_by_all(folder):
        found.append(
            f"every user of this machine may enter the data directory {folder}, whose files are "
            f"private: chmod 700 {folder}, or choose a folder of its own (PYLON_DB_PATH)"
        )
    paths = [db_path.with_name(db_path.name + suffix) for suffix in _FILES]
    paths.append(folder / KEY_FILE)
    if config.secret_key_file is not None:
        paths.append(Path(config.secret_key_file).absolute())
    readable = [
        str(path) for path in paths
        if _mode(path) & _OTHERS_READ and _is_entered_by_all(path.parent)
    ]
    if readable:
        found.append(
            f"every user of this machine may read {', '.join(readable)}: "
            f"chmod 600 {' '.join(readable)}"
        )
    return found


def open_private(path: Path, flags: int) -> int:
    """Open a file and return its descriptor. A new file gets the mode 0600.

    In a folder where other users may write, the name could be their symlink to one of our files,
    or a FIFO that blocks. Both are refused.

    Raises:
        StartRefused: it is not a plain file.
        OSError: it cannot be opened.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as ex:
        if ex.errno == errno.ELOOP and path.is_symlink():
            raise StartRefused(f"{path} is a symlink: remove it") from ex
        if ex.errno == errno.ENXIO:  # a FIFO without a reader, a socket
            raise StartRefused(f"{path} is not a plain file: remove it") from ex
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StartRefused(f"{path} is not a plain file: remove it")
    os.set_blocking(fd, True)
    return fd


def sync_path(path: Path) -> None:
    """Sync a file or a folder to the disk.

    Raises:
        OSError: the disk failed.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def give_to_owner(fd: int, db_path: Path) -> None:
    """Give a file that root made in the data directory to the owner of the directory.

    The server runs as that user and must open the file later.
    """
    if os.geteuid() == 0:
        owner = db_path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)


def give_path_to_owner(path: Path) -> None:
    """Call `give_to_owner` for a file that this process has just made under this name."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        give_to_owner(fd, path)
    finally:
        os.close(fd)


def give_folder_to_owner(folder: Path) -> None:
    """Give a folder that this process has just made in the data directory, and its files, to the
    owner of the directory, if this process is root."""
    for path in (*folder.iterdir(), folder):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give_to_owner(fd, folder)
        finally:
            os.close(fd)


def _user_name(uid: int | None) -> str:
    try:
        return f"user {pwd.getpwuid(uid or 0).pw_name}"
    except KeyError:
        return f"uid {uid}"


def _mode(path: Path) -> int:
    """Return the permissions, for a symlink those of its target; 0 if the path is missing."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _is_open_to_all(folder: Path) -> bool:
    """Whether any user may replace files in the folder; in a sticky one only their owners may."""
    mode = _mode(folder)
    return bool(mode & _OTHERS_WRITE) and not mode & stat.S_ISVTX


def _is_entered_by_all(folder: Path) -> bool:
    """Whether every user may open a file in the folder by its name."""
    return all(_mode(path) & 0o001 for path in (folder, *folder.parents))
