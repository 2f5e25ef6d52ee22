"""A2: JSON made of empty lists does not hold a worker: it is scanned before it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import orjson
import pytest

from pylon import limits
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import notes_app

LISTS = b"[" + b"[]," * (limits.BODY_BYTES // 3 - 1) + b"0]"  # 3.5 million values
ROUTES = (
    "entities/Tick", "batch", "transact", "sync/push", "import", "query", "query/Tick",
    "aggregate/Tick", "link", "rooms/join", "crdt/Note/x", "matchmaking", "shards",
    "pubsub/publish", "auth/session",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, notes_app()) as made:
        yield made


class Decoded:
    """Counts the bytes that decoders are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size_bytes = 0
        monkeypatch.setattr(orjson, "loads", self._counting(orjson.loads))

    def _counting(self, loads: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def counted(raw: bytes) -> Any:
            self.size_bytes += len(raw)
            return loads(raw)

        return counted


@pytest.mark.parametrize("route", ROUTES)
def test_body_of_millions_of_values_is_never_decoded(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    decoded = Decoded(monkeypatch)
    for token in (None, ADMIN_TOKEN):
        answer = server.call("POST", f"/api/{route}", LISTS, token)
        assert 400 <= answer.status_code < 500
        if token is not None:
            assert answer.json["error"]["code"] in (
                "LIMIT_EXCEEDED", "INVALID_JSON", "MISSING_FIELD", "NOT_FOUND"
            )
    assert decoded.size_bytes < limits.JSON_INLINE_BYTES


@pytest.mark.parametrize("route", ["rooms/join", "import", "crdt/Note/x", "shards", "matchmaking"])
def test_identity_is_asked_before_a_large_body_is_looked_at(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    """The largest body that may be decoded, from a caller who may not send any."""
    decoded = Decoded(monkeypatch)
    body = b"[" + b'"%b",' % (b"x" * 100) * (limits.BODY_BYTES // 103 - 1) + b"0]"
    answer = server.call("POST", f"/api/{route}", body)
    assert answer.status_code in (401, 403)
    assert not decoded.size_bytes


def test_other_requests_are_answered_while_large_bodies_are_decoded(server: ApiStage) -> None:
    """Largest bodies of all kinds, one after the other, with one request at a time beside them."""
    texts = b'["%b"]' % (b"[" * (limits.BODY_BYTES - 4))
    rows = b"[" + b'{"title":"[","rank":1},' * (limits.JSON_NODES // 4) + b"0]"
    answered = 0

    def attack() -> None:
        for body in (LISTS, texts, rows, LISTS, texts, rows):
            server.call("POST", "/api/entities/Tick", body)

    attacker = gevent.spawn(attack)
    while not attacker.dead:
        gevent.sleep(0.001)
        assert server.call("GET", "/api/entities/Tick").status_code == 200
        answered += 1
    attacker.get()
    assert answered >= 12


def test_honest_bodies_of_any_size_are_taken(server: ApiStage) -> None:
    text = '"[{\\' * 2_000_000
    answer = server.call(
        "POST", "/api/entities/Note",
        {"title": text, "ownerId": "ada", "shared": True}, ADMIN_TOKEN,
    )
    assert answer.status_code == 201 or answer.json["error"]["code"] != "INVALID_JSON"
    note = {"title": '"[{\\' * 100, "ownerId": "ada", "shared": True}
    sent = [{"op": "insert", "entity": "Note", "data": note}] * limits.BATCH_OPS
    answer = server.call("POST", "/api/batch", {"operations": sent}, ADMIN_TOKEN)
    assert (answer.status_code, answer.json["failed"]) == (200, 0)
    ticks = [{"n": number, "sender": "["} for number in range(200_000)]
    answer = server.call("POST", "/api/import", {"entities": {"Nope": ticks}}, ADMIN_TOKEN)
    assert (answer.status_code, answer.json["failed"]) == (200, len(ticks))
