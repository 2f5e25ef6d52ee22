"""The OpenAPI document: valid, complete over falcon's routes, and shown to whom it should be."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import falcon.inspect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from pylon import config as settings
from pylon.api.identity.routes import PAGES
from pylon.api.identity.sign_in_page import RESET_LINK
from pylon.errors import PylonError, SubscribeRefused
from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from pylon.openapi.document import openapi_document
from pylon.openapi.values import DATETIME_PATTERN
from pylon.values import is_datetime
from tests.support.api import ADMIN_TOKEN, serve_api
from tests.support.wide_app import wide_app

METHODS = {"get", "head", "post", "put", "patch", "delete"}


def parsed(manifest: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps(manifest), "test.json")


def document(manifest: dict[str, Any]) -> dict[str, Any]:
    config = settings.load({"PYLON_DEV_MODE": "true"}).config
    made = openapi_document(parsed(manifest), config)
    out: dict[str, Any] = json.loads(json.dumps(made))
    return out


def operations(doc: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in doc["paths"].items() for method, operation in item.items()
    ]


def test_the_document_is_valid() -> None:
    assert list(OpenAPIV31SpecValidator(document(wide_app())).iter_errors()) == []


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document(wide_app()))]
    assert len(ids) == len(set(ids)) > 40


def expansions(template: str, manifest: Manifest) -> list[str]:
    """A falcon template with its entities and actions written out, and plain braces."""
    names = {
        "entity": [entity.name for entity in manifest.entities],
        "name": [action.name for action in manifest.actions],
        "field": ["id"],
    }
    segments = [re.sub(r":\w+}", "}", segment) for segment in template.split("/")]
    choices = [names.get(segment.strip("{}"), [segment]) for segment in segments]
    return ["/".join(chosen) for chosen in itertools.product(*choices)]


def test_every_route_and_method_is_in_the_document(tmp_path: Path) -> None:
    manifest = parsed(wide_app())
    described = document(wide_app())["paths"]
    missing = []
    with serve_api(tmp_path, wide_app()) as server:
        routes = falcon.inspect.inspect_routes(server.client.app)
    served = set()
    for route in routes:
        if route.path.startswith((PAGES, RESET_LINK)):
            continue  # for people: forms and texts
        methods = {m.method.lower() for m in route.methods if not m.internal} & METHODS
        for path in expansions(route.path, manifest):
            served.add(path)
            absent = methods - described.get(path, {}).keys()
            missing += [f"{method.upper()} {path}" for method in sorted(absent)]
            extra = described.get(path, {}).keys() - methods
            assert not extra, f"described, but not served: {extra} {path}"
    assert missing == []
    assert len(routes) > 20
    every_field = {p for p in described if p.startswith("/api/lookup/")}
    assert described.keys() - served - every_field == set(), "described, but there is no route"


def test_every_error_answer_names_real_codes_of_its_status() -> None:
    known = {(cls.code, cls.status) for cls in (*PylonError.classes(), SubscribeRefused)}
    seen = set()
    for path, method, operation in operations(document(wide_app())):
        for status, response in operation["responses"].items():
            if method == "head" or int(status) < 400 or "allOf" not in str(response):
                continue
            schema = response["content"]["application/json"]["schema"]
            schema = schema["anyOf"][1] if "anyOf" in schema else schema
            codes = schema["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"]
            for code in codes:
                assert (code, int(status)) in known, (path, method)
                seen.add(code)
    assert len(seen) > 25


@given(st.one_of(
    st.from_regex(DATETIME_PATTERN, fullmatch=True),
    st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]Z?", fullmatch=True),
    st.from_regex(r"[0-9]{2}[048]{2}-02-(29|30|28)", fullmatch=True),
    st.from_regex(r"-?[0-9]{1,16}Z", fullmatch=True),
    st.text(),
))
def test_the_datetime_pattern_takes_what_the_server_takes(text: str) -> None:
    matched = re.fullmatch(DATETIME_PATTERN.removesuffix("$"), text) is not None
    if not matched:
        assert not is_datetime(text)
    elif not is_datetime(text):  # the schema cannot say which instants are of the years 1 to 9999
        assert text.startswith(("0001-01-01", "9999-12-31")) or abs(int(text[:-1])) > 62_135_596_800


@pytest.mark.parametrize(
    ("environ", "token", "status"),
    [
        ({}, None, 404),
        ({}, ADMIN_TOKEN, 200),
        ({"PYLON_OPENAPI_PUBLIC": "true"}, None, 200),
        ({"PYLON_DEV_MODE": "true"}, None, 200),
    ],
    ids=["anonymous", "admin", "public", "dev"],
)
def test_who_gets_the_document(
    tmp_path: Path, environ: dict[str, str], token: str | None, status: int
) -> None:
    with serve_api(tmp_path, wide_app(), environ) as server:
        answer = server.call("GET", "/api/openapi.json", token=token)
        assert answer.status_code == status
        if status == 200:
            assert answer.json["openapi"].startswith("3.1")
            assert answer.json["info"] == {
                "title": "wide", "version": "1.2.3",
                "description": answer.json["info"]["description"],
            }
        else:
            assert answer.json["error"] == {
                "code": "NOT_FOUND",
                "message": "OpenAPI spec is admin-only outside dev mode",
                "hint": "Set PYLON_OPENAPI_PUBLIC=true to serve it to anonymous callers "
                "(it enumerates every entity and callable function).",
            }
            guest = server.call("GET", "/api/openapi.json", token=server.guest())
            assert guest.json == answer.json
