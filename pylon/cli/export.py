"""`pylonctl export`: writes all rows as JSON lines, ``{"entity": ..., "row": {...}}``.

It requests the rows from the running server, which reads them in pages: each page is of one commit,
but later pages may be of later commits. If no server runs, it reads the database itself; then all
rows are of one commit. `pylonctl import` inserts the lines again.

Invariants: it writes nothing to the database. The file of `--out` appears when it is complete.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

import click
import orjson

from pylon.app_manifest import read_app_manifest
from pylon.cli.admin_client import AdminClient
from pylon.cli.output import json_flag, note, result, wants_json
from pylon.cli.running import find_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Config
from pylon.database_url import shown_url
from pylon.errors import EntityNotFound, Unavailable
from pylon.storage.factory import open_store

_PROGRESS_ROWS: Final = 10_000


@click.command()
@click.option("--entity", help="Only the rows of this entity.")
@click.option("--out", help="The file to write; it appears when it is complete. Default: stdout.")
@click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")
@dev_flag
@json_flag
def export(entity: str | None, out: str | None, token: str | None, dev: bool) -> None:
    """Write all rows as JSON lines."""
    if out is None and wants_json():
        raise click.UsageError("--json needs --out: the rows go to stdout otherwise")
    config = read_settings(dev=dev).config
    lines = (
        _from_store(config, entity) if find_running(config) is None
        else _from_server(config, entity, token)
    )
    if out is None:
        _write(lines, sys.stdout.buffer)
        return
    path = Path(out)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            count = _write(lines, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    result({"code": "EXPORT_OK", "ok": True, "rows": count, "file": out}, f"{out}: {count} rows")


def _write(lines: Iterator[bytes], file: BinaryIO) -> int:
    count = 0
    for line in lines:
        file.write(line + b"\n")
        count += 1
        if count % _PROGRESS_ROWS == 0:
            note(f"{count} rows")
    file.flush()
    return count


def _from_server(config: Config, entity: str | None, token: str | None) -> Iterator[bytes]:
    path = "/api/export" if entity is None else f"/api/export/{quote(entity, safe='')}"
    with AdminClient(config, token) as server:
        yield from server.stream_lines("GET", path, None, {"Accept": "application/x-ndjson"})


def _from_store(config: Config, name: str | None) -> Iterator[bytes]:
    store = open_store(config)
    if (config.in_memory and config.database_url is None) or not store.exists():
        place = (
            f"{config.db_path} (PYLON_DB_PATH)" if config.database_url is None
            else f"{shown_url(config.database_url)} (DATABASE_URL)"
        )
        raise Unavailable(f"no server runs, and there is no database at {place}")
    manifest = read_app_manifest(config)
    if name is not None and name not in manifest.by_name:
        known = ", ".join(manifest.by_name) or "none"
        raise EntityNotFound(f"Unknown entity {name} -- known entities: {known}")
    wanted = [entity for entity in manifest.entities if name in (None, entity.name)]
    for entity, row_json in store.schema.export(wanted):
        yield b'{"entity":%b,"row":%b}' % (orjson.dumps(entity.name), row_json)
