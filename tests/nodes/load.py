"""Writers under load: each sends its changes with op_ids, again and to the next node until one of
the nodes has acknowledged them, and notes what it was told.

A push has a few changes of different rows: ticks, and inserts, updates and deletes of notes that
the writer owns. Between pushes a writer raises the counter that all share, under If-Match, reads a
row that one node has acknowledged from another node, and repeats an acknowledged push there, which
must be given the same results and change nothing.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.nodes.history import Op
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

TRY_S: Final = 8.0  # for one answer
GIVE_UP_S: Final = 60.0  # for a push on all nodes together
PAUSE_S: Final = 0.08
NOTES: Final = 40  # that a writer keeps, at the most
REPEAT: Final = 0.1  # of the pushes are repeated on another node


class Load:
    """The writers of one fleet."""

    def __init__(self, nodes: Sequence[PylonServer], writers: int, seed: int) -> None:
        self.nodes = nodes
        first = _insert_tick(nodes[0], -1)
        self.begin_seq = first.seq  # what is recorded comes after it
        counter = _insert_tick(nodes[0], 0)
        assert counter.row_id is not None
        self.counter_id = counter.row_id
        self._own_ops = [counter]
        self.writers = [
            _Writer(self, number, *nodes[number % len(nodes)].guest(), random.Random(seed + number))
            for number in range(writers)
        ]
        self.may_lose_rows = False  # a promoted standby may lack them
        self.stale: list[str] = []  # what another node answered wrongly
        self.failed: list[str] = []  # requests without an answer, or with one of a server's failure
        self.out: set[int] = set()  # nodes that a balancer has taken out
        self._stopping = threading.Event()
        self._resumed = threading.Event()

    def start(self) -> None:
        self._resumed.set()
        for writer in self.writers:
            writer.thread.start()

    def pause(self) -> None:
        """Let every writer finish what it sends."""
        self._resumed.clear()
        wait_until("the writers rest", lambda: all(w.rests for w in self.writers), 2 * GIVE_UP_S)

    def resume(self) -> None:
        for writer in self.writers:
            writer.rests = False
        self._resumed.set()

    def spread(self) -> None:
        """Let each writer go back to the node that it began with."""
        for writer in self.writers:
            writer.goes_home = True

    def stop(self) -> None:
        self._stopping.set()
        self._resumed.set()
        for writer in self.writers:
            writer.thread.join(2 * GIVE_UP_S)
            assert not writer.thread.is_alive()

    @property
    def ops(self) -> list[Op]:
        """Everything that was sent, each writer's in its order."""
        return [*self._own_ops, *(op for writer in self.writers for op in writer.ops)]

    @property
    def acknowledged(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)

    def wait_for_progress(self, more: int = 20, timeout_s: float = GIVE_UP_S) -> float:
        """Wait until every writer was acknowledged again; how long that took, in seconds."""
        begin_s = time.monotonic()
        before = [writer.acknowledged for writer in self.writers]
        wait_until("writes are acknowledged again", lambda: all(
            writer.acknowledged >= count + more // len(self.writers)
            for writer, count in zip(self.writers, before, strict=True)
        ), timeout_s)
        return time.monotonic() - begin_s

    def write_last(self) -> None:
        """Write a row that everybody may read, so that every client comes to the end of the log."""
        self._own_ops.append(_insert_tick(self.nodes[0], len(self._own_ops)))

    def add_op(self, op: Op) -> None:
        """Record a change that the test itself has sent."""
        self._own_ops.append(op)

    def failures(self) -> list[str]:
        """What ended a writer."""
        return [*(w.failure for w in self.writers if w.failure), *self.stale]

    # --- for the writers

    def may_go_on(self, writer: _Writer) -> bool:
        if not self._resumed.is_set():
            writer.rests = True
            self._resumed.wait()
            writer.rests = False
        return not self._stopping.is_set()


