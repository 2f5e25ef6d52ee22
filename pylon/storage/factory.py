"""Factory of stores: the one place that chooses a backend, by the settings.

A backend is imported when it is chosen, so that no process loads the driver of another one. Called
by the supervisor, the workers, `pylonctl` and the bench.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from pylon.config import Config
from pylon.storage.backend import Backend
from pylon.storage.backups import BackupManager
from pylon.storage.records import DatabaseFacts


def open_store(config: Config) -> Backend:
    """Return the backend that the settings name. Opens nothing yet."""
    url = config.database_url
    if url is not None:
        from pylon.storage.postgres.backend import PostgresBackend

        return PostgresBackend(
            url, direct_url=config.database_direct_url or url,
            data_path=Path(config.db_path).absolute(), connections=config.database_connections,
            wait_s=config.database_wait_s, row_max_bytes=config.row_max_bytes,
            application=config.node or "", is_dev=config.dev_mode,
        )
    from pylon.storage.sqlite.backend import SqliteBackend

    return SqliteBackend(
        Path(config.db_path), durability=config.durability, row_max_bytes=config.row_max_bytes,
        in_memory=config.in_memory,
    )


def import_readers(config: Config) -> None:
    """Import what `open_readers` of the backend imports; opens nothing. For a process that forks
    workers, which then share the memory of these modules."""
    if config.database_url is not None:
        import_module("pylon.storage.postgres.store")


def import_backend(config: Config) -> None:
    """Import the backend that the settings name, if a process may do so before gevent's patches.

    psycopg looks at its import whether they are applied.
    """
    if config.database_url is None:
        import_module("pylon.storage.sqlite.backend")


def open_store_at(path: Path) -> Backend:
    """Return the backend of a database that a command names by its path, beside the settings."""
    from pylon.storage.sqlite.backend import SqliteBackend

    return SqliteBackend(path)


def survey_database(url: str) -> DatabaseFacts:
    """Return the facts of a PostgreSQL server, for an operator.

    Raises:
        ConnectionError: it does not answer, or refuses.
    """
    from pylon.storage.postgres.survey import survey_server

    return survey_server(url)


def open_dump_backups() -> BackupManager:
    """Return what checks a bundle of PostgreSQL without a server."""
    postgres: Any = import_module("pylon.storage.postgres.backup.manager")
    manager: BackupManager = postgres.PostgresBackups("")
    return manager
