"""`pylonctl explain-query`: prints how the store finds the rows of a query, and the index that
would help.

It reads the database file of a running server, or of one that has stopped, and writes nothing.
"""

from __future__ import annotations

import json
from typing import Any, Final

import click

from pylon.app import build_app
from pylon.app_manifest import read_app_manifest
from pylon.auth_context import ADMIN, AuthContext
from pylon.cli.json_options import read_object
from pylon.cli.output import json_flag, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.errors import EntityNotFound
from pylon.manifest.model import Entity
from pylon.query.rows import parse_filter
from pylon.storage.factory import open_store
from pylon.storage.records import QueryPlan

_HELP: Final = "As in POST /api/query/ENTITY, as JSON."


@click.command("explain-query")
@click.argument("entity")
@click.option("--filter", "filter_json", metavar="JSON", default="{}", help=_HELP)
@click.option("--order", "order_json", metavar="JSON", help="Fields, asc or desc, as JSON.")
@click.option("--after", "after_json", metavar="JSON", help="A position: the page behind it.")
@click.option("--before", "before_json", metavar="JSON", help="A position: the page before it.")
@click.option("--limit", type=click.IntRange(0), help="Rows of the page.")
@click.option("--user", metavar="USER_ID", help="With the read policies for this user.")
@dev_flag
@json_flag
def explain_query(
    entity: str, filter_json: str, order_json: str | None, after_json: str | None,
    before_json: str | None, limit: int | None, user: str | None, dev: bool,
) -> None:
    """Print the plan of a query of ENTITY, and the index that would help it."""
    config = read_settings(dev=dev).config
    manifest = read_app_manifest(config)
    named = manifest.by_name.get(entity)
    if named is None:
        known = ", ".join(sorted(manifest.by_name)) or "none"
        raise EntityNotFound(f'Unknown entity "{entity}" -- known entities: {known}')
    body = read_object("--filter", filter_json)
    given = {"$order": order_json, "$after": after_json, "$before": before_json}
    for key, text in given.items():
        if text is not None:
            body[key] = read_object(f"--{key[1:]}", text)
    if limit is not None:
        body["$limit"] = limit
    app = build_app(config, manifest)
    allowed = app.rules.for_entity(entity).readable_by(_caller(user))
    query = parse_filter(named, body, config.list_limit, allowed)
    reader = open_store(config).open_reader(manifest)
    try:
        plan = reader.explain(entity, query)
    finally:
        reader.close()
    advice = _index_of(named, plan)
    result(
        {"entity": entity, "plan": list(plan.steps), "indexed": plan.is_indexed, "index": advice},
        _text_of(named, plan, advice),
    )


def _caller(user: str | None) -> AuthContext:
    return ADMIN if user is None else AuthContext(user_id=user)


def _index_of(entity: Entity, plan: QueryPlan) -> dict[str, Any] | None:
    """Return the line for the manifest; None if no index would help."""
    if not plan.index:
        return None
    words = [field.removeprefix("-") for field in plan.index]
    name = "_".join(["by", *words])
    if any(index.name == name for index in entity.indexes):
        name += "_2"
    return {"name": name, "fields": list(plan.index)}


def _text_of(entity: Entity, plan: QueryPlan, advice: dict[str, Any] | None) -> str:
    lines = list(plan.steps)
    if plan.is_indexed:
        lines.append("an index serves the filter and the order")
    elif advice is None:
        lines.append("no index serves the filter, and no single index would")
    else:
        lines += [
            "no index serves the filter and the order; this line of the manifest would help, in",
            f"the indexes of {entity.name}: {json.dumps(advice)}",
        ]
    return "\n".join(lines)
