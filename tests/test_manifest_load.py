"""Whole manifests: what is read, that all errors are found at once, and that no text crashes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.errors import StartRefused
from pylon.manifest.diagnostics import Diagnostic, ManifestInvalid
from pylon.manifest.document import NotJsonError, line_and_column, offset_in_string, read_document
from pylon.manifest.model import Field, FieldType, Index, Relation, Search
from pylon.manifest.public import public_manifest
from pylon.manifest_loader import load_manifest, parse_manifest
from tests.support.examples import count_examples

RICH: dict[str, Any] = {
    "manifest_version": 1,
    "name": "Desk",
    "version": "2.4.0",
    "later": {"unknown": ["keys", "are", "ignored"]},
    "entities": [
        {
            "name": "User",
            "fields": [{"name": "email", "type": "string", "optional": False, "unique": True}],
            "indexes": [],
            "crdt": False,
        },
        {
            "name": "Ticket",
            "fields": [
                {"name": "ownerId", "type": "id(User)", "optional": True, "unique": False},
                {
                    "name": "body", "type": "richtext", "optional": False, "unique": False,
                    "crdt": "text",
                },
                {"name": "open", "type": "bool", "optional": True, "unique": False},
            ],
            "indexes": [{"name": "by_owner", "fields": ["ownerId", "open"], "unique": True}],
            "relations": [
                {"name": "owner", "target": "User", "field": "ownerId"},
                {"name": "twins", "target": "Ticket", "field": "body", "many": True},
            ],
            "search": {"text": ["body"], "facets": ["open"], "sortable": [], "language": None},
        },
    ],
    "routes": [{"path": "/t/:id", "mode": "live", "query": "ticket", "auth": "user"}],
    "queries": [
        {
            "name": "ticket",
            "input": [{"name": "id", "type": "string", "optional": False, "unique": False}],
        }
    ],
    "actions": [{"name": "close"}],
    "policies": [
        {
            "name": "mine", "entity": "Ticket", "allowRead": "data.ownerId == auth.userId",
            "allowInsert": "true", "allowUpdate": "true", "allowDelete": "false",
            "allowWrite": "true", "allow": "false",
        },
        {"name": "close", "action": "close", "allow": "auth.userId != null"},
    ],
    "auth": {"user": {"hide": ["email"]}, "session": {"expires_in": 0}, "trusted_origins": ["o"]},
}


def diagnostics(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(text, "m.json")
    return caught.value.diagnostics


def test_everything_is_read() -> None:
    manifest = parse_manifest(json.dumps(RICH), "m.json")
    user, ticket = manifest.entities
    assert (manifest.name, manifest.version) == ("Desk", "2.4.0")
    assert user.fields == (Field("email", FieldType.STRING, False, True),)
    assert (user.crdt, ticket.crdt) == (False, True)
    assert ticket.fields == (
        Field("ownerId", FieldType.ID, True, False, target="User"),
        Field("body", FieldType.RICHTEXT, False, False, crdt="text"),
        Field("open", FieldType.BOOL, True, False),
    )
    assert ticket.columns == ("id", "ownerId", "body", "open")
    assert ticket.indexes == (Index("by_owner", ("ownerId", "open"), True),)
    assert ticket.relations == (
        Relation("owner", "User", "ownerId"), Relation("twins", "Ticket", "body", True),
    )
    assert ticket.search == Search(("body",), ("open",), ())
    assert manifest.routes[0].query == "ticket" and manifest.routes[0].auth == "user"
    assert [a.name for a in manifest.actions] == ["close"]
    assert manifest.policies[0].allow_delete == "false"
    assert manifest.auth.session_expires_in_s == 0
    assert manifest.auth.hide == ("email",)
    assert manifest.auth.trusted_origins == ("o",)
    assert manifest.source == RICH


def test_the_public_manifest_has_no_rule() -> None:
    manifest = parse_manifest(json.dumps(RICH), "m.json")
    shown = public_manifest(manifest)
    assert shown["policies"] == [
        {"name": "mine", "entity": "Ticket"}, {"name": "close", "action": "close"},
    ]
    assert {k: v for k, v in shown.items() if k != "policies"} == {
        k: v for k, v in RICH.items() if k != "policies"
    }
    assert manifest.source == RICH, "the source itself is left alone"


BARE: dict[str, Any] = {
    "name": "Bare",
    "entities": [
        {
            "name": "Note", "fields": [{"name": "title", "type": "string"}],
            "indexes": [{"name": "by_title", "fields": ["title"]}],
        },
        {"name": "Tag", "fields": []},
    ],
    "actions": [{"name": "do", "input": [{"name": "text", "type": "string"}]}],
}


def test_keys_that_have_a_default_may_be_left_out() -> None:
    manifest = parse_manifest(json.dumps(BARE), "m.json", strict=True)
    note, tag = manifest.entities
    assert manifest.version == "0.0.0" and manifest.warnings == ()
    assert (manifest.routes, manifest.queries, manifest.policies) == ((), (), ())
    assert note.fields == (Field("title", FieldType.STRING, False, False),)
    assert note.indexes == (Index("by_title", ("title",), False),)
    assert (tag.indexes, tag.relations) == ((), ())
    assert manifest.source == BARE


def test_keys_with_a_default_may_be_null() -> None:
    field = {"name": "title", "type": "string", "optional": None, "unique": None}
    document = BARE | {
        "entities": [{"name": "Note", "fields": [field], "indexes": None, "relations": None}],
        **dict.fromkeys(("manifest_version", "version", "routes", "queries", "actions"), None),
    }
    manifest = parse_manifest(json.dumps(document), "m.json", strict=True)
    assert manifest.entities[0].fields == (Field("title", FieldType.STRING, False, False),)
    assert public_manifest(manifest)["routes"] == []


def test_the_public_manifest_has_the_keys_that_the_file_leaves_out() -> None:
    field = {"name": "title", "type": "string", "optional": False, "unique": False}
    assert public_manifest(parse_manifest(json.dumps(BARE), "m.json")) == {
        "manifest_version": 1, "name": "Bare", "version": "0.0.0", "routes": [],
        "entities": [
            {
                "name": "Note", "fields": [field],
                "indexes": [{"name": "by_title", "fields": ["title"], "unique": False}],
            },
            {"name": "Tag", "fields": [], "indexes": []},
        ],
        "actions": [{"name": "do", "input": [field | {"name": "text"}]}],
    }


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("text", "did you mean string?"), ("varchar(20)", "did you mean string?"),
        ("boolean", "did you mean bool?"), ("integer", "did you mean int?"),
        ("BigInt", "did you mean int?"), ("number", "did you mean float?"),
        ("timestamp", "did you mean datetime?"), ("date_time", "did you mean datetime?"),
        ("Datetime", "did you mean datetime?"), ("strng", "did you mean string?"),
        ("float64", "did you mean float?"), ("uuid", "write string"), ("file", "write string"),
        ("User", "did you mean id(User)?"), ("ref(User)", "did you mean id(User)?"),
        ("id", "write id(Entity)"), ("frobnicate", "known: string"),
    ],
)
def test_a_type_of_another_system_is_answered_with_the_right_word(word: str, hint: str) -> None:
    document = json.dumps(
        {"name": "x", "entities": [
            {"name": "User", "fields": [{"name": "f", "type": word}]},
        ]}
    )
    (only,) = diagnostics(document)
    assert only.code == "FIELD_TYPE_UNKNOWN" and only.hint is not None
    assert only.hint.startswith(hint) and "known: string" in only.hint


def test_empty_rules_count_as_absent() -> None:
    text = json.dumps(RICH | {"policies": [{"name": "p", "entity": "User", "allow": "true",
                                            "allowRead": "", "action": None}]})
    (policy,) = parse_manifest(text, "m.json").policies
    assert (policy.allow, policy.allow_read, policy.action) == ("true", None, None)


def test_all_errors_are_reported_in_the_order_of_the_file() -> None:
    text = json.dumps(
        {
            "manifest_version": 3,
            "name": 5,
            "entities": [
                {"name": "A", "fields": [{"name": "x", "type": "jsonx", "optional": 1}],
                 "indexes": []},
                {"name": "B", "fields": [], "indexes": []},
            ],
            "routes": [{"path": "x", "mode": "static"}],
            "policies": [
                {"name": "", "entity": "B", "allow": "data.nope"},
                {"name": "skipped", "entity": "A", "allow": "data.x == 1"},
            ],
        },
        indent=1,
    )
    found = diagnostics(text)
    assert [d.code for d in found] == [
        "MANIFEST_VERSION_UNSUPPORTED",
        "MANIFEST_PARSE_ERROR",  # the name
        "FIELD_TYPE_UNKNOWN",
        "MANIFEST_PARSE_ERROR",  # optional
        "ROUTE_PATH_NO_SLASH",
        "POLICY_NAME_EMPTY",
        "POLICY_EXPRESSION_INVALID",
    ]
    assert [(d.line, d.column) for d in found] == sorted((d.line, d.column) for d in found)


def test_the_error_is_one_line_with_the_count() -> None:
    with pytest.raises(StartRefused) as caught:
        parse_manifest('{"manifest_version": 2, "name": "x"}', "m.json")
    assert caught.value.message == (
        'm.json:1:1: MANIFEST_PARSE_ERROR: the manifest lacks the key "entities" (and 1 more)'
    )


def test_a_bad_rule_is_shown_with_a_caret() -> None:
    document = RICH | {"policies": [{"name": "p", "entity": "User", "allow": "data.email =\t 1"}]}
    (found,) = diagnostics(json.dumps(document))
    assert found.render().split("\n")[1:] == ["    data.email =  1", "               ^"]


def test_one_index_name_in_two_entities_may_still_collide() -> None:
    entities = [
        {"name": entity, "fields": [],
         "indexes": [{"name": index, "fields": ["id"], "unique": False}]}
        for entity, index in (("a", "B_c"), ("A_b", "C"))
    ]
    found = diagnostics(json.dumps(RICH | {"entities": entities, "policies": []}))
    assert [d.code for d in found] == ["INDEX_NAME_DUPLICATE"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for content, message in (
        (None, "cannot be read"),
        (b'{\n"\xc3\xa4": \xff}', "not UTF-8"),
        (b" " * (limits.MANIFEST_BYTES + 1), "larger than"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ManifestInvalid) as caught:
            load_manifest(path)
        (only,) = caught.value.diagnostics
        assert only.code == "MANIFEST_PARSE_ERROR" and message in only.message
        if content is not None and content.startswith(b"{"):
            assert (only.line, only.column) == (2, 6)


def test_a_file_is_read_like_its_text(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(RICH))
    assert load_manifest(path) == parse_manifest(path.read_text(), "other")


def wide(fields: int, text_fields: int) -> str:
    """A manifest with one entity of so many fields, of which search covers so many."""
    names = [f"f{number}" for number in range(fields)]
    entity = {
        "name": "Wide", "indexes": [], "search": {"text": names[:text_fields]},
        "fields": [{"name": n, "type": "int", "optional": True, "unique": False} for n in names],
    }
    return json.dumps(RICH | {"entities": [entity], "policies": []})


def test_more_fields_than_a_table_has_columns_for_are_refused_with_the_limit() -> None:
    assert parse_manifest(wide(limits.ENTITY_FIELDS, limits.SEARCH_FIELDS), "m.json")
    (fields,) = diagnostics(wide(limits.ENTITY_FIELDS + 1, 0))
    assert (fields.code, fields.hint) == ("ENTITY_FIELDS_TOO_MANY", "at most 1,997")
    (search,) = diagnostics(wide(limits.ENTITY_FIELDS, limits.SEARCH_FIELDS + 1))
    assert (search.code, search.hint) == ("SEARCH_FIELDS_TOO_MANY", "at most 1,992")


def test_a_byte_order_mark_before_a_manifest_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("\ufeff" + json.dumps(RICH), encoding="utf-8")
    assert load_manifest(path).name == "Desk"


def test_annotations_of_ones_own_are_no_misspelt_keys() -> None:
    policy = {"name": "p", "entity": "User", "allow": "true", "x-owner": "ops", "_why": 1}
    document = RICH | {"$schema": "pylon.json", "policies": [policy | {"description": "all"}]}
    del document["later"]
    assert parse_manifest(json.dumps(document), "m.json", strict=True).policies


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), inner
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_documents_are_read_as_the_standard_decoder_does(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert read_document(text).plain() == value


@settings(deadline=None)
@given(st.text('{}[]",:\\u0123dD8eE+-.tfn \n'))
def test_any_text_is_json_for_both_readers_or_for_neither(text: str) -> None:
    try:
        ours = read_document(text).plain()
    except NotJsonError as error:
        assert 0 <= error.at <= len(text)
        line, column = line_and_column(text, error.at)
        assert line >= 1 and column >= 1
        if not any(word in error.message for word in ("twice", "surrogate", "too large")):
            with pytest.raises(ValueError):
                json.loads(text)
    else:
        assert ours == json.loads(text)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
def test_characters_of_a_string_are_found_in_the_file(value: str, ascii_only: bool) -> None:
    text = json.dumps([value], ensure_ascii=ascii_only)
    node = read_document(text).value[0]
    places = [offset_in_string(text, node, index) for index in range(len(value) + 1)]
    assert text[places[-1]] == '"' and places[-1] == node.end - 1
    for index, char in enumerate(value):
        piece = text[places[index] : places[index + 1]]
        assert json.loads(f'"{piece}"') == char


@pytest.mark.parametrize("text", ['"\\ud83d"', '"\\ude00x"', '"\ud83d"', '"\\ud83d\\u0041"'])
def test_half_of_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(NotJsonError, match="surrogate"):
        read_document(text)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "1" * 5000, "NaN", "01", "1.", "'x'", "[1,]", "1e999", "{1: 2}", "{} x"],
    ids=range(10),
)
def test_texts_that_are_not_our_json(text: str) -> None:
    with pytest.raises(NotJsonError):
        read_document(text)


@settings(max_examples=count_examples(200))
@given(st.data())
def test_a_damaged_manifest_gives_diagnostics_and_never_crashes(data: st.DataObject) -> None:
    """Replace any one value of a good manifest by any other."""
    document = json.loads(json.dumps(RICH))
    holder: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict)
                                        else range(len(holder))))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(JSON)
    text = json.dumps(document)
    try:
        manifest = parse_manifest(text, "m.json")
    except ManifestInvalid as invalid:
        assert invalid.diagnostics
        assert all(d.line == 1 and d.column for d in invalid.diagnostics)
    else:
        assert manifest.source == document


@pytest.mark.parametrize("item", [None, 1, "x", [], True], ids=repr)
@pytest.mark.parametrize("place", ["fields", "indexes", "relations"])
def test_an_item_that_is_no_object_is_named_with_its_place(place: str, item: object) -> None:
    entity: dict[str, Any] = {
        "name": "A", "indexes": [], "relations": [],
        "fields": [{"name": "s", "type": "string", "optional": False, "unique": False}],
    }
    entity[place] = [*entity[place], item]
    source = {
        "manifest_version": 1, "name": "x", "version": "1", "entities": [entity], "routes": [],
        "queries": [], "actions": [], "policies": [],
    }
    with pytest.raises(ManifestInvalid, match=f"of {place} of item 0 of entities"):
        parse_manifest(json.dumps(source), "test.json")
