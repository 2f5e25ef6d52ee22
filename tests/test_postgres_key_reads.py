"""Reads of rows by their ids over the pipe (`pylon.storage.postgres.key_reads`), on a real server:
those of one turn are one statement, and each has the answer that it would have alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gevent
import psycopg
import pytest
from psycopg import errors

from pylon import limits
from pylon.clock import SeededRandom, SystemClock
from pylon.errors import Unavailable
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.query.predicate import TRUE, Column, Compare, Literal, Predicate
from pylon.storage.postgres.connect import Limits, open_session
from pylon.storage.postgres.functions import FUNCTIONS
from pylon.storage.postgres.key_reads import KeyStatement, Row
from pylon.storage.postgres.parameters import Parameter
from pylon.storage.postgres.pending_statements import PipeRefused
from pylon.storage.postgres.pipe import Pipe
from pylon.storage.postgres.reader import PostgresReader
from pylon.storage.postgres.reads import select_by_id
from pylon.storage.postgres.schema import ddl
from pylon.storage.postgres.wire import BlockingSession

CLOCK = SystemClock()
VALUES = select_by_id("t", "value")
ODD_IDS = ["", "NULL", "null", '"', "\\", "{}", "a,b", "'", "é", "\u2028", "日本", " a ", "\\x41"]
NOTE = Entity(
    "Note",
    (Field("owner", FieldType.STRING, False, False), Field("rank", FieldType.INT, False, False)),
    (Index("by_owner", ("owner",), False),),
)


def connect(url: str, statement_ms: int = 2_000) -> BlockingSession:
    return open_session(
        url, "reader", "test", CLOCK, Limits(statement_ms=statement_ms), writes=False
    )


@pytest.fixture
def session(postgres_url: str) -> Iterator[BlockingSession]:
    made = connect(postgres_url)
    made.execute_script(
        'CREATE TABLE t (id text COLLATE "C" PRIMARY KEY, value text);'
        "INSERT INTO t SELECT 'id' || n, n FROM generate_series(0, 999) AS n"
    )
    yield made
    made.close()


@pytest.fixture
def pipe(postgres_url: str, session: BlockingSession) -> Iterator[Pipe]:
    made = Pipe(partial(connect, postgres_url), CLOCK, SeededRandom(1))
    made.open()
    yield made
    made.close()


@pytest.fixture
def texts(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that the pipe sends from now on."""
    send, found = pipe._send, []

    def send_noted(pgconn: Any, question: Any) -> None:
        found.append(question.text)
        send(pgconn, question)

    monkeypatch.setattr(pipe, "_send", send_noted)
    return found


def read_all(
    pipe: Pipe, statement: KeyStatement, keys: Sequence[str],
    parameters: Sequence[Sequence[Parameter]] | None = None,
) -> list[Row | Exception | None]:
    """Read in one turn of the event loop; what each read returned or raised."""
    def read(number: int) -> Row | Exception | None:
        try:
            return pipe.read_by_key(
                statement, keys[number], () if parameters is None else parameters[number]
            )
        except Exception as error:  # noqa: BLE001  the tests judge it
            return error

    jobs = [gevent.spawn(read, number) for number in range(len(keys))]
    with gevent.Timeout(60):
        gevent.joinall(jobs, raise_error=True)
    return [job.value for job in jobs]


def test_reads_of_one_turn_are_one_statement_and_each_gets_its_own_row(
    pipe: Pipe, texts: list[str]
) -> None:
    keys = ["id3", "absent", "id1", "id3", "id2", "gone", "id3"]
    assert read_all(pipe, VALUES, keys) == [
        (b"3",), None, (b"1",), (b"3",), (b"2",), None, (b"3",)
    ]
    assert texts == [VALUES.many]
    assert read_all(pipe, VALUES, ["id1", "absent"]) == [(b"1",), None]
    assert texts[1:] == [VALUES.one] * 2, "few reads go alone"


def test_a_statement_has_a_bounded_number_of_keys(pipe: Pipe, texts: list[str]) -> None:
    keys = [f"id{number}" for number in range(1_000)]
    assert read_all(pipe, VALUES, keys) == [(b"%d" % number,) for number in range(1_000)]
    assert len(texts) == math.ceil(1_000 / limits.KEY_READS_OF_STATEMENT)


