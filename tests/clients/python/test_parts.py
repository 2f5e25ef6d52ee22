"""Parts of the client without a server: windows that overflow, transports, gevent."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from pylon_client.entities import entity_of
from pylon_client.ladders import Ladder, Transport
from pylon_client.queries import Query
from pylon_client.windows import QUEUED_DIFFS, Incoming, Window


def window_of(rows: list[dict[str, Any]]) -> Window[Any]:
    window: Window[Any] = Window(Query(entity_of("Task"), limit=10), lambda: None)
    window.begin()
    window.receive(incoming(type="subscribed", seq=1, rows=rows, last=True))
    return window


def incoming(**members: Any) -> Incoming:
    return msgspec.json.decode(msgspec.json.encode(members), type=Incoming)


def test_a_queue_of_differences_that_is_full_becomes_one_reset() -> None:
    window = window_of([{"id": "a", "n": 0}])
    window.open_diffs()
    for number in range(QUEUED_DIFFS + 50):
        window.receive(incoming(
            type="diff", seq=2 + number, kind="update", row_id="a", data={"id": "a", "n": number}
        ))
    diffs = window.take_diffs()
    assert [diff.kind for diff in diffs] == ["reset"] + ["update"] * (len(diffs) - 1)
    assert len(diffs) <= QUEUED_DIFFS
    assert diffs[-1].row == {"id": "a", "n": QUEUED_DIFFS + 49}
    assert window.rows() == [diffs[-1].row]


def test_a_result_in_pieces_replaces_the_rows_when_it_is_whole() -> None:
    window = window_of([{"id": "a"}])
    window.begin()
    window.receive(incoming(type="subscribed", seq=5, rows=[{"id": "b"}], last=False))
    assert window.rows() == [{"id": "a"}]
    window.receive(incoming(type="subscribed", seq=5, rows=[{"id": "c"}], last=True))
    assert window.rows() == [{"id": "b"}, {"id": "c"}]


def test_a_client_steps_down_from_websockets_and_up_again() -> None:
    now_s = [0.0]
    ladder = Ladder(lambda: now_s[0], lambda low, high: high)
    tried = []
    for _ in range(5):
        tried.append(ladder.next_transport())
        ladder.note_failed()
    assert tried == [Transport.WEBSOCKET] * 2 + [Transport.EVENTS] * 2 + [Transport.POLL]
    assert ladder.next_transport() is Transport.WEBSOCKET  # polling failed: the network is down
    ladder.note_failed()
    ladder.note_failed()
    assert ladder.next_transport() is Transport.EVENTS
    ladder.note_opened()
    now_s[0] += 299.0
    assert not ladder.is_websocket_due
    now_s[0] += 1.0
    assert ladder.next_transport() is Transport.WEBSOCKET
    ladder.note_failed()  # one more failure is enough
    assert ladder.next_transport() is Transport.EVENTS
    pauses = [ladder.pause_s() for _ in range(8)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


_GEVENT = """
import sys
from gevent import monkey
monkey.patch_all()
import gevent
from pylon_client import Pylon

with Pylon(sys.argv[1]) as app:
    app.auth.guest()
    name = sys.argv[2]
    with app["Task"].where(list=name).live(timeout=30) as window:
        assert window.next() == []
        ticks = []
        ticker = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.01)) for _ in range(10)])
        gevent.spawn_later(0.2, lambda: app["Task"].insert(title="from gevent", list=name))
        print(window.next()[0]["title"], len(ticks))
"""


def test_a_window_works_under_the_patches_of_gevent(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _GEVENT, url, "gevent"], capture_output=True, text=True,
        timeout=120, check=False,
    )
    assert (done.returncode, done.stdout) == (0, "from gevent 10\n"), done.stderr


def test_rows_are_instances_of_the_apps_own_entities(url: str) -> None:
    pylon = pytest.importorskip("pylon")
    if not hasattr(pylon, "Entity"):
        pytest.skip("this server has no manifests in Python")
    program = (
        "import sys\nfrom pylon import Entity\nfrom pylon.client import Pylon\n"
        "class Task(Entity):\n    title: str\n    rank: int = 0\n"
        "with Pylon(sys.argv[1]) as app:\n"
        "    app.auth.guest()\n"
        "    task = app.rows(Task).insert(title='own', rank=4)\n"
        "    with app.transaction() as t:\n        t.update(task, rank=5)\n"
        "    print(type(task).__name__, task.title, app.rows(Task).get(task.id).rank)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Task own 5\n"), done.stderr
