"""The manifest in Python: what declarations become in JSON, the way back, and the places."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pylon.dsl.declarations import STATEMENTS
from pylon.dsl.document import DocumentRefused, build_document
from pylon.dsl.entities import DECLARED
from pylon.dsl.source import python_source
from pylon.manifest.canonical import canonical_document, manifest_digest
from pylon.manifest.diagnostics import ManifestInvalid
from pylon.manifest.places import SourcePlaces
from pylon.manifest_loader import load_manifest, parse_manifest
from tests.support import manifests
from tests.support.examples import count_examples

ROOT = Path(__file__).parent.parent
APPS = ROOT / "tests" / "corpora" / "apps"


@contextmanager
def declared(source: str, path: Path | None = None) -> Iterator[ModuleType]:
    """Run a module that declares an app, and forget its declarations behind the block."""
    kept = DECLARED[:], STATEMENTS[:]
    DECLARED.clear()
    STATEMENTS.clear()
    module = ModuleType("declared_app")
    module.__file__ = str(path or "declared_app.py")
    sys.modules["declared_app"] = module
    try:
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
        yield module
    finally:
        del sys.modules["declared_app"]
        DECLARED[:], STATEMENTS[:] = kept


def document_of(source: str) -> dict[str, Any]:
    with declared(source):
        return build_document()[0]


def check_round_trip(document: dict[str, Any]) -> None:
    source = python_source(document)
    back = document_of(source)
    assert canonical_document(back) == canonical_document(document), source
    assert manifest_digest(back) == manifest_digest(document)
    assert python_source(back) == source


def corpus() -> Iterator[Any]:
    for path in sorted(ROOT.glob("examples/*/pylon.manifest.json")):
        yield pytest.param(json.loads(path.read_text()), id=path.parent.name)
    for path in sorted(ROOT.glob("tests/corpora/manifest_warnings/*.json")):
        yield pytest.param(load_manifest(path).source, id=path.stem)
    for name in sorted(dir(manifests)):
        if name.endswith("_app"):
            yield pytest.param(getattr(manifests, name)(), id=name)
    for page in ("manifest", "policies"):
        blocks = re.findall(r"```json\n(\{.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.S)
        for number, block in enumerate(blocks):
            if '"entities"' in block:
                yield pytest.param(json.loads(block), id=f"{page}-{number}")


@pytest.mark.parametrize("document", list(corpus()))
def test_a_manifest_survives_the_way_to_python_and_back(document: dict[str, Any]) -> None:
    check_round_trip(document)


_NAMES = st.sampled_from((
    "a", "B", "room", "roomId", "from", "class", "type", "str", "int", "field", "index", "policy",
    "search", "now", "Entity", "File", "Id", "Json", "datetime", "None_", "match", "self", "name",
    "extra", "default", "caller", "relation", "Literal", "x1", "print", "access", "words",
))
_TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@st.composite
def _fields(draw: st.DrawFn, entities: list[str]) -> list[dict[str, Any]]:
    made = []
    names = draw(st.lists(_NAMES, min_size=1, max_size=5, unique_by=str.lower))
    for name in names:
        kind = draw(st.sampled_from((
            "string", "int", "float", "bool", "datetime", "date", "decimal", "richtext", "json",
            "enum", "file", *(f"id({entity})" for entity in entities),
        )))
        one: dict[str, Any] = {"name": name, "type": "string" if kind == "file" else kind}
        if kind == "file":
            one |= {"format": "file", "accept": draw(st.lists(st.just("image/*"), max_size=1))}
        if kind == "enum":
            values = draw(st.lists(_TEXTS.filter(lambda t: t and "\0" not in t), min_size=1,
                                   max_size=3, unique=True))
            one |= {"values": values, "default": draw(st.sampled_from([None, *values]))}
        if kind == "int":
            one |= draw(st.fixed_dictionaries({}, optional={
                "minimum": st.integers(-5, 0), "default": st.integers(0, 5),
                "maximum": st.integers(5, 9)}))
        if kind == "string":
            one |= draw(st.fixed_dictionaries({}, optional={
                "default": st.sampled_from(("", "a'\"\\", {"$auth": "userId"}, {"$uuid": True})),
                "unique": st.sampled_from((True, False, "nocase")),
                "maxLength": st.integers(40, 60), "serverOnly": st.booleans()}))
        if kind == "datetime":
            one |= draw(st.fixed_dictionaries({}, optional={
                "default": st.just({"$now": True}), "onUpdate": st.just({"$now": True})}))
        if kind == "json":
            one |= draw(st.fixed_dictionaries({}, optional={
                "wire": st.sampled_from(("json", "text")), "default": st.just({"a": [1, None]})}))
        one |= draw(st.fixed_dictionaries({}, optional={
            "optional": st.booleans(), "x-note": _TEXTS, "description": _TEXTS}))
        made.append(one)
    return made


@st.composite
def _manifests(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(_NAMES, min_size=1, max_size=3, unique_by=str.lower))
    entities, policies = [], []
    for name in names:
        fields = draw(_fields(names))
        plain = [f["name"] for f in fields if f["type"] != "json" and not f.get("serverOnly")]
        entity: dict[str, Any] = {"name": name, "fields": fields}
        if plain:
            entity["indexes"] = draw(st.lists(st.fixed_dictionaries(
                {"name": _TEXTS, "fields": st.lists(
                    st.sampled_from(plain), min_size=1, max_size=2, unique=True)},
                optional={"unique": st.booleans()}), max_size=2, unique_by=lambda i: i["name"]))
            entity |= draw(st.fixed_dictionaries(
                {}, optional={"label": st.sampled_from(plain), "crdt": st.booleans()}))
        entities.append(entity)
        policies += draw(st.lists(st.fixed_dictionaries(
            {"name": _TEXTS, "entity": st.just(name)}, optional={
                "allowRead": st.just("auth.userId != null"), "allow": st.just("true"),
                "allowWrite": st.just("auth.hasAnyRole('a', \"b\") && data.id != ''")},
        ), max_size=2))
    return draw(st.fixed_dictionaries(
        {"name": _TEXTS, "entities": st.just(entities), "policies": st.just(policies)},
        optional={"version": _TEXTS, "references": st.sampled_from(("check", "none")),
                  "auth": st.just({"session": {"expires_in": 60}}), "x-note": _TEXTS},
    ))


@settings(max_examples=count_examples(100), deadline=None)
@given(_manifests())
def test_a_random_manifest_survives_the_way_to_python_and_back(document: dict[str, Any]) -> None:
    try:
        parse_manifest(json.dumps(document), "x")
    except ManifestInvalid:
        assume(False)
    check_round_trip(document)


@pytest.mark.parametrize("path", sorted(APPS.glob("[ce]*.py")), ids=lambda path: path.stem)
def test_an_app_of_the_corpus_is_valid_and_survives_the_way_back(path: Path) -> None:
    with declared(path.read_text(), path):
        document, _ = build_document()
    manifest = parse_manifest(json.dumps(document), str(path), strict=True)
    assert not manifest.warnings
    assert canonical_document(document_of(python_source(document))) == canonical_document(document)


def test_the_app_of_the_documentation_is_valid() -> None:
    page = (ROOT / "docs" / "manifest-python.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    manifest = parse_manifest(json.dumps(document_of(block)), "docs", strict=True)
    assert [entity.name for entity in manifest.entities] == ["Notebook", "Note"]
    assert not manifest.warnings


CHAT = (APPS / "chat.py").read_text()


def problem_of(source: str, tmp_path: Path) -> tuple[str, int, int, str]:
    """Code, line, column and whole text of the only problem of an app."""
    path = tmp_path / "app.py"
    path.write_text(source)
    with declared(source, path):
        try:
            document, places = build_document()
        except DocumentRefused as ex:
            (only,) = ex.problems
            assert only.place is not None
            text = f"{only.message} ({only.hint})"
            return only.code, only.place.line, only.place.column, text
    by_path = {
        "".join(f"/{part}" for part in at): [
            p.file, p.line, p.column, *((p.runs,) if p.runs else ()),
        ]
        for at, p in places.items()
    }
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(json.dumps(document), "app.py", places=SourcePlaces(str(path), by_path))
    (found,) = caught.value.diagnostics
    assert found.file == str(path)
    return found.code, found.line or 0, found.column or 0, found.render()


@pytest.mark.parametrize(("good", "bad", "marked", "code", "hint"), [
    ('data.owner == existing.owner && ', 'data.ownr == existing.owner && ', "ownr",
     "POLICY_EXPRESSION_INVALID", "did you mean owner?"),
    ("exists(Room, id == data.room, private", "exists(Rom, id == data.room, private", "Rom,",
     "POLICY_EXPRESSION_INVALID", "did you mean Room?"),
    ('" && exists(Member, room == data.room, user == auth.userId)",\n    )\n\n\nroom',
     '" && exists(Member, \\u0072oom == data.rom, user == auth.userId)",\n    )\n\n\nroom', "rom,",
     "POLICY_EXPRESSION_INVALID", "did you mean room?"),
    ('"room", "sent_at"', '"room", "sent"', '"sent"', "INDEX_FIELD_NOT_FOUND",
     "did you mean sent_at?"),
    ('facets=["room"]', 'facets=["rooms"]', '"rooms"', "SEARCH_FIELD_NOT_FOUND",
     "did you mean room?"),
    ('label="name"', 'label="title"', '"title"', "ENTITY_LABEL_NOT_FOUND", "known: "),
    ('max_chars=80', 'max_chars=-1', "-1", "MANIFEST_PARSE_ERROR", "from 0"),
    ('format="email"', 'format="mail"', '"mail"', "MANIFEST_PARSE_ERROR", "email"),
    ("private: bool = False", "private: bool = 3", "3\n", "FIELD_DEFAULT_INVALID", "true or false"),
    ("private: bool = False", "private: dict = False", "dict", "FIELD_TYPE_UNKNOWN", "write Json"),
    ("private: bool = False", "private: 'Boom' = False", "'Boom'", "FIELD_TYPE_UNKNOWN",
     "did you mean Room?"),
    ("owner: Id[User]", "owner: User", "User = field(default=c", "FIELD_TYPE_UNKNOWN",
     "write Id[User]"),
    ("private: bool = False", "private: bool | int = False", "bool | int", "FIELD_TYPE_UNKNOWN",
     "X | None"),
    ("private: bool = False", "private: bool = None", "None\n    created", "FIELD_DEFAULT_INVALID",
     "X | None"),
    ('room_policy("room:*"', 'room_policy("room:*:x"', '"room:*:x"', "POLICY_ROOM_INVALID", "end"),
])
def test_an_error_names_the_place_in_python_and_the_nearest_name(
    good: str, bad: str, marked: str, code: str, hint: str, tmp_path: Path
) -> None:
    assert CHAT.count(good) == 1
    source = CHAT.replace(good, bad)
    at = source.index(bad) + bad.index(marked.split("\n")[0]) if marked in bad else (
        source.index(marked))
    line = source.count("\n", 0, at) + 1
    column = at - source.rfind("\n", 0, at)
    found = problem_of(source, tmp_path)
    assert found[:3] == (code, line, column), found
    assert hint in found[3]


@pytest.mark.parametrize(("call", "message"), [
    ("field(uniqe=True)", r"field\(\) has no argument 'uniqe': did you mean unique\?"),
    ("Room(nam='x')", r"Room has no field 'nam': did you mean name\?"),
    ("Room()", "Room needs the field 'name'"),
])
def test_a_wrong_argument_names_the_nearest(call: str, message: str) -> None:
    with declared(CHAT) as module, pytest.raises(TypeError, match=message):
        eval(call, module.__dict__)


def test_a_row_of_the_server_becomes_an_instance() -> None:
    with declared((APPS / "everything.py").read_text()) as module:
        order = module.Order.__pylon_from_row__({
            "id": "1", "created_at": "2026-03-29T00:30:00.000000Z", "due": "2026-03-29",
            "total": "12.5", "state": "paid", "from": "x", "raw": None, "later": 1,
        })
        assert order.created_at == datetime.fromisoformat("2026-03-29T00:30:00+00:00")
        assert (str(order.due), order.total, order.state) == (
            "2026-03-29", Decimal("12.5"), module.State.PAID)
        assert (order.from_, order.raw, order.id, order.later) == ("x", None, "1", 1)
        assert module.Order.__pylon_entity__ == "Order"
        with pytest.raises(AttributeError, match="cannot be changed"):
            order.number = "x"


def test_two_apps_or_none_are_refused() -> None:
    for source in ("", 'from pylon import app\napp("a")\napp("b")'):
        with declared(source), pytest.raises(DocumentRefused, match="app is declared"):
            build_document()


def test_the_names_of_apps_are_no_packages_of_pylon() -> None:
    import pylon.app
    import pylon.policy
    import pylon.query

    for name in pylon.__all__:
        assert not isinstance(getattr(pylon, name), ModuleType), name