def test_every_text_is_found_as_an_id(pipe: Pipe, session: BlockingSession) -> None:
    for row_id in ODD_IDS:
        session.execute("INSERT INTO t VALUES ($1, $1)", [row_id])
    assert read_all(pipe, VALUES, ODD_IDS) == [(row_id.encode(),) for row_id in ODD_IDS]


def test_a_text_that_no_row_can_have_fails_its_own_read_only(pipe: Pipe) -> None:
    found = read_all(pipe, VALUES, ["id1", "a\0", "id2", "\ud800", "id3"])
    assert [found[n] for n in (0, 2, 4)] == [(b"1",), (b"2",), (b"3",)]
    assert all(isinstance(found[n], errors.CharacterNotInRepertoire) for n in (1, 3))


def test_reads_with_other_parameters_share_no_statement(pipe: Pipe, texts: list[str]) -> None:
    """Python holds 1, 1.0 and True for equal, and NaN for unequal to itself."""
    statement = KeyStatement(
        "SELECT value, $2::text FROM t WHERE id = $1",
        "SELECT id, value, $2::text FROM t WHERE id = ANY($1::text[])",
    )
    values: list[Parameter] = [1, True, 1.0, "1", 0.0, -0.0, math.nan, math.nan, None, "", b"x"]
    sent = [b"1", b"t", b"1.0", b"1", b"0.0", b"-0.0", b"NaN", b"NaN", None, b"", b"x"]
    found = read_all(
        pipe, statement, ["id1"] * 4 * len(values), [(value,) for value in values] * 4
    )
    assert found == [(b"1", text) for text in sent] * 4
    # 1 and "1" are sent alike. Bytes are sent in another format, and alone.
    assert texts.count(statement.many) == 8 and texts.count(statement.one) == 4


def test_an_error_that_one_row_causes_fails_the_reads_of_this_row_only(
    pipe: Pipe, texts: list[str]
) -> None:
    inverse = select_by_id("t", "100 / value::int")
    keys = ["id0", "id1", "absent", "id2", "id0", "id4"]
    for _ in range(2):
        found = read_all(pipe, inverse, keys)
        assert [found[n] for n in (1, 2, 3, 5)] == [(b"100",), None, (b"50",), (b"25",)]
        assert all(isinstance(found[n], errors.DivisionByZero) for n in (0, 4))
    assert {inverse.many, inverse.one} == set(texts)


def test_reads_that_run_into_the_limit_are_refused_and_go_alone_later(
    postgres_url: str, session: BlockingSession
) -> None:
    pipe = Pipe(partial(connect, postgres_url, 300), CLOCK, SeededRandom(1))
    pipe.open()
    slow = select_by_id("t", "CASE value WHEN '7' THEN pg_sleep(5)::text ELSE value END")
    found = read_all(pipe, slow, ["id1", "id7", "id2", "absent"])
    assert all(isinstance(error, PipeRefused) and error.was_slow for error in found)
    assert read_all(pipe, slow, ["id1", "id2", "id3", "absent"]) == [
        (b"1",), (b"2",), (b"3",), None
    ]
    found = read_all(pipe, slow, ["id1", "id7"])
    assert found[0] == (b"1",) and isinstance(found[1], PipeRefused)
    began_s = CLOCK.monotonic_s()
    assert isinstance(read_all(pipe, slow, ["id1"])[0], PipeRefused)
    assert CLOCK.monotonic_s() - began_s < 0.2, "at once"
    pipe.close()


def test_a_killed_read_takes_nobody_elses_row(pipe: Pipe) -> None:
    jobs = [gevent.spawn(pipe.read_by_key, VALUES, f"id{number}") for number in range(100)]
    gevent.sleep(0)
    for job in jobs[::3]:
        job.kill(block=False)
    gevent.joinall(jobs, timeout=60)
    assert [job.value for number, job in enumerate(jobs) if number % 3] == [
        (b"%d" % number,) for number in range(100) if number % 3
    ]
    assert pipe.read_by_key(VALUES, "id1") == (b"1",)


