"""Generated types: checkers accept them, and they accept what the server accepts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.cli.codegen import write_targets
from pylon.codegen.client_fields import written_fields
from pylon.codegen.python import python_structs
from pylon.codegen.schemas import client_schemas
from pylon.codegen.targets import TARGETS, generate, parse_targets
from pylon.codegen.typescript import typescript
from pylon.config import load
from pylon.dsl.document import build_document
from pylon.errors import PylonError, StartRefused
from pylon.manifest.canonical import manifest_digest
from pylon.manifest.model import Entity, Field, FieldType, Manifest
from pylon.manifest_loader import parse_manifest
from pylon.values import EntityCodec
from tests.support import type_checkers
from tests.support.cli import Ctl
from tests.support.examples import count_examples
from tests.test_dsl import APPS, corpus, declared

ROOT = Path(__file__).parent.parent


def manifest_of(app: str) -> Manifest:
    path = APPS / f"{app}.py"
    with declared(path.read_text(), path):
        document, _ = build_document()
    return parse_manifest(json.dumps(document), app)


# Names that a language has for itself.
NAMES = parse_manifest(json.dumps({"name": "na\"me\n", "entities": [
    {"name": "class", "fields": [
        {"name": "from", "type": "string", "optional": True},
        {"name": "str", "type": "int"}, {"name": "Json", "type": "json"},
        {"name": "kind", "type": "enum", "values": ["it's", 'a "b"', "\\"]}]},
    {"name": "Schema", "fields": [{"name": "class", "type": "id(class)"}]},
    {"name": "SchemaInsert", "fields": [{"name": "any", "type": "bool", "default": True}]},
]}), "names")
APPS_OF_CORPUS = [
    *(pytest.param(manifest_of(app), id=app) for app in ("chat", "everything")),
    pytest.param(NAMES, id="names"),
]
MANIFESTS = [
    *(param.values[0] for param in APPS_OF_CORPUS),
    *(parse_manifest(json.dumps(param.values[0]), str(param.id)) for param in corpus()),
]

USE = """
import type { Message, MessageInsert, MessageUpdate, MessageWhere, Room, Schema, User } from "./m0";
declare const message: Message;
declare const user: User;
const insert: MessageInsert = { room: message.room, text: "hello" };
const update: MessageUpdate = { attachment: null };
const where: MessageWhere = { sent_at: { $gte: "2026-01-01" }, $or: [{ text: { $like: "a%" } }] };
type Row = Schema["entities"]["Room"]["row"];
const room: Row = {
  id: "1", name: "a", owner: user.id, private: false, created_at: "2026-01-01T00:00:00.000000Z",
};
// @ts-expect-error a message needs its room
const lacking: MessageInsert = { text: "hello" };
// @ts-expect-error the id of a user is no id of a room
const wrongId: MessageInsert = { room: user.id, text: "hello" };
// @ts-expect-error no such role
const wrongRole: User["role"] = "boss";
// @ts-expect-error no such field
const wrongField: MessageWhere = { txt: "a" };
// @ts-expect-error rows are read-only
message.text = "b";
export { insert, lacking, room, update, where, wrongField, wrongId, wrongRole };
"""


@pytest.mark.usefixtures("processes")
def test_typescript_accepts_the_types_of_every_manifest(tmp_path: Path) -> None:
    for number, manifest in enumerate(MANIFESTS):
        (tmp_path / f"m{number}.ts").write_text(typescript(manifest, "0"))
    (tmp_path / "use.ts").write_text(USE)
    try:
        done = type_checkers.run(
            "tsc", "--strict", "--noEmit", "--target", "es2022", "--module", "esnext",
            "--moduleResolution", "bundler", "--exactOptionalPropertyTypes",
            *(path.name for path in sorted(tmp_path.glob("*.ts"))), folder=tmp_path,
        )
    except type_checkers.UnavailableError as ex:
        pytest.skip(f"TypeScript: {ex}")
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("processes")
def test_pyright_finds_exactly_the_wrong_lines(tmp_path: Path) -> None:
    lines = (APPS / "wrong_rows.py").read_text().splitlines()
    marked = {n for n, line in enumerate(lines, 1) if "# error" in line}
    for path in APPS.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({
        "include": ["."], "typeCheckingMode": "strict", "pythonVersion": "3.11",
        "extraPaths": [str(ROOT)],
    }))
    try:
        done = type_checkers.run(
            "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path),
            folder=tmp_path,
        )
    except type_checkers.UnavailableError as ex:
        pytest.skip(f"pyright: {ex}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    places = {(Path(d["file"]).name, d["range"]["start"]["line"] + 1) for d in found}
    assert places == {("wrong_rows.py", n) for n in marked}, found


@pytest.mark.usefixtures("processes")
def test_mypy_accepts_the_classes_of_every_manifest(tmp_path: Path) -> None:
    for number, manifest in enumerate(MANIFESTS):
        (tmp_path / f"m{number}.py").write_text(python_structs(manifest, "0"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "."], cwd=tmp_path,
        capture_output=True, text=True, timeout=280, check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_row_of_the_server_becomes_a_struct() -> None:
    module = types.ModuleType("rows")
    sys.modules["rows"] = module
    try:
        exec(python_structs(manifest_of("everything"), "0"), module.__dict__)
        order = msgspec.convert({
            "id": "1", "created_at": "2026-03-29T00:30:00.000000Z",
            "updated_at": "2026-03-29T00:30:00Z",
            "number": "A-1", "state": "paid", "kind": "goods", "total": "12.5", "due": "2026-03-29",
            "weight": 1, "count": 1, "paid": True, "meta": {"a": 1}, "buyer": "u", "root": "1",
            "from": "x", "later": 1,
        }, module.Order)
    finally:
        del sys.modules["rows"]
    assert (order.from_, str(order.total)) == ("x", "12.5")
    assert (order.due.year, order.parent) == (2026, None)
    assert order.__pylon_entity__ == "Order"
    assert not hasattr(order, "secret")


_WORDS = st.sampled_from((
    "", "a", "A-1", "open", "paid", "goods", "2026-03-29", "2026-02-30", "2026-03-29T10:00:00Z",
    "12.50", "1e3", "-0.5", "file_1_a_pdf", "https://example.org", "a@b.de", "a\0", "{}", "[1",
    "x" * 21,
))
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.integers(-3, 3), _WORDS,
    st.floats(allow_nan=False, allow_infinity=False, width=32), st.just({"a": [1]}), st.just([]),
)


def is_accepted(entity: Entity, row: dict[str, Any]) -> bool:
    """Whether the server takes the row of a client. The defaults do not matter here."""
    sent = {field.name for field in written_fields(entity)}
    if set(row) - sent:
        return False
    full = dict(row)
    codec = EntityCodec(entity)
    for field in entity.fields:
        if field.name not in full and (field.insert_default is not None or field.name not in sent):
            full[field.name] = _some_value(field)
    try:
        codec.insert(full, "0" * 40)
    except PylonError:
        return False
    return True


def _some_value(field: Field) -> Any:
    return {
        FieldType.STRING: "A-1", FieldType.RICHTEXT: "", FieldType.ID: "1", FieldType.INT: 1,
        FieldType.FLOAT: 0, FieldType.BOOL: True, FieldType.DATETIME: "2026-01-01",
        FieldType.DATE: "2026-01-01", FieldType.DECIMAL: "1", FieldType.JSON: {},
        FieldType.ENUM: field.values[0] if field.values else "",
    }[field.type]


# JSON Schema has no words for these: bounds of decimals, and what a text of JSON has in it.
_INEXACT = {"total", "raw", "homepage"}


@pytest.mark.parametrize(("app", "name"), [("everything", "Order"), ("chat", "Message"),
                                           ("chat", "Room")])
@settings(max_examples=count_examples(400), deadline=None)
@given(data=st.data())
def test_the_schema_of_an_insert_accepts_what_the_server_accepts(
    app: str, name: str, data: st.DataObject
) -> None:
    entity = SHARED[app].by_name[name]
    fields = [f for f in entity.fields if f.name not in _INEXACT]
    likely = {f.name: st.one_of(st.just(_some_value(f)), _VALUES) for f in fields}
    row = data.draw(st.fixed_dictionaries({}, optional={**likely, "unknown": _VALUES}))
    schema = client_schemas(entity)[f"{name}Insert"]
    is_valid = jsonschema.Draft202012Validator(schema).is_valid(row)
    assert is_valid == is_accepted(entity, row), row


SHARED = {app: manifest_of(app) for app in ("everything", "chat")}


def test_every_target_is_stable_and_has_the_digest() -> None:
    config = load({"PYLON_ADMIN_TOKEN": "x" * 40, "PYLON_CORS_ORIGIN": "http://a"}).config
    chat = SHARED["chat"]
    digest = manifest_digest(chat.source)
    again = parse_manifest(json.dumps(chat.source, indent=7), "again")
    for kind in TARGETS:
        text = generate(kind, chat, config)
        assert text == generate(kind, again, config)
        assert digest in text or kind == "manifest"
        assert text.endswith("\n") and not re.search(r"[ \t]$", text, re.MULTILINE)


def test_targets_of_a_setting() -> None:
    assert parse_targets("ts:web/pylon.ts, python:models.py,") == [
        ("ts", "web/pylon.ts"), ("python", "models.py")]
    with pytest.raises(ValueError, match="write KIND:FILE"):
        parse_targets("swift:a.swift")


def test_dev_writes_the_targets_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(SHARED["chat"].source))
    target = tmp_path / "web" / "pylon.ts"

    def write(codegen: str) -> None:
        write_targets(load({
            "PYLON_ADMIN_TOKEN": "x" * 40, "PYLON_CORS_ORIGIN": "http://a",
            "PYLON_MANIFEST": str(tmp_path / "m.json"), "PYLON_CODEGEN": codegen,
        }).config)

    write("")
    assert not target.exists()
    write(f"ts:{target}")
    first = target.stat()
    assert "export interface Room {" in target.read_text()
    write(f"ts:{target}")
    assert target.stat().st_mtime_ns == first.st_mtime_ns  # no second write wakes a bundler
    with pytest.raises(StartRefused, match="PYLON_CODEGEN: swift:a: write KIND:FILE"):
        write("swift:a")


def test_codegen_writes_and_checks(ctl: Ctl, tmp_path: Path) -> None:
    assert ctl("codegen", "ts", "--out", "web/pylon.ts", "--check").returncode == 1
    assert ctl("codegen", "ts", "--out", "web/pylon.ts").returncode == 0
    assert "export interface Note {" in (tmp_path / "web" / "pylon.ts").read_text()
    assert ctl("codegen", "ts", "--out", "web/pylon.ts", "--check").returncode == 0
    assert ctl("codegen", "ts", "--check").returncode == 64
