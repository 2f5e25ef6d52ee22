"""Queries that no index serves, on PostgreSQL: named once in the log, counted, and with the trigram
index that would help a pattern. The rules are those of `test_unindexed`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import psycopg
import pytest

from pylon import limits, metrics
from pylon.clock import SystemClock
from pylon.errors import QueryTimeout
from pylon.query.graph import GraphScope, parse_graph
from pylon.query.predicate import TRUE
from pylon.query.rows import parse_filter
from pylon.storage.interface import Reader
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.store import PostgresStore
from pylon.storage.postgres.wire import BlockingSession
from tests.support.measured import total
from tests.test_unindexed import APP, MESSAGE


@pytest.fixture
def store(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresStore]:
    """Readers of a table that counts as large."""
    session = BlockingSession(psycopg.connect(postgres_url, autocommit=True))
    prepare_store(session, APP, SystemClock())
    session.execute(
        'INSERT INTO "Message" (id, "roomId", "sentAt", text, "ownerId", _json, _seq) '
        "SELECT lpad(n::text, 40, '0'), 'r' || (n % 3), n, 't', 'u1', '{}', 1 "
        "FROM generate_series(1, 300) AS n"
    )
    session.close()
    monkeypatch.setattr(limits, "UNINDEXED_ROWS", 200)
    made = PostgresStore(postgres_url, APP, SystemClock())
    yield made
    made.close()


def ask(store: PostgresStore, body: dict[str, Any]) -> None:
    query = parse_filter(MESSAGE, body, 10)
    store.scan(lambda reader: reader.page("Message", query), inline=False)


def test_a_query_without_an_index_is_logged_once_and_counted(
    store: PostgresStore, capfd: pytest.CaptureFixture[str]
) -> None:
    before = total(metrics.UNINDEXED_QUERIES, index="text")
    for text in ("a", "b", "c"):
        ask(store, {"text": text})
    ask(store, {"$order": {"ownerId": "asc"}})
    served: list[dict[str, Any]] = [
        {"roomId": "r1", "$order": {"sentAt": "desc"}}, {}, {"id": "x"}, {"$after": {"id": "x"}},
    ]
    for body in served:
        ask(store, body)
    assert total(metrics.UNINDEXED_QUERIES, index="text") == before + 3
    logged = [line for line in capfd.readouterr().err.splitlines() if "query.unindexed" in line]
    assert len(logged) == 2
    assert "by_text" in logged[0] and '"a"' not in logged[0]  # no value of the client


def test_graphs_and_aggregates_are_judged_too(store: PostgresStore) -> None:
    before = total(metrics.UNINDEXED_QUERIES, index="ownerId")
    scope = GraphScope(lambda _: MESSAGE, {"Message": MESSAGE}, lambda _: TRUE, 100)
    nodes = parse_graph(scope, {"Message": {"where": {"ownerId": "x"}}})
    store.scan(lambda reader: reader.graph(nodes), inline=False)
    assert total(metrics.UNINDEXED_QUERIES, index="ownerId") == before + 1


def test_a_query_that_took_too_long_is_judged_and_small_tables_are_not(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = parse_filter(MESSAGE, {"text": "x"}, 10)

    def read(reader: Reader) -> None:
        reader.page("Message", query)
        raise QueryTimeout("it took too long")

    before = total(metrics.UNINDEXED_QUERIES)
    monkeypatch.setattr(limits, "UNINDEXED_ROWS", 10_000)
    ask(store, {"ownerId": "small"})
    assert total(metrics.UNINDEXED_QUERIES) == before
    monkeypatch.setattr(limits, "UNINDEXED_ROWS", 200)
    with pytest.raises(QueryTimeout):
        store.scan(read, inline=False)
    assert total(metrics.UNINDEXED_QUERIES) == before + 1
    gevent.sleep(0)
    ask(store, {"text": "x"})  # the connection is whole
    assert total(metrics.UNINDEXED_QUERIES) == before + 2
