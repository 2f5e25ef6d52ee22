"""Typed request bodies: the faults they report, and that the document describes each of them."""

from __future__ import annotations

import inspect
import json
from types import ModuleType
from typing import Any

import msgspec
import pytest

from pylon import config as settings
from pylon.api.data import bodies as data_bodies
from pylon.api.identity import bodies as identity_bodies
from pylon.api.realtime import bodies as realtime_bodies
from pylon.api.sync import bodies as sync_bodies
from pylon.body_types import BodyType
from pylon.errors import PylonError
from pylon.manifest_loader import parse_manifest
from pylon.openapi.document import openapi_document
from pylon.query import aggregate, graph, search
from tests.support.wide_app import wide_app

MODULES: tuple[ModuleType, ...] = (
    data_bodies, identity_bodies, realtime_bodies, sync_bodies, search,
    aggregate, graph,
)


def refusal(body_type: BodyType[Any], body: object) -> dict[str, Any]:
    with pytest.raises(PylonError) as caught:
        body_type.convert(body)
    error: dict[str, Any] = caught.value.body()["error"]
    return {**error, "status": caught.value.status}


@pytest.mark.parametrize(("body_type", "body", "code", "message"), [
    (realtime_bodies.JOIN, [], "INVALID_JSON", "Invalid request body"),
    (realtime_bodies.JOIN, {}, "MISSING_ROOM", "room is required"),
    (realtime_bodies.JOIN, {"room": None}, "MISSING_ROOM", "room is required"),
    (realtime_bodies.JOIN, {"room": ""}, "MISSING_ROOM", "room is required"),
    (realtime_bodies.JOIN, {"room": 7}, "MISSING_ROOM", "room is required"),
    (realtime_bodies.JOIN, {"room": "r" * 201}, "LIMIT_EXCEEDED",
     "room has 201 characters (limit 200)"),
    (realtime_bodies.BROADCAST, {"room": "r", "topic": []}, "MISSING_TOPIC", "topic is required"),
    (realtime_bodies.MAKE_SHARD, {"id": "a", "params": None}, "INVALID_DATA",
     "params must be an object"),
    (realtime_bodies.SHARD_INPUT, {}, "INVALID_DATA", "input is required"),
    (realtime_bodies.SHARD_INPUT, {"input": None, "client_seq": 1.0}, "INVALID_DATA",
     "client_seq must be a whole number of 64 bits"),
    (realtime_bodies.SHARD_INPUT, {"input": None, "client_seq": True}, "INVALID_DATA",
     "client_seq must be a whole number of 64 bits"),
    (realtime_bodies.SHARD_INPUT, {"input": None, "client_seq": 2**63}, "INVALID_DATA",
     "client_seq must be a whole number of 64 bits"),
    (realtime_bodies.SHARD_INPUT, {"input": None, "subscriber_id": 5}, "INVALID_DATA",
     "subscriber_id must be a text"),
    (realtime_bodies.ENQUEUE, {"criteria": None}, "INVALID_DATA", "criteria must be an object"),
    (identity_bodies.MINT_SESSION, [], "MISSING_USER_ID", "user_id is required"),
    (identity_bodies.MINT_SESSION, {"user_id": ""}, "MISSING_USER_ID", "user_id is required"),
    (identity_bodies.MINT_SESSION, {"user_id": 5}, "INVALID_DATA",
     "user_id must be text of at most 200 characters"),
    (identity_bodies.MINT_SESSION, {"user_id": "u" * 201}, "INVALID_DATA",
     "user_id must be text of at most 200 characters"),
    (data_bodies.BATCH, [1], "MISSING_OPERATIONS", "operations array is required"),
    (data_bodies.LINK, {"entity": "A", "id": "a", "relation": "r"}, "MISSING_FIELD",
     "target_id is required"),
    (search.SEARCH, [], "INVALID_QUERY",
     'A search must be a JSON object, for example {"query": "word"}'),
    (search.SEARCH, {"words": "a"}, "INVALID_QUERY",
     'A search has no "words" -- it may have: query, filters, facets, sort, page, page_size, '
     "pageSize"),
    (search.SEARCH, {"pageSize": True}, "INVALID_QUERY", "pageSize must be a whole number"),
    (sync_bodies.PUSH, {"changes": {}}, "INVALID_JSON", "Invalid request body"),
    (sync_bodies.DOCUMENT_UPDATE, {"update": 5}, "MISSING_UPDATE", "update is required"),
])
def test_fault_is_reported_with_its_code_and_text(
    body_type: BodyType[Any], body: object, code: str, message: str
) -> None:
    error = refusal(body_type, body)
    assert (error["status"], error["code"], error["message"]) == (400, code, message)


def test_fault_names_the_remedy_and_the_field() -> None:
    assert refusal(realtime_bodies.ENQUEUE, [])["hint"] == 'Send {"criteria": {}}'
    link = refusal(data_bodies.LINK, {"entity": "A", "id": 5})
    assert (link["field"], link["expected"]) == ("id", "a string")


def test_first_declared_fault_is_reported_whatever_the_order_of_the_text() -> None:
    faults = {"topic": 5, "room": 5}
    assert refusal(realtime_bodies.BROADCAST, faults)["code"] == "MISSING_ROOM"
    assert refusal(realtime_bodies.BROADCAST, {"topic": 5})["code"] == "MISSING_ROOM"


def test_unknown_members_are_ignored() -> None:
    body = realtime_bodies.JOIN.convert({"room": "r", "color": "red", "user_id": 5})
    assert (body.room, body.user_id, body.data) == ("r", 5, None)


def test_half_of_a_surrogate_pair_in_a_key_does_not_matter() -> None:
    body = sync_bodies.PUSH.convert({"\ud83d": 1, "changes": [1]})
    assert body.changes == [1]


def takes_names_only(kind: type) -> bool:
    """Whether it is a body: the records that a body becomes take their values by position too."""
    parameters = inspect.signature(kind).parameters.values()
    return all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters)


def test_document_describes_every_body() -> None:
    config = settings.load({"PYLON_DEV_MODE": "true"}).config
    manifest = parse_manifest(json.dumps(wide_app()), "test.json")
    text = json.dumps(openapi_document(manifest, config))
    bodies = [
        found for module in MODULES for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, msgspec.Struct) and found.__module__ == module.__name__
        and takes_names_only(found)
    ]
    missing = [body.__name__ for body in bodies if inspect.getdoc(body) not in text]
    assert len(bodies) > 15 and missing == []
