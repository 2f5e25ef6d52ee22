"""`pylonctl schema` with DATABASE_URL: what it prints and changes in a PostgreSQL schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from tests.support.cli import Ctl, decode_output
from tests.support.manifests import field
from tests.support.schema_stage import SchemaStage

pytestmark = pytest.mark.usefixtures("processes")

OLD: dict[str, Any] = {
    "manifest_version": 1, "name": "app", "version": "1", "routes": [], "policies": [],
    "entities": [{"name": "Note", "fields": [field("title", "string"), field("n", "string", True)],
                  "indexes": [{"name": "by_n", "fields": ["n"], "unique": False}]}],
}


def app(**fields: tuple[Any, ...]) -> dict[str, Any]:
    entity = {"name": "Note", "fields": [field(n, *f) for n, f in fields.items()], "indexes": []}
    return {**OLD, "entities": [entity]}


def parsed(manifest: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps(manifest), "app")


@pytest.fixture
def stage(postgres_url: str) -> Iterator[SchemaStage]:
    """The old app's database with two rows."""
    made = SchemaStage(postgres_url)
    made.start(parsed(OLD))
    for row_id, fields in (("1", {"title": "a", "n": "7"}), ("2", {"title": "b"})):
        made.add(parsed(OLD), "Note", row_id, **fields)
    yield made
    made.close()


def test_plan_apply_and_history(stage: SchemaStage, ctl: Ctl, tmp_path: Path) -> None:
    env = {"DATABASE_URL": stage.url}
    manifest = tmp_path / "pylon.manifest.json"
    manifest.write_text(json.dumps(app(title=("string",), n=("string", True), m=("int", True))))
    done = ctl("schema", "plan", "--json", **env)
    body = decode_output(done)
    assert (done.returncode, body["adapter"], body["baseline"]) == (
        0, "postgresql", "live_postgres"
    )
    assert [o["op"] for o in body["plan"]["operations"]] == ["remove_index", "add_field"]
    done = ctl("schema", "apply", "--yes", "--json", **env)
    assert (done.returncode, decode_output(done)["code"]) == (0, "PUSH_APPLIED"), done.stderr
    assert [row["m"] for row in stage.rows("Note")] == [None, None]
    assert "nothing to do" in ctl("schema", "plan", **env).stdout
    lines = ctl("schema", "history", **env).stdout
    assert "apply " in lines and "add_field Note.m" in lines
    shown = ctl("schema", "inspect", **env).stdout
    assert "  m BIGINT" in shown and "  unique index Note_pkey (id)" in shown


def test_a_rewrite_makes_a_backup_first(stage: SchemaStage, ctl: Ctl, tmp_path: Path) -> None:
    env = {"DATABASE_URL": stage.url}
    wanted = app(title=("string",), n=("int", True))
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(wanted))
    assert ctl("schema", "plan", **env).returncode == 1
    done = ctl("schema", "apply", "--yes", "--json", **env)
    assert (done.returncode, decode_output(done)["code"]) == (1, "PUSH_BLOCKED")
    done = ctl("schema", "apply", "--yes", "--allow-destructive", "--json", **env)
    body = decode_output(done)
    assert (done.returncode, body["code"]) == (0, "PUSH_APPLIED"), done.stderr
    assert (Path(body["backup"]) / "MANIFEST.json").is_file()
    assert [row["n"] for row in stage.rows("Note")] == [7, None]
    assert stage.left(parsed(wanted)) == []


def test_tables_of_the_published_server_are_adopted(
    postgres_url: str, ctl: Ctl, tmp_path: Path
) -> None:
    stage = SchemaStage(postgres_url)
    stage.ask('CREATE TABLE "Note" (id text PRIMARY KEY, title text NOT NULL, n integer, '
              "at timestamptz)")
    stage.ask("INSERT INTO \"Note\" VALUES ('1', 'a', 7, '2026-03-29 12:00:00+02')")
    wanted = app(title=("string",), n=("int", True), at=("datetime", True))
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(wanted))
    env = {"DATABASE_URL": stage.url}
    done = ctl("check-config", "--no-ports", **env)
    assert done.returncode == 78 and "INTEGER to BIGINT" in done.stdout + done.stderr
    done = ctl("schema", "apply", "--adopt", "--yes", "--json", **env)
    assert (done.returncode, decode_output(done)["code"]) == (0, "PUSH_APPLIED"), done.stderr
    assert stage.rows("Note") == [
        {"id": "1", "title": "a", "n": 7, "at": "2026-03-29T10:00:00.000000Z"}
    ]
    assert stage.left(parsed(wanted)) == []
    # It permits nothing but the types of that server.
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(
        app(title=("int",), n=("int", True), at=("datetime", True))
    ))
    done = ctl("schema", "apply", "--adopt", "--yes", "--json", **env)
    assert (done.returncode, decode_output(done)["code"]) == (1, "PUSH_BLOCKED")
    stage.close()


