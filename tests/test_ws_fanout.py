"""The changes that a ws worker sends: what each caller sees, lost batches, slow clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stage import ADMIN_TOKEN, Stage, Worker, connect_at_head
from tests.support.stores import TestStore
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores


@pytest.fixture(scope="module")
def stage(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Shared: rows of earlier tests are replayed to later clients, until they have joined."""
    made = Stage(tmp_path_factory.mktemp("ws"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def ws(stage: Stage) -> Worker:
    return stage.start("ws", PYLON_SOCKETS_PER_IP="0")


def test_three_contexts_and_an_admin_get_what_they_may_see(stage: Stage, ws: Worker) -> None:
    ada, bob = (connect_at_head(stage, ws, token=stage.login(u)[0]) for u in ("ada", "bob"))
    admin, anonymous = connect_at_head(stage, ws, token=ADMIN_TOKEN), connect_at_head(stage, ws)
    stage.write(
        stage.insert("Public", text="for all"),
        stage.insert("Mine", text="ada's", ownerId="ada"),
        stage.insert("Mine", text="nobody's", ownerId=None),
        stage.insert("Note", text="bob's note", ownerId="bob", shared=False),
        stage.insert("Note", text="shared note", ownerId="ada", shared=True),
        stage.insert("Member", text="members"),
        stage.insert("Secret", text="secret"),
        stage.insert("Public", text="end"),
    )
    seen = {
        name: [text for _, text in client.read_events(count)]
        for name, client, count in (
            ("ada", ada, 5), ("bob", bob, 5), ("admin", admin, 8), ("anonymous", anonymous, 3),
        )
    }
    assert seen == {
        "ada": ["for all", "ada's", "shared note", "members", "end"],
        "bob": ["for all", "bob's note", "shared note", "members", "end"],
        "admin": ["for all", "ada's", "nobody's", "bob's note", "shared note", "members",
                  "secret", "end"],
        "anonymous": ["for all", "shared note", "end"],
    }


def test_a_lost_view_is_a_delete_and_a_won_one_an_update(stage: Stage, ws: Worker) -> None:
    ada, bob = (connect_at_head(stage, ws, token=stage.login(u)[0]) for u in ("ada", "bob"))
    anonymous = connect_at_head(stage, ws)
    keyed = stage.insert("Mine", text="m", ownerId="ada")
    general = stage.insert("Note", text="n", ownerId="ada", shared=True)
    clients = (ada, bob, anonymous)

    def read(*counts: int) -> list[list[tuple[str, str]]]:
        # Each write is read before the next: a worker that reads the log late, as it may at any
        # time, leaves out what a later change of the row hides.
        return [client.read_events(n) for client, n in zip(clients, counts, strict=True)]

    stage.write(keyed, general)
    assert read(2, 1, 1) == [[("insert", "m"), ("insert", "n")], *[[("insert", "n")]] * 2]
    stage.write(
        stage.update("Mine", keyed.row_id, ownerId="bob"),
        stage.update("Note", general.row_id, ownerId="bob", shared=False),
        stage.insert("Public", text="end"),
    )
    assert read(3, 3, 2) == [
        [("delete", keyed.row_id), ("delete", general.row_id), ("insert", "end")],
        [("update", "m"), ("update", "n"), ("insert", "end")],
        [("delete", general.row_id), ("insert", "end")],
    ]
    stage.write(stage.delete("Mine", keyed.row_id), stage.insert("Public", text="end 2"))
    assert read(1, 2, 1) == [
        [("insert", "end 2")],
        [("delete", keyed.row_id), ("insert", "end 2")],
        [("insert", "end 2")],
    ]


def test_lost_batches_are_read_from_the_log(stage: Stage, ws: Worker) -> None:
    client = connect_at_head(stage, ws)
    stage.write(stage.insert("Public", text="1"))
    stage.write(stage.insert("Public", text="2"), publish=False)
    stage.write(stage.insert("Public", text="3"), stage.insert("Public", text="4"), publish=False)
    stage.write(stage.insert("Public", text="5"))
    assert [text for _, text in client.read_events(5)] == ["1", "2", "3", "4", "5"]


def test_a_lost_last_batch_is_found_by_asking(own_stage: Stage, own_ws: Worker) -> None:
    client = connect_at_head(own_stage, own_ws)
    own_stage.write(own_stage.insert("Public", text="nobody tells"), publish=False)
    assert client.read_events(1) == [("insert", "nobody tells")]  # within HEAD_CHECK_S


def test_a_batch_twice_is_sent_once(stage: Stage, ws: Worker) -> None:
    client = connect_at_head(stage, ws)
    batch = stage.write(stage.insert("Public", text="once"))
    stage.publisher.publish(batch)
    stage.write(stage.insert("Public", text="end"))
    assert [text for _, text in client.read_events(2)] == ["once", "end"]


def test_a_slow_client_is_closed_and_others_are_not_held_up(
    own_stage: Stage, own_ws: Worker
) -> None:
    slow = connect_at_head(own_stage, own_ws, receive_buffer_bytes=4_096)
    quick = connect_at_head(own_stage, own_ws)
    body = "x" * 500_000
    for number in range(40):
        own_stage.write(own_stage.insert("Public", text=f"{number}{body}"))
        assert quick.read_events(1)[0][1].startswith(str(number))
        if own_stage.metric(own_ws, "pylon_slow_clients_total", action="closed"):
            break
    wait_until(
        "overflow", lambda: own_stage.metric(own_ws, "pylon_slow_clients_total", action="closed")
    )
    assert slow.read_close() == (1013, "too slow")
    own_stage.write(own_stage.insert("Public", text="after"))
    while quick.read_json()["data"]["text"] != "after":
        pass
