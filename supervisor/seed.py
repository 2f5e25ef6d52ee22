"""Seed: inserts the rows of PYLON_SEED into an empty database, before the server takes requests.

The file is ``{Entity: [row, ...]}``. `load_seed` validates the rows as it would a client's, but
applies no policy. The writer gets all rows in one message, and commits them in one transaction.
Exception: it defers large rows beyond its budget to later transactions
(`pylon.storage.core.large_rows`).

Called by `supervisor.main`.
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
    """Insert the rows of the file through the writer, and return their number.

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
