"""`pylonctl schema finish`: ends a rolling upgrade on PostgreSQL, while the nodes serve.

It waits for nothing: while a node with another manifest lives, it says so and changes nothing.
"""

from __future__ import annotations

import click

from pylon.app_manifest import read_app_manifest
from pylon.cli.output import ERROR, json_flag, note, result
from pylon.cli.schema_apply import is_confirmed, make_backup
from pylon.cli.settings import dev_flag, read_settings
from pylon.cli.stores import existing_store
from pylon.schema.options import read_options


@click.command()
@click.option("--drop-field", multiple=True, metavar="Entity.FIELD",
              help="Remove a field that left the manifest. Repeatable.")
@click.option("--drop-entity", multiple=True, metavar="NAME",
              help="Remove a table that left the manifest. Repeatable.")
@click.option("--allow-destructive", is_flag=True, help="Do what the options above ask for.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--manifest", help="Sets PYLON_MANIFEST.")
@dev_flag
@json_flag
@click.pass_context
def finish(
    ctx: click.Context, /, drop_field: tuple[str, ...], drop_entity: tuple[str, ...],
    allow_destructive: bool, dry_run: bool, yes: bool, manifest: str | None, dev: bool,
) -> None:
    """End a rolling upgrade on PostgreSQL: make the database as narrow as the manifest.

    Required fields become NOT NULL, columns that left the manifest demand no value any more, and
    what --drop-field and --drop-entity name is removed, after a backup. Nodes go on serving, all
    with the manifest of the settings. Exit code 1 if a node has another one.
    """
    config = read_settings(dev=dev, flags={"PYLON_MANIFEST": manifest}).config
    app = read_app_manifest(config)
    options = read_options(app, drop_fields=drop_field, drop_entities=drop_entity)
    store = existing_store(config)
    if config.database_url is None:
        note("one server uses a SQLite file, so nothing waits for others: see schema apply")
        result({"code": "FINISH_DONE", "ok": True, "steps": []}, "nothing to do")
        return
    planned = store.schema.plan_contract(app, options)
    lines = [step.render() for step in (*planned.steps, *planned.rewrites)]
    lines += [f"refused: {text}" for text in planned.refusals]
    if dry_run:
        steps = [step.to_json() for step in (*planned.steps, *planned.rewrites)]
        result({"code": "FINISH_DRY_RUN", "steps": steps, "refusals": list(planned.refusals)},
               "\n".join(lines) or "nothing to do")
        ctx.exit(ERROR if planned.refusals else 0)
    if planned.refusals or (planned.rewrites and not allow_destructive):
        for line in lines:
            note(line)
        if not planned.refusals:
            note("this removes data: give --allow-destructive if it is wanted")
        result({"code": "FINISH_BLOCKED", "ok": False, "refusals": list(planned.refusals)}, "")
        ctx.exit(ERROR)
    if planned.rewrites:
        if not yes and not is_confirmed(lines, store):
            result({"ok": False, "aborted": True}, "Aborted.")
            ctx.exit(ERROR)
        make_backup(store)
    done = store.schema.finish_contract(app, options, allow_destructive=allow_destructive)
    result(
        {"code": "FINISH_DONE", "ok": True, "steps": [step.to_json() for step in done]},
        "\n".join(step.render() for step in done) or "nothing to do",
    )