def test_references_and_search(stage: SchemaStage, ctl: Ctl) -> None:
    env = {"DATABASE_URL": stage.url}
    done = ctl("schema", "references", "--json", **env)
    assert decode_output(done)["references"] == "check"
    assert ctl("schema", "references", "--none", **env).returncode == 0
    assert decode_output(ctl("schema", "references", "--json", **env))["references"] == "none"
    assert ctl("search", "check", **env).returncode == 0


def test_an_unreachable_database_is_one_line(ctl: Ctl, tmp_path: Path) -> None:
    url = f"postgresql://nobody@/none?host={tmp_path}"
    done = ctl("schema", "inspect", DATABASE_URL=url)
    assert done.returncode != 0 and "there is no database at postgresql://nobody@" in done.stderr
    assert "Traceback" not in done.stderr


def test_finish_makes_the_database_as_narrow_as_the_manifest(
    stage: SchemaStage, ctl: Ctl, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": stage.url}
    manifest = tmp_path / "pylon.manifest.json"
    # `n` is required now; rows that lack it refuse that.
    manifest.write_text(json.dumps(app(title=("string",), n=("string",))))
    done = ctl("schema", "finish", "--dry-run", **env)
    assert (done.returncode, "Note.n: required, and 1 rows have null" in done.stdout) == (1, True)
    stage.ask("UPDATE \"Note\" SET n = '8' WHERE n IS NULL")
    wanted = parsed(json.loads(manifest.read_text()))
    stage.start(wanted)
    stage.ask(
        "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, "
        "started_at, seen_at) VALUES ('old', '', '', '', 'x', '', now(), now())"
    )
    refused = ctl("schema", "finish", **env)
    assert refused.returncode == 1 and "nodes with another manifest live: old" in refused.stderr
    assert not _is_not_null(stage, "n")
    stage.ask("DELETE FROM _pylon_nodes")
    done = ctl("schema", "finish", "--json", **env)
    body = decode_output(done)
    assert (done.returncode, body["code"]) == (0, "FINISH_DONE"), done.stderr
    assert [step["op"] for step in body["steps"]] == ["alter_field"]
    assert _is_not_null(stage, "n")
    assert stage.ask("SELECT conname FROM pg_constraint WHERE conname ~ '^_pylon_required'") == []
    assert "nothing to do" in ctl("schema", "finish", **env).stdout
    # A start with the older manifest widens the column again: it reads no row for that.
    stage.start(parsed(app(title=("string",), n=("string", True))))
    assert not _is_not_null(stage, "n")


def test_finish_removes_a_field_that_no_node_fills(
    stage: SchemaStage, ctl: Ctl, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": stage.url}
    manifest = tmp_path / "pylon.manifest.json"
    manifest.write_text(json.dumps(app(n=("string", True))))
    wanted = parsed(json.loads(manifest.read_text()))
    stage.start(wanted)
    drop = ("schema", "finish", "--drop-field", "Note.title", "--allow-destructive", "--yes")
    early = ctl(*drop, **env)
    assert early.returncode == 1 and "it demands a value" in early.stderr
    done = ctl("schema", "finish", **env)
    assert "Note.title: may be null" in done.stdout, done.stderr
    digest = sha256(wanted.text.encode()).hexdigest()
    stage.ask(
        "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, "
        "started_at, seen_at) VALUES ('n1', '', '', '', $1, '', now(), now())", digest
    )
    filling = ctl(*drop, **env)
    assert filling.returncode == 1 and "still fill it" in filling.stderr and "n1" in filling.stderr
    stage.ask("UPDATE _pylon_nodes SET started_at = now() + interval '2 s', "
              "seen_at = now() + interval '1 min'")
    blocked = ctl("schema", "finish", "--drop-field", "Note.title", **env)
    assert blocked.returncode == 1 and "--allow-destructive" in blocked.stderr
    done = ctl(*drop, **env)
    assert done.returncode == 0, done.stderr
    assert "remove_field Note.title" in done.stdout and "backup: " in done.stderr
    assert [c.name for c in stage.manager.inspect() if c.name == "Note"]
    assert "title" not in {c.name for t in stage.manager.inspect() if t.name == "Note"
                           for c in t.columns}


def _is_not_null(stage: SchemaStage, column: str) -> bool:
    (table,) = (t for t in stage.manager.inspect() if t.name == "Note")
    return next(c.not_null for c in table.columns if c.name == column)
