"""Two nodes with shards over one PostgreSQL, without processes.

Two registries play a worker of each node. The rows of the nodes are in the registry of nodes; a
test ends a lease there, by the database's clock, or lets the manual clock of the workers pass it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent

from pylon.bus.messages import NodeState
from pylon.clock import ManualClock, SystemClock, SystemRandom
from pylon.errors import WriterUnavailable
from pylon.limiter import RateLimiter, RateTable
from pylon.realtime.placement import Placement
from pylon.realtime.shard import Shard
from pylon.realtime.snapshots import Format
from pylon.storage.nodes import NodeFacts
from pylon.storage.ops import WriteOp, WriteReply
from pylon.storage.postgres import registry as node_registry
from pylon.storage.postgres.connect import open_session
from tests.support import stores
from tests.support.api import DirectWriter
from tests.support.realtime import Client, Wire
from tests.support.storage import MANIFEST, open_engine
from workers.shards.leases import ShardLeases
from workers.shards.registry import ShardRegistry

TICK_S = 0.05
LEASE_LEFT_S = 8.0
WIRE = Wire(Format.JSON)


class AwayWriter:
    """The writer of one node, whose database may be away."""

    def __init__(self, engine: Any) -> None:
        self._writer = DirectWriter(engine)
        self.is_away = False

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        gevent.sleep(0)
        if self.is_away:
            raise WriterUnavailable("away")
        return self._writer.submit_all(ops)

    def submit(self, op: WriteOp) -> WriteReply:
        gevent.sleep(0)
        if self.is_away:
            raise WriterUnavailable("away")
        return self._writer.submit(op)


class SwitchingStore:
    """A store in whose reads something happens."""

    local_reads = False

    def __init__(self, store: Any, point: Any) -> None:
        self._store = store
        self.point = point


class Node:
    """A node with one shards worker."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.clock = ManualClock()
        self.writer = AwayWriter(stage.engine)
        self.placement = Placement(stage.store, 1, is_shared=True)
        self.leases = ShardLeases(self.writer, self.clock, "1")
        folder = stage.folder / name
        folder.mkdir()
        self.registry = ShardRegistry(
            stage.store, self.writer, self.clock,  # type: ignore[arg-type]
            SystemRandom(), folder, RateLimiter(RateTable(), self.clock), self.placement,
            worker="1", leases=self.leases,
        )
        self.facts = NodeFacts(name, f"{name}1", ("shards",), "1", workers={"shards": 1})
        self._leases = 0
        stage.run(*node_registry.register(self.facts))
        self.take_lease()

    @property
    def lease(self) -> str:
        return f"{self.facts.incarnation}.{self._leases}"

    def take_lease(self) -> None:
        """The steps of the supervisor at a start, and when the former lease has ended."""
        self._leases += 1
        self.stage.run(*node_registry.take(self.facts, self.lease))

    def report(self, *others: Node) -> None:
        """What the supervisor tells its workers after a heartbeat."""
        living = (self.facts, *(node.facts for node in others))
        self.placement.update(self.facts.name, living)
        until_s = self.clock.monotonic_s() + LEASE_LEFT_S
        self.leases.take_report(NodeState(False, self.facts.name, living, self.lease, until_s))

    def end_lease(self) -> None:
        """By the database's clock."""
        self.stage.run(
            "UPDATE _pylon_nodes SET lease_until = clock_timestamp() - interval '1 ms' "
            "WHERE node = $1", (self.facts.name,),
        )

    def join(self, shard_id: str = "sim:1") -> tuple[Shard, Client]:
        shard = self.registry.find_or_make(shard_id)
        client = Client("ada", WIRE)
        shard.subscribe(client, self.clock.monotonic_s())
        self.registry.settle_join(shard, is_in=True)
        return shard, client

    def add(self, shard: Shard, client: Client, by: int, ticks: int = 1) -> None:
        shard.submit("ada", client.auth, b'{"by":%d}' % by, self.clock.monotonic_s())
        self.registry.reschedule(shard)
        self.run(ticks)

    def add_unsaved(self, shard: Shard, client: Client, by: int) -> None:
        """Add in a tick that is not saved, after one that is."""
        while shard.tick % 2:
            self.run(1)
        self.add(shard, client, by)
        assert shard.tick % 2

    def run(self, ticks: int) -> int:
        """Let time pass; return how many steps were due and allowed."""
        steps = 0
        for _ in range(ticks):
            self.clock.advance(TICK_S)
            steps += self.registry.scheduler.step_due()
            self.settle()
        return steps

    def settle(self) -> None:
        for _ in range(10):
            gevent.sleep(0)


class Stage:
    """The database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = open_engine(folder / "app.db")
        backend = stores.backend_at(folder / "app.db")
        self.store = backend.open_readers(MANIFEST, ManualClock())
        self.session = open_session(
            stores.settings_at(folder / "app.db")["DATABASE_URL"], "test", "here", SystemClock()
        )

    def run(self, text: str, parameters: tuple[Any, ...] = ()) -> Any:
        return self.session.execute(text, parameters)

    def stored(self, shard_id: str = "sim:1") -> bytes | None:
        found = self.store.point(lambda reader: reader.shard(shard_id))
        return None if found is None else found.data

    def close(self) -> None:
        self.session.close()
        self.store.close()
        self.engine.close()


def total(client: Client) -> int:
    return int(client.last["counters"].get("sum", 0))
