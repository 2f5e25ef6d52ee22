"""Scopes of API keys: how they are read, and which scope includes which."""

from __future__ import annotations

from typing import Any

import pytest

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import InvalidData, InvalidScope, LimitExceeded, PylonError, ScopeDenied
from pylon.key_scopes import (
    has_scope,
    parse_scopes,
    readable_entities,
    require_entity,
    require_scope,
)

ENTITIES = ("Todo", "List")


def key(scopes: str | None, *, readonly: bool = False) -> AuthContext:
    return AuthContext(
        user_id="u", api_key_id="key_1", api_key_scopes=scopes, readonly=readonly
    )


@pytest.mark.parametrize(("given", "stored"), [
    (None, None),
    ("*", "*"),
    (" rooms,sync  shards\n", "rooms sync shards"),
    (["rooms", "rooms", "entity:Todo:read"], "rooms entity:Todo:read"),
    ("entity:*:* fn:close fn:* fn:a/b.c-d files:read files:write",
     "entity:*:* fn:close fn:* fn:a/b.c-d files:read files:write"),
])
def test_a_list_is_stored_once_each_and_with_spaces(given: object, stored: str | None) -> None:
    assert parse_scopes(given, ENTITIES) == stored


@pytest.mark.parametrize(("given", "error"), [
    ("", InvalidScope), ([], InvalidScope), (" , ", InvalidScope), ([""], InvalidScope),
    ("admin", InvalidScope), ("entity:Todo", InvalidScope), ("entity:Todo:create", InvalidScope),
    ("entity:Other:read", InvalidScope), ("entity:todo:read", InvalidScope),
    ("ENTITY:Todo:read", InvalidScope), ("entity::read", InvalidScope), ("fn:", InvalidScope),
    ("files:*", InvalidScope), ("rooms:*", InvalidScope), (["rooms sync"], InvalidScope),
    ("fn:a\u2028b", InvalidScope), ("entity:Todo:read;rooms", InvalidScope),
    (7, InvalidData), ({"rooms": True}, InvalidData), ([1], InvalidData), (True, InvalidData),
    ([f"fn:f{n}" for n in range(1_000)], LimitExceeded), ("x" * 100_000, InvalidScope),
])
def test_what_is_no_list_of_scopes_is_refused(given: Any, error: type[PylonError]) -> None:
    with pytest.raises(error) as caught:
        parse_scopes(given, ENTITIES)
    assert len(caught.value.message) < 300


def test_a_misspelt_entity_gets_a_suggestion() -> None:
    with pytest.raises(InvalidScope, match='did you mean "Todo"'):
        parse_scopes("entity:Todos:read", ENTITIES)


@pytest.mark.parametrize(("scopes", "scope", "has"), [
    ("*", "entity:Todo:read", True), ("*", "x" * 10_000, True), (None, "anything", True),
    ("entity:Todo:*", "entity:Todo:delete", True), ("entity:Todo:*", "entity:List:read", False),
    ("entity:*:read", "entity:List:read", True), ("entity:*:read", "entity:List:write", False),
    ("entity:*:*", "entity:List:write", True), ("entity:Todo:read", "entity:*:read", False),
    ("entity:Todo:write", "entity:Todo:delete", False),
    ("fn:*", "fn:close", True), ("fn:*", "files:read", False), ("fn:clo", "fn:close", False),
    ("fn:*", "fn:" + "x" * limits.KEY_SCOPE_CHARS, False),
    ("rooms", "sync", False), ("", "rooms", False), ("all admin", "rooms", False),
    ("entity:Todo:read", "entity:Todo:read rooms", False),
])
def test_which_list_has_which_scope(scopes: str | None, scope: str, has: bool) -> None:
    assert has_scope(key(scopes), scope) is has


def test_a_session_has_every_scope() -> None:
    require_scope(AuthContext(user_id="u"), "rooms", changes=True)
    require_entity(AuthContext(user_id="u"), "Todo", "delete")
    assert readable_entities(AuthContext(user_id="u"), ENTITIES) is None


def test_a_read_only_caller_lacks_all_that_changes() -> None:
    caller = AuthContext(user_id="u", readonly=True)
    require_entity(caller, "Todo", "read")
    require_scope(caller, "rooms", changes=False)
    for action in ("write", "delete"):
        with pytest.raises(ScopeDenied, match="only read"):
            require_entity(caller, "Todo", action)  # type: ignore[arg-type]
    with pytest.raises(ScopeDenied):
        require_entity(key("*", readonly=True), "Todo", "write")


def test_the_entities_that_a_stream_may_have() -> None:
    assert readable_entities(key("entity:Todo:read rooms"), ENTITIES) == {"Todo"}
    assert readable_entities(key("entity:*:read"), ENTITIES) is None
    assert readable_entities(key("*"), ENTITIES) is None
    with pytest.raises(ScopeDenied) as caught:
        readable_entities(key("sync rooms"), ENTITIES)
    assert caught.value.details == {"scope": "entity:*:read"}
