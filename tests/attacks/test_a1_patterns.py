"""A1: patterns over long texts leave others their requests, and end when their time is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import orjson
import pytest

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.clock import ManualClock
from pylon.errors import LimitExceeded, QueryTimeout
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.query.matcher import matcher_of
from pylon.query.rows import Query, parse_filter
from pylon.storage.interface import Reader
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.pool import ReaderPool
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.live import LiveClient, LiveStage
from tests.support.measured import total
from tests.support.search import pages_manifest
from tests.support.server import ADMIN_TOKEN, ROLES, PylonServer
from tests.support.stage import MANIFEST as HUB_MANIFEST
from tests.support.storage import MANIFEST, NOTE, apply, insert, open_engine, row_id, update
from tests.support.wait import WAIT_S, wait_until

HARD = [f"{'a' * (300 + n)}b" for n in range(limits.HARD_PATTERNS)]
QUADRATIC = [f"{'a' * 15}{n}" for n in range(30)]  # fifteen partial matches at each place
LONG = "a" * 1_000_000


def either(patterns: list[str]) -> dict[str, Any]:
    return {"$or": [{"text": {"$like": pattern}} for pattern in patterns]}


def page(body: dict[str, Any]) -> Any:
    query = parse_filter(NOTE, body, 100)
    return lambda reader: reader.page("Note", query)


def rows_of(query: Query) -> Any:
    return lambda reader: reader.rows("Page", query)


def notes(folder: Path, *texts: str) -> ReaderPool:
    engine = open_engine(folder / "a.db")
    apply(engine, *[insert("Note", n, {"text": text}) for n, text in enumerate(texts, 1)])
    engine.close()
    return ReaderPool(folder / "a.db", MANIFEST)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReaderPool]:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", WAIT_S)  # a busy machine takes its time
    made = notes(tmp_path, *[LONG] * 4, *["a" * 4_000] * 30)
    yield made
    made.close()


def moved() -> float:
    return total(metrics.READS_MOVED)


@pytest.mark.parametrize("patterns", [HARD, QUADRATIC], ids=["hard", "quadratic"])
def test_others_are_served_while_patterns_meet_long_texts(
    pool: ReaderPool, patterns: list[str]
) -> None:
    scan = gevent.spawn(pool.scan, page(either(patterns)))
    served = 0
    while not scan.ready():
        assert pool.point(lambda reader: reader.get("Note", row_id(1))) is not None
        served += 1
        gevent.sleep(0)
    assert scan.get() == (0, b"[]")
    assert served > 10
    assert pool._inline.meter.calls == 0, "nothing of it ran where others wait"


def test_work_is_linear_in_texts_and_patterns(pool: ReaderPool) -> None:
    assert pool.scan(page(either(HARD))) == (0, b"[]")
    texts = 4 * len(LONG) + 30 * 4_000
    looked_at = sum(reader.meter.characters for reader in pool._scanners)
    assert texts * len(HARD) <= looked_at <= 3 * texts * len(HARD)


@pytest.mark.parametrize("patterns", [HARD, QUADRATIC], ids=["hard", "quadratic"])
def test_the_time_limit_holds_for_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patterns: list[str]
) -> None:
    """Sixty rows take seconds, and SQLite takes fewer steps than between two looks at the clock."""
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.05)
    pool = notes(tmp_path, *[LONG] * 60)
    seen: list[Reader] = []

    def read(reader: Reader) -> Any:
        seen.append(reader)
        return page(either(patterns))(reader)

    with pytest.raises(QueryTimeout):
        pool.scan(read)
    assert isinstance(seen[0], SqliteReader)
    assert seen[0].meter.characters < 60 * len(LONG) * len(patterns)
    assert pool.scan(page({"id": row_id(1)}))[0] == 1, "the connection is as good as before"
    pool.close()


def test_patterns_over_short_rows_run_inline_until_the_first_long_row(tmp_path: Path) -> None:
    pool = notes(tmp_path, "short", "also short")
    asked = page({"text": {"$like": "ALSO"}})
    before = moved()
    assert pool.scan(asked)[0] == 1
    assert moved() == before

    engine = open_engine(tmp_path / "a.db")
    apply(engine, update("Note", 1, {"text": "x" * limits.SHORT_ROW_BYTES}))
    wait_until("the reader has heard of it", lambda: pool.scan(asked)[0] and moved() > before)
    apply(engine, update("Note", 1, {"text": "short again"}))
    engine.close()
    before = moved()
    assert pool.scan(asked)[0] == 1
    assert moved() == before + 1, "what a text once was is not looked for"
    pool.close()
    open_engine(tmp_path / "a.db").close()  # a start looks at the rows
    pool = ReaderPool(tmp_path / "a.db", MANIFEST)
    assert pool.scan(asked)[0] == 1
    assert moved() == before + 1
    pool.close()


def test_one_slow_pattern_sends_other_patterns_of_its_entity_to_the_pool(tmp_path: Path) -> None:
    """Else each new form of a filter would take its time where others wait."""
    pool = notes(tmp_path, *["a" * 700] * 400)
    before = moved()
    assert pool.scan(page({"text": {"$like": "b"}}))[0] == 0
    assert moved() == before
    assert pool.scan(page(either(QUADRATIC)))[0] == 0
    assert moved() == before + 1
    assert pool.scan(page({"text": {"$like": "b"}}))[0] == 0
    assert moved() == before + 2
    assert pool.scan(page({"text": "b"}))[0] == 0
    assert moved() == before + 2, "comparisons stay where they were"
    pool.close()


def test_a_full_text_match_never_runs_inline(tmp_path: Path) -> None:
    """FTS5 may work for long between two of the steps at which SQLite looks at the clock."""
    manifest = pages_manifest()
    named = manifest.by_name["Page"]
    SqliteEngine.open(
        tmp_path / "a.db", manifest, compile_rules(manifest), ManualClock(), "normal"
    ).close()
    pool = ReaderPool(tmp_path / "a.db", manifest)
    before = moved()
    for body in ({"$search": "pump"}, {"$search": "pump", "$order": {"title": "asc"}},
                 {"$or": [{"$search": "pump"}, {"rank": 1}]}):
        assert pool.scan(rows_of(parse_filter(named, body, 10))) == []
    assert moved() == before + 3
    pool.close()


def test_a_filter_has_few_hard_patterns_and_many_others() -> None:
    parse_filter(NOTE, either(HARD), 100)
    parse_filter(NOTE, either(["the quick brown fox"] * 20), 100)
    with pytest.raises(LimitExceeded, match="repeat their first character"):
        parse_filter(NOTE, either([*HARD, HARD[0]]), 100)
    url = "https://example.com/some_path_and_more?" + "x=y&" * 200
    parse_filter(NOTE, either([url, f"{url}%{url}"]), 100)
    parse_filter(NOTE, either(["z" * limits.LIKE_CHARS]), 100)
    with pytest.raises(LimitExceeded, match="all together"):
        parse_filter(NOTE, either(["z" * limits.LIKE_CHARS, "y"]), 100)
    with pytest.raises(LimitExceeded, match="around a _"):
        parse_filter(NOTE, either([f"a_{url * 2}"]), 100)


# --- Live queries --------------------------------------------------------------------------------

ADA = AuthContext(user_id="ada")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LiveStage]:
    made = LiveStage(tmp_path, parse_manifest(orjson.dumps(HUB_MANIFEST).decode(), "manifest.json"))
    yield made
    made.close()


def test_patterns_of_the_network_with_most_of_them_end_when_texts_are_long(
    world: LiveStage
) -> None:
    attacker, honest = LiveClient(world, ADA), LiveClient(world, ADA)
    attacker.connection.address, honest.connection.address = "192.0.2.1", "192.0.2.2"
    for number in range(30):
        attacker.subscribe(f"s{number}", "Public", {"text": {"$like": f"z{number}"}})
    honest.subscribe("mine", "Public", {"text": {"$like": "needle"}})
    text = "x" * (limits.LIVE_PATTERN_BYTES // 16) + "needle"
    world.write(world.insert("Public", row_id(1), text=text))
    world.publish()
    attacker.listen()
    honest.listen()
    assert set(honest.sets["mine"].rows) == {row_id(1)}
    assert honest.errors == []
    assert {error["code"] for error in attacker.errors} == {"LIMIT_EXCEEDED"}
    assert len(attacker.errors) >= 15
    assert {error["sub_id"] for error in attacker.errors}.isdisjoint(attacker.sets)


def test_a_live_query_that_catches_up_looks_through_so_much_text_and_no_more(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_PATTERN_BYTES", 10_000)
    client = LiveClient(world, ADA)

    def insert_notes(first: int) -> None:
        world.write(*[
            world.insert("Public", row_id(n), text="y" * 2_000) for n in range(first, first + 8)
        ])
        world.publish()

    for sub_id, body in (("plain", {"text": "z"}), ("pattern", {"text": {"$like": "z"}})):
        world.store.meanwhile = lambda: insert_notes(1 + 8 * len(client.sets))
        client.subscribe(sub_id, "Public", body)
    assert [(error["sub_id"], error["code"]) for error in client.errors] == [
        ("pattern", "LIMIT_EXCEEDED")
    ]
    client.subscribe("pattern", "Public", {"text": {"$like": "z"}})
    insert_notes(100)
    client.listen()
    assert len(client.errors) == 1, "each change alone is short enough"


def test_the_weight_of_a_filter_is_that_of_its_patterns() -> None:
    def weight(body: dict[str, Any]) -> int:
        return matcher_of(NOTE, body).weight

    assert weight({"text": "x"}) == 0
    assert weight({"text": {"$like": "x"}}) == 1
    assert weight({"$or": [{"text": {"$like": "x"}}, {"$and": [{"text": {"$like": "y%z"}}]}]}) == 2
    assert weight({"text": {"$like": "a_b"}}) == 8
    assert weight({"text": {"$like": "_a" * 400}}) == 58
    assert weight({"text": {"$like": HARD[0]}}) == 4


# --- A whole server ------------------------------------------------------------------------------


def test_no_worker_is_restarted_by_a_long_row_and_a_long_pattern(server: PylonServer) -> None:
    """At 21ddc3d http and ws workers were aborted, with all their sockets."""
    row = {"n": 1, "sender": "a" * 900_000}
    made = server.request("POST", "/api/entities/Tick", row, token=ADMIN_TOKEN)
    assert made[0] == 201
    before = {role: server.pids(role) for role in ROLES}
    for pattern in (f"{'a' * 9_990}b", f"{'a' * 499}_{'a' * 499}b"):
        body = {"sender": {"$like": pattern}}
        assert server.request("POST", "/api/query/Tick", body)[:2] == (200, [])
    assert server.request("GET", f"/api/entities/Tick/{made[1]['id']}")[0] == 200
    assert {role: server.pids(role) for role in ROLES} == before
