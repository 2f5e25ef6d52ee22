"""Stores of the verbs: the database that the settings name, and how a verb holds it alone.

`hold_store` lets no server of this data directory start meanwhile, and refuses while a server runs
on it, or, on a database that nodes share, on any node. Called by the verbs that read or change a
database without a server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylon.config import Config
from pylon.data_dir_lock import DataDirLocked, lock_data_dir
from pylon.errors import BackupRefused, Unavailable
from pylon.storage.backend import Backend
from pylon.storage.factory import open_store, open_store_at


def existing_store(config: Config, sqlite: str | None = None) -> Backend:
    """Return the store of the settings, or of the database file `sqlite`.

    Raises:
        Unavailable: there is no database, or it is in memory.
    """
    if sqlite is None and config.in_memory:
        raise Unavailable("PYLON_IN_MEMORY is on: there is no database file")
    store = open_store(config) if sqlite is None else open_store_at(Path(sqlite))
    if not store.exists():
        hint = "DATABASE_URL" if config.database_url is not None else "PYLON_DB_PATH"
        raise Unavailable(
            f"there is no database at {store.place}", hint=hint if sqlite is None else "--sqlite"
        )
    return store


@contextmanager
def hold_store(store: Backend) -> Iterator[None]:
    """Hold the data directory until the block ends.

    Raises:
        DataDirLocked: a server runs on it.
        BackupRefused: other nodes run on the database.
    """
    with lock_data_dir(store.data_path):
        running = store.running_nodes()
        if running:
            raise BackupRefused(
                f"nodes run on {store.place} ({', '.join(running)}): stop them first"
            )
        yield


@contextmanager
def hold_stopped_store(store: Backend) -> Iterator[None]:
    """The same, for a verb that a running server cannot carry out either.

    Raises:
        BackupRefused: a server runs.
    """
    try:
        with hold_store(store):
            yield
    except DataDirLocked:
        raise BackupRefused(
            f"a server runs on {store.place}: stop it first (pylonctl stop)"
        ) from None
