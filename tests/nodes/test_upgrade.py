"""Rolling upgrades: two builds with two manifests side by side under load, node by node.

A balancer asks each node's /readyz, as a real one does, and sends requests to those that are ready.
No request may fail, no event may be lost, and every client has the rows that the store has.
PYLON_TEST_UPGRADE_S sets how long both builds serve side by side.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.nodes.builds import HERE, earlier_build
from tests.nodes.fleet import Fleet, Node, trial_app
from tests.nodes.history import Change, Op, Stream
from tests.support import stores
from tests.support.manifests import field
from tests.support.postgres import PostgresServer, find_programs
from tests.support.server import PylonServer
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.usefixtures("processes", "postgres_server"), pytest.mark.slow,
    pytest.mark.timeout(600),
]

MIXED_S: Final = float(os.environ.get("PYLON_TEST_UPGRADE_S", "4"))
DRAIN_DELAY_S: Final = "1"  # longer than the balancer needs to notice
POLL_S: Final = 0.1
NEW_SETTINGS: Final = ("PYLON_RATE_LIMIT_MAX", "PYLON_RATE_LIMIT_MAX_AUTHED")
DEFAULT: Final = ("state", "open")
NEW_FIELDS: Final = ("colour", "state")


def newer_app() -> dict[str, Any]:
    """The app with additions: an optional field, a required one with a default, an entity, an
    index."""
    app = trial_app()
    note = app["entities"][0]
    note["fields"] += [
        field("colour", "string", optional=True),
        {**field("state", "string"), "default": "open"},
    ]
    note["indexes"].append({"name": "by_rank", "fields": ["rank"], "unique": False})
    app["entities"].append({
        "name": "Label", "fields": [field("text", "string")], "indexes": [], "crdt": False,
    })
    app["policies"].append({
        "name": "labels", "entity": "Label", "allowRead": "true", "allowInsert": "true",
        "allowUpdate": "true", "allowDelete": "true",
    })
    return {**app, "version": "0.2.0"}


@dataclass(frozen=True)
class Release:
    """The code and the manifest that a node runs."""

    build: Path
    app: Mapping[str, Any]

    @property
    def knows_colour(self) -> bool:
        return len(self.app["entities"]) > 2


class UpgradeFleet(Fleet):
    """A fleet whose nodes change their release. Images are compared without the new fields, which
    an older node leaves out of the events that it sends itself."""

    def __init__(self, folder: Path, url: str, release: Release) -> None:
        super().__init__(
            folder, 2, lambda number: {
                "DATABASE_URL": url, "PYLON_NODE": f"node{number}",
                "PYLON_DRAIN_DELAY_S": DRAIN_DELAY_S,
            }, writers=3, clients=4,
        )
        for node in self.nodes:
            put_release(node, release)
        self.release = release
        self._balancing = threading.Event()

    @contextmanager
    def balanced(self) -> Iterator[None]:
        """Take nodes that are not ready out, while the block runs."""
        thread = threading.Thread(target=self._balance, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._balancing.set()
            thread.join(10)

    def _balance(self) -> None:
        while not self._balancing.wait(POLL_S):
            for number, node in enumerate(self.nodes):
                try:
                    is_ready = node.request("GET", "/readyz", timeout_s=2)[0] == 200
                except (OSError, http.client.HTTPException):
                    is_ready = False
                if is_ready:
                    self.load.out.discard(number)
                else:
                    self.load.out.add(number)

    def replace(self, number: int, release: Release) -> None:
        """Drain a node and start it with another release."""
        node = self.nodes[number]
        assert node.terminate() == 0, node.log()
        put_release(node, release)
        node.restart()
        node.wait_ready(60)
        self.release = release
        wait_until("the node is in", lambda: number not in self.load.out, 10)

    def comparable(self, stream: Stream) -> Stream:
        stream.events = without_new_fields(stream.events)
        stream.snapshot_rows = without_new_fields(stream.snapshot_rows)
        return stream

    def _read_log(self, node: PylonServer, cursor: int) -> list[Change]:
        return without_new_fields(super()._read_log(node, cursor))

    def find_echoes(self, log: list[Change]) -> set[int]:
        """Events that send a row again, for clients that have not seen all of its values."""
        echoes: set[int] = set()
        before: dict[tuple[str, str], Any] = {}
        for change in log:
            row = (change.entity, change.row_id)
            if change.kind == "update" and before.get(row) == change.data:
                echoes.add(change.seq)
            before[row] = change.data
        return echoes

    def _compare_rows(self) -> list[str]:
        """A client that has never heard of a field takes it as null, or as its default: nobody
        sends rows again that the migration has filled. Where the last release does not know the
        new fields, nobody sends them."""
        left_out = () if self.release.knows_colour else NEW_FIELDS
        problems = []
        for number, client in enumerate(self.clients):
            node = self.nodes[number % len(self.nodes)]
            wanted = {name: with_values(node.rows(name, client.token or ""), left_out)
                      for name in ("Note", "Tick")}
            wanted = {name: rows for name, rows in wanted.items() if rows}
            try:
                wait_until("replica equals the store", lambda c=client, w=wanted: {
                    name: with_values(rows, left_out) for name, rows in c.snapshot().items()
                } == w, 10)
            except AssertionError:
                found = {name: with_values(rows, left_out)
                         for name, rows in client.snapshot().items()}
                problems += [
                    f"{client.stream.name}: {name}/{row_id} is {found.get(name, {}).get(row_id)}"
                    f" and should be {row}"
                    for name, rows in wanted.items() for row_id, row in rows.items()
                    if found.get(name, {}).get(row_id) != row
                ][:5] or [f"{client.stream.name}: rows that should not be there"]
        return problems


def with_values(
    rows: Mapping[str, Mapping[str, Any]], left_out: Sequence[str]
) -> dict[str, dict[str, Any]]:
    return {
        row_id: {
            name: value for name, value in row.items()
            if value is not None and name not in left_out and (name, value) != DEFAULT
        }
        for row_id, row in rows.items()
    }


def put_release(node: Node, release: Release) -> None:
    node.env["PYTHONPATH"] = str(release.build)
    for name in NEW_SETTINGS:  # earlier builds refuse settings that they do not know
        if release.build == HERE:
            node.env[name] = "0"
        else:
            node.env.pop(name, None)
    node.manifest_path.write_text(json.dumps(release.app))


def without_new_fields(changes: Sequence[Change]) -> list[Change]:
    return [
        change if change.data is None else replace(
            change, data={k: v for k, v in change.data.items() if k not in NEW_FIELDS}
        )
        for change in changes
    ]


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    version = stores.wanted_version(find_programs())
    assert version is not None
    made = PostgresServer(find_programs()[version])
    yield made
    made.close()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the build that was shipped last."""
    found = earlier_build(tmp_path_factory.mktemp("shipped"))
    if found is None:
        pytest.skip("this copy of the repository lacks the history of the last shipped build")
    return found[1]


