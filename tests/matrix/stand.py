"""A served app with the callers of the matrix: their tokens, and two rows of each entity.

`Stand.ann_row` of an entity belongs to ann and to organisation A, `Stand.zed_row` to somebody else
and to organisation B. Every answer that a test gets goes through `Stand.call`, which fails if it
has the value of a hidden field. Used by the drivers and the tests of this package.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.matrix.app import BOARD, ENTITIES, HIDDEN, MARK
from tests.matrix.model import ALL, NONE, Grant, Person
from tests.matrix.sockets import content_of, read_until_pong, send_message
from tests.support.documents import LoroClient
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.websocket_client import WebSocketClient

ORGS: Final = {"A": "a" * 40, "B": "b" * 40}  # row ids by the names that the model has
ANN: Final = "ann"
_READS_ONLY: Final = Grant(writes=NONE, deletes=NONE, rooms=False)
_NOTES: Final = frozenset({BOARD, "Note"})
# Callers by name, and the scopes of those with a key. The ids of users are their first names.
PEOPLE: Final = (
    Person("anonymous"),
    Person("guest", is_guest=True),
    Person("ann, the owner", ANN),
    Person("sid, a stranger", "sid"),
    Person("mia, a member", "mia", tenant="A", member_of=(("A", "member"),)),
    Person("mia, in no organisation now", "mia", member_of=(("A", "member"),)),
    Person("oto, of another organisation", "oto", tenant="B", member_of=(("B", "member"),)),
    Person("ria, the admin of another", "ria", tenant="B", member_of=(("B", "admin"),)),
    Person("ida, the admin", "ida", tenant="A", member_of=(("A", "admin"),)),
    Person("a read-only key of ida", "ida", member_of=(("A", "admin"),), grant=_READS_ONLY),
    Person("a key of ann for notes", ANN, grant=Grant(_NOTES, _NOTES, frozenset({BOARD}))),
    Person("a key of ida without sync", "ida", member_of=(("A", "admin"),),
           grant=Grant(ALL, ALL, ALL, sync=False, rooms=False)),
    Person("the administrator", "__admin__", is_admin=True),
)
SCOPES: Final = {
    "a read-only key of ida": "entity:*:read sync",
    "a key of ann for notes": "entity:Note:read entity:Note:write entity:Board:* sync rooms",
    "a key of ida without sync": "entity:*:*",
}
SESSION_NAMES: Final = tuple(p.name for p in PEOPLE if p.user_id and p.name not in SCOPES)


@dataclass(frozen=True, slots=True)
class Caller:
    """A person of the model, and the token by which the server knows it."""

    person: Person
    token: str | None

    @property
    def name(self) -> str:
        return self.person.name


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the server: status, body and error code."""

    status: int
    body: Any

    @property
    def code(self) -> str | None:
        error = self.body.get("error") if isinstance(self.body, dict) else None
        return error["code"] if isinstance(error, dict) else None


