"""docs/policies.md: each pattern loads, and decides as its section says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pylon.auth_context import AuthContext
from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from pylon.policy.related import CheckValues, ExistsCheck
from pylon.policy.rules import compile_rules
from pylon.query.evaluate import evaluator_of

PAGE = (Path(__file__).parent.parent / "docs" / "policies.md").read_text()
MANIFESTS = {
    json.loads(block)["name"]: block for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
}
ANN, BOB = AuthContext(user_id="ann"), AuthContext(user_id="bob")
NOBODY = AuthContext()


class Rows:
    """Related rows that are written down."""

    def __init__(self, **by_entity: list[dict[str, Any]]) -> None:
        self._by_entity = by_entity

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        holds = evaluator_of(check.predicate(values))
        return any(map(holds, self._by_entity.get(check.entity, [])))


def load(name: str) -> Manifest:
    return parse_manifest(MANIFESTS[name], f"{name}.json")


def verdicts(
    name: str, entity: str, auth: AuthContext, row: Mapping[str, Any], related: Rows,
    before: Mapping[str, Any] | None = None,
) -> dict[str, bool]:
    rules = compile_rules(load(name)).for_entity(entity)
    return {
        "read": rules.may_read(auth, row, related),
        "insert": rules.may_insert(auth, row, related),
        "update": rules.may_update(auth, row if before is None else before, row, related),
        "delete": rules.may_delete(auth, row, related),
    }


def allowed(*args: Any, **kwargs: Any) -> set[str]:
    return {action for action, verdict in verdicts(*args, **kwargs).items() if verdict}


NONE = Rows()
ALL = {"read", "insert", "update", "delete"}
TEAM = Rows(TeamMember=[
    {"teamId": "t", "userId": "ann", "isLead": True},
    {"teamId": "t", "userId": "bob", "isLead": False},
])
EDITOR, AUTHOR = (AuthContext(user_id="e", roles=(role,)) for role in ("editor", "author"))
DRAFT, PUBLISHED = {"isPublished": False}, {"isPublished": True}
LINKED = Rows(Link=[{"docId": "d", "secret": "s"}], Doc=[{"id": "d", "ownerId": "ann"}])
CLAIMED = Rows(Claim=[{"docId": "d", "userId": "bob"}])
INVITED = Rows(Invite=[{"projectId": "p", "userId": "bob", "isAccepted": False}])
ACCEPTED = Rows(Invite=[{"projectId": "p", "userId": "bob", "isAccepted": True}])
OPEN = Rows(Survey=[{"id": "v", "isOpen": True}])
MODERATOR = AuthContext(user_id="m", roles=("moderator",))
CLERK = AuthContext(user_id="c", tenant_id="acme", roles=("clerk",))


def test_the_page_has_ten_patterns() -> None:
    assert len(MANIFESTS) == 10 == len(re.findall(r"^## \d+\. ", PAGE, re.MULTILINE))


@pytest.mark.parametrize("name", MANIFESTS)
def test_each_pattern_loads_without_a_warning(name: str) -> None:
    assert load(name).warnings == ()


@pytest.mark.parametrize(("case", "expected"), [
    (("owner", "Note", ANN, {"ownerId": "ann"}, NONE), ALL),
    (("owner", "Note", BOB, {"ownerId": "ann"}, NONE), set()),
    (("owner", "Note", NOBODY, {"ownerId": None}, NONE), set()),
    (("team", "Task", ANN, {"teamId": "t"}, TEAM), ALL),
    (("team", "Task", BOB, {"teamId": "t"}, TEAM), {"read"}),
    (("team", "Task", BOB, {"teamId": "u"}, TEAM), set()),
    (("role", "Article", BOB, PUBLISHED, NONE), {"read"}),
    (("role", "Article", EDITOR, DRAFT, NONE), ALL),
    (("role", "Article", AUTHOR, DRAFT, NONE), {"read", "insert", "update"}),
    (("role", "Article", AUTHOR, PUBLISHED, NONE, DRAFT), {"read", "insert"}),
    (("share-link", "Doc", BOB, {"id": "d", "ownerId": "ann"}, NONE), {"insert"}),
    (("share-link", "Doc", BOB, {"id": "d", "ownerId": "ann"}, CLAIMED), {"read", "insert"}),
    (("share-link", "Claim", BOB, {"docId": "d", "secret": "s", "userId": "bob"}, LINKED),
     {"read", "insert", "delete"}),
    (("share-link", "Claim", BOB, {"docId": "d", "secret": "?", "userId": "bob"}, LINKED),
     {"read", "delete"}),
    (("public-read", "Price", NOBODY, {"amount": "1"}, NONE), {"read"}),
    (("moderation", "Post", BOB, {"authorId": "ann", "state": "waiting"}, NONE), set()),
    (("moderation", "Post", BOB, {"authorId": "ann", "state": "approved"}, NONE), {"read"}),
    (("moderation", "Post", ANN, {"authorId": "ann", "state": "approved"}, NONE),
     {"read", "delete"}),
    (("moderation", "Post", ANN, {"authorId": "ann", "state": "waiting"}, NONE), ALL),
    (("moderation", "Post", MODERATOR, {"authorId": "ann", "state": "approved"}, NONE),
     {"read", "update", "delete"}),
    (("tenant", "Invoice", CLERK, {"tenantId": "acme"}, NONE), ALL),
    (("tenant", "Invoice", CLERK, {"tenantId": "other"}, NONE), set()),
    (("tenant", "Invoice", AuthContext(user_id="x", tenant_id="acme"), {"tenantId": "acme"}, NONE),
     {"read"}),
    (("invite", "Project", BOB, {"id": "p", "ownerId": "ann"}, INVITED), {"insert"}),
    (("invite", "Project", BOB, {"id": "p", "ownerId": "ann"}, ACCEPTED), {"read", "insert"}),
    (("soft-delete", "Photo", BOB, {"ownerId": "ann", "deletedAt": None}, NONE),
     {"read", "insert"}),
    (("soft-delete", "Photo", BOB, {"ownerId": "ann", "deletedAt": "2026-01-01"}, NONE),
     {"insert"}),
    (("soft-delete", "Photo", ANN, {"ownerId": "ann", "deletedAt": "2026-01-01"}, NONE),
     {"read", "insert", "update"}),
    (("time-window", "Answer", ANN, {"surveyId": "v", "userId": "ann"}, OPEN),
     {"read", "insert", "update"}),
    (("time-window", "Answer", ANN, {"surveyId": "v", "userId": "ann"}, NONE), {"read"}),
])
def test_a_pattern_decides_as_its_section_says(case: tuple[Any, ...], expected: set[str]) -> None:
    assert allowed(*case) == expected
