"""`pylonctl search check` and `pylonctl search rebuild`: the indexes of full-text search.

Every write updates them, and a start builds missing ones. A rebuild is for a damaged database.
While a server runs, its writer rebuilds in batches, and other writes run in between. Without a
server this process rebuilds, in one transaction. Invariant: a check only reads.
"""

from __future__ import annotations

from typing import Any

import click

from pylon.app_manifest import read_app_manifest
from pylon.cli.output import ERROR, json_flag, note, result
from pylon.cli.running import require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.cli.stores import existing_store, hold_store
from pylon.config import Config
from pylon.data_dir_lock import DataDirLocked
from pylon.errors import (
    EntityNotFound,
    SearchNotConfigured,
)
from pylon.manifest.model import Entity
from pylon.query.words import text_fields

_entity_option = click.option("--entity", metavar="NAME", help="Only this entity.")


@click.group()
@json_flag
def search() -> None:
    """Check the indexes of full-text search, or build them anew."""


@search.command("check")
@_entity_option
@dev_flag
@json_flag
@click.pass_context
def check_indexes(ctx: click.Context, entity: str | None, dev: bool) -> None:
    """Compare each index with its rows, also while the server runs.

    Exit code 1 if they differ.
    """
    config = read_settings(dev=dev).config
    entities = _entities(config, entity)
    found = existing_store(config).schema.check_search(entities)
    ok = not any(c.problems for c in found)
    lines = [
        f"{c.entity}: {'; '.join(c.problems) or 'current'} ({c.rows} rows)" for c in found
    ]
    if not ok:
        lines.append("build the index anew: pylonctl search rebuild")
    body = {
        "ok": ok,
        "entities": [
            {"entity": c.entity, "rows": c.rows, "problems": list(c.problems)} for c in found
        ],
    }
    result(body, "\n".join(lines) or "no entity has text fields in a search config")
    ctx.exit(0 if ok else ERROR)


@search.command("rebuild")
@_entity_option
@dev_flag
@json_flag
def rebuild_indexes(entity: str | None, dev: bool) -> None:
    """Build the indexes anew from the rows, also while the server runs."""
    config = read_settings(dev=dev).config
    entities, store = _entities(config, entity), existing_store(config)
    try:
        with hold_store(store):
            rows = store.schema.build_search(entities)
        built: list[dict[str, Any]] = [
            {"entity": name, "rows": count} for name, count in rows.items()
        ]
    except DataDirLocked:
        built = _request_rebuild(config, entities)
    body: dict[str, Any] = {"ok": True, "entities": built}
    lines = [f"{b['entity']}: built from {b['rows']} rows" for b in built]
    result(body, "\n".join(lines) or "no entity has text fields in a search config")


def _request_rebuild(config: Config, entities: list[Entity]) -> list[dict[str, Any]]:
    """Have the running server rebuild the indexes, and print its progress."""
    answer: dict[str, Any] = {}
    names = [entity.name for entity in entities]
    for answer in require_running(config).control().call("search_rebuild", entities=names):
        if not answer.get("done"):
            note(f"{answer['entity']}: {answer['rows']} rows so far")
    built: list[dict[str, Any]] = answer["entities"]
    return built


def _entities(config: Config, name: str | None) -> list[Entity]:
    """Return the named entity, or all that have an index.

    Raises:
        EntityNotFound: the manifest does not have it.
        SearchNotConfigured: it has no index.
    """
    manifest = read_app_manifest(config)
    if name is None:
        return [e for e in manifest.entities if text_fields(e)]
    entity = manifest.by_name.get(name)
    if entity is None:
        known = ", ".join(sorted(manifest.by_name))
        raise EntityNotFound(f'Unknown entity "{name}" -- known entities: {known}')
    if not text_fields(entity):
        raise SearchNotConfigured(
            f"{name} has no text fields in its search config",
            hint=f'add "search": {{"text": [...]}} to it in {config.manifest}',
        )
    return [entity]
