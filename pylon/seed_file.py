"""Seed file: reads the file of PYLON_SEED, ``{Entity: [row, ...]}``, for an empty database.

It validates the rows like those of a client. `supervisor.seed` inserts them. `pylon.startup` checks
whether a start would refuse the file.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any, Final

from pylon.auth_context import ADMIN
from pylon.clock import SystemClock, SystemRandom
from pylon.config import Config
from pylon.errors import PylonError, StartRefused
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.storage.factory import open_store
from pylon.storage.ops import InsertRow, OpKey
from pylon.storage.schemas import SchemaManager
from pylon.values import EntityCodec, FieldDefaults, decode_body

IDENTITY: Final = "__seed__"  # scopes the op_ids of seeded rows


def refuse_bad_seed(config: Config, manifest: Manifest) -> None:
    """Check the file if a start would insert it, which is: if the database is empty.

    Raises:
        StartRefused: see `read_seed`.
        PylonError: the database cannot be read.
    """
    if config.seed is None:
        return
    store = open_store(config)
    if config.in_memory or not store.exists() or not store.schema.has_rows(manifest):
        read_seed(
            Path(config.seed), manifest, RowIds(SystemClock(), SystemRandom()), store.schema
        )


def read_seed(
    path: Path, manifest: Manifest, ids: RowIds, schema: SchemaManager
) -> list[InsertRow]:
    """Return the validated rows of the file.

    Raises:
        StartRefused: the file cannot be read, or a row is invalid (names entity and index).
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
    _refuse_conflicts(path, manifest, inserts, schema)
    return inserts


def _refuse_conflicts(
    path: Path, manifest: Manifest, inserts: list[InsertRow], schema: SchemaManager
) -> None:
    """Insert the rows into empty tables in memory, to find two rows with one unique value, and a
    row that names another which the file does not have.

    The start would otherwise refuse the second row when the first is in the database already.

    Raises:
        StartRefused: a row conflicts with another (names the row).
    """
    found = schema.find_conflict(manifest, inserts)
    if found is not None:
        insert, why = found
        where = insert.op.op_id if insert.op is not None else insert.entity
        raise StartRefused(f"PYLON_SEED ({path}): {where}: {why.message}") from why


def _rows_of(
    path: Path, manifest: Manifest, name: str, rows: Any, ids: RowIds
) -> list[InsertRow]:
    entity = manifest.by_name.get(name)
    if entity is None or not isinstance(rows, list):
        known = ", ".join(manifest.by_name) or "none"
        why = "expected a list of rows" if entity is not None else f"entities are: {known}"
        raise StartRefused(f"PYLON_SEED ({path}): {name}: {why}")
    codec, defaults = EntityCodec(entity), FieldDefaults(entity, SystemClock(), SystemRandom())
    out = []
    for index, body in enumerate(rows):
        where = f"{name}[{index}]"
        try:
            given = codec.client_id(body)
            row_id = given or ids.new()
            encoded = codec.insert(defaults.fill(body, row_id, ADMIN), row_id)
        except PylonError as ex:
            raise StartRefused(f"PYLON_SEED ({path}): {where}: {ex.message}") from ex
        out.append(InsertRow(
            name, row_id, encoded.values, encoded.row_json, given is not None,
            OpKey(IDENTITY, where), has_checked_references=True,
        ))
    return out
