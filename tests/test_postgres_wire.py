"""Sessions of `pylon.storage.postgres.wire`, on a real server: values, prepared statements, errors,
deadlines, and what a session is after each of them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from pylon.storage.postgres.parameters import bytea_of, bytea_text
from pylon.storage.postgres.wire import BlockingSession
from tests.support.wait import WAIT_S


def open_session(url: str, **options: object) -> BlockingSession:
    return BlockingSession(psycopg.connect(url, autocommit=True), **options)  # type: ignore[arg-type]


@pytest.fixture
def session(postgres_url: str) -> Iterator[BlockingSession]:
    opened = open_session(postgres_url)
    yield opened
    opened.close()


def count_prepared(session: BlockingSession) -> int:
    return int(session.execute("SELECT count(*) FROM pg_prepared_statements").get_value(0, 0) or 0)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("text", "grün \\ \"quoted\" 'x'", "grün \\ \"quoted\" 'x'"),
        ("text", "", ""),
        ("bigint", -(2**63), str(-(2**63))),
        ("float8", 0.1, "0.1"),
        ("float8", 5e-324, "5e-324"),
        ("float8", math.inf, "Infinity"),
        ("float8", -math.inf, "-Infinity"),
        ("float8", math.nan, "NaN"),
        ("boolean", True, "t"),
        ("boolean", False, "f"),
        ("text", "json as bytes: é".encode(), "json as bytes: é"),
        ("text", None, None),
    ],
)
def test_a_value_arrives_as_it_was_sent(
    session: BlockingSession, kind: str, value: object, text: str | None
) -> None:
    result = session.execute(f"SELECT $1::{kind}", [value])  # type: ignore[list-item]
    found = result.get_value(0, 0)
    assert (None if found is None else found.decode()) == text


def test_bytes_arrive_as_they_were_sent(session: BlockingSession) -> None:
    every_byte = bytes(range(256))
    result = session.execute("SELECT $1::bytea, $2::int", [every_byte, 7])
    assert bytea_of(result.get_value(0, 0) or b"") == every_byte
    assert result.get_value(0, 1) == b"7"


def test_an_array_arrives_as_it_was_sent(session: BlockingSession) -> None:
    texts = ["", "NULL", None, 'a"b', "c\\d", "{e,f}", "grün", " padded "]
    result = session.execute(
        "SELECT item FROM unnest($1::text[]) WITH ORDINALITY AS t(item, n) ORDER BY n", [texts]
    )
    found = [result.get_value(row, 0) for row in range(result.ntuples)]
    assert [None if item is None else item.decode() for item in found] == texts
    numbers = session.execute(
        "SELECT array_length($1::bigint[], 1), ($2::boolean[])[2], ($3::float8[])[1], $4::text[]",
        [[1, 2, 3], [True, False], [math.inf], []],
    )
    assert [numbers.get_value(0, n) for n in range(4)] == [b"3", b"f", b"Infinity", b"{}"]
    blobs = session.execute("SELECT ($1::bytea[])[2]", [[bytea_text(b"a"), bytea_text(b"\0\xff")]])
    assert bytea_of(blobs.get_value(0, 0) or b"") == b"\0\xff"


@pytest.mark.parametrize("text", ["a\0b", "\ud800", ["fine", "a\0b"], [b"a\0b"]])
def test_a_text_that_cannot_be_stored_is_refused_and_not_truncated(
    session: BlockingSession, text: object
) -> None:
    with pytest.raises(errors.CharacterNotInRepertoire):
        session.execute("SELECT $1::text", [text])  # type: ignore[list-item]
    assert session.execute("SELECT 1").get_value(0, 0) == b"1"


def test_a_statement_is_prepared_once(session: BlockingSession) -> None:
    for number in range(5):
        assert session.execute("SELECT $1::int + 1", [number]).get_value(0, 0) == (
            b"%d" % (number + 1)
        )
    assert count_prepared(session) == 2


def test_the_oldest_prepared_statement_is_closed_for_a_new_one(postgres_url: str) -> None:
    session = open_session(postgres_url, statements_kept=4)
    for number in range(12):
        session.execute(f"SELECT {number}")
    session.pipeline([(f"SELECT {number}, 'again'", ()) for number in range(12)])
    assert count_prepared(session) == 4
    session.close()


def test_a_prepared_statement_survives_a_change_of_its_table(session: BlockingSession) -> None:
    session.execute_script("CREATE TABLE t (id text); INSERT INTO t VALUES ('a')")
    assert session.execute("SELECT * FROM t").nfields == 1
    session.execute_script("ALTER TABLE t ADD COLUMN more text")
    assert session.execute("SELECT * FROM t").nfields == 2
    session.execute_script("DEALLOCATE ALL")
    assert session.execute("SELECT * FROM t").nfields == 2


def test_a_committed_pipeline_is_not_sent_again(session: BlockingSession) -> None:
    session.execute_script("CREATE TABLE t (id text)")
    session.execute("SELECT * FROM t")
    session.execute_script("ALTER TABLE t ADD COLUMN more text")
    outcome = session.try_pipeline([
        ("BEGIN", ()), ("INSERT INTO t VALUES ($1)", ["a"]), ("COMMIT", ()),
        ("SELECT * FROM t", ()),
    ])
    assert isinstance(outcome.error, errors.FeatureNotSupported)
    assert session.execute("SELECT count(*) FROM t").get_value(0, 0) == b"1"


def test_the_error_of_a_pipeline_belongs_to_its_statement(session: BlockingSession) -> None:
    session.execute_script("CREATE TABLE t (id text PRIMARY KEY)")
    outcome = session.try_pipeline([
        ("BEGIN", ()),
        ("INSERT INTO t VALUES ($1)", ["a"]),
        ("INSERT INTO t VALUES ($1)", ["a"]),
        ("SELECT 'a statement that is never reached'", ()),
        ("COMMIT", ()),
    ])
    assert isinstance(outcome.error, errors.UniqueViolation)
    assert outcome.error.diag.constraint_name == "t_pkey"
    assert len(outcome.results) == 2
    assert session.is_in_transaction
    session.execute("ROLLBACK")
    assert not session.is_in_transaction
    assert session.execute("SELECT count(*) FROM t").get_value(0, 0) == b"0"
    # Its preparation was skipped, so it must not be remembered.
    assert session.execute("SELECT 'a statement that is never reached'").ntuples == 1


@pytest.mark.parametrize("text", ["SELEC 1", "SELECT * FROM nothing_here", "SELECT 1; SELECT 2"])
def test_a_statement_that_cannot_be_prepared_fails_alone(
    session: BlockingSession, text: str
) -> None:
    for _ in range(2):
        outcome = session.try_pipeline([("SELECT 1", ()), (text, ()), ("SELECT 2", ())])
        assert isinstance(outcome.error, psycopg.ProgrammingError)
        assert len(outcome.results) == 1
    assert session.execute("SELECT 3").get_value(0, 0) == b"3"


def test_a_value_without_an_encoding_fails_at_its_statement(session: BlockingSession) -> None:
    outcome = session.try_pipeline([("SELECT 1", ()), ("SELECT $1::text", ["\0"])])
    assert isinstance(outcome.error, errors.CharacterNotInRepertoire)
    assert len(outcome.results) == 1


def test_a_pipeline_larger_than_all_buffers_comes_through(session: BlockingSession) -> None:
    large = "x" * 1_000_000
    results = session.pipeline([("SELECT $1::text || $2::text", [large, "y"])] * 40)
    assert [len(result.get_value(0, 0) or b"") for result in results] == [1_000_001] * 40


def test_a_slow_statement_is_cancelled_at_its_deadline(postgres_url: str) -> None:
    # A busy machine may need longer for a cancellation than a server would wait for it.
    session = open_session(postgres_url, cancel_wait_s=WAIT_S)
    began_s = time.monotonic()
    with pytest.raises(errors.QueryCanceled):
        session.pipeline([("SELECT 1", ()), ("SELECT pg_sleep(300)", ())], timeout_s=0.1)
    assert time.monotonic() - began_s < 300
    assert not session.is_broken
    assert session.execute("SELECT 1").get_value(0, 0) == b"1"
    session.close()


def test_a_session_that_may_not_wait_closes_its_connection(postgres_url: str) -> None:
    session = open_session(postgres_url, timeout_s=0.1, cancel_wait_s=0.0)
    with pytest.raises(errors.QueryCanceled):
        session.execute("SELECT pg_sleep(2)")
    assert session.is_broken
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")


def test_another_thread_cancels_a_statement(session: BlockingSession) -> None:
    timer = threading.Timer(0.2, session.cancel)
    timer.start()
    with pytest.raises(errors.QueryCanceled):
        session.execute("SELECT pg_sleep(30)")
    timer.join()
    assert session.execute("SELECT 1").get_value(0, 0) == b"1"


def test_a_lost_connection_is_an_operational_error(
    session: BlockingSession, postgres_url: str
) -> None:
    pid = int(session.execute("SELECT pg_backend_pid()").get_value(0, 0) or 0)
    other = open_session(postgres_url)
    other.execute("SELECT pg_terminate_backend($1)", [pid])
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT pg_sleep(5)")
    assert session.is_broken
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    other.close()


def test_a_stream_gives_all_rows_in_portions(session: BlockingSession) -> None:
    portions = list(
        session.stream("SELECT n FROM generate_series(1, $1) n", [2_500], portion_rows=1_000)
    )
    assert [portion.ntuples for portion in portions if portion.ntuples] == [1_000, 1_000, 500]


def test_a_statement_after_a_stream_gives_all_rows_at_once(session: BlockingSession) -> None:
    ten = "SELECT generate_series(1, 10)"
    session.execute(ten)
    for stop in (False, True):
        stream = session.stream("SELECT generate_series(1, 2500)", portion_rows=4)
        next(stream)
        if stop:
            stream.close()
        else:
            list(stream)
        assert session.execute(ten).ntuples == 10


def test_a_stream_that_is_closed_early_cancels_its_statement(session: BlockingSession) -> None:
    began_s = time.monotonic()
    stream = session.stream(
        "SELECT n, pg_sleep(0.001) FROM generate_series(1, 100000) n", portion_rows=10
    )
    assert next(iter(stream)).ntuples == 10
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began_s < 30
    assert session.execute("SELECT 1").get_value(0, 0) == b"1"


def test_a_failing_stream_raises_and_leaves_the_session_usable(session: BlockingSession) -> None:
    with pytest.raises(errors.DivisionByZero):
        list(session.stream("SELECT 1 / (3 - n) FROM generate_series(1, 5) n"))
    assert session.execute("SELECT 1").get_value(0, 0) == b"1"


def test_a_script_is_one_transaction(session: BlockingSession) -> None:
    session.execute_script("CREATE TABLE t (id text PRIMARY KEY)")
    with pytest.raises(errors.UniqueViolation):
        session.execute_script("INSERT INTO t VALUES ('a'); INSERT INTO t VALUES ('a')")
    assert session.execute("SELECT count(*) FROM t").get_value(0, 0) == b"0"


def test_notifications_of_a_listener_arrive(session: BlockingSession, postgres_url: str) -> None:
    session.execute("LISTEN news")
    assert session.notifications(0.0) == []
    other = open_session(postgres_url)
    other.pipeline([("SELECT pg_notify('news', $1)", [text]) for text in ("a", "b")])
    found = session.notifications(10.0)
    assert [note.extra for note in found] == [b"a", b"b"]
    other.close()


def test_a_cursor_of_psycopg_may_use_the_connection_between_two_calls(
    session: BlockingSession,
) -> None:
    session.execute("SELECT 1")
    assert session.conn.execute("SELECT 2").fetchone() == (2,)
    assert session.execute("SELECT 3").get_value(0, 0) == b"3"
