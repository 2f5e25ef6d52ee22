"""Which reads may switch greenlets, and what callers do about it (`interface.Store`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import orjson
import pytest

from pylon import config as settings
from pylon.app import build_app
from pylon.auth.session_cache import SessionCache
from pylon.auth.tokens import new_session_token, session_id_of
from pylon.auth_context import ADMIN
from pylon.changelog.feed import Feed
from pylon.changelog.pull import build_delta
from pylon.clock import ManualClock, SystemRandom
from pylon.storage.interface import Reader, Store, read_settled
from pylon.storage.ops import DropSession, PutSession
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.pool import ReaderPool
from tests.support.remote_store import RemoteStore
from tests.support.storage import MANIFEST, RULES, apply, row_id, task


@pytest.fixture
def pool(engine: SqliteEngine, tmp_path: Path) -> Iterator[ReaderPool]:
    pool = ReaderPool(tmp_path / "a.db", MANIFEST)
    yield pool
    pool.close()


READS: dict[str, Callable[[Reader], object]] = {
    "get": lambda reader: reader.get("Task", row_id(1)),
    "version": lambda reader: reader.get_version("Task", row_id(1)),
    "lookup": lambda reader: reader.lookup("Task", "slug", "none"),
    "head": lambda reader: reader.head_seq(),
    "oldest": lambda reader: reader.oldest_seq(),
    "events": lambda reader: reader.events_after(0, 10),
    "newest": lambda reader: reader.newest_events(10),
    "void": lambda reader: reader.void_ranges(),
    "session": lambda reader: reader.session("none"),
    "ends": lambda reader: reader.family_ends(["none"]),
    "document": lambda reader: reader.document("Task", row_id(1)),
    "updates": lambda reader: reader.document_updates(0, 10),
    "shard": lambda reader: reader.shard("none"),
    "data_version": lambda reader: reader.data_version(),
}


@pytest.mark.parametrize("name", READS)
def test_an_inline_read_never_switches(
    engine: SqliteEngine, pool: ReaderPool, name: str
) -> None:
    apply(engine, task(1))
    assert pool.local_reads
    answers: list[object] = []
    # In the hub's own greenlet any switch raises BlockingSwitchOutError.
    hub = gevent.get_hub()
    hub.loop.run_callback(lambda: answers.append(pool.point_inline(READS[name])))
    switches: list[object] = []
    other = gevent.spawn(lambda: switches.append(pool.point_inline(READS[name])))
    other.join()
    assert len(answers) == len(switches) == 1 and answers == switches


def test_a_settled_read_is_made_again_when_the_memory_has_moved(pool: ReaderPool) -> None:
    store = RemoteStore(pool)
    stamp, reads = 0, 0

    def move() -> None:
        nonlocal stamp
        stamp += 1

    def read(reader: Reader) -> int:
        nonlocal reads
        reads += 1
        return stamp

    store.meanwhile = move
    assert read_settled(store, read, lambda: stamp) == 1
    assert reads == 2


def test_a_revocation_during_a_look_up_is_not_forgotten(
    engine: SqliteEngine, pool: ReaderPool
) -> None:
    clock = ManualClock()
    token = new_session_token(SystemRandom())
    apply(engine, PutSession(session_id_of(token), "ada", False, 0, 0, ""))
    store = RemoteStore(pool)
    cache: SessionCache[str] = SessionCache(
        build_app(settings.load({}).config, MANIFEST), store, clock
    )

    def revoke() -> None:
        apply(engine, DropSession(session_id_of(token)))
        cache.forget()  # as the signal does

    store.meanwhile = revoke
    assert cache.look_up(token, token).auth.user_id is None
    assert cache.find(token) is None


def test_pulls_that_overlap_miss_nothing(engine: SqliteEngine, pool: ReaderPool) -> None:
    store: Store = RemoteStore(pool)
    feed = Feed(store)
    pulled: dict[int, list[int]] = {}

    def follow(number: int) -> None:
        since, seqs = 0, []
        while since < 60:
            body = orjson.loads(build_delta(feed, RULES, ADMIN, since).body)
            seqs += [change["seq"] for change in body["changes"]]
            since = body["cursor"]["last_seq"]
            gevent.sleep(0)
        pulled[number] = seqs

    followers = [gevent.spawn(follow, number) for number in range(8)]
    for first in range(1, 61, 3):
        apply(engine, *[task(n) for n in range(first, first + 3)])
        gevent.sleep(0)
    with gevent.Timeout(30):
        gevent.joinall(followers, raise_error=True)
    assert pulled == {number: list(range(1, 61)) for number in range(8)}


def test_pulls_that_overlap_read_a_commit_once(
    engine: SqliteEngine, pool: ReaderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(RemoteStore(pool))
    read_unread = Feed._read_unread
    reads: list[int] = []

    def count(self: Feed, reader: Reader) -> object:
        reads.append(1)
        return read_unread(self, reader)

    monkeypatch.setattr(Feed, "_read_unread", count)
    apply(engine, *[task(n) for n in range(1, 4)])
    jobs = [gevent.spawn(feed.head) for _ in range(20)]
    with gevent.Timeout(30):
        gevent.joinall(jobs, raise_error=True)
    assert {job.value for job in jobs} == {3}
    assert len(reads) == 1
