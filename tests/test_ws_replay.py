"""The replay of a ws worker: after cursors and hints, and the cursors that it must refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylon import limits
from pylon.clock import SystemClock
from pylon.storage.records import LogRetention
from tests.support import stores
from tests.support.stage import Stage, Worker, connect_at_head
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames

pytestmark = pytest.mark.stores


def fill(own_stage: Stage, count: int) -> list[int]:
    """Insert `count` rows in one batch; their seqs."""
    batch = own_stage.write(*(own_stage.insert("Public", text=str(i)) for i in range(count)))
    return [event.seq for event in batch.events]


def test_replay_after_since(own_stage: Stage, own_ws: Worker) -> None:
    seqs = fill(own_stage, 20)
    client = WebSocketClient(own_ws.port, path=f"/?since={seqs[9]}")
    assert [client.read_json()["seq"] for _ in range(10)] == seqs[10:]
    own_stage.write(own_stage.insert("Public", text="live"))
    assert client.read_events(1) == [("insert", "live")]


def test_long_replay_from_the_log_is_paced_and_meets_live_events(
    own_stage: Stage, own_ws: Worker
) -> None:
    seqs = [seq for _ in range(5) for seq in fill(own_stage, 900)]
    client = WebSocketClient(own_ws.port, path=f"/?since={seqs[0]}", receive_buffer_bytes=4_096)
    own_stage.write(own_stage.insert("Public", text="live"))
    assert [client.read_json()["seq"] for _ in range(len(seqs) - 1)] == seqs[1:]
    assert client.read_events(1) == [("insert", "live")]


def test_replay_reads_what_is_older_than_the_tail(own_stage: Stage) -> None:
    seqs = fill(own_stage, 900) + fill(own_stage, 900)
    own_ws = own_stage.start("ws")
    client = WebSocketClient(own_ws.port, path=f"/?since={seqs[99]}")
    assert [client.read_json()["seq"] for _ in range(1_700)] == seqs[100:]


def test_replay_after_the_hint_of_the_session(own_stage: Stage, own_ws: Worker) -> None:
    token, session_id = own_stage.login("ada")
    seqs = fill(own_stage, 300)
    own_stage.add_hint(session_id, seqs[289])
    own_stage.add_hint(session_id, seqs[294])  # a later pull of another tab
    own_stage.mark(seqs[-1])  # other nodes have no newer hint
    assert WebSocketClient(own_ws.port, token=token).read_json()["seq"] == seqs[290]


def test_replay_after_the_hint_of_the_address(own_stage: Stage, own_ws: Worker) -> None:
    seqs = fill(own_stage, 300)
    own_stage.add_hint(None, seqs[297])
    own_stage.mark(seqs[-1])
    assert WebSocketClient(own_ws.port).read_json()["seq"] == seqs[298]


def test_replay_of_the_newest_without_a_hint(own_stage: Stage, own_ws: Worker) -> None:
    witness = WebSocketClient(own_ws.port)
    seqs = fill(own_stage, 300)
    # Live, so the worker has taken all of them: its newest are the log's newest.
    assert [witness.read_json()["seq"] for _ in seqs] == seqs
    own_stage.mark(seqs[-1])
    client = WebSocketClient(own_ws.port)
    wanted = seqs[-limits.REPLAY_WITHOUT_HINT_EVENTS:]
    assert [client.read_json()["seq"] for _ in wanted] == wanted


def test_replay_is_policy_filtered(own_stage: Stage, own_ws: Worker) -> None:
    watcher = connect_at_head(own_stage, own_ws)
    row = own_stage.insert("Note", text="n", ownerId="ada", shared=True)
    seq = own_stage.write(row).events[0].seq
    own_stage.write(own_stage.update("Note", row.row_id, shared=False))
    own_stage.write(own_stage.insert("Mine", text="ada's", ownerId="ada"))
    own_stage.write(own_stage.insert("Public", text="end"))
    while watcher.read_json().get("data", {}).get("text") != "end":
        continue  # the hub has all of it, once one of its clients has
    client = WebSocketClient(own_ws.port, path=f"/?since={seq - 1}")
    assert client.read_events(2) == [("delete", row.row_id), ("insert", "end")]
    again = WebSocketClient(own_ws.port, path=f"/?since={seq}", token=own_stage.login("ada")[0])
    assert again.read_events(3) == [("update", "n"), ("insert", "ada's"), ("insert", "end")]


@pytest.mark.parametrize("ahead", [1, 10**12])
def test_a_cursor_ahead_of_the_log_must_resync(
    own_stage: Stage, own_ws: Worker, ahead: int
) -> None:
    head = fill(own_stage, 3)[-1]
    client = WebSocketClient(own_ws.port, path=f"/?since={head + ahead}")
    assert client.read_json() == {
        "type": "resync", "code": "RESYNC_REQUIRED", "oldest_seq": head + 1,
    }
    assert client.read_close() == (1012, "resync required")


def test_a_void_cursor_is_told_where_the_log_goes_on(own_stage: Stage) -> None:
    cursor = fill(own_stage, 3)[-1]
    first_seq = stores.open_epoch(
        Path(own_stage.config.db_path), "restore", SystemClock(), void_from=cursor - 2
    )
    ws = own_stage.start("ws")
    client = WebSocketClient(ws.port, path=f"/?since={cursor}")
    assert client.read_json() == {
        "type": "resync", "code": "RESYNC_REQUIRED", "oldest_seq": first_seq + 1,
    }
    assert client.read_close() == (1012, "resync required")


def test_a_socket_without_changes_needs_no_cursor(own_stage: Stage, own_ws: Worker) -> None:
    """One that came for rooms or live queries is not sent away because of what it never gets."""
    head = fill(own_stage, 3)[-1]
    client = WebSocketClient(own_ws.port, path=f"/?changes=0&since={head + 5}")
    client.send_frame(frames.PING, b"p")
    assert client.read_control() == (frames.PONG, b"p")


def test_a_log_pruned_past_the_feed_closes_everyone_with_1012(
    own_stage: Stage, own_ws: Worker
) -> None:
    seqs = fill(own_stage, 5)
    client = connect_at_head(own_stage, own_ws)
    for _ in range(3):  # lost on the bus, and then gone from the log
        own_stage.write(own_stage.insert("Public", text="lost"), publish=False)
    own_stage.engine.maintenance.prune_log(LogRetention(1, 2**40, 1_000))
    assert client.read_close() == (1012, "resync required")
    again = WebSocketClient(own_ws.port, path=f"/?since={seqs[0]}")
    assert again.read_json() == {
        "type": "resync", "code": "RESYNC_REQUIRED", "oldest_seq": seqs[-1] + 3,
    }
    fresh = connect_at_head(own_stage, own_ws)
    own_stage.write(own_stage.insert("Public", text="goes on"))
    assert fresh.read_events(1) == [("insert", "goes on")]
