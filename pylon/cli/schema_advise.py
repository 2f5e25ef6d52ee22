"""`pylonctl schema advise`: names indexes that the app lacks.

It asks the store for its plan of each read policy, and a running server for the queries of large
tables that no index served (`pylon_unindexed_queries_total`). An index of fields belongs into the
manifest; the command prints its line. A trigram index serves patterns (`$like`) on PostgreSQL, and
is no part of the manifest; the command prints its SQL, and makes it with --create-trigrams only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import click
from prometheus_client.parser import text_string_to_metric_families

from pylon.app import build_app
from pylon.app_manifest import read_app_manifest
from pylon.auth_context import AuthContext
from pylon.cli.output import json_flag, result
from pylon.cli.running import Running, find_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.cli.stores import existing_store
from pylon.config import Config
from pylon.errors import InvalidData
from pylon.manifest.model import Entity, FieldType, Manifest
from pylon.query.predicate import FALSE, TRUE
from pylon.query.rows import parse_filter
from pylon.storage.backend import Backend
from pylon.storage.sql.plan_watch import TRIGRAM

_USER: Final = "user"  # whose policies are tried
_TEXTS: Final = (FieldType.STRING, FieldType.RICHTEXT)


@dataclass(frozen=True, slots=True)
class _Advice:
    """An index that would help, as a manifest has its fields, or a text field with patterns."""

    entity: str
    fields: tuple[str, ...]
    why: str
    is_trigram: bool = False


@click.command()
@click.option("--pattern", "patterns", multiple=True, metavar="Entity.FIELD",
              help="Propose a trigram index for this field too. Repeatable.")
@click.option("--create-trigrams", is_flag=True, help="Make the trigram indexes, beside writers.")
@click.option("--manifest", help="Sets PYLON_MANIFEST.")
@dev_flag
@json_flag
def advise(
    patterns: tuple[str, ...], create_trigrams: bool, manifest: str | None, dev: bool
) -> None:
    """Name the indexes that read policies and the queries seen by a running server lack."""
    config = read_settings(dev=dev, flags={"PYLON_MANIFEST": manifest}).config
    app = read_app_manifest(config)
    store = existing_store(config)
    wanted = dict.fromkeys([
        *_of_policies(config, app, store), *_of_server(config, app),
        *(_of_option(app, text) for text in patterns),
    ])
    indexes: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    trigrams: dict[tuple[str, str], dict[str, Any]] = {}
    for item in wanted:
        if not item.is_trigram:
            line = {"name": "_".join(["by", *(f.removeprefix("-") for f in item.fields)]),
                    "fields": list(item.fields)}
            indexes.setdefault((item.entity, item.fields), {
                "entity": item.entity, "index": line, "why": item.why,
            })
            continue
        for field in item.fields:
            sql = store.schema.trigram_statements(item.entity, field)
            if sql:
                trigrams.setdefault((item.entity, field), {
                    "entity": item.entity, "field": field, "sql": sql, "why": item.why,
                })
    if create_trigrams:
        for entity, field in trigrams:
            store.schema.make_trigram_index(entity, field)
    result(
        {"code": "ADVICE", "indexes": list(indexes.values()), "trigrams": list(trigrams.values()),
         "created": create_trigrams},
        "\n".join(_lines(list(indexes.values()), list(trigrams.values()), create_trigrams)),
    )


def _of_policies(config: Config, app: Manifest, store: Backend) -> Iterator[_Advice]:
    rules = build_app(config, app).rules
    reader = store.open_reader(app)
    try:
        for entity in app.entities:
            allowed = rules.for_entity(entity.name).readable_by(AuthContext(user_id=_USER))
            if allowed is TRUE or allowed is FALSE:
                continue
            plan = reader.explain(entity.name, parse_filter(entity, {}, 1, allowed))
            why = "the read policy"
            if not plan.is_indexed and plan.index:
                yield _Advice(entity.name, plan.index, why)
            elif not plan.is_indexed and plan.patterns:
                yield _Advice(entity.name, plan.patterns, why, is_trigram=True)
    finally:
        reader.close()


def _of_server(config: Config, app: Manifest) -> Iterator[_Advice]:
    """Read what the server of this data directory has seen; nothing if none runs."""
    running = find_running(config)
    if not isinstance(running, Running):
        return
    page = running.control().ask("metrics", format="text")["body"]
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name != "pylon_unindexed_queries_total" or not sample.value:
                continue
            entity, index = sample.labels["entity"], sample.labels["index"]
            if entity not in app.by_name or index == "none":
                continue
            why = f"{sample.value:.0f} queries"
            if index.startswith(f"{TRIGRAM}("):
                fields = tuple(index[len(TRIGRAM) + 1:-1].split(","))
                yield _Advice(entity, fields, why, is_trigram=True)
            else:
                yield _Advice(entity, tuple(index.split(",")), why)


def _of_option(app: Manifest, text: str) -> _Advice:
    name, _, field = text.partition(".")
    entity: Entity | None = app.by_name.get(name)
    known = None if entity is None else entity.by_name.get(field)
    if known is None or known.type not in _TEXTS:
        raise InvalidData(f"--pattern {text}: no text field of the manifest has this name")
    return _Advice(name, (field,), "--pattern", is_trigram=True)


def _lines(
    indexes: list[dict[str, Any]], trigrams: list[dict[str, Any]], is_made: bool
) -> Iterator[str]:
    for item in indexes:
        yield (f"{item['entity']} ({item['why']}): add to its indexes in the manifest: "
               f"{json.dumps(item['index'])}")
    for item in trigrams:
        made = "made" if is_made else "a trigram index would serve patterns"
        yield f"{item['entity']}.{item['field']} ({item['why']}): {made}"
        yield from (f"    {statement};" for statement in item["sql"])
    if indexes:
        yield "then: pylonctl schema apply --indexes"
    if not indexes and not trigrams:
        yield "no index is missing"
