"""Secret key: where the server's secret keys come from, and whether they fit the database.

`PYLON_SECRET_KEY` holds the key, or the file that `PYLON_SECRET_KEY_FILE` names. Without both, on
SQLite, the first start makes `secret.key` in the data directory. With PYLON_IN_MEMORY each run has
a key of its own. On PostgreSQL a start is refused without a key (`pylon.setting_checks`), since a
file of one machine is no key of all nodes. A file may have several lines: the first key seals, the
others open what they have sealed before. `pylonctl secret rotate` puts one more in front.

The database has a probe of the key (`Keys.probe`). A start whose keys do not know the probe is
refused: passwords would work, but no encrypted value would open.

Invariants: a key file appears complete or not at all, with mode 0600. A start never overwrites one.
`settle_keys` is for the supervisor, which holds the lock of the data directory; workers call
`read_keys`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pylon.auth.keys import KEY_BYTES, Keys
from pylon.clock import RandomSource
from pylon.config import Config
from pylon.data_dir import KEY_FILE, give_to_owner, open_private, sync_path
from pylon.errors import StartRefused
from pylon.setting_values import secret_key
from pylon.storage.backend import Backend

_FILE_BYTES: Final = 4_096
_FILE_KEYS: Final = 4


def key_file_of(config: Config) -> Path | None:
    """Return the path of the file that holds the key, also of a missing one; None: the key is in
    the environment, or is made for the run."""
    if config.secret_key is not None:
        return None
    if config.secret_key_file is not None:
        return Path(config.secret_key_file)
    if config.database_url is not None or config.in_memory:
        return None
    return config.data_dir / KEY_FILE


def read_keys(config: Config) -> Keys | None:
    """Return the keys; None: there is no key yet (`settle_keys` makes one).

    Raises:
        StartRefused: the file cannot be read, or has no valid key.
    """
    secrets = [config.secret_key] if config.secret_key is not None else []
    path = key_file_of(config)
    if path is not None:
        is_own = config.secret_key_file is None
        if is_own and not os.path.lexists(path):
            return None
        secrets = read_key_file(path, is_own=is_own)
    if not secrets:
        return None
    if config.secret_key_previous is not None:
        secrets.append(config.secret_key_previous)
    return Keys(dict.fromkeys(secrets))


def read_key_file(path: Path, *, is_own: bool) -> list[bytes]:
    """Return the keys of a file, the newest first.

    Args:
        is_own: in the data directory, where a symlink may be another user's.

    Raises:
        StartRefused: it cannot be read, or a line is no key.
    """
    try:
        fd = open_private(path, os.O_RDONLY) if is_own else os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )
        with os.fdopen(fd, "rb") as file:
            text = file.read(_FILE_BYTES + 1).decode("ascii", "replace")
    except OSError as ex:
        raise StartRefused(
            f"the secret key in {path} cannot be read: {ex.strerror or ex}"
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(lines) <= _FILE_KEYS or len(text) > _FILE_BYTES:
        raise StartRefused(
            f"{path} has {len(lines)} lines with a secret key: expected 1 to {_FILE_KEYS}"
        )
    try:
        return [secret_key(line) for line in lines]
    except ValueError as ex:
        raise StartRefused(f"{path} has a line that is no secret key: {ex}") from None


def settle_keys(config: Config, store: Backend, random: RandomSource) -> tuple[Keys, str | None]:
    """Read or make the key, and compare it with the probe of the database. The supervisor calls it
    once the writer is open.

    Returns:
        The keys, and the text for PYLON_SECRET_KEY of the workers where the run has made a key that
        is in no file; else None.

    Raises:
        StartRefused: the key is not the one that the database knows.
        OSError: the key file cannot be made.
    """
    keys, text = read_keys(config), None
    probe = store.key_probe()
    if keys is None:
        path = key_file_of(config)
        if probe is not None and path is not None:
            raise StartRefused(
                f"{path} is missing, the secret key of this database",
                hint="put it back from a backup bundle, or set PYLON_SECRET_KEY to the key",
            )
        text = random.token_hex(KEY_BYTES)
        keys = Keys([bytes.fromhex(text)])
        if path is not None:
            write_key_file(path, text, random)
            text = None
    for _ in range(2):  # another node may set it meanwhile
        problem = probe_problem(keys, probe, config)
        if problem is not None:
            raise problem
        if probe == keys.probe():
            break
        probe = store.put_key_probe(keys.probe(), probe)
    return keys, text


def probe_problem(keys: Keys, probe: str | None, config: Config) -> StartRefused | None:
    """Return why these keys do not fit a database with this probe; None: they do."""
    if probe is None or keys.knows_probe(probe):
        return None
    path = key_file_of(config)
    where = "PYLON_SECRET_KEY" if path is None else f"the key in {path}"
    return StartRefused(
        f"{where} is not the secret key of this database: it is the key {keys.kids[0]}, and the "
        f"database was used with the key {probe.split('.')[1][:8]}",
        hint="use the key before; to change it, set PYLON_SECRET_KEY_PREVIOUS to the key before "
        "and PYLON_SECRET_KEY to the new one (docs/security.md)",
    )


def rotate_key_file(path: Path, random: RandomSource, *, is_own: bool) -> tuple[str, ...]:
    """Put a new key in front of those of a key file. The file is the old or the new one at any
    moment, also after a crash.

    Returns:
        The names of the keys, the new one first.

    Raises:
        StartRefused: the file cannot be read, or has no room for one more key.
        OSError: the disk refused.
    """
    before = read_key_file(path, is_own=is_own)
    if len(before) == _FILE_KEYS:
        raise StartRefused(
            f"{path} has {_FILE_KEYS} keys already", hint="remove the last line, whose key seals "
            "nothing any more (pylonctl secret status)",
        )
    new = random.token_hex(KEY_BYTES)
    copy = path.with_name(f".{path.name}.{random.token_hex(4)}")
    try:
        write_key_file(copy, "\n".join([new, *(key.hex() for key in before)]), random)
        copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)
    sync_path(path.parent)
    return Keys([bytes.fromhex(new), *before]).kids


def write_key_file(path: Path, text: str, random: RandomSource) -> None:
    """Make a key file that is complete, on the disk and private when its name appears.

    Raises:
        FileExistsError: there is one.
        OSError: the disk refused.
    """
    copy = path.with_name(f".{path.name}.{random.token_hex(4)}")
    try:
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fchmod(fd, 0o600)
            give_to_owner(fd, path)
            os.fsync(fd)
        os.link(copy, path)  # unlike rename it replaces nothing
    finally:
        copy.unlink(missing_ok=True)
    sync_path(path.parent)
