"""PYLON_SEED: rows for an empty database, inserted once, before anyone is served.

The file is ``{Entity: [row, ...]}``. Rows are validated as a client's would be, bypass
policy, and are committed together: after a crash the seed is in whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pylon.bus.messages import InsertRow, OpKey
from pylon.bus.runtime import Runtime
from pylon.bus.writer_port import LocalWriter
from pylon.errors import PylonError, StartRefused
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.values import EntityCodec, decode_body

_IDENTITY = "__seed__"  # scopes the op_ids of seeded rows


def plant(path: Path, manifest: Manifest, ids: RowIds, runtime: Runtime) -> int:
    """Insert the rows of the file through the writer; how many.

    Raises:
        StartRefused: the file cannot be read, or a row is refused (names entity and index).
    """
    inserts = read_seed(path, manifest, ids)
    if not inserts:
        return 0
    writer = LocalWriter(runtime)
    try:
        replies = writer.submit_all(inserts)
    except PylonError as ex:
        raise StartRefused(f"PYLON_SEED ({path}): {ex.message}") from ex
    finally:
        writer.close()
    for insert, reply in zip(inserts, replies, strict=True):
        if reply.error is not None and insert.op is not None:
            raise StartRefused(
                f"PYLON_SEED ({path}): {insert.op.op_id}: {reply.error.message}; the other rows "
                "are in: mend the file and start with an empty database"
            )
    return len(inserts)


def read_seed(path: Path, manifest: Manifest, ids: RowIds) -> list[InsertRow]:
    """The validated rows of the file.

    Raises:
        StartRefused: see `plant`.
    """
    try:
        document = decode_body(path.read_bytes())
    except OSError as ex:
        raise StartRefused(f"PYLON_SEED is {path}: {ex.strerror}") from ex
    except PylonError as ex:
        raise StartRefused(f"PYLON_SEED ({path}): {ex.message}") from ex
    if not isinstance(document, dict):
        raise StartRefused(f"PYLON_SEED ({path}): expected an object of entity: [rows]")
    return [
        insert for name, rows in document.items()
        for insert in _rows_of(path, manifest, name, rows, ids)
    ]


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
            OpKey(_IDENTITY, where),
        ))
    return out
