"""The stores that tests run on: SQLite and PostgreSQL, by `--store`.

The tests of a module with `pytestmark = pytest.mark.stores` run once on each store of the run; all
others run on SQLite. A test of such a module that is about SQLite alone has the mark `sqlite`. The
fixture `store` of tests/conftest.py sets the store of the running test, and the stages of
`tests.support` open their databases on it, by `settings_at` and `backend_at`. A path names a
database: on SQLite its file, on PostgreSQL a schema of its own. So the same test, with the same
`tmp_path / "app.db"`, runs on both.

`NOT_YET` lists the modules with the mark that do not pass on PostgreSQL yet. A run says at its end
which stores it used, what it left out, and why.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw
import psycopg
import pytest

from pylon import config as settings
from pylon.clock import Clock
from pylon.storage.backend import Backend
from pylon.storage.factory import open_store
from pylon.storage.postgres import epochs as postgres_epochs
from pylon.storage.postgres.connect import open_session
from pylon.storage.sqlite import epochs as sqlite_epochs
from tests.support.postgres import PostgresServer, drop_schema, find_programs, make_schema

SQLITE: Final = "sqlite"
POSTGRES: Final = "postgres"
POSTGRES_FIXTURES: Final = frozenset({"postgres_server", "postgres_url"})
CHOICES: Final = (SQLITE, POSTGRES, "both")

# Modules that run on PostgreSQL only when `--store postgres` asks for it. To be empty.
NOT_YET: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class StoreChoice:
    """The stores of a run, and the lines that say so at its end."""

    names: tuple[str, ...]
    is_by_name: bool  # `--store postgres`: also the modules of `NOT_YET`
    lines: tuple[str, ...]

    def stores_of(self, module: str, *, on_both: bool) -> tuple[str, ...]:
        """Return the stores that the tests of a module run on."""
        if not on_both:
            return (SQLITE,)
        if module in NOT_YET and not self.is_by_name:
            return (SQLITE,) if SQLITE in self.names else ()
        return self.names

    def runs(self, item: pytest.Item) -> bool:
        """Return whether a collected test is about a store of the run."""
        if item.get_closest_marker("stores") and not item.get_closest_marker("sqlite"):
            return True  # `stores_of` has chosen
        needs_postgres = not POSTGRES_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        return (POSTGRES if needs_postgres else SQLITE) in self.names


def choose_stores(wanted: str | None) -> StoreChoice:
    """Return the stores of a run.

    Args:
        wanted: of `--store`; None: both, or SQLite alone where there is no PostgreSQL.

    Raises: LookupError when PostgreSQL is asked for, or the run is in CI, and there is none.
    """
    found = _describe_postgres()
    if found is None and (wanted in (POSTGRES, "both") or os.environ.get("PYLON_CI") == "1"):
        raise LookupError("PostgreSQL is not installed (make test-tools)")
    if wanted == SQLITE:
        return StoreChoice((SQLITE,), False, ("sqlite (postgres: left out by --store)",))
    if found is None:
        return StoreChoice(
            (SQLITE,), False, ("sqlite (postgres: left out, not installed; make test-tools)",)
        )
    if wanted == POSTGRES:
        return StoreChoice((POSTGRES,), True, (f"{found} (sqlite: left out by --store)",))
    lines = [f"sqlite, and {found}"]
    if NOT_YET:
        lines.append("on sqlite only, until they pass on postgres (tests/support/stores.py):")
        lines += [f"  {name}" for name in sorted(NOT_YET)]
    return StoreChoice((SQLITE, POSTGRES), False, tuple(lines))


def _describe_postgres() -> str | None:
    if url := os.environ.get("PYLON_TEST_DATABASE_URL"):
        return f"postgres of PYLON_TEST_DATABASE_URL ({url.rpartition('@')[2]})"
    found = find_programs()
    version = wanted_version(found)
    return None if version is None else f"postgres {version} ({found[version]})"


def wanted_version(found: dict[int, Path]) -> int | None:
    """Return the major version to test with: PYLON_TEST_POSTGRES, or the oldest; None: not here."""
    wanted = os.environ.get("PYLON_TEST_POSTGRES")
    if wanted:
        return int(wanted) if int(wanted) in found else None
    return min(found, default=None)


SECRET_KEY = hashlib.sha256(b"the secret key of tests").hexdigest()


@dataclass(slots=True)
class TestStore:
    """The store of the tests that run: makes databases, and removes them."""

    __test__ = False  # pytest takes it for a test by its name

    name: str
    url: str | None = None  # of the PostgreSQL database that gets the schemas
    server: PostgresServer | None = None
    made: dict[Path, str] = field(default_factory=dict)  # URLs by the paths that name them

    def settings_at(self, path: Path) -> dict[str, str]:
        """Return the settings of the database that `path` names, which begins empty."""
        path = Path(path).absolute()
        found = {"PYLON_DB_PATH": str(path)}
        if self.url is not None:
            if path not in self.made:
                self.made[path] = make_schema(self.url)
            found["DATABASE_URL"] = self.made[path]
            found["PYLON_SECRET_KEY"] = SECRET_KEY
        return found

    def drop_since(self, count: int) -> None:
        """Remove all databases but the first `count` that were made."""
        for path in list(self.made)[count:]:
            assert self.url is not None
            drop_schema(self.url, self.made.pop(path))


_stores: list[TestStore] = [TestStore(SQLITE)]  # the last one counts


@contextmanager
def use(store: TestStore) -> Iterator[TestStore]:
    """Make `store` the store of the running tests within the block."""
    _stores.append(store)
    try:
        yield store
    finally:
        _stores.pop()
        store.drop_since(0)


def current() -> TestStore:
    """Return the store of the running test; SQLite outside of tests."""
    return _stores[-1]


def settings_at(path: Path) -> dict[str, str]:
    """Return the settings of the database that `path` names, on the store of the running test."""
    return current().settings_at(path)


def run_sql(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement on the database that `path` names, as another program does."""
    if current().name == SQLITE:
        with closing(apsw.Connection(str(path))) as conn:
            return list(conn.execute(statement))
    with psycopg.connect(settings_at(path)["DATABASE_URL"], autocommit=True) as conn:
        cursor = conn.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def open_epoch(path: Path, reason: str, clock: Clock, void_from: int | None = None) -> int:
    """Open a new epoch in the database that `path` names, as a restore does; its first seq."""
    if current().name == SQLITE:
        with closing(apsw.Connection(str(path))) as conn:
            return sqlite_epochs.open_epoch(conn, reason, clock, void_from)
    session = open_session(settings_at(path)["DATABASE_URL"], "plain", "test", clock)
    with closing(session):
        session.execute("BEGIN")
        first_seq = postgres_epochs.open_epoch(session, reason, clock, void_from)
        session.execute("COMMIT")
    return first_seq


def restore_flags() -> tuple[str, ...]:
    """Return the flags by which `pylonctl restore` replaces what is there."""
    return () if current().name == SQLITE else ("--replace",)


def backend_at(path: Path, **values: Any) -> Backend:
    """Return the backend of the database that `path` names, on the store of the running test.

    Args:
        values: further settings by environment name.
    """
    backend = open_store(settings.load({
        "PYLON_CORS_ORIGIN": "http://localhost:3000", **settings_at(path), **values,
    }).config)
    is_sqlite = current().name == SQLITE
    assert (backend.name == SQLITE) == is_sqlite, f"{backend.name} in place of {current().name}"
    return backend
