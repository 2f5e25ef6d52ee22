"""A stand-in worker process for the bus tests: real green sockets, driven over stdin/stdout.

Run as ``python tests/support/bus_worker.py RUNTIME_DIR`` and given one JSON command a line; answers
are JSON lines. It lets the tests kill either end with SIGKILL.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.fileobject import FileObject

from pylon.auth_context import ADMIN
from pylon.bus.changes import ChangesSubscriber
from pylon.bus.messages import (
    DocumentsChanged,
    RolesReport,
    SessionRevoked,
    WorkerStatus,
)
from pylon.bus.runtime import Runtime
from pylon.bus.signals import SignalReceiver, SignalSender
from pylon.bus.status import StatusSender
from pylon.bus.writer_client import WriterClient
from pylon.errors import PylonError
from pylon.metrics import snapshot
from pylon.storage.ops import DeleteRow, WriteReply


def say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def shown(reply: WriteReply) -> dict[str, Any]:
    return {"id": reply.id, "row_id": reply.row_id, "seq": reply.seq,
            "error": reply.error.code if reply.error else None}


def main() -> None:
    runtime = Runtime(Path(sys.argv[1]))
    client = WriterClient(runtime)
    sender, status = SignalSender(runtime), StatusSender(runtime)

    def write_one(row_id: str) -> str:
        try:
            return client.submit(DeleteRow("Todo", row_id, ADMIN)).row_id
        except PylonError as ex:
            return ex.code

    def run(command: dict[str, Any]) -> None:
        match command:
            case {"cmd": "writes", "ids": ids}:
                greenlets = [gevent.spawn(write_one, row_id) for row_id in ids]
                gevent.joinall(greenlets)
                say(rows=[g.value for g in greenlets])
            case {"cmd": "write_all", "ids": ids}:
                try:
                    replies = client.submit_all([DeleteRow("Todo", i, ADMIN) for i in ids])
                    say(replies=[shown(r) for r in replies])
                except PylonError as ex:
                    say(error=ex.code)
            case {"cmd": "signal", "key": key}:
                sender.send(DocumentsChanged())
                sender.send(SessionRevoked(key))
                say(sent=True)
            case {"cmd": "status"}:
                status.send(WorkerStatus("ws", "1", 42, True, 3, snapshot()))
                say(sent=True)
            case {"cmd": "cpu", "wall_s": wall_s}:
                before = time.process_time()
                gevent.sleep(wall_s)
                say(cpu_s=time.process_time() - before)

    def listen_changes() -> None:
        subscriber = ChangesSubscriber(runtime)
        while True:
            batch = subscriber.receive()
            say(change=[e.seq for e in batch.events], prev=batch.prev_seq)

    def listen_signals() -> None:
        receiver = SignalReceiver(runtime, RolesReport, SessionRevoked)
        while True:
            say(signal=type(receiver.receive()).__name__)

    gevent.spawn(listen_changes)
    gevent.spawn(listen_signals)
    say(ready=True)
    for line in FileObject(sys.stdin.buffer, "rb"):
        gevent.spawn(run, json.loads(line))


if __name__ == "__main__":
    main()
