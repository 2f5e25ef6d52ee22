"""Each file of corpora/manifest has one error, each of corpora/manifest_warnings one warning; its
name says the code, the line and the column."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pylon.manifest.diagnostics import ManifestInvalid
from pylon.manifest_loader import load_manifest

CORPUS = Path(__file__).parent / "corpora" / "manifest"
FILES = sorted(CORPUS.glob("*.json"))
WARNINGS = sorted((CORPUS.parent / "manifest_warnings").glob("*.json"))
NAME = re.compile(r"([A-Z_]+)(?:\.[a-z-]+)?@([0-9]+)\.([0-9]+)\.json")

# spec/http.md §2.5, and the codes that are ours.
SPEC_CODES = """
MANIFEST_PARSE_ERROR MANIFEST_VERSION_UNSUPPORTED SCHEMA_EMPTY ENTITY_NAME_EMPTY ENTITY_DUPLICATE
FIELD_NAME_EMPTY FIELD_DUPLICATE FIELD_TYPE_UNKNOWN FIELD_ID_TARGET_NOT_FOUND INDEX_NAME_EMPTY
INDEX_NAME_DUPLICATE INDEX_FIELDS_EMPTY INDEX_FIELD_NOT_FOUND QUERY_NAME_EMPTY QUERY_DUPLICATE
ACTION_NAME_EMPTY ACTION_DUPLICATE INPUT_FIELD_NAME_EMPTY INPUT_FIELD_DUPLICATE
INPUT_FIELD_TYPE_UNKNOWN POLICY_NAME_EMPTY POLICY_DUPLICATE POLICY_ALLOW_EMPTY POLICY_NO_TARGET
POLICY_ENTITY_NOT_FOUND POLICY_ACTION_NOT_FOUND ROUTE_PATH_EMPTY ROUTE_PATH_NO_SLASH
ROUTE_PATH_DUPLICATE ROUTE_QUERY_NOT_FOUND ROUTE_PARAM_NOT_IN_QUERY ROUTE_AUTH_INVALID
"""
OWN_CODES = """
ENTITY_NAME_INVALID ENTITY_NAME_RESERVED FIELD_NAME_INVALID FIELD_NAME_RESERVED INDEX_NAME_INVALID
RELATION_TARGET_NOT_FOUND RELATION_FIELD_NOT_FOUND SEARCH_FIELD_NOT_FOUND
FIELD_DEFAULT_INVALID FIELD_FIXED_WITHOUT_DEFAULT FIELD_REFERENCE_INVALID FIELD_UNIQUE_INVALID
INDEX_FIELD_DUPLICATE INDEX_WHERE_INVALID
FIELD_VALUES_INVALID FIELD_CONSTRAINT_INVALID FIELD_TYPE_UNUSABLE
POLICY_EXPRESSION_INVALID POLICY_EXISTS_INDEX_MISSING POLICY_ROOM_INVALID POLICY_RULE_MISPLACED
ENTITY_LABEL_NOT_FOUND RELATION_NAME_EMPTY RELATION_NAME_TAKEN RATE_LIMIT_INVALID FIELD_HIDDEN
RELATION_DUPLICATE AUTH_FIELD_UNKNOWN AUTH_ROLE_INVALID AUTH_URL_INVALID AUTH_ON_DELETE_INVALID
"""
WARNING_CODES = """
MANIFEST_KEY_UNKNOWN MANIFEST_KEY_WITHOUT_EFFECT AUTH_ORIGIN_INVALID AUTH_NAME_UNKNOWN
ENTITY_NAME_TOO_LONG FIELD_NAME_TOO_LONG AUTH_ON_DELETE_MISSING
"""


def test_every_code_has_a_file() -> None:
    covered = {NAME.fullmatch(path.name).group(1) for path in FILES}  # type: ignore[union-attr]
    assert covered == {*SPEC_CODES.split(), *OWN_CODES.split()}
    warned = {NAME.fullmatch(path.name).group(1) for path in WARNINGS}  # type: ignore[union-attr]
    assert warned == {*WARNING_CODES.split()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_error_is_found_where_it_is(path: Path) -> None:
    match = NAME.fullmatch(path.name)
    assert match is not None
    with pytest.raises(ManifestInvalid) as caught:
        load_manifest(path)
    (only,) = caught.value.diagnostics
    assert (only.code, only.line, only.column) == (match[1], int(match[2]), int(match[3]))
    assert only.render().startswith(f"{path}:{match[2]}:{match[3]}: error {match[1]}: ")
    assert only.message in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_diagnostic_object_is_that_of_the_spec(path: Path) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        load_manifest(path)
    found = json.loads(json.dumps(caught.value.diagnostics[0].to_json()))
    assert {"severity", "code", "message", "span"} <= set(found) <= {
        "severity", "code", "message", "span", "hint",
    }
    assert found["span"]["file"] == str(path)
    assert found["span"]["line"] >= 1 and found["span"]["column"] >= 1


@pytest.mark.parametrize("path", WARNINGS, ids=lambda path: path.stem)
def test_a_warning_is_found_where_it_is_and_an_unknown_key_is_an_error_in_dev_mode(
    path: Path,
) -> None:
    match = NAME.fullmatch(path.name)
    assert match is not None
    (only,) = load_manifest(path).warnings
    assert (only.severity, only.code) == ("warning", match[1])
    assert (only.line, only.column) == (int(match[2]), int(match[3]))
    if match[1] != "MANIFEST_KEY_UNKNOWN":
        assert load_manifest(path, strict=True).warnings == (only,)
        return
    assert only.hint is not None
    with pytest.raises(ManifestInvalid) as caught:
        load_manifest(path, strict=True)
    assert [d.code for d in caught.value.diagnostics] == [match[1]]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("policy", "allowDelete"), ("policy-snake", "allowDelete"), ("entity", "indexes"),
     ("index", "unique"), ("relation", "many"), ("search", "facets"), ("top", "policies"),
     ("auth", "trusted_origins"), ("route", "query"), ("query", "input"), ("user", "expose")],
)
def test_the_hint_for_a_misspelt_key_names_the_known_one(name: str, hint: str) -> None:
    (path,) = CORPUS.parent.glob(f"manifest_warnings/MANIFEST_KEY_UNKNOWN.{name}@*.json")
    (only,) = load_manifest(path).warnings
    assert only.hint == f"did you mean {hint}?"
