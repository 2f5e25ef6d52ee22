"""`pylonctl schema`: checks and compares manifests, and shows the schema of the database.

`plan` and `apply` compare the database with the manifest and change it; they are in `schema_apply`.
"""

from __future__ import annotations

from typing import Any

import click

from pylon.app_manifest import app_file, read_manifest_file
from pylon.cli.output import (
    ERROR,
    USAGE,
    failure_body,
    failure_lines,
    json_flag,
    note,
    result,
    wants_json,
)
from pylon.cli.schema_advise import advise
from pylon.cli.schema_apply import apply, plan, references
from pylon.cli.schema_finish import finish
from pylon.cli.settings import dev_flag, read_settings
from pylon.cli.stores import existing_store
from pylon.manifest.diagnostics import ManifestInvalid
from pylon.schema.diff import differences, summary
from pylon.storage.schemas import TableInfo

sqlite_option = click.option(
    "--sqlite", metavar="PATH", help="A database file, instead of PYLON_DB_PATH."
)


@click.group()
@json_flag
def schema() -> None:
    """Check and compare manifests; see and change the database's schema."""


@schema.command()
@click.argument("manifest", required=False)
@dev_flag
@json_flag
@click.pass_context
def check(ctx: click.Context, manifest: str | None, dev: bool) -> None:
    """Validate a manifest (default: PYLON_MANIFEST). With --dev, as dev mode does."""
    path = manifest or app_file(read_settings(dev=dev).config)
    try:
        app = read_manifest_file(path, strict=dev)
    except ManifestInvalid as ex:
        for line in failure_lines(ex):
            note(line)
        result({"code": "SCHEMA_INVALID", **failure_body(ex)}, "")
        ctx.exit(ERROR)
    body = {
        "code": "SCHEMA_OK", "ok": True, "name": app.name, "version": app.version,
        "entities": len(app.entities), "policies": len(app.policies),
        "diagnostics": [diagnostic.to_json() for diagnostic in app.warnings],
    }
    for diagnostic in app.warnings:
        note(diagnostic.render())
    result(body, f"{path} is valid: {len(app.entities)} entities, {len(app.policies)} policies")


@schema.command()
@click.argument("manifests", nargs=-1, metavar="OLD NEW")
@json_flag
@click.pass_context
def diff(ctx: click.Context, manifests: tuple[str, ...]) -> None:
    """Show the differences between two manifests."""
    if len(manifests) != 2:
        note("give two manifests: the old one and the new one")
        result({"code": "DIFF_MISSING_ARGS", "ok": False}, "")
        ctx.exit(USAGE)
    old, new = (read_manifest_file(m) for m in manifests)
    found = differences(old, new)
    counts = summary(found)
    lines = [d.render() for d in found]
    total = ", ".join(f"{counts[word]} {word}" for word in ("added", "removed", "changed"))
    body = {"changes": [d.to_json() for d in found], "summary": counts}
    result(body, "\n".join([*lines, total]) if found else "no differences")


@schema.command()
@sqlite_option
@dev_flag
@json_flag
def inspect(sqlite: str | None, dev: bool) -> None:
    """Show the tables, columns and indexes that the database has."""
    tables = existing_store(read_settings(dev=dev).config, sqlite).schema.inspect()
    body = {"tables": [describe_table(t) for t in tables]}
    result(body, "\n".join(line for t in body["tables"] for line in _lines(t)))


def describe_table(table: TableInfo) -> dict[str, Any]:
    """Return the object of spec/http.md §8."""
    return {
        "name": table.name,
        "columns": [
            {"name": c.name, "column_type": c.type, "notnull": c.not_null,
             "primary_key": c.primary_key}
            for c in table.columns
        ],
        "indexes": [
            {"name": i.name, "columns": list(i.fields), "unique": i.unique}
            for i in table.indexes
        ],
    }


def _lines(table: dict[str, Any]) -> list[str]:
    lines = [table["name"]]
    for column in table["columns"]:
        words = [column["column_type"] or "(no type)"]
        words += ["NOT NULL"] if column["notnull"] else []
        words += ["PRIMARY KEY"] if column["primary_key"] else []
        lines.append(f"  {column['name']} {' '.join(words)}")
    for index in table["indexes"]:
        kind = "unique index" if index["unique"] else "index"
        lines.append(f"  {kind} {index['name']} ({', '.join(index['columns'])})")
    return lines


@schema.command()
@click.option("--limit", default="20", help="How many entries, newest first. Default 20.")
@sqlite_option
@dev_flag
@json_flag
@click.pass_context
def history(ctx: click.Context, limit: str, sqlite: str | None, dev: bool) -> None:
    """Show what starts and `schema apply` have done to the schema."""
    if not limit.isascii() or not limit.isdecimal() or not 0 < int(limit) < 2**31:
        note(f"--limit {limit}: expected a whole number from 1")
        result({"code": "HISTORY_INVALID_LIMIT", "ok": False}, "")
        ctx.exit(USAGE)
    found = existing_store(read_settings(dev=dev).config, sqlite).schema.history(int(limit))
    lines = []
    for entry in found:
        lines.append(
            f"{entry['applied_at']}  {entry['baseline']:<6}  app {entry['app_version']}  "
            f"{entry['operation_count']} operations"
        )
        lines += [f"    {step}" for step in entry["plan"]]
    result({"history": found}, "\n".join(lines) if lines or wants_json() else "no history yet")


schema.add_command(advise)
schema.add_command(plan)
schema.add_command(apply)
schema.add_command(finish)
schema.add_command(references)
