"""Role × entity × verb × path on a real server: what it does is what the model says.

`model` says who may do what, `app` has the policies as an app writes them, `stand` makes the
callers, and the drivers of `read_paths`, `write_paths`, `socket_paths` and `room_paths` take one
path each. A test takes one path, meets all callers and all entities on it, and lists the
differences. One server serves the tests of a store.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.matrix import model, read_paths, write_paths
from tests.matrix.app import BOARD, ENTITIES, HIDDEN, MARK, matrix_app
from tests.matrix.model import DENIED, OK, Outcome, kind_of_event, may_read
from tests.matrix.read_paths import READS
from tests.matrix.room_paths import expect_room, try_room
from tests.matrix.socket_paths import CHANNELS, NO_DOCUMENTS, SOCKET_READS, Channel, Heard
from tests.matrix.stand import ORGS, Caller, Stand, in_model
from tests.matrix.write_paths import WRITES, Operation
from tests.support.server import PylonServer
from tests.support.stores import TestStore

pytestmark = pytest.mark.stores
VERBS = ("insert", "update", "take", "forge", "delete")
ALL_READS = {**READS, **SOCKET_READS}
ALL_WRITES = [
    (path, verb) for path in WRITES for verb in VERBS
    if path not in write_paths.UPDATES_ONLY or verb not in ("insert", "delete")
]


@pytest.fixture(scope="module")
def stand(
    processes: None, tested_store: TestStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    server = PylonServer(tmp_path_factory.mktemp("matrix"), matrix_app())
    try:
        made = Stand(server.start())
        yield made
        made.close()
    finally:
        server.close()


@pytest.mark.parametrize("path", ALL_READS)
def test_a_caller_reads_what_the_model_says(stand: Stand, path: str) -> None:
    differences = {}
    for caller in stand.callers:
        for entity in ENTITIES:
            found = ALL_READS[path](stand, caller, entity)
            expected = readable(stand, caller, path, entity)
            if found != expected:
                differences[caller.name, entity] = (found, expected)
    assert differences == {}


def readable(stand: Stand, caller: Caller, path: str, entity: str) -> read_paths.Seen:
    """Return the titles that the model lets a caller read, or `DENIED`."""
    person = caller.person
    if path in read_paths.ADMIN_ONLY and not person.is_admin:
        return DENIED
    needs_sync = path in read_paths.NEED_SYNC or path in SOCKET_READS
    if needs_sync and not person.grant.sync:
        return DENIED
    if (path, entity) in NO_DOCUMENTS:
        return frozenset()
    if entity not in person.grant.reads:
        return frozenset() if path in read_paths.NEED_SYNC else DENIED
    rows = [in_model(stand.row(owner, entity)) for owner in ("ann", "zed")]
    if path in read_paths.OWN_TENANT and person.tenant is not None:
        rows = [row for row in rows if row["orgId"] == person.tenant]
    return frozenset(row["title"] for row in rows if may_read(person, entity, row))


@pytest.mark.parametrize(("path", "verb"), ALL_WRITES)
def test_a_caller_writes_what_the_model_says(stand: Stand, path: str, verb: str) -> None:
    differences = {}
    for caller in stand.callers:
        for entity in ENTITIES if verb != "forge" else (HIDDEN,):
            for owner in ("ann", "zed"):
                found, expected = tried(stand, caller, path, verb, entity, owner)
                if found != expected:
                    differences[caller.name, entity, owner] = (found, expected)
    assert differences == {}


def tried(
    stand: Stand, caller: Caller, path: str, verb: str, entity: str, owner: str
) -> tuple[Outcome, Outcome]:
    """Carry out an operation on a fresh row; return the outcome that is stored, and the model's.

    Raises: AssertionError when the answer and the stored row disagree.
    """
    person = caller.person
    body = stand.row(owner, entity, title=f"tried by {caller.name}")
    row_id = f"{next(stand.numbers):040x}"
    if verb == "insert":
        op = Operation("insert", entity, row_id, body)
        expected = model.judge_insert(person, entity, in_model(body))
    else:
        row_id = stand.insert(entity, body)
        before = in_model(stand.row(owner, entity))
        if verb == "delete":
            op = Operation("delete", entity, row_id, {})
            expected = model.judge_delete(person, entity, before)
        else:
            changes = changed(stand, person, verb)
            op = Operation("update", entity, row_id, changes)
            after = in_model({**body, **changes})
            expected = model.judge_update(
                person, entity, before, {k: after[k] for k in changes}
            )
    if path in write_paths.NEED_SYNC and not person.grant.sync:
        expected = DENIED
    if path in write_paths.UPDATES_ONLY and (person.user_id is None or entity == HIDDEN):
        expected = DENIED
    claimed = WRITES[path](stand, caller, op)
    stored = stand.export(entity)[row_id] if verb == "forge" else stand.find(entity, row_id)
    if verb == "insert":
        is_done = stored is not None
    elif verb == "delete":
        is_done = stored is None
    else:
        assert stored is not None
        is_done = all(stored[name] == value for name, value in op.body.items())
    assert is_done == (claimed == OK), (caller.name, entity, owner, claimed, stored)
    return claimed, expected


def changed(stand: Stand, person: model.Person, verb: str) -> dict[str, str]:
    """Return the fields that an update writes."""
    if verb == "take":  # the row, for oneself and one's own organisation
        return {"ownerId": person.user_id or "nobody", "orgId": stand.org_of(person)}
    if verb == "forge":
        return {"secret": f"{MARK}forged"}
    return {"title": "changed"}


def life_of(kind: str) -> tuple[str | None, ...]:
    """Return the owner (and so the organisation) of a row after each change; None after its end.

    A pull tells no more of a row that is gone than that, so there the row stays.
    """
    stays = ("ann", "ann", "zed", "ann")
    return stays if kind == "pull" else (*stays, None)


@pytest.mark.parametrize("kind", CHANNELS)
def test_a_caller_hears_what_the_model_says(stand: Stand, kind: str) -> None:
    channels = [Channel(kind, stand, caller) for caller in stand.callers]
    for channel in channels:
        channel.open()
    for entity in ENTITIES:
        change_rows(stand, entity, kind)
    last = stand.insert(BOARD, stand.row("zed", title=kind))
    differences = {}
    for caller, channel in zip(stand.callers, channels, strict=True):
        found, expected = channel.read(last), audible(stand, caller, kind)
        if found != expected:
            differences[caller.name] = (found, expected)
        channel.close()
    assert differences == {}


def change_rows(stand: Stand, entity: str, kind: str) -> None:
    """Make a row, change it, and delete it, as `life_of` says."""
    row_id = ""
    for number, owner in enumerate(life_of(kind)):
        body = stand.row(owner or "ann", entity, title=kind)
        if not row_id:
            row_id = stand.insert(entity, body)
            continue
        if owner is None:
            answer = stand.delete(entity, row_id)
        else:
            answer = stand.update(entity, row_id, {**body, "note": str(number)})
        assert answer.status == 200, answer


def audible(stand: Stand, caller: Caller, kind: str) -> Heard:
    """Return what the model lets a caller hear of the lives of all rows."""
    if not caller.person.grant.sync:
        return [] if kind.startswith("live") else DENIED
    found = []
    for entity in ENTITIES:
        states = [
            in_model(stand.row(owner, entity)) if owner is not None else None
            for owner in life_of(kind)
        ]
        events = [
            kind_of_event(caller.person, entity, before, after)
            for before, after in zip([None, *states], states, strict=False)
        ]
        if kind == "pull" and not may_read(caller.person, entity, states[-1] or {}):
            events = [event for event in events if event == "delete"]  # no image of it now
        found += [(entity, event) for event in events if event is not None]
    return found


@pytest.mark.parametrize("room", list(model.ROOM_RULES))
def test_a_caller_does_in_a_room_what_the_model_says(stand: Stand, room: str) -> None:
    name = room.replace("org:A", f"org:{ORGS['A']}")
    differences = {}
    for caller in stand.callers:
        found, expected = try_room(stand, caller, name), expect_room(caller.person, room)
        if found != expected:
            differences[caller.name] = {
                verb: found[verb] for verb in found if found[verb] != expected[verb]
            }
    assert differences == {}
