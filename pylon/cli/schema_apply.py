"""`pylonctl schema plan` and `pylonctl schema apply`: migrate the database to the manifest.

A start makes additions itself. `schema apply` also rewrites and removes data: with the server
stopped, and after a backup. Indexes alone can change while the server runs (`--indexes`). The JSON
has the form of `schema push` in spec/http.md §8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pylon.app_manifest import read_app_manifest
from pylon.cli.output import ERROR, ask_operator, json_flag, note, result
from pylon.cli.running import require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.cli.stores import existing_store, hold_stopped_store
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.data_dir import give_folder_to_owner
from pylon.manifest.model import FORMAT_VERSION, Manifest
from pylon.schema.options import MigrationOptions, read_options
from pylon.schema.steps import Plan
from pylon.storage.backend import Backend
from pylon.storage.factory import open_store, open_store_at
from pylon.storage.schemas import ReferenceReport

_YES: Final = ("y", "yes")
_WARNINGS: Final = {
    "remove_entity": "DESTRUCTIVE_REMOVE_ENTITY", "remove_field": "DESTRUCTIVE_REMOVE_FIELD",
    "remove_index": "DESTRUCTIVE_REMOVE_INDEX", "alter_field": "DESTRUCTIVE_ALTER_FIELD",
    "add_field": "DESTRUCTIVE_ADD_FIELD",
}
_BASELINES: Final = {"sqlite": "live_sqlite", "postgresql": "live_postgres"}

F = TypeVar("F", bound=Callable[..., Any])


def migration_options(command: F) -> F:
    """Add the flags that `read_options` reads. Entities have the names of the new manifest."""
    for flag, form, text in (
        ("--default", "Entity.field=VALUE", "A value for rows that have none. Repeatable."),
        ("--drop-index", "NAME", "Remove an index. Repeatable."),
        ("--drop-field", "Entity.FIELD", "Remove a field that left the manifest. Repeatable."),
        ("--drop-entity", "NAME", "Remove a table that left the manifest. Repeatable."),
        ("--rename-field", "Entity.OLD:NEW", "Keep a field's data. Repeatable."),
        ("--rename-entity", "OLD:NEW", "Keep an entity's rows. Repeatable."),
    ):
        command = click.option(flag, multiple=True, metavar=form, help=text)(command)
    return command


@click.command()
@migration_options
@click.option("--sqlite", metavar="PATH", help="A database file, instead of PYLON_DB_PATH.")
@click.option("--manifest", help="Sets PYLON_MANIFEST.")
@dev_flag
@json_flag
@click.pass_context
def plan(
    ctx: click.Context, /, sqlite: str | None, manifest: str | None, dev: bool,
    **flags: tuple[str, ...],
) -> None:
    """Show the changes that a start would make, and those that it would refuse. Changes nothing.

    Exit code 1 if a start would be refused.
    """
    config = read_settings(dev=dev, flags={"PYLON_MANIFEST": manifest}).config
    app = read_app_manifest(config)
    options = _read_migration_options(app, flags)
    store = open_store(config) if sqlite is None else open_store_at(Path(sqlite))
    found = store.exists() and not (config.in_memory and sqlite is None)
    planned = store.schema.plan(app, options)
    body = {
        "code": "PUSH_DRY_RUN", "dry_run": True, "applied": False,
        **_body(planned, store, _BASELINES[store.name] if found else "empty"),
    }
    result(body, "\n".join(_lines(planned)))
    ctx.exit(ERROR if planned.rewrites or planned.refusals else 0)


@click.command()
@migration_options
@click.option("--indexes", is_flag=True, help="Only change indexes, while the server runs.")
@click.option("--allow-destructive", is_flag=True, help="Also rewrite and remove data.")
@click.option("--adopt", is_flag=True, help="Convert tables of the published server's types.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--manifest", help="Sets PYLON_MANIFEST.")
@dev_flag
@json_flag
@click.pass_context
def apply(
    ctx: click.Context, /, indexes: bool, allow_destructive: bool, adopt: bool, yes: bool,
    manifest: str | None, dev: bool, **flags: tuple[str, ...],
) -> None:
    """Migrate the database to the manifest. The server must be stopped, except for --indexes, and
    for additions on PostgreSQL.

    Additions need no flag (a start makes them too). --adopt converts tables that the published
    server made on PostgreSQL, as far as no value is lost. Before it renames, rewrites or removes
    data, the command makes a backup and prints its path; clients resync afterwards. Exit code 1 if
    you do not answer the question with y or yes: nothing was changed then.
    """
    config = read_settings(dev=dev, flags={"PYLON_MANIFEST": manifest}).config
    app = read_app_manifest(config)
    options = replace(_read_migration_options(app, flags), adopts=adopt)
    if indexes:
        _request_indexes(config, app)
        return
    # The tables of another server are no database of Pylon's yet.
    store = open_store(config) if adopt and config.database_url else existing_store(config)
    if config.database_url is not None and not store.schema.plan(app, options).rewrites:
        # As the start of one more node; the others go on.
        ctx.exit(_apply(app, options, store, allow_destructive, yes))
    with hold_stopped_store(store):
        ctx.exit(_apply(app, options, store, allow_destructive, yes))


@click.command()
@click.option("--check", "word", flag_value="check", help="Check references from the next start.")
@click.option("--none", "word", flag_value="none", help="Check them no longer, by default.")
@click.option("--manifest", help="Sets PYLON_MANIFEST.")
@dev_flag
@json_flag
@click.pass_context
def references(
    ctx: click.Context, /, word: str | None, manifest: str | None, dev: bool
) -> None:
    """List the rows whose reference, a field of type id(Entity), names a row that does not exist.

    A database that this server has made checks references; one of an earlier version, or of another
    server, does not. --check turns it on if every reference holds, --none turns it off; the
    server must be stopped. What the manifest says about a field counts more. Exit code 1 if a
    reference does not hold.
    """
    config = read_settings(dev=dev, flags={"PYLON_MANIFEST": manifest}).config
    app = read_app_manifest(config)
    store = existing_store(config)
    schema = store.schema
    if word is None:
        ctx.exit(_show_references(schema.references(app)))
    with hold_stopped_store(store):
        report = schema.references(app)
        if word == "none" or not report.broken:
            schema.check_references(is_default=word == "check")
            report = replace(report, is_default=word == "check")
        ctx.exit(_show_references(report) if word == "check" else 0)


def _show_references(report: ReferenceReport) -> int:
    """Print the report and return the exit code."""
    lines = ["references are checked by default" if report.is_default
             else "references are not checked by default"]
    for broken in report.broken:
        of = broken.reference
        shown = ", ".join(f"{row_id} ({value})" for row_id, value in broken.examples)
        lines.append(
            f"{of.entity}.{of.field}: {broken.rows} rows name a row of {of.target} that does not "
            f"exist: {shown}{', ...' if broken.rows > len(broken.examples) else ''}"
        )
    body = {
        "code": "REFERENCES_BROKEN" if report.broken else "REFERENCES_OK",
        "ok": not report.broken, "references": "check" if report.is_default else "none",
        "broken": [
            {"entity": b.reference.entity, "field": b.reference.field,
             "target": b.reference.target, "rows": b.rows,
             "examples": [{"id": row_id, "value": value} for row_id, value in b.examples]}
            for b in report.broken
        ],
    }
    result(body, "\n".join(lines))
    return ERROR if report.broken else 0


def _request_indexes(config: Config, app: Manifest) -> None:
    """Have the running server change its indexes; print the newest entry of its history."""
    wanted = [
        (e.name, i.name, i.fields, i.unique, i.descending, i.where)
        for e in app.entities for i in e.indexes
    ]
    answer = require_running(config).control().ask("indexes", indexes=wanted)
    done: list[str] = []
    if answer["count"]:
        done = open_store(config).schema.history(1)[0]["plan"]
    body = {"code": "PUSH_APPLIED", "ok": True, "applied": True, "steps": done}
    result(body, "\n".join(done) or "nothing to do")


def _apply(
    app: Manifest, options: MigrationOptions, store: Backend, allow_destructive: bool, yes: bool
) -> int:
    schema = store.schema
    planned = schema.plan(app, options)
    body = _body(planned, store, _BASELINES[store.name])
    blocked = list(planned.refusals)
    if planned.destructive and not allow_destructive:
        blocked.append("this rewrites or removes data: give --allow-destructive if it is wanted")
    if blocked:
        for line in (*_lines(planned), *blocked[len(planned.refusals):]):
            note(line)
        result({"code": "PUSH_BLOCKED", "dry_run": False, "applied": False, **body}, "")
        return ERROR
    if planned.rewrites and not yes and not is_confirmed(_lines(planned), store):
        result({"ok": False, "aborted": True}, "Aborted.")
        return ERROR
    saved = None
    if planned.rewrites and store.exists():
        saved = make_backup(store)
    elif planned.rewrites:
        note("no backup: there is no table of Pylon's yet (pg_dump makes a copy of the others)")
    steps = schema.apply(app, options, allow_destructive=allow_destructive)
    body["plan"] = {"operations": [s.to_json() for s in steps] or [{"op": "noop"}]}
    if saved is not None:
        body["backup"] = str(saved)
    lines = [s.render() for s in steps] or ["nothing to do"]
    lines += [f"the database as it was: {saved}"] if saved is not None else []
    result(
        {"code": "PUSH_APPLIED", "ok": True, "dry_run": False, "applied": True, **body},
        "\n".join(lines),
    )
    return 0


def is_confirmed(lines: Sequence[str], store: Backend) -> bool:
    """Show a plan, and ask the operator."""
    for line in lines:
        note(line)
    return ask_operator(f"Change {store.place}? [y/N] ") in _YES


def make_backup(store: Backend) -> Path:
    """Make a backup bundle beside the database, without the manifest: that is already the new one.

    Returns: the folder.
    """
    clock = SystemClock()
    now = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
    path = store.data_path
    folder = path.absolute().with_name(f"{path.name}.before-{now:%Y%m%dT%H%M%S.%f}Z")
    store.backups.create(folder, None)
    give_folder_to_owner(folder)
    note(f"backup: {folder}")
    return folder


def _read_migration_options(app: Manifest, flags: dict[str, tuple[str, ...]]) -> MigrationOptions:
    names = {
        "rename_entity": "rename_entities", "rename_field": "rename_fields",
        "drop_entity": "drop_entities", "drop_field": "drop_fields",
        "drop_index": "drop_indexes", "default": "defaults",
    }
    return read_options(app, **{names[flag]: values for flag, values in flags.items()})


def _body(planned: Plan, store: Backend, baseline: str) -> dict[str, Any]:
    steps = [*planned.rewrites, *planned.steps]
    warnings = [
        {"code": _WARNINGS[s.kind], "message": s.render()}
        for s in planned.rewrites if s.destructive
    ]
    diagnostics = [
        {"severity": "error", "code": "PUSH_PLAN_FAILED", "message": text}
        for text in planned.refusals
    ]
    return {
        "adapter": store.name, "database_path": store.place, "baseline": baseline,
        "manifest_version": FORMAT_VERSION,
        "plan": {"operations": [s.to_json() for s in steps] or [{"op": "noop"}]},
        "analysis": {
            "destructive": planned.destructive, "has_unsupported": bool(planned.refusals),
            "warnings": warnings,
        },
        "start": "refused" if planned.rewrites or planned.refusals else "applies",
        "diagnostics": diagnostics,
    }


def _lines(planned: Plan) -> list[str]:
    lines = [f"a start does: {s.render()}" for s in planned.steps]
    lines += [
        f"only `schema apply{' --allow-destructive' if s.destructive else ''}` does: {s.render()}"
        for s in planned.rewrites
    ]
    lines += [f"refused: {text}" for text in planned.refusals]
    return lines or ["nothing to do: the database is as the manifest has it"]