def test_no_more_reads_wait_than_the_bound(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POINT_READS_WAITING", 50)
    for _ in range(2):
        found = read_all(pipe, VALUES, ["id1"] * 55)
        assert found.count((b"1",)) == 50
        assert sum(isinstance(error, Unavailable) for error in found) == 5


def lose_before_it_sends(pipe: Pipe, session: BlockingSession, pid: int) -> None:
    pipe._lose("the server closed the connection")


def lose_while_they_wait(pipe: Pipe, session: BlockingSession, pid: int) -> None:
    gevent.sleep(0)
    session.execute("SELECT pg_terminate_backend($1)", [pid])


def close(pipe: Pipe, session: BlockingSession, pid: int) -> None:
    pipe.close()


@pytest.mark.parametrize("end", [lose_before_it_sends, lose_while_they_wait, close])
def test_all_reads_fail_when_the_connection_ends(
    pipe: Pipe, session: BlockingSession, end: Callable[[Pipe, BlockingSession, int], None]
) -> None:
    pid = int(pipe.execute("SELECT pg_backend_pid()").get_value(0, 0) or 0)
    slow = select_by_id("t", "pg_sleep(0.5), value")
    jobs = [gevent.spawn(pipe.read_by_key, slow, f"id{number}") for number in range(10)]
    gevent.spawn(end, pipe, session, pid)
    gevent.joinall(jobs, timeout=30)
    assert all(isinstance(job.exception, psycopg.OperationalError) for job in jobs)
    assert pipe._waiting == 0


def test_a_read_fails_that_cannot_be_sent_alone_after_an_error(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    inverse = select_by_id("t", "100 / value::int")
    send = pipe._send

    def send_groups_only(pgconn: Any, question: Any) -> None:
        if question.text == inverse.one:
            raise psycopg.OperationalError("the server closed the connection")
        send(pgconn, question)

    monkeypatch.setattr(pipe, "_send", send_groups_only)
    found = read_all(pipe, inverse, ["id0", "id1", "id2"])
    assert all(isinstance(error, psycopg.OperationalError) for error in found)


# --- The reader -----------------------------------------------------------------------------


@pytest.fixture
def notes(session: BlockingSession) -> BlockingSession:
    index = ddl.create_manifest_index(NOTE, NOTE.indexes[0])
    for text in (*FUNCTIONS, ddl.create_table(NOTE), index):
        session.execute_script(text)
    session.execute_script(
        'INSERT INTO "Note" (id, owner, rank, _json, _seq) '
        "SELECT 'n' || n, 'u' || n % 3, n, '{\"rank\":' || n || '}', n "
        "FROM generate_series(1, 20000) AS n"
    )
    session.execute_script('ANALYZE "Note"')
    return session


def test_each_caller_gets_what_its_policy_allows(pipe: Pipe, notes: BlockingSession) -> None:
    manifest = Manifest("test", "1", (NOTE,))
    shared, alone = (PostgresReader(s, manifest, CLOCK) for s in (pipe, notes))
    draws = random.Random(1)
    rules: list[Predicate] = [TRUE, *(
        Compare("=", Column("owner"), Literal(f"u{number}")) for number in range(4)
    ), Compare(">", Column("rank"), Literal(10_000))]
    asked = [
        (f"n{draws.choice([draws.randrange(60), draws.randrange(9_990, 10_010), 30_000])}",
         draws.choice(rules))
        for _ in range(400)
    ]
    jobs = [gevent.spawn(shared.get_version, "Note", *each) for each in asked]
    jobs += [gevent.spawn(shared.get, "Note", row_id) for row_id, _ in asked]
    with gevent.Timeout(60):
        gevent.joinall(jobs, raise_error=True)
    expected: list[Any] = [alone.get_version("Note", *each) for each in asked]
    expected += [alone.get("Note", row_id) for row_id, _ in asked]
    assert [job.value for job in jobs] == expected
    assert {type(found) for found in expected[:400]} == {tuple, type(None)}
    assert shared.get("Note", "a\0") is None


def test_the_server_finds_the_rows_of_many_ids_by_their_ids(notes: BlockingSession) -> None:
    """A policy must not make it read all rows of one owner."""
    statement = select_by_id('"Note"', "_json, _seq", '"owner" = ?')
    notes.execute_script("SET plan_cache_mode = force_generic_plan")
    notes.execute_script(f"PREPARE many (text[], text) AS {statement.many}")
    (result,) = notes.execute_script("EXPLAIN EXECUTE many ('{n1,n2,n3,n4}', 'u1')")
    plan = "\n".join((result.get_value(n, 0) or b"").decode() for n in range(result.ntuples))
    assert "on \"Note_pkey\"" in plan or "using \"Note_pkey\"" in plan, plan
    assert "by_owner" not in plan and "Seq Scan" not in plan
