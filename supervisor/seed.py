"""PYLON_SEED: rows for an empty database, inserted once, before anyone is served.

The file is ``{Entity: [row, ...]}``. Rows are validated as a client's would be, bypass
policy, and are committed together: after a crash the seed is in whole or not at all.
"""

from __future__ import annotations

from pathlib import Path

from pylon.bus.runtime import Runtime
from pylon.bus.writer_port import LocalWriter
from pylon.errors import PylonError, StartRefused
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.seed_file import read_seed
from pylon.storage.schemas import SchemaManager


def load_seed(
    path: Path, manifest: Manifest, ids: RowIds, schema: SchemaManager, runtime: Runtime
) -> int:
    """Insert the rows of the file through the writer; how many.

    Raises:
        StartRefused: the file cannot be read, or a row is refused (names entity and index).
    """
    inserts = read_seed(path, manifest, ids, schema)
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
