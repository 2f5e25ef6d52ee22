"""Shards of a fleet: players who keep them running, and every state that was stored of them.

A trigger on the table of shards records each change of a row, in the order in which the database
made it. `problems_of_saves` judges the record: the states of one generation are of one run of the
shard, and a run stores in one generation only. So no run stores after another one has claimed its
shard. And each state continues the one before it: a new run goes on from the last state that was
stored. Each shard must answer its player again within `BACK_S` after a fault.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import psycopg
import websocket

from pylon.realtime.simulation import Saved
from tests.nodes.roamer import FAILURES, TRY_S, hear
from tests.support.server import PylonServer
from tests.support.wait import wait_until

SHARDS: Final = ("trial:1", "trial:2", "trial:3")
BACK_S: Final = 20.0  # the lease of a dead node, and the time until its shard is asked for
STILL_S: Final = 3.0  # without a frame, a player goes to the next node
PAUSE_S: Final = 0.5

_TRIGGER: Final = """
    CREATE SCHEMA trial;
    CREATE TABLE trial.saves (
        number bigserial, id text, generation bigint, data bytea);
    CREATE FUNCTION trial.note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO trial.saves (id, generation, data)
            VALUES (NEW.id, NEW.generation, NEW.data);
            RETURN NULL;
        END $$;
    CREATE TRIGGER trial AFTER INSERT OR UPDATE ON _pylon_shards
        FOR EACH ROW EXECUTE FUNCTION trial.note();
"""


@dataclass(frozen=True, slots=True)
class Save:
    """One state that was stored. `number`: of the shard's saves, over all of its runs."""

    shard_id: str
    generation: int
    run: str
    number: int


class Player:
    """A client of one shard, in a thread of its own."""

    def __init__(self, nodes: Sequence[PylonServer], number: int, shard_id: str) -> None:
        self._nodes = nodes
        self._at = number
        self._token, self._user_id = nodes[number % len(nodes)].guest()
        self.shard_id = shard_id
        self.last = ""  # that it heard, and where
        self.heard_s = 0.0  # monotonic, of the last frame
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(*FAILURES):  # its node is away, or has no way to the shard's
                self._play()
            self._at += 1
            self._stopping.wait(PAUSE_S)

    def _play(self) -> None:
        node = self._nodes[self._at % len(self._nodes)]
        ws = websocket.WebSocket()
        try:
            ws.connect(  # type: ignore[no-untyped-call]
                f"ws://{node.host}:{node.port + 3}/?shard={self.shard_id}&sid={self._user_id}",
                subprotocols=[f"bearer.{self._token}"], timeout=TRY_S,
            )
            while not self._stopping.is_set():
                heard = hear(ws, STILL_S)
                self.last = f"{node.folder.name}: {heard}"
                if heard is None or heard[0] == websocket.ABNF.OPCODE_CLOSE:
                    return
                if heard[0] == websocket.ABNF.OPCODE_BINARY:
                    self.heard_s = time.monotonic()
        finally:
            ws.close(timeout=0)


class Playing:
    """The shards of a fleet on PostgreSQL. Make it when a node is ready."""

    def __init__(self, nodes: Sequence[PylonServer], database_url: str) -> None:
        self._url = database_url
        with psycopg.connect(database_url) as conn:
            conn.execute(_TRIGGER)
        self._players = [
            Player(nodes, number, shard_id) for number, shard_id in enumerate(SHARDS)
        ]

    def start(self) -> None:
        for player in self._players:
            player.start()

    def stop(self) -> None:
        for player in self._players:
            player.stop()

    def problems(self) -> list[str]:
        """Wait until every shard answers, and judge what was stored so far; what is wrong."""
        since_s = time.monotonic()
        found = []
        for player in self._players:
            try:
                wait_until("it answers", lambda p=player: p.heard_s > since_s, BACK_S)  # type: ignore[misc]
            except AssertionError:
                found.append(f"shard: {player.shard_id} does not answer within {BACK_S:g} s;"
                             f" heard {player.last}")
        try:
            wait_until("every shard is stored", lambda: {
                save.shard_id for save in self._read_saves()
            } == set(SHARDS), BACK_S)
        except AssertionError:
            found.append(f"shard: of some nothing is stored within {BACK_S:g} s")
        return [*found, *problems_of_saves(list(self._read_saves()))]

    def _read_saves(self) -> Iterator[Save]:
        """Yield the states in the order in which they were stored."""
        newest: dict[str, bytes] = {}
        with psycopg.connect(self._url) as conn:
            rows = conn.execute(
                "SELECT id, generation, data FROM trial.saves WHERE data IS NOT NULL"
                " ORDER BY number"
            ).fetchall()
        for shard_id, generation, data in rows:
            if newest.get(shard_id) == data:
                continue  # a claim, a release or a move: the state is that of before
            newest[shard_id] = data
            state: Any = msgspec.msgpack.decode(
                msgspec.msgpack.decode(data, type=Saved).state
            )
            yield Save(shard_id, generation, state["run"], state["saves"])


def problems_of_saves(saves: Sequence[Save]) -> list[str]:
    """Return what is wrong with the states that were stored, in their order; empty: nothing."""
    found = []
    newest: dict[str, Save] = {}
    run_by_generation: dict[tuple[str, int], str] = {}
    generation_by_run: dict[str, int] = {}
    for save in saves:
        before = newest.get(save.shard_id)
        newest[save.shard_id] = save
        if before is not None and save.generation < before.generation:
            found.append(f"shard: {save} after {before}")
        if before is not None and save.number <= before.number:
            found.append(f"shard: {save} does not continue {before}")
        key = save.shard_id, save.generation
        if run_by_generation.setdefault(key, save.run) != save.run:
            found.append(f"shard: {save} is a second run of its generation")
        if generation_by_run.setdefault(save.run, save.generation) != save.generation:
            found.append(f"shard: {save} is of a run that had an earlier generation")
    return found