def check_mixed(fleet: UpgradeFleet, older: int, newer: int) -> None:
    """A value that the newer node wrote stays when the older one writes the row."""
    old, new = fleet.nodes[older], fleet.nodes[newer]
    token, user = new.guest()
    number = 0

    def write(node: Node, method: str, path: str, data: dict[str, Any]) -> str:
        nonlocal number
        number += 1
        status, body, headers = node.request(
            method, path, {**data, "rank": number}, token=token
        )
        assert status in (200, 201), body
        row_id: str = body["id"] if method == "POST" else path.rpartition("/")[2]
        fleet.load.add_op(Op(
            user, number, "insert" if method == "POST" else "update", "Note", str(number), row_id,
            "acknowledged", int(headers["x-pylon-change-seq"]), 1,
        ))
        return row_id

    made = write(new, "POST", "/api/entities/Note", {
        "title": "a", "ownerId": user, "shared": True, "colour": "red",
    })
    path = f"/api/entities/Note/{made}"
    write(old, "PATCH", path, {"title": "b"})
    status, row, _ = new.request("GET", path, token=token)
    assert (status, row["title"], row["colour"], row["state"]) == (200, "b", "red", "open")
    plain = write(old, "POST", "/api/entities/Note", {
        "title": "c", "ownerId": user, "shared": False,
    })
    status, row, _ = new.request("GET", f"/api/entities/Note/{plain}", token=token)
    assert (row["colour"], row["state"]) == (None, "open")
    status, found, _ = new.request(
        "POST", "/api/query/Note", {"state": "open", "colour": None}, token=token
    )
    assert plain in [row["id"] for row in found]


