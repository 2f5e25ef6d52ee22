"""A7: callers share scarce resources: connections that scan, snapshots, merges of documents."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from pylon import limits, metrics
from pylon.api.sync import pull as pull_resource
from pylon.changelog import pull
from pylon.errors import QueryTimeout
from pylon.query.rows import Query
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient
from tests.support.manifests import notes_app
from tests.support.measured import total
from tests.support.wait import run_greenlets_until
from workers import merge_sandbox

ATTACKER, HONEST = "192.0.2.1", "192.0.2.2"
PATIENCE_S = 5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, notes_app()) as made:
        yield made


def ticks(server: ApiStage, count: int) -> None:
    sent = [
        {"op": "insert", "entity": "Tick", "data": {"n": n, "sender": "x"}} for n in range(count)
    ]
    for start in range(0, count, limits.BATCH_OPS):
        batch = {"operations": sent[start : start + limits.BATCH_OPS]}
        assert server.call("POST", "/api/batch", batch, ADMIN_TOKEN).json["failed"] == 0


class SlowSorts:
    """Queries with an offset take until `end` is set, in the threads of the pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.end = threading.Event()
        self.begun = 0
        monkeypatch.setattr(SqliteReader, "page", self._slow(SqliteReader.page))

    def _slow(self, page: Any) -> Any:
        def slow(reader: SqliteReader, entity: str, query: Query) -> Any:
            if query.offset:
                self.begun += 1
                self.end.wait(60)
            return page(reader, entity, query)

        return slow


