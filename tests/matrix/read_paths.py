"""Drivers of the paths that read over HTTP: each returns the rows that a caller gets.

A driver asks for all rows of an entity, and returns the titles, or `DENIED` where the answer is
the refusal of a scope. A 403 by policy is the same as no rows: it depends on no row, and shows
none. `READS` has all drivers by the name of the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import quote

from tests.matrix.app import BOARD, relation_of
from tests.matrix.model import DENIED
from tests.matrix.stand import Answer, Caller, Stand

Seen = frozenset[str] | str
Driver = Callable[[Stand, Caller, str], Seen]


def titles(rows: Iterable[dict[str, Any]]) -> frozenset[str]:
    """Return the titles of the two rows of the stand among `rows`."""
    return frozenset(row["title"] for row in rows if row["title"].startswith("of "))


def refusal(answer: Answer) -> Seen | None:
    """Return what a refusal amounts to; None for a 200.

    Raises: AssertionError for any other answer, which no path may give.
    """
    if answer.status == 200:
        return None
    if answer.code == "POLICY_DENIED":
        return frozenset()
    assert (answer.status, answer.code) in ((403, "SCOPE_DENIED"), (403, "FORBIDDEN")), answer
    return DENIED


def seen(answer: Answer, rows: Callable[[Any], Iterable[dict[str, Any]]]) -> Seen:
    """Return the titles of the rows that `rows` finds in the body, or what a refusal amounts to."""
    refused = refusal(answer)
    return titles(rows(answer.body)) if refused is None else refused


def list_rows(stand: Stand, caller: Caller, entity: str) -> Seen:
    answer = stand.call("GET", f"/api/entities/{entity}", token=caller.token)
    return seen(answer, lambda body: body["data"])


def page_rows(stand: Stand, caller: Caller, entity: str) -> Seen:
    answer = stand.call("GET", f"/api/entities/{entity}/cursor?limit=100", token=caller.token)
    return seen(answer, lambda body: body["data"])


def get_rows(stand: Stand, caller: Caller, entity: str) -> Seen:
    """Read each row by its id."""
    found = set()
    for row_id in (stand.ann_row[entity], stand.zed_row[entity]):
        answer = stand.call("GET", f"/api/entities/{entity}/{row_id}", token=caller.token)
        if answer.status == 404:
            continue
        refused = refusal(answer)
        if refused == DENIED:
            return DENIED
        if refused is None:
            found.add(answer.body["title"])
    return frozenset(found)


def look_up(stand: Stand, caller: Caller, entity: str) -> Seen:
    """Read each row by its title."""
    found = set()
    for title in ("of ann", "of zed"):
        path = f"/api/lookup/{entity}/title/{quote(title)}"
        answer = stand.call("GET", path, token=caller.token)
        if answer.status == 404:
            continue
        refused = refusal(answer)
        if refused == DENIED:
            return DENIED
        if refused is None:
            found.add(answer.body["title"])
    return frozenset(found)


def query(stand: Stand, caller: Caller, entity: str) -> Seen:
    answer = stand.call("POST", f"/api/query/{entity}", {"title": {"$like": "of%"}}, caller.token)
    return seen(answer, lambda body: body)


def graph(stand: Stand, caller: Caller, entity: str) -> Seen:
    answer = stand.call("POST", "/api/query", {entity: {}}, caller.token)
    return seen(answer, lambda body: body[entity])


def include(stand: Stand, caller: Caller, entity: str) -> Seen:
    """Read the rows through a relation of a row that everybody may read."""
    if entity == BOARD:
        return graph(stand, caller, entity)
    relation = relation_of(entity)
    body = {BOARD: {"where": {"id": stand.board}, "include": {relation: {}}}}
    answer = stand.call("POST", "/api/query", body, caller.token)
    return seen(answer, lambda body: body[BOARD][0][relation])


def aggregate(stand: Stand, caller: Caller, entity: str) -> Seen:
    body = {"count": "*", "groupBy": ["title"]}
    answer = stand.call("POST", f"/api/aggregate/{entity}", body, caller.token)
    return seen(answer, lambda body: body["rows"])


def search(stand: Stand, caller: Caller, entity: str) -> Seen:
    found: set[str] = set()
    for word in ("ann", "zed"):
        answer = stand.call("POST", f"/api/search/{entity}", {"query": word}, caller.token)
        refused = refusal(answer)
        if refused is not None:
            return refused
        assert answer.body["total"] == len(answer.body["hits"])
        found |= titles(answer.body["hits"])
    return frozenset(found)


def pull(stand: Stand, caller: Caller, entity: str) -> Seen:
    answer = stand.call("GET", "/api/sync/pull?since=0", token=caller.token)
    return seen(answer, lambda body: _pulled(body, entity))


def pull_changes(stand: Stand, caller: Caller, entity: str) -> Seen:
    """Read the change log from its start, in place of a snapshot."""
    answer = stand.call("GET", "/api/sync/pull?since=1", token=caller.token)
    return seen(answer, lambda body: _pulled(body, entity))


def _pulled(body: Any, entity: str) -> list[dict[str, Any]]:
    assert not body["has_more"]
    return [
        change["data"] for change in body["changes"]
        if change["entity"] == entity and change["kind"] != "delete"
    ]


def export(stand: Stand, caller: Caller, entity: str) -> Seen:
    """Export as nobody but an administrator may; the answer to one has the hidden fields."""
    path = f"/api/export/{entity}"
    if caller.person.is_admin:
        return titles(stand.export(entity).values())
    return seen(stand.call("GET", path, token=caller.token), lambda body: body["rows"])


READS: Final[dict[str, Driver]] = {
    "list": list_rows, "page": page_rows, "get": get_rows, "lookup": look_up, "query": query,
    "graph": graph, "include": include, "aggregate": aggregate, "search": search, "pull": pull,
    "pull_changes": pull_changes, "export": export,
}
NEED_SYNC: Final = frozenset({"pull", "pull_changes"})
OWN_TENANT: Final = frozenset({"aggregate"})  # a session with a tenant gets its numbers alone
ADMIN_ONLY: Final = frozenset({"export"})