class Stand:
    """The served app."""

    def __init__(self, server: PylonServer) -> None:
        """Make the users, organisations, sessions, keys and rows on a server that is ready."""
        self.server = server
        self.numbers = itertools.count(1)
        self._editor: WebSocketClient | None = None
        for name in ("ann", "zed", "sid", "mia", "oto", "ria", "ida"):
            self.insert("User", {"id": user_row(name), "email": f"{name}@example.com"})
        for name, org in ORGS.items():
            self.insert("Org", {"id": org, "name": name, "createdAt": NOW, "createdBy": "x"})
        for person in {p.user_id: p for p in PEOPLE if p.member_of}.values():
            ((org, role),) = person.member_of
            self.insert("OrgMember", {
                "orgId": ORGS[org], "userId": user_row(str(person.user_id)), "role": role,
                "joinedAt": NOW,
            })
        self.callers = tuple(self._enter(person) for person in PEOPLE)
        self.board = self.insert(BOARD, self.row("ann"))
        self.ann_row = {name: self.insert(name, self.row("ann", name)) for name in ENTITIES}
        self.zed_row = {name: self.insert(name, self.row("zed", name)) for name in ENTITIES}

    def _enter(self, person: Person) -> Caller:
        """Return a caller; those of the model get the ids that the server uses."""
        if person.is_admin:
            return Caller(person, ADMIN_TOKEN)
        if person.is_guest:
            token, user_id = self.server.guest()
            return Caller(replace(person, user_id=user_id), token)
        if person.user_id is None:
            return Caller(person, None)
        user_id = user_row(person.user_id)
        status, body, _ = self.server.request(
            "POST", "/api/auth/session", {"user_id": user_id}, token=ADMIN_TOKEN
        )
        assert status == 201, body
        token = body["token"]
        if person.tenant is not None:
            chosen = {"orgId": ORGS[person.tenant]}
            status, body, _ = self.server.request(
                "POST", "/api/auth/select-org", chosen, token=token
            )
            assert status == 200, body
        scopes = SCOPES.get(person.name)
        if scopes is not None:
            wanted = {"name": person.name, "scopes": scopes}
            status, body, _ = self.server.request("POST", "/api/auth/api-keys", wanted, token=token)
            assert status in (200, 201), body
            token = body["key"]
        return Caller(replace(person, user_id=user_id), token)

    def close(self) -> None:
        """Close the sockets of the stand."""
        if self._editor is not None:
            self._editor.close()

    def open_document(self, entity: str, row_id: str) -> LoroClient | None:
        """Return an administrator's copy of a row's document; None if the entity has none."""
        if self._editor is None:
            self._editor = WebSocketClient(
                self.server.port + 1, token=ADMIN_TOKEN, path="/?changes=0"
            )
        for kind in ("crdt-subscribe", "crdt-unsubscribe"):
            send_message(self._editor, {"type": kind, "entity": entity, "rowId": row_id})
        _, found = read_until_pong(self._editor)
        return LoroClient(content_of(found[0], entity, row_id)) if found else None

    # --- Rows ---------------------------------------------------------------------------

    def row(self, owner: str, entity: str = BOARD, *, title: str | None = None) -> dict[str, Any]:
        """Return a body of a row of ann and organisation A, or of zed and organisation B."""
        body = {
            "title": title or f"of {owner}", "ownerId": user_row(owner),
            "orgId": ORGS["A" if owner == ANN else "B"],
        }
        if entity != BOARD:
            body["boardId"] = self.board
        return body

    def insert(self, entity: str, body: dict[str, Any]) -> str:
        """Insert a row as the administrator; rows of `HIDDEN` get a secret."""
        if entity == HIDDEN:
            body = {**body, "secret": f"{MARK}{next(self.numbers)}"}
        answer = self.call("POST", f"/api/entities/{entity}", body, ADMIN_TOKEN)
        assert answer.status == 201, answer
        return str(answer.body["id"])

    def export(self, entity: str) -> dict[str, dict[str, Any]]:
        """Return all rows of an entity by id, hidden fields included."""
        status, body, _ = self.server.request("GET", f"/api/export/{entity}", token=ADMIN_TOKEN)
        assert status == 200, body
        rows = body["entities"][entity] if "entities" in body else body["rows"]
        return {row["id"]: row for row in rows}

    def update(self, entity: str, row_id: str, body: dict[str, Any]) -> Answer:
        """Update a row as the administrator."""
        return self.call("PATCH", f"/api/entities/{entity}/{row_id}", body, ADMIN_TOKEN)

    def delete(self, entity: str, row_id: str) -> Answer:
        """Delete a row as the administrator."""
        return self.call("DELETE", f"/api/entities/{entity}/{row_id}", token=ADMIN_TOKEN)

    def last_seq(self) -> int:
        """Return the seq of the newest change."""
        seq: int = self.call("GET", "/api/sync/pull?since=0").body["cursor"]["last_seq"]
        return seq

    def find(self, entity: str, row_id: str) -> dict[str, Any] | None:
        """Return a row as it is stored, as far as the administrator reads it."""
        answer = self.call("GET", f"/api/entities/{entity}/{row_id}", token=ADMIN_TOKEN)
        return answer.body if answer.status == 200 else None

    @staticmethod
    def org_of(person: Person) -> str:
        """Return the organisation of a caller; B for all that have none."""
        return ORGS[person.member_of[0][0] if person.member_of else "B"]

    def call(self, method: str, path: str, body: Any = None, token: str | None = None) -> Answer:
        """Send a request; no answer may have a value of a hidden field."""
        status, found, headers = self.server.request(method, path, body, token=token)
        assert MARK not in json.dumps(found) + str(headers), (method, path)
        return Answer(status, found)


NOW: Final = "2026-01-01T00:00:00Z"


def user_row(name: str) -> str:
    """Return the id of the row of a user."""
    return name.ljust(40, "0").encode().hex()[:40]


def in_model(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the names of organisations that the model has."""
    names = {row_id: name for name, row_id in ORGS.items()}
    return {**row, "orgId": names[row["orgId"]]}