def test_sorts_of_one_address_leave_connections_to_others(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks(server, 10)
    store = server.services.data.store
    # All scans go to the threads, as those of a large table do.
    monkeypatch.setattr(
        store, "_inline", _NeverInline(store._inline)  # type: ignore[attr-defined]
    )
    sorts = SlowSorts(monkeypatch)

    def sort(number: int) -> int:
        body = {"$order": {"n": "desc"}, "$offset": 1, "$limit": number + 1}
        answer = server.call("POST", "/api/query/Tick", body, remote_addr=ATTACKER)
        return answer.status_code

    attack = [gevent.spawn(sort, number) for number in range(20)]
    try:
        run_greenlets_until("sorts run", lambda: sorts.begun == limits.SCANS_PER_CALLER)
        with gevent.Timeout(PATIENCE_S):
            for number in range(3):
                answer = server.call(
                    "GET", f"/api/entities/Tick?limit={number + 1}", remote_addr=HONEST
                )
                assert answer.json["count"] == number + 1
        assert 0 < sorts.begun <= limits.SCANS_PER_CALLER
    finally:
        sorts.end.set()
        gevent.joinall(attack, timeout=30)
    assert [greenlet.value for greenlet in attack] == [200] * 20


class _NeverInline:
    """A reader whose scans always take longer than others can wait."""

    def __init__(self, reader: SqliteReader) -> None:
        self._reader = reader

    def within(self, timeout_s: float, read: Any) -> Any:
        raise QueryTimeout("longer")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def test_scans_that_wait_are_bounded_for_each_caller(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = server.services.data.store
    monkeypatch.setattr(
        store, "_inline", _NeverInline(store._inline)  # type: ignore[attr-defined]
    )
    monkeypatch.setattr(limits, "ADMISSION_WAITING_PER_CALLER", 4)
    sorts = SlowSorts(monkeypatch)

    def sort(number: int) -> Any:
        body = {"$offset": 1, "$limit": number + 1}
        return server.call("POST", "/api/query/Tick", body, remote_addr=ATTACKER)

    refused_before = total(metrics.ADMISSION_REFUSED, queue="scan")
    attack = [gevent.spawn(sort, number) for number in range(20)]
    taken = limits.SCANS_PER_CALLER + limits.ADMISSION_WAITING_PER_CALLER
    run_greenlets_until(
        "the others are refused", lambda: sum(each.ready() for each in attack) == 20 - taken
    )
    sorts.end.set()
    gevent.joinall(attack, timeout=30)
    statuses = [greenlet.value.status_code for greenlet in attack]
    assert statuses.count(200) == taken
    assert statuses.count(503) == 20 - statuses.count(200)
    assert all(
        greenlet.value.headers["retry-after"] for greenlet in attack
        if greenlet.value.status_code == 503
    )
    assert total(metrics.ADMISSION_REFUSED, queue="scan") - refused_before == statuses.count(503)


def test_snapshots_let_the_loop_go_on_after_each_piece(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight clients pull everything: between two turns of the loop one piece is made."""
    ticks(server, 2_000)
    monkeypatch.setattr(limits, "SNAPSHOT_PAGE_ROWS", 200)
    monkeypatch.setattr(pull, "_PIECE_BYTES", 1)
    made: list[int] = []  # the turn of each piece
    turn = 0
    joined = pull._as_insert
    monkeypatch.setattr(
        pull, "_as_insert", lambda *args: (made.append(turn), joined(*args))[1]
    )

    def count_turns() -> None:
        nonlocal turn
        while True:
            gevent.sleep(0.000_1)
            turn += 1

    clock = gevent.spawn(count_turns)
    pulls = [
        gevent.spawn(server.call, "GET", "/api/sync/pull?since=0", remote_addr=ATTACKER)
        for _ in range(8)
    ]
    gevent.joinall(pulls, timeout=60)
    clock.kill()
    assert [len(greenlet.value.json["changes"]) for greenlet in pulls] == [2_000] * 8
    most_rows = max(made.count(number) for number in set(made))
    assert most_rows <= 3 * 200  # the counting turn and the loop's are not quite the same
    assert len(set(made)) >= 8 * 10 // 3


def test_callers_of_snapshots_have_their_turns_one_after_the_other(server: ApiStage) -> None:
    ticks(server, 1_000)
    turns = server.services.data.turns
    order: list[str] = []

    def answer(caller: str) -> None:
        for _ in turns.paced(iter([b"x"] * 10), caller):
            order.append(caller)

    made = [gevent.spawn(answer, "ip:attacker") for _ in range(20)]
    made.append(gevent.spawn(answer, "ip:honest"))
    gevent.joinall(made, timeout=30)
    assert order.index("ip:honest") <= 22  # those who began before it, then turn about
    last = len(order) - order[::-1].index("ip:honest")
    assert last <= 22 + 2 * 10


@pytest.mark.usefixtures("processes")
def test_push_to_a_row_that_is_not_there_is_not_merged(server: ApiStage) -> None:
    note = {"title": "t", "ownerId": "ada", "shared": True}
    row_id = server.call("POST", "/api/entities/Note", note, ADMIN_TOKEN).json["id"]
    hidden = server.call(
        "POST", "/api/entities/Note", {**note, "shared": False}, ADMIN_TOKEN
    ).json["id"]
    client = LoroClient()
    client.doc.get_map("row").insert("title", "x")
    body = {"update": client.update().hex()}
    bob = server.user("bob")
    results = ("good", "refused", "died", "silent")
    before = [total(metrics.DOCUMENT_MERGE_CHECKS, result=result) for result in results]
    for target, status in (("none", 404), (hidden, 404), (row_id, 403)):
        for _ in range(10):
            answer = server.call("POST", f"/api/crdt/Note/{target}", body, bob)
            assert answer.status_code == status
    assert [total(metrics.DOCUMENT_MERGE_CHECKS, result=result) for result in results] == before
    assert server.call(
        "POST", f"/api/crdt/Note/{row_id}", body, server.user("ada")
    ).status_code == 200


@pytest.mark.usefixtures("processes")
def test_merges_of_one_caller_leave_a_process_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    doc = LoroClient()
    doc.doc.get_map("row").insert("a", "b")
    update = doc.update()
    made = merge_sandbox.MergeSandbox()
    hung = "import os, sys, time; os.write(1, b'\\0\\0\\0\\1\\xc0'); time.sleep(60)"
    try:
        with monkeypatch.context() as patched:
            patched.setattr(merge_sandbox, "_COMMAND", (sys.executable, "-c", hung))
            attack = [
                gevent.spawn(made.check_merge, (), update, "user:attacker") for _ in range(10)
            ]
            gevent.sleep(0.05)
        with gevent.Timeout(PATIENCE_S * 4):
            for _ in range(5):
                made.check_merge((), update, "user:honest")
        assert not any(greenlet.ready() for greenlet in attack)
    finally:
        gevent.killall(attack)
        made.close()


def test_long_deltas_are_made_in_different_turns_of_the_loop(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks(server, 1_000)
    first = server.services.data.store.point(lambda reader: reader.head_seq()) - 900
    made: list[int] = []  # the turn of each delta
    turn = 0
    delta = pull_resource.build_delta
    monkeypatch.setattr(
        pull_resource, "build_delta", lambda *args: (made.append(turn), delta(*args))[1]
    )

    def count_turns() -> None:
        nonlocal turn
        while True:
            gevent.sleep(0.000_1)
            turn += 1

    def follow(number: int) -> None:
        for page in range(10):
            since = first + 10 * number + page  # no two alike, so none is remembered
            answer = server.call("GET", f"/api/sync/pull?since={since}", remote_addr=ATTACKER)
            assert len(answer.json["changes"]) > 500

    clock = gevent.spawn(count_turns)
    pulls = [gevent.spawn(follow, number) for number in range(8)]
    gevent.joinall(pulls, timeout=60, raise_error=True)
    clock.kill()
    assert len(made) == 80
    assert len(set(made[8:])) >= 24  # the first of each come at once