def rolled(
    server: PostgresServer, folder: Path, first: Release, last: Release
) -> tuple[UpgradeFleet, list[str]]:
    """Replace all nodes of `first` by `last`, one by one; what went wrong."""
    fleet = UpgradeFleet(folder, server.url, first)
    problems: list[str] = []
    with fleet.running(), fleet.balanced():
        for number in range(len(fleet.nodes)):
            fleet.replace(number, last)
            if number + 1 < len(fleet.nodes):
                if first.knows_colour:  # the older build has written all rows anew
                    wait_until("newer nodes have noticed", lambda: bool(triggers(server)), 20)
                    time.sleep(1)
                older, newer = (number, number + 1) if first.knows_colour else (number + 1, number)
                check_mixed(fleet, older, newer)
                end_s = time.monotonic() + MIXED_S
                while time.monotonic() < end_s:
                    fleet.load.wait_for_progress(30)
        fleet.load.wait_for_progress(30)
        # The shipped build loses data of a member that are set beside late news of its socket.
        fleet.attendance.repeats_data = last.build != HERE
        wait_until("nothing is left to do", lambda: all(
            "pending" not in json.dumps(node.request("GET", "/readyz")[1])
            for node in fleet.nodes
        ), 60)
        problems += fleet.load.failed
        problems += fleet.check()
        print(*problems, sep="\n")
        print(f"{fleet.load.acknowledged} writes acknowledged, "
              f"{len(fleet.load.failed)} requests failed")
    return fleet, problems


def keys_of_notes(server: PostgresServer) -> set[tuple[str, ...]]:
    found = server.run_sql('SELECT DISTINCT array(SELECT json_object_keys(_json::json) ORDER BY 1) '
                           'FROM "Note"')
    return {tuple(keys) for (keys,) in found}


def triggers(server: PostgresServer) -> list[Any]:
    return server.run_sql("SELECT tgname FROM pg_trigger WHERE starts_with(tgname, '_pylon')")


OLD_KEYS: Final = ("body", "id", "ownerId", "rank", "shared", "slug", "title")
NEW_KEYS: Final = tuple(sorted((*OLD_KEYS, *NEW_FIELDS)))


def test_the_shipped_build_is_replaced_node_by_node(
    server: PostgresServer, shipped: Path, tmp_path: Path
) -> None:
    _, problems = rolled(
        server, tmp_path, Release(shipped, trial_app()), Release(HERE, newer_app())
    )
    assert problems == []
    assert keys_of_notes(server) == {NEW_KEYS}
    assert triggers(server) == []


def test_the_shipped_build_comes_back_node_by_node(
    server: PostgresServer, shipped: Path, tmp_path: Path
) -> None:
    _, problems = rolled(
        server, tmp_path, Release(HERE, newer_app()), Release(shipped, trial_app())
    )
    assert problems == []


def test_another_manifest_comes_and_goes_node_by_node(
    server: PostgresServer, tmp_path: Path
) -> None:
    first, last = Release(HERE, trial_app()), Release(HERE, newer_app())
    _, problems = rolled(server, tmp_path / "up", first, last)
    assert problems == []
    assert keys_of_notes(server) == {NEW_KEYS} and triggers(server) == []
    _, problems = rolled(server, tmp_path / "down", last, first)
    assert problems == []
    assert keys_of_notes(server) == {OLD_KEYS} and triggers(server) == []