class _Writer:
    """One user that writes, in a thread of its own."""

    def __init__(
        self, load: Load, number: int, token: str, user_id: str, rng: random.Random
    ) -> None:
        self.load, self.token, self.user_id, self.random = load, token, user_id, rng
        self._home = self.at = number % len(load.nodes)  # the node that it uses
        self.goes_home = False
        self.ops: list[Op] = []
        self.notes: list[str] = []
        self.acknowledged = 0
        self.rests = False
        self.failure = ""
        self.conn: http.client.HTTPConnection | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while self.load.may_go_on(self):
                if self.goes_home:
                    self._hang_up()
                    self.at, self.goes_home = self._home, False
                self._push()
                if self.random.random() < 0.15:
                    self._raise_counter()
                time.sleep(self.random.uniform(0, 2 * PAUSE_S))
        except Exception as ex:
            self.failure = f"writer {self.user_id} ended: {ex!r}"
            self.rests = True
            raise

    def _op(self, kind: Any, entity: str, row_id: str | None = None) -> Op:
        number = len(self.ops) + 1
        self.ops.append(Op(self.user_id, number, kind, entity, str(number), row_id))
        return self.ops[-1]

    def _push(self) -> None:
        sent: list[tuple[Op, dict[str, Any]]] = []
        touched: set[str] = set()
        for _ in range(self.random.randint(1, 4)):
            chance = self.random.random()
            free = [note for note in self.notes if note not in touched]
            if chance < 0.3:
                op = self._op("insert", "Tick")
                data = {"n": op.number, "sender": self.user_id}
            elif free and (chance > 0.9 or len(self.notes) > NOTES):
                op = self._op("delete", "Note", self.random.choice(free))
                data = {}
            else:
                row_id = self.random.choice(free) if free and chance > 0.55 else None
                op = self._op("update" if row_id else "insert", "Note", row_id)
                data = {"title": f"{op.number}", "ownerId": self.user_id, "rank": op.number,
                        "shared": self.random.random() < 0.5}
            if op.row_id is not None:
                touched.add(op.row_id)
            sent.append((op, {
                "entity": op.entity, "kind": op.kind, "op_id": f"op-{op.number}",
                "row_id": op.row_id or f"_pending_{op.number}", **({"data": data} if data else {}),
            }))
        body = {"changes": [change for _, change in sent]}
        node = self._until_answered("POST", "/api/sync/push", body, {}, [op for op, _ in sent])
        if node is None:
            return
        status, answer, _ = node
        assert status == 200, answer
        for (op, _), result in zip(sent, answer["results"], strict=True):
            if result["status"] == "error":
                self._note_refusal(op, result["error"])
                continue
            op.outcome, op.seq, op.row_id = "acknowledged", result["seq"], result["row_id"]
            self.acknowledged += 1
            if op.kind == "insert" and op.entity == "Note":
                self.notes.append(result["row_id"])
            elif op.kind == "delete":
                self.notes.remove(result["row_id"])
        if self.random.random() < REPEAT:
            self._repeat_elsewhere(body, answer["results"])
        else:
            self._read_elsewhere([op for op, _ in sent])

    def _note_refusal(self, op: Op, error: Mapping[str, Any]) -> None:
        if error.get("retryable"):
            return  # nobody has said what came of it
        op.outcome = "refused"
        lost = self.load.may_lose_rows and op.kind != "insert"
        assert lost, f"{op} was refused: {error}"
        if op.row_id in self.notes:
            self.notes.remove(op.row_id or "")

    def _read_elsewhere(self, ops: Sequence[Op]) -> None:
        op = next((op for op in ops if op.entity == "Note" and op.outcome == "acknowledged"), None)
        if op is None or self.random.random() < 0.7:
            return
        number = (self.at + 1) % len(self.load.nodes)
        if number in self.load.out:
            return
        other = self.load.nodes[number]
        try:
            status, row, _ = other.request(
                "GET", f"/api/entities/Note/{op.row_id}", token=self.token, timeout_s=2
            )
        except (OSError, http.client.HTTPException):
            return  # it is down
        if status >= 500:
            return
        wanted = 404 if op.kind == "delete" else 200
        if status != wanted or (status == 200 and row["rank"] != op.number):
            self.load.stale.append(f"stale: {op}, another node answered {status} {row}")

    def _repeat_elsewhere(self, body: Any, results: Sequence[Mapping[str, Any]]) -> None:
        """Push once more what is acknowledged: each op_id counts once, on whichever node."""
        if self.load.may_lose_rows or any(result["status"] == "error" for result in results):
            return
        other = self.load.nodes[(self.at + 1) % len(self.load.nodes)]
        try:
            status, answer, _ = other.request(
                "POST", "/api/sync/push", body, token=self.token, timeout_s=2
            )
        except (OSError, http.client.HTTPException):
            return  # it is down
        if status >= 500 or status == 429:
            return
        again = answer.get("results") or []
        if any(r["status"] == "error" and r["error"].get("retryable") for r in again):
            return
        told = [(r["status"], r.get("seq"), r.get("row_id")) for r in again]
        if told != [("replayed", r["seq"], r["row_id"]) for r in results]:
            self.load.stale.append(f"repeated: {results}, another node answered {status} {told}")

    def _raise_counter(self) -> None:
        """Read the counter, and raise it under If-Match; the key makes a repetition one write."""
        path = f"/api/entities/Tick/{self.load.counter_id}"
        read = self._until_answered("GET", path, None, {}, [])
        if read is None or read[0] != 200:
            return
        op = self._op("update", "Tick", self.load.counter_id)
        answer = self._until_answered(
            "PATCH", path, {"n": read[1]["n"] + 1, "sender": f"{self.user_id} {op.number}"},
            {"If-Match": read[2]["etag"], "Idempotency-Key": f"raise-{op.number}"}, [op],
        )
        if answer is None:
            return
        status, body, headers = answer
        if status == 412:
            op.outcome = "refused"
        elif status == 200:
            op.outcome, op.seq = "acknowledged", int(headers["x-pylon-change-seq"])
            self.acknowledged += 1
        else:
            raise AssertionError(f"{op}: {status} {body}")

    # --- one request, until a node answers it

    def _until_answered(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], ops: Sequence[Op]
    ) -> tuple[int, Any, Mapping[str, str]] | None:
        begin_s = time.monotonic()
        for op in ops:
            op.sent_s = begin_s
        while time.monotonic() < begin_s + GIVE_UP_S:
            self._enter_node()
            for op in ops:
                op.tries += 1
                op.nodes.add(self.at % len(self.load.nodes))
            try:
                answer = self._once(method, path, body, headers)
            except (OSError, http.client.HTTPException, ValueError) as ex:
                self._note_failed(method, path, ex)
                self._leave_node()
                continue
            if answer[0] < 500 and answer[0] != 429:
                failed = [
                    result for result in (answer[1].get("results") or ())
                    if result["status"] == "error" and result["error"].get("retryable")
                ] if isinstance(answer[1], dict) else []
                if not failed:
                    for op in ops:
                        op.answered_s = time.monotonic()
                    return answer
            self._note_failed(method, path, answer[:2])
            self._leave_node()
        return None

    def _enter_node(self) -> None:
        """Go on to a node that the balancer has not taken out, if there is one."""
        nodes = range(len(self.load.nodes))
        if self.at % len(nodes) in self.load.out and not self.load.out.issuperset(nodes):
            if self.conn is not None:
                self.conn.close()
                self.conn = None
            self.at = next(
                at for step in nodes
                if (at := (self.at + step) % len(nodes)) not in self.load.out
            )

    def _note_failed(self, method: str, path: str, why: object) -> None:
        self.load.failed.append(
            f"{time.monotonic():.3f} {method} {path} on node {self.at}: {why!r}"
        )

    def _hang_up(self) -> None:
        if self.conn is not None:
            self.conn.close()
            self.conn = None

    def _leave_node(self) -> None:
        self._hang_up()
        self.at = (self.at + 1) % len(self.load.nodes)
        time.sleep(self.random.uniform(0.02, 0.2))

    def _once(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> tuple[int, Any, Mapping[str, str]]:
        if self.conn is None:
            node = self.load.nodes[self.at % len(self.load.nodes)]
            self.conn = http.client.HTTPConnection(node.host, node.port, timeout=TRY_S)
        self.conn.request(method, path, None if body is None else json.dumps(body), {
            "Content-Type": "application/json", "Authorization": f"Bearer {self.token}", **headers,
        })
        answer = self.conn.getresponse()
        raw = answer.read()
        return answer.status, json.loads(raw), {k.lower(): v for k, v in answer.getheaders()}


def _insert_tick(node: PylonServer, number: int) -> Op:
    status, body, headers = node.request(
        "POST", "/api/entities/Tick", {"n": number, "sender": f"all {number}"}, token=ADMIN_TOKEN
    )
    assert status == 201, body
    seq = int(headers["x-pylon-change-seq"])
    return Op("all", number, "insert", "Tick", str(number), body["id"], "acknowledged", seq, 1)
