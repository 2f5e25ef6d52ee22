"""The stores of a test run: PostgreSQL ends with the tests, and what is left out is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support import stores
from tests.support.postgres import PostgresServer, find_programs
from tests.support.stores import NOT_YET, POSTGRES, SQLITE, choose_stores
from tests.support.wait import wait_until


def test_each_schema_is_apart(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as conn:
        conn.execute("CREATE TABLE here (a int)")
        found = conn.execute("SELECT to_regclass('here')::text, current_schema()").fetchone()
    assert found is not None
    assert found[0] == "here" and found[1].startswith("test_")


@pytest.mark.usefixtures("processes", "postgres_server")
def test_server_ends_with_a_killed_test_process() -> None:
    program = min(find_programs().items())[1]
    script = (
        "import pathlib, sys, time\nfrom tests.support.postgres import PostgresServer\n"
        f"made = PostgresServer(pathlib.Path({str(program)!r}))\n"
        "print(made.process.pid, made.folder, flush=True)\ntime.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pid, folder = child.stdout.readline().split()
    child.kill()
    child.wait()
    wait_until("PostgreSQL has ended", lambda: not Path("/proc", pid).exists())
    PostgresServer(program).close()  # another test process may have done so already
    assert not Path(folder).exists(), "the next server removes the files"


def test_choice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLON_TEST_DATABASE_URL", "postgres://u:secret@db/x")
    both = choose_stores(None)
    assert both.names == (SQLITE, POSTGRES)
    assert "db/x" in both.lines[0] and "secret" not in both.lines[0]
    assert {line.strip() for line in both.lines} >= NOT_YET
    assert choose_stores(SQLITE).names == (SQLITE,)
    assert choose_stores(POSTGRES).stores_of("any", on_both=True) == (POSTGRES,)


def test_missing_postgres_is_refused_in_ci_and_said_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYLON_TEST_DATABASE_URL", raising=False)
    monkeypatch.setattr(stores, "find_programs", dict)
    monkeypatch.setenv("PYLON_CI", "1")
    with pytest.raises(LookupError):
        choose_stores(None)
    monkeypatch.delenv("PYLON_CI")
    assert "not installed" in choose_stores(None).lines[0]
    with pytest.raises(LookupError):
        choose_stores(POSTGRES)
