"""A process that outlives a promotion: what it holds of the lost history is given to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import limits
from pylon.changelog.feed import Feed
from pylon.clock import ManualClock
from pylon.errors import ResyncRequired
from tests.support import stores
from tests.support.storage import MANIFEST, apply, open_engine, task

Servers = tuple["Server", "Server"]


class Server:
    """A database with the tasks that have a number."""

    def __init__(self, path: Path, *numbers: int) -> None:
        self.path, self.clock = path, ManualClock()
        self.engine = open_engine(path, self.clock)
        self.pool = stores.backend_at(path).open_readers(MANIFEST, self.clock)
        for number in numbers:
            apply(self.engine, task(number))

    def open_epoch(self, void_from: int) -> int:
        """Open an epoch, write a task, and return the first seq of the epoch."""
        self.engine.close()
        first_seq = stores.open_epoch(self.path, "promotion", self.clock, void_from=void_from)
        self.engine = open_engine(self.path, self.clock)
        apply(self.engine, task(4))
        return first_seq

    def close(self) -> None:
        self.pool.close()
        self.engine.close()


@pytest.fixture
def servers(tmp_path: Path, tested_store: stores.TestStore) -> Iterator[Servers]:
    """A primary, and a standby that lacks its last commits."""
    primary, standby = Server(tmp_path / "a.db", 1, 2, 3), Server(tmp_path / "b.db", 1)
    yield primary, standby
    primary.close()
    standby.close()


def seqs(feed: Feed, since: int) -> list[int]:
    changes, _ = feed.changes_after(since, limits.PULL_PAGE_EVENTS)
    return [change.seq for change in changes]


def test_the_tail_forgets_lost_events_before_the_epoch(servers: Servers) -> None:
    primary, standby = servers
    feed = Feed(primary.pool)
    apply(primary.engine, task(5))
    assert seqs(feed, 1) == [2, 3, 4]
    feed.store = standby.pool
    assert seqs(feed, 1) == []
    with pytest.raises(ResyncRequired):
        feed.changes_after(4, 1)
    first_seq = standby.open_epoch(void_from=1)
    assert seqs(feed, 1) == [first_seq + 1]
    with pytest.raises(ResyncRequired):
        feed.changes_after(4, 1)


def test_the_tail_forgets_lost_events_with_the_epoch(servers: Servers) -> None:
    primary, standby = servers
    feed = Feed(primary.pool)
    apply(primary.engine, task(5))
    assert seqs(feed, 1) == [2, 3, 4]
    first_seq = standby.open_epoch(void_from=1)
    feed.store = standby.pool
    assert seqs(feed, 1) == [first_seq + 1]
