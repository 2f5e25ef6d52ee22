"""workers.shards.registry with a real store: what is saved comes back, what is over is forgotten.

The state machine plays two processes over one store, with a writer that may be away, crashes,
moves and drains.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pylon import limits
from pylon.clock import ManualClock, SystemRandom
from pylon.errors import LimitExceeded, PylonError, SubscribeFailed, Unavailable, WriterUnavailable
from pylon.limiter import RateLimiter, RateTable
from pylon.realtime.kinds import Kind
from pylon.realtime.placement import Placement
from pylon.realtime.shard import Shard
from pylon.realtime.simulation import Saved
from pylon.realtime.snapshots import Format
from pylon.storage.interface import Store
from pylon.storage.ops import WriteOp, WriteReply
from tests.support import stores
from tests.support.api import DirectWriter
from tests.support.examples import count_examples
from tests.support.realtime import Client, Counters, Wire, registered
from tests.support.remote_store import RemoteStore
from tests.support.storage import MANIFEST, open_engine
from workers.shards.registry import ShardRegistry

pytestmark = pytest.mark.stores

IDS = ("sim:2", "sim:é/../..")  # at home in the one process, and in the other
TICK_S = 0.05
WIRE = Wire(Format.JSON)


class Writer:
    """An engine that may be away for a while. One for each process."""

    def __init__(self, engine: DirectWriter, is_away: Callable[[], bool]) -> None:
        self._engine = engine
        self._is_away = is_away
        self.is_dead = False

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        gevent.sleep(0)
        if self.is_dead:
            raise gevent.GreenletExit
        if self._is_away():
            raise WriterUnavailable("away")
        return self._engine.submit_all(ops)


@pytest.fixture
def kind() -> Any:
    with registered(Counters, save_every_ticks=2, idle_ticks_before_shutdown=4) as found:
        yield found


def registry_of(
    store: Store, writer: Any, clock: ManualClock, folder: Path, worker: str = "1",
    workers: int = 1,
) -> ShardRegistry:
    return ShardRegistry(
        store, writer, clock, SystemRandom(), folder / "recordings",
        RateLimiter(RateTable(), clock), Placement(store, workers), worker=worker,
    )


@contextmanager
def shard_store(
    folder: Path, clock: ManualClock, is_remote: bool = False
) -> Iterator[tuple[Store, DirectWriter]]:
    """A new store, and the engine that writes to it."""
    engine = open_engine(folder / "test.db", clock)
    pool = stores.backend_at(folder / "test.db").open_readers(MANIFEST, clock)
    try:
        yield RemoteStore(pool) if is_remote else pool, DirectWriter(engine)
    finally:
        pool.close()
        engine.close()


def settled() -> None:
    """Let the greenlets of the state writer do what they can now."""
    for _ in range(20):
        gevent.sleep(0)


class Processes(RuleBasedStateMachine):
    """Two shards workers, one store."""

    is_remote = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.closing = registered(
            Counters, save_every_ticks=2, idle_ticks_before_shutdown=4, tick_budget_s=0,
        )
        self.closing.__enter__()
        self.clock = ManualClock()
        self.kept = shard_store(Path(self.folder.name), self.clock, self.is_remote)
        self.store, self.engine = self.kept.__enter__()
        self.away = False
        self.writers: dict[str, Writer] = {}
        self.registries = {name: self.new_registry(name) for name in ("1", "2")}
        self.clients: list[tuple[str, Shard, Client]] = []
        # Sums that nothing may fall below: what was saved when nobody crashed after it.
        self.least: dict[str, int] = dict.fromkeys(IDS, 0)
        self.most: dict[str, int] = dict.fromkeys(IDS, 0)
        self.names = itertools.count()

    def new_registry(self, name: str) -> ShardRegistry:
        self.writers[name] = Writer(self.engine, lambda: self.away)
        return registry_of(
            self.store, self.writers[name], self.clock, Path(self.folder.name), name, 2
        )

    def teardown(self) -> None:
        for writer in self.writers.values():
            writer.is_dead = True
        self.kept.__exit__(None, None, None)
        self.closing.__exit__(None, None, None)
        self.folder.cleanup()

    def running(self, name: str) -> list[Shard]:
        return [shard for shard in self.registries[name].list_shards() if shard.running]

    def stored(self, shard_id: str) -> int:
        at_rest = self.store.point(lambda reader: reader.shard(shard_id))
        if at_rest is None or at_rest.data is None:
            return 0
        saved = msgspec.msgpack.decode(at_rest.data, type=Saved)
        state: dict[str, dict[str, int]] = msgspec.msgpack.decode(saved.state)
        return state["counters"].get("sum", 0)

    def sum_of(self, shard: Shard) -> int:
        assert shard._simulation is not None
        state = shard._simulation.state
        assert isinstance(state, Counters)
        return state.counters.get("sum", 0)

    @rule(shard_id=st.sampled_from(IDS), name=st.sampled_from("12"))
    def visit(self, shard_id: str, name: str) -> None:
        registry = self.registries[name]
        try:
            shard = registry.find_or_make(shard_id)
            client = Client(f"u{next(self.names)}", WIRE)
            shard.subscribe(client, registry.now_s())
        except SubscribeFailed:
            return
        registry.settle_join(shard, is_in=True)
        assert self.sum_of(shard) >= self.least[shard_id], "what was saved is lost"
        assert self.sum_of(shard) <= self.most[shard_id], "what was forgotten is back"
        self.clients.append((name, shard, client))

    @rule(shard_id=st.sampled_from(IDS), inputs=st.integers(1, 3), ticks=st.integers(0, 3))
    def play(self, shard_id: str, inputs: int, ticks: int) -> None:
        name = Placement(self.store, 2).find(shard_id).worker
        self.visit(shard_id, name)
        for name_of, shard, client in self.clients:
            if shard.id == shard_id and client.ended is None:
                for _ in range(inputs):
                    raw = b'{"by":1}'
                    shard.submit(client.sid, client.auth, raw, self.clock.monotonic_s())
                    self.most[shard_id] += 1
                self.registries[name_of].reschedule(shard)
                break
        self.wait(ticks)

    @precondition(lambda self: self.clients)
    @rule(pick=st.integers(0, 99))
    def leave(self, pick: int) -> None:
        name, shard, client = self.clients.pop(pick % len(self.clients))
        shard.unsubscribe(client, self.clock.monotonic_s())
        self.registries[name].reschedule(shard)

    @rule(ticks=st.integers(1, 6))
    def wait(self, ticks: int) -> None:
        for _ in range(ticks):
            self.clock.advance(TICK_S)
            shards = [shard for name in self.registries for shard in self.running(name)]
            for registry in self.registries.values():
                registry.scheduler.step_due()
            for shard in shards:
                if shard.stopped_because == "idle":
                    self.least[shard.id] = self.most[shard.id] = self.sum_of(shard)

    @rule()
    def write(self) -> None:
        settled()

    @rule()
    def writer_goes_or_comes(self) -> None:
        self.away = not self.away
        if not self.away:  # `SHARD_SAVE_RETRY_S` is 0 here: what waits is written
            settled()

    @rule(shard_id=st.sampled_from(IDS), name=st.sampled_from("12"), home=st.sampled_from("12"))
    def move(self, shard_id: str, name: str, home: str) -> None:
        if self.away:
            return
        was = next((s for s in self.running(name) if s.id == shard_id), None)
        expected = None if was is None else self.sum_of(was)
        try:
            ran = self.registries[name].move(shard_id, home, 1012, "moved")
        except (SubscribeFailed, Unavailable):
            return
        assert Placement(self.store, 2).find(shard_id).worker == home
        if ran and expected is not None:
            self.least[shard_id] = self.most[shard_id] = expected

    @rule(shard_id=st.sampled_from(IDS))
    def end(self, shard_id: str) -> None:
        if self.away:
            return
        home = Placement(self.store, 2).find(shard_id).worker
        try:
            self.registries[home].end(shard_id, 1000, "ended")
        except PylonError:
            return
        self.least[shard_id] = self.most[shard_id] = 0

    @rule(shard_id=st.sampled_from(IDS))
    def stay_away_too_long(self, shard_id: str) -> None:
        self.play(shard_id, 1, 1)
        while self.clients:
            self.leave(0)
        self.wait(6)

    @rule(shard_id=st.sampled_from(IDS))
    def restart(self, shard_id: str) -> None:
        if self.away:
            return
        settled()
        name = Placement(self.store, 2).find(shard_id).worker
        self.play(shard_id, 2, 1)
        here = {shard.id: self.sum_of(shard) + shard.input_queue for shard in self.running(name)}
        unsaved = self.registries[name].drain(1001, "bye")
        assert unsaved == 0
        assert not self.running(name)
        for shard_id, total in here.items():
            self.least[shard_id] = self.most[shard_id] = total
        self.registries[name] = self.new_registry(name)

    @rule(name=st.sampled_from("12"))
    def crash(self, name: str) -> None:
        self.writers[name].is_dead = True
        settled()
        for shard_id in IDS:  # what has not reached the store is lost, and nothing else
            if Placement(self.store, 2).find(shard_id).worker == name:
                self.least[shard_id] = self.stored(shard_id)
        self.registries[name] = self.new_registry(name)
        self.clients = [each for each in self.clients if each[0] != name]

    @invariant()
    def one_running_shard_of_each_id(self) -> None:
        ids = [shard.id for name in self.registries for shard in self.running(name)]
        assert len(ids) == len(set(ids))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHARD_SAVE_RETRY_S", 0.0)


class RemoteProcesses(Processes):
    """The same, over a store whose reads switch greenlets."""

    is_remote = True


@pytest.mark.parametrize("processes", [Processes, RemoteProcesses])
def test_shards_have_one_home_at_any_time(processes: type[Processes]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        processes, settings=settings(
            max_examples=count_examples(40), stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_two_clients_that_come_at_once_share_one_shard(kind: Kind, tmp_path: Path) -> None:
    clock = ManualClock()
    with shard_store(tmp_path, clock, is_remote=True) as (store, engine):
        registry = registry_of(store, engine, clock, tmp_path)
        jobs = [gevent.spawn(registry.find_or_make, "sim:1") for _ in range(5)]
        jobs += [gevent.spawn(registry.get_or_make, "sim:1", {}) for _ in range(5)]
        gevent.joinall(jobs, raise_error=True)
        assert len({id(job.value) for job in jobs}) == 1
        registry.drain(1001, "bye")


def test_a_refused_visitor_leaves_no_shard(kind: Kind, tmp_path: Path) -> None:
    clock = ManualClock()
    with shard_store(tmp_path, clock) as (store, engine):
        registry = registry_of(store, engine, clock, tmp_path)
        shard = registry.find_or_make("sim:1")
        registry.settle_join(shard, is_in=False)
        assert registry.list_shards() == []
        assert registry.get_or_make("sim:1", {}).running
        registry.settle_join(registry.find_or_make("sim:1"), is_in=False)
        assert [shard.id for shard in registry.list_shards()] == ["sim:1"]


def test_recordings_stay_in_their_folder_and_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHARD_RECORDINGS", 3)
    clock = ManualClock()
    with (
        registered(Counters, record_bytes=100_000, tick_budget_s=0),
        shard_store(tmp_path, clock) as (store, engine),
    ):
        registry = registry_of(store, engine, clock, tmp_path)
        for shard_id in ("sim:../../x", "sim:" + "é" * 190, "sim:a/b", "sim:a_b", "sim:a-b"):
            clock.advance(0.001)
            registry.get_or_make(shard_id, {})
            names = sorted(path.name for path in (tmp_path / "recordings").iterdir())
            assert all(len(name) < 128 for name in names)
        assert len(names) == 3
        registry.drain(1001, "bye")


def test_params_and_states_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    clock = ManualClock()
    with shard_store(tmp_path, clock) as (store, engine):
        registry = registry_of(store, engine, clock, tmp_path)
        with pytest.raises(LimitExceeded, match="params are larger"):
            registry.get_or_make("sim:1", {"x": "y" * limits.SHARD_PARAMS_BYTES})
        monkeypatch.setattr(limits, "SHARD_STATE_BYTES", 10)
        registry.get_or_make("sim:1", {})
        registry.drain(1001, "bye")
        assert engine.seen == []
