"""Read the file of PYLON_SEED: ``{Entity: [row, ...]}``, rows for an empty database.

Rows are validated as a client's would be. `supervisor.seed` inserts them; `pylon.startup` looks
whether a start would refuse the file.
"""

from __future__ import annotations

import codecs
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw
import orjson

from pylon.clock import SystemClock, SystemRandom
from pylon.config import Config
from pylon.errors import PylonError, StartRefused
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.storage.core.constraint_errors import constraint_error
from pylon.storage.names import quote
from pylon.storage.ops import InsertRow, OpKey
from pylon.storage.sqlite.connect import open_reader
from pylon.storage.sqlite.constraint_errors import ConstraintErrors
from pylon.storage.sqlite.schema import ddl
from pylon.storage.sqlite.schema.live import introspect
from pylon.values import EntityCodec, decode_body

IDENTITY: Final = "__seed__"  # scopes the op_ids of seeded rows


def refuse_bad_seed(config: Config, manifest: Manifest) -> None:
    """
    Raises:
        StartRefused: as `read_seed`, if a start would read the file: into an empty database.
        PylonError: the database cannot be read.
    """
    if config.seed is None:
        return
    path = Path(config.db_path)
    if config.in_memory or not path.exists() or _is_empty(path, manifest):
        read_seed(Path(config.seed), manifest, RowIds(SystemClock(), SystemRandom()))


def _is_empty(path: Path, manifest: Manifest) -> bool:
    with closing(open_reader(path)) as conn:
        tables = introspect(conn, tuple(e.name for e in manifest.entities)).tables.values()
        return all(
            conn.execute(f"SELECT 1 FROM {quote(table.source)} LIMIT 1").get is None
            for table in tables
        )


def read_seed(path: Path, manifest: Manifest, ids: RowIds) -> list[InsertRow]:
    """The validated rows of the file.

    Raises:
        StartRefused: the file cannot be read, or a row is refused (names entity and index).
    """
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        document = decode_body(raw, nodes=len(raw))  # the operator's own file
    except OSError as ex:
        raise StartRefused(f"PYLON_SEED is {path}: {ex.strerror}") from ex
    except PylonError as ex:
        raise StartRefused(f"PYLON_SEED ({path}): {ex.message}") from ex
    if not isinstance(document, dict):
        raise StartRefused(f"PYLON_SEED ({path}): expected an object of entity: [rows]")
    inserts = [
        insert for name, rows in document.items()
        for insert in _rows_of(path, manifest, name, rows, ids)
    ]
    _refuse_conflicts(path, manifest, inserts)
    return inserts


def _refuse_conflicts(path: Path, manifest: Manifest, inserts: list[InsertRow]) -> None:
    """Insert the rows into empty tables in memory, so that the first of two rows with one unique
    value is not in the database when the second is refused.

    Raises:
        StartRefused: names the row that is refused.
    """
    with closing(apsw.Connection(":memory:")) as conn:
        refusals = {}
        for name in dict.fromkeys(insert.entity for insert in inserts):
            entity = manifest.by_name[name]
            refusals[name] = ConstraintErrors(entity)
            conn.execute(ddl.create_table(entity))
            for index in entity.indexes:
                if index.unique:
                    full = ddl.index_name(entity, index)
                    conn.execute(ddl.create_index(full, entity, index.fields, unique=True))
        for insert in inserts:
            entity = manifest.by_name[insert.entity]
            columns = ", ".join(quote(name) for name in entity.columns)
            marks = ", ".join("?" * len(entity.columns))
            try:
                conn.execute(
                    f"INSERT INTO {quote(entity.name)} ({columns}) VALUES ({marks})",
                    (insert.row_id, *insert.values),
                )
            except apsw.ConstraintError as ex:
                row = orjson.loads(insert.row_json)
                why = constraint_error(
                    entity.name, refusals[entity.name].of(ex), row,
                    client_id_given=insert.client_id_given,
                ).message
                where = insert.op.op_id if insert.op is not None else entity.name
                raise StartRefused(f"PYLON_SEED ({path}): {where}: {why}") from ex


def _rows_of(
    path: Path, manifest: Manifest, name: str, rows: Any, ids: RowIds
) -> list[InsertRow]:
    entity = manifest.by_name.get(name)
    if entity is None or not isinstance(rows, list):
        known = ", ".join(manifest.by_name) or "none"
        why = "expected a list of rows" if entity is not None else f"entities are: {known}"
        raise StartRefused(f"PYLON_SEED ({path}): {name}: {why}")
    codec = EntityCodec(entity)
    out = []
    for index, body in enumerate(rows):
        where = f"{name}[{index}]"
        try:
            given = codec.client_id(body)
            row_id = given or ids.new()
            encoded = codec.insert(body, row_id)
        except PylonError as ex:
            raise StartRefused(f"PYLON_SEED ({path}): {where}: {ex.message}") from ex
        out.append(InsertRow(
            name, row_id, encoded.values, encoded.row_json, given is not None,
            OpKey(IDENTITY, where),
        ))
    return out
