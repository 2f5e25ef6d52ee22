"""Fill: gives the rows of older nodes the JSON keys of fields that their manifest lacks.

While nodes with different manifests live (a rolling upgrade), a node with the older one writes
rows and events whose JSON lacks the new fields; the columns keep their values. Triggers add the
missing keys from the columns before the row or the event is stored. So every reader finds complete
rows, and a policy or filter over a new field never judges an image without it. The older node has
sent the event to its own clients as it was: if a value was added, the row is noted in a table, and
`pending` sends the row to all clients later.

`_pylon_meta` has a key `fill:<Entity>`: the fields that some living node lacks, with their types.
The key is written after the triggers are made. When they are dropped, it becomes `filled:<Entity>`
until `pending` has brought the rows to one manifest. A row that has all its keys stays as it is.

PERF: a complete row of 270 bytes costs 4 us more and its event 3; one that lacks keys 35 and 55 (in
statements of 20,000 rows). Only while versions are mixed.

Invariant: within one database the triggers exist only while nodes with different manifests live,
or until the next `pending.finish_pending`. Called by `apply`, `pending`, `contract` and `rewrite`,
under the lock of those who change the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from pylon.schema.columns import JSON_COLUMN
from pylon.storage.postgres import meta
from pylon.storage.postgres.functions import DECIMAL
from pylon.storage.postgres.names import TEXT, fitting_name, quote
from pylon.storage.postgres.schema.ddl import constant_text
from pylon.storage.postgres.schema.live import has_table
from pylon.storage.postgres.schema.online import OnlineSteps
from pylon.storage.postgres.schema.results import ask
from pylon.storage.postgres.wire import BlockingSession

_KEY: Final = "fill:"
_FILLED_KEY: Final = "filled:"
TOLD_LATER: Final = "_pylon_filled"  # rows of which an event was sent without a value
_TOLD_LATER_TABLE: Final = (
    f"CREATE TABLE IF NOT EXISTS {TOLD_LATER} "
    f"(entity {TEXT}, row_id {TEXT}, PRIMARY KEY (entity, row_id))"
)
_NOTES: Final = "SELECT key, value FROM _pylon_meta WHERE starts_with(key, $1) ORDER BY key"
_LOG: Final = "_pylon_change_log"
_LOG_FUNCTION: Final = "_pylon_fill_log"
_TRIGGER: Final = "_pylon_fill"
_MERGE: Final = "_pylon_with_keys"
# Returns a row's JSON with the members of `added` that it lacks, in the order of names, as
# `pylon.values.codec` writes it.
_MERGE_FUNCTION: Final = f"""
CREATE OR REPLACE FUNCTION {_MERGE}(row_json text, added json) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
SELECT '{{' || string_agg(to_json(key)::text || ':' || value, ',' ORDER BY key COLLATE "C") || '}}'
FROM (
    SELECT key, value::text AS value FROM json_each(row_json::json)
    UNION ALL
    SELECT key, value::text FROM json_each(added) WHERE (row_json::json -> key) IS NULL
) AS members
$$"""
# By the type of a field, how its column becomes JSON.
_VALUES: Final = {
    "decimal": f"trim_scale({DECIMAL}({{}}))::text",
    "json": "{}::json",
}


def filled_fields(session: BlockingSession, entity: str) -> dict[str, str]:
    """Return the fields of an entity whose keys triggers add, with their types."""
    noted = meta.get(session, _KEY + entity)
    return {} if noted is None else dict(orjson.loads(noted))


def earlier_fields(session: BlockingSession, entity: str) -> list[str]:
    """Return the fields whose keys triggers have added that are dropped now."""
    noted = meta.get(session, _FILLED_KEY + entity)
    return [] if noted is None else list(orjson.loads(noted))


def add_fill(
    session: BlockingSession, entity: str, kinds: Mapping[str, str], steps: OnlineSteps
) -> None:
    """Have triggers add the keys of more fields of an entity. Their columns exist.

    Args:
        kinds: types by field (`pylon.schema.convert.shape_of`).

    Raises:
        StartDelayed: others held the table for too long. psycopg.Error
    """
    known = filled_fields(session, entity)
    wanted = known | dict(kinds)
    if wanted == known:
        return
    session.execute_script(_TOLD_LATER_TABLE)
    session.execute_script(_MERGE_FUNCTION)
    name = _function_of(entity)
    session.execute_script(_row_function(name, wanted))
    notes = _notes(session) | {entity: wanted}
    session.execute_script(_log_function(notes))
    if not known:
        steps.change_table(_create_trigger(entity, name, "INSERT OR UPDATE"), entity)
        steps.change_table(_create_trigger(_LOG, _LOG_FUNCTION, "INSERT"), _LOG)
    meta.put(session, _KEY + entity, orjson.dumps(wanted, option=orjson.OPT_SORT_KEYS).decode())


def remove_fill(session: BlockingSession, steps: OnlineSteps) -> None:
    """Drop all triggers: every living node has the same manifest.

    Raises: as `add_fill`.
    """
    notes = _notes(session)
    if not notes:
        return
    for entity, kinds in notes.items():
        fields = sorted({*kinds, *earlier_fields(session, entity)})
        meta.put(session, _FILLED_KEY + entity, orjson.dumps(fields).decode())
        if has_table(session, entity):
            steps.change_table(_drop_trigger(entity), entity)
    steps.change_table(_drop_trigger(_LOG), _LOG)
    for name in (*map(_function_of, notes), _LOG_FUNCTION):
        session.execute_script(f"DROP FUNCTION IF EXISTS {quote(name)}()")
    for entity in notes:
        meta.remove(session, _KEY + entity)


def forget_fill(session: BlockingSession, entity: str) -> None:
    """Forget `earlier_fields`: the rows are as one manifest has them, and all clients know them."""
    meta.remove(session, _FILLED_KEY + entity)
    session.execute(f"DELETE FROM {TOLD_LATER} WHERE entity = $1", (entity,))


def _notes(session: BlockingSession) -> dict[str, dict[str, str]]:
    return {
        str(key).removeprefix(_KEY): dict(orjson.loads(str(value)))
        for key, value in ask(session, _NOTES, (_KEY,))
    }


def _function_of(entity: str) -> str:
    return fitting_name(f"_pylon_fill_{entity}")


def _create_trigger(table: str, function: str, events: str) -> str:
    return (
        f"CREATE OR REPLACE TRIGGER {_TRIGGER} BEFORE {events} ON {quote(table)} "
        f"FOR EACH ROW EXECUTE FUNCTION {quote(function)}()"
    )


def _drop_trigger(table: str) -> str:
    return f"DROP TRIGGER IF EXISTS {_TRIGGER} ON {quote(table)}"


def _row_function(name: str, kinds: Mapping[str, str]) -> str:
    return _trigger_function(name, (
        f"IF {_lacks(f'NEW.{JSON_COLUMN}', kinds)} THEN "
        f"NEW.{JSON_COLUMN} := {_MERGE}(NEW.{JSON_COLUMN}, {_object('NEW', kinds)}); END IF;"
    ))


def _log_function(notes: Mapping[str, Mapping[str, str]]) -> str:
    """An event gets the values that its row has now: older nodes do not change them."""
    parts = []
    for entity, kinds in notes.items():
        images = [
            f"IF {_lacks(f'NEW.{image}', kinds)} THEN "
            f"NEW.{image} := {_MERGE}(NEW.{image}, added); END IF;"
            for image in ("data", "prev_data")
        ]
        lacks = " OR ".join(_lacks(f"NEW.{image}", kinds) for image in ("data", "prev_data"))
        nulls = ", ".join(f"{constant_text(name)}, NULL" for name in sorted(kinds))
        parts.append(
            f"IF NEW.entity = {constant_text(entity)} AND ({lacks}) THEN "
            f"SELECT {_object('r', kinds)} INTO added FROM {quote(entity)} AS r "
            f"WHERE r.id = NEW.row_id; "
            f"added := coalesce(added, json_build_object({nulls})); "
            "IF EXISTS (SELECT FROM json_each_text(added) AS m WHERE m.value IS NOT NULL) THEN "
            f"INSERT INTO {TOLD_LATER} VALUES (NEW.entity, NEW.row_id) ON CONFLICT DO NOTHING; "
            f"END IF; {' '.join(images)} END IF;"
        )
    return _trigger_function(_LOG_FUNCTION, " ".join(parts), "DECLARE added json; ")


def _trigger_function(name: str, body: str, declared: str = "") -> str:
    return (
        f"CREATE OR REPLACE FUNCTION {quote(name)}() RETURNS trigger LANGUAGE plpgsql AS $fill$ "
        f"{declared}BEGIN {body} RETURN NEW; END $fill$"
    )


def _lacks(value: str, kinds: Mapping[str, str]) -> str:
    """The condition that a JSON object lacks a key. A null member is no SQL null."""
    missing = " OR ".join(
        f"({value}::json -> {constant_text(name)}) IS NULL" for name in sorted(kinds)
    )
    return f"{value} IS NOT NULL AND ({missing})"


def _object(row: str, kinds: Mapping[str, str]) -> str:
    members = ", ".join(
        f"{constant_text(name)}, {_VALUES.get(kind, '{}').format(f'{row}.{quote(name)}')}"
        for name, kind in sorted(kinds.items())
    )
    return f"json_build_object({members})"
