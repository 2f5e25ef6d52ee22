"""Writers that record which of their writes were acknowledged, refused or left unknown.

A write is *acknowledged* when its answer was read whole with a success status; *unknown* when
it was sent and no whole answer came (it may or may not have happened); *refused* when the
server said no or no connection could be made.
"""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any

from tests.support.server import PylonServer


@dataclass
class Score:
    """What one writer knows of its rows."""

    present: dict[str, dict[str, Any]] = field(default_factory=dict)  # acknowledged, last state
    deleted: set[str] = field(default_factory=set)  # delete acknowledged
    unknown: set[str] = field(default_factory=set)  # touched by a write without an answer
    unknown_inserts: set[str] = field(default_factory=set)  # titles of such inserts
    acknowledged: int = 0
    refused: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)  # an answer that began and did not end
    bad: list[str] = field(default_factory=list)  # answers that must not be


class Writer(threading.Thread):
    """Inserts, updates and deletes `Tick` rows on a keep-alive connection until told to stop."""

    def __init__(self, server: PylonServer, name: str, token: str) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.label = name
        self.token = token
        self.score = Score()
        self._halt = threading.Event()
        self._conn: http.client.HTTPConnection | None = None

    def halt(self) -> Score:
        self._halt.set()
        self.join(40)
        assert not self.is_alive()
        return self.score

    def run(self) -> None:
        n = 0
        score = self.score
        while not self._halt.is_set():
            n += 1
            row = {"n": n, "sender": self.label}
            body = self._send("POST", "/api/entities/Tick", row, f"{self.label}:{n}", None)
            if body is None:
                self._halt.wait(0.02)
                continue
            row_id = body["id"]
            score.present[row_id] = {"id": row_id, **row}
            if n % 3 == 0 and self._send(
                "PATCH", f"/api/entities/Tick/{row_id}", {"n": -n}, None, row_id
            ):
                score.present[row_id]["n"] = -n
            if n % 5 == 0 and self._send(
                "DELETE", f"/api/entities/Tick/{row_id}", None, None, row_id
            ):
                score.deleted.add(row_id)
                del score.present[row_id]

    def _send(
        self, method: str, path: str, body: Any, title: str | None, row_id: str | None
    ) -> dict[str, Any] | None:
        """The answer's body if the write was acknowledged."""
        score = self.score
        try:
            if self._conn is None:
                conn = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
                conn.connect()
                self._conn = conn
        except OSError as ex:
            score.refused.append(f"{method}: {ex}")
            return None
        answer = None
        try:
            self._conn.request(
                method, path, json.dumps(body) if body is not None else None,
                {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            )
            answer = self._conn.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as ex:
            if answer is not None:
                score.cut.append(f"{method} {path}: {ex!r}")
            self._note_unknown(title, row_id)
            self._conn.close()
            self._conn = None
            return None
        if answer.will_close:
            self._conn.close()
            self._conn = None
        if answer.status in (200, 201):
            score.acknowledged += 1
            out: dict[str, Any] = json.loads(raw)
            return out
        if answer.status == 503:
            code = json.loads(raw)["error"]["code"]
            if code == "WRITER_UNAVAILABLE":  # may have happened: the error says so
                self._note_unknown(title, row_id)
            score.refused.append(f"{method}: {code}")
        else:
            score.bad.append(f"{method} {path}: {answer.status} {raw[:200]!r}")
        return None

    def _note_unknown(self, title: str | None, row_id: str | None) -> None:
        if title is not None:
            self.score.unknown_inserts.add(title)
        if row_id is not None:
            self.score.unknown.add(row_id)


def check_nothing_lost(scores: list[Score], stored: dict[str, dict[str, Any]]) -> int:
    """Compare what was acknowledged with what is stored; give the number of acknowledgements."""
    lost, wrong, risen, invented = [], [], [], []
    known: set[str] = set()
    unknown_inserts: set[str] = set()
    for score in scores:
        assert score.bad == []
        unknown_inserts |= score.unknown_inserts
        known |= score.present.keys() | score.deleted
        for row_id, row in score.present.items():
            if row_id in score.unknown:
                continue
            if row_id not in stored:
                lost.append(row)
            elif stored[row_id] != row:
                wrong.append((row, stored[row_id]))
        risen += [i for i in score.deleted if i in stored]
    for row_id, row in stored.items():
        if row_id not in known and f"{row['sender']}:{abs(row['n'])}" not in unknown_inserts:
            invented.append(row)
    assert (lost, wrong, risen, invented) == ([], [], [], [])
    return sum(score.acknowledged for score in scores)
