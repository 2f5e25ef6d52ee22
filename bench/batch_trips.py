"""Round trips of batches on PostgreSQL, and the time for which they keep the writers' lock.

    python bench/batch_trips.py [--url postgresql://…] [--repeats 30]

Each line is one kind of batch: updates whose rules ask other rows by `exists(...)`, and a delete
that takes rows along. It counts the flushes of the writer's connection, those within a transaction
it has begun before (so with the lock), and the time from the answer of the first to the answer of
the last of these: with one flush for all, the lock is the server's alone. Medians. The tables are
made in a schema of their own, which is dropped at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import database

from pylon.auth_context import ADMIN, AuthContext
from pylon.clock import SystemClock
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.policy.rules import compile_rules
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow, WriteOp, WriteRequest
from pylon.storage.postgres.backend import PostgresBackend
from pylon.storage.postgres.statements import PipelineOutcome, Statement
from pylon.storage.postgres.wire import BlockingSession
from pylon.values import EntityCodec

_MS: Final = 1e3
_ROWS: Final = 64
_CASCADED: Final = 100
_MINE: Final = "exists(Member, roomId == data.roomId, userId == auth.userId)"


def _text(name: str) -> Field:
    return Field(name, FieldType.STRING, optional=True, unique=False)


_ENTITIES: Final = (
    Entity("Member", (_text("roomId"), _text("userId")), (
        Index("by_user", ("userId", "roomId"), False),
    )),
    Entity("Message", (_text("roomId"), _text("body")), crdt=False),
    Entity("Owner", (_text("name"),), crdt=False),
    Entity("Thing", (Field("ownerId", FieldType.ID, optional=True, unique=False, target="Owner",
                           on_delete="cascade"),), crdt=False),
)
_MANIFEST: Final = Manifest("trips", "1", _ENTITIES, policies=(
    Policy("messages", entity="Message", allow_read="true", allow_insert=_MINE,
           allow_update=_MINE, allow_delete=_MINE),
    *(Policy(e.name, entity=e.name, allow="true") for e in _ENTITIES if e.name != "Message"),
))
_CODECS: Final = {entity.name: EntityCodec(entity) for entity in _ENTITIES}


class _Counts:
    """The flushes since `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.trips = self.locked_trips = 0
        self.locked_s = 0.0
        self._since_s = 0.0

    def watch(self) -> None:
        """Count the flushes of all sessions from now on."""
        send = BlockingSession.try_pipeline

        def counted(
            session: BlockingSession, statements: Sequence[Statement], **options: Any
        ) -> PipelineOutcome:
            was_locked = session.is_in_transaction
            outcome = send(session, statements, **options)
            self.trips += 1
            self.locked_trips += was_locked
            if session.is_in_transaction and not was_locked:
                self._since_s = time.perf_counter()
            elif was_locked and not session.is_in_transaction:
                self.locked_s += time.perf_counter() - self._since_s
            return outcome

        BlockingSession.try_pipeline = counted  # type: ignore[method-assign,assignment]


def _row_id(number: int) -> str:
    return f"{number:040x}"


def _insert(entity: str, number: int, **body: object) -> InsertRow:
    encoded = _CODECS[entity].insert(body, _row_id(number))
    return InsertRow(entity, _row_id(number), encoded.values, encoded.row_json)


def _update(number: int, user: int, body: str) -> UpdateRow:
    return UpdateRow(
        "Message", _row_id(2_000 + number), {"body": body}, AuthContext(user_id=f"u{user}")
    )


def main() -> int:
    """Run all kinds of batches, and print the medians; exit code 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    database.add_url(parser)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    with database.database(args.url) as url:
        _measure(url, args.repeats)
    return 0


def _measure(url: str, repeats: int) -> None:
    backend = PostgresBackend(url, application="bench", is_dev=True)
    engine = backend.open_writer(_MANIFEST, compile_rules(_MANIFEST), SystemClock())
    counts = _Counts()

    def apply(*ops: WriteOp) -> None:
        result = engine.apply([WriteRequest(n, op) for n, op in enumerate(ops)])
        for reply in result.replies:
            if reply.error is not None:
                raise reply.error.to_exception()

    def delete(round_number: int) -> list[WriteOp]:
        first = 10_000 + round_number * 1_000
        apply(_insert("Owner", first, name="o"), *(
            _insert("Thing", first + n, ownerId=_row_id(first)) for n in range(1, _CASCADED + 1)
        ))
        return [DeleteRow("Owner", _row_id(first), ADMIN)]

    kinds: dict[str, Callable[[int], list[WriteOp]]] = {
        "1 update, 1 check": lambda k: [_update(0, 0, f"a{k}")],
        "64 updates, 1 check": lambda k: [_update(0, 0, f"b{k}.{n}") for n in range(_ROWS)],
        "64 updates, 64 checks": lambda k: [_update(n, n, f"c{k}") for n in range(_ROWS)],
        "1 delete of 101 rows": delete,
    }
    try:
        apply(*(_insert("Member", 1_000 + n, roomId=_row_id(n), userId=f"u{n}")
                for n in range(_ROWS)))
        apply(*(_insert("Message", 2_000 + n, roomId=_row_id(n), body="x") for n in range(_ROWS)))
        counts.watch()
        for name, make in kinds.items():
            rounds = []
            for repeat in range(repeats + 1):
                ops = make(repeat)
                counts.clear()
                began_s, cpu_s = time.perf_counter(), time.process_time()
                apply(*ops)
                cpu_s, took_s = time.process_time() - cpu_s, time.perf_counter() - began_s
                rounds.append((counts.trips, counts.locked_trips, counts.locked_s * _MS,
                               took_s * _MS, cpu_s * _MS))
            trips, locked, held_ms, took_ms, cpu_ms = (
                statistics.median(column) for column in zip(*rounds[1:], strict=True)
            )
            print(f"{name:22} {trips:4.0f} trips, {locked:4.0f} with the lock for {held_ms:6.2f} "
                  f"ms  batch {took_ms:6.2f} ms  {cpu_ms:6.2f} ms of CPU here", flush=True)
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
