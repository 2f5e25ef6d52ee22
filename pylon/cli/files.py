"""`pylonctl files`: compares the folder of files with the records of the running server.

A crash between the rename of a file and the write of its record leaves a file without a record. So
does one between the deletion of a record and that of its file. `gc` finds these, and the bytes of
unfinished uploads that nobody goes on with. It also names the records whose bytes are missing.

The folder is read before the records, and a file counts only an hour after its last change. So a
file that arrives meanwhile is never taken for one without a record.
"""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import urlencode

import click

from pylon import limits
from pylon.cli.admin_client import AdminClient
from pylon.cli.output import ERROR, json_flag, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.files.disk import FileFolder
from pylon.files.names import key_of

_YOUNG_S: Final = 3_600


@click.group()
def files() -> None:
    """Check and clean the folder of files that clients have uploaded."""


@files.command()
@click.option("--apply", "applies", is_flag=True, help="Delete them; without it nothing changes.")
@click.option("--token", help="Instead of PYLON_ADMIN_TOKEN.")
@dev_flag
@json_flag
@click.pass_context
def gc(ctx: click.Context, applies: bool, token: str | None, dev: bool) -> None:
    """Find files without a record, and unfinished uploads of more than a day.

    Exit code 1 if the bytes of a record are missing.
    """
    config = read_settings(dev=dev).config
    folder = FileFolder(config.files_folder)
    now_s = time.time()
    found = set(folder.keys())
    dead = sorted(
        name for name, written_s in folder.incoming_names()
        if written_s < now_s - limits.UPLOAD_KEPT_S - _YOUNG_S
    )
    with AdminClient(config, token) as server:
        records = _all_records(server)
    known = {key_of(record["id"]) for record in records}
    orphans = sorted(
        key for key in found - known
        if folder.final_path(key).stat().st_mtime < now_s - _YOUNG_S
    )
    missing = sorted(
        record["id"] for record in records
        if record["state"] == "ready" and not folder.has(key_of(record["id"]) or "")
    )
    if applies:
        for key in orphans:
            folder.remove(key)
        for name in dead:
            folder.drop_incoming(name)
    verb = "deleted" if applies else "found (delete them with --apply)"
    lines = [
        f"{len(records)} records, {len(found)} files in {folder.path}",
        f"{len(orphans)} files without a record, {len(dead)} dead uploads {verb}",
        *(f"no bytes: {file_id}" for file_id in missing),
    ]
    result(
        {"records": len(records), "files": len(found), "orphans": orphans, "dead_uploads": dead,
         "missing": missing, "applied": applies},
        "\n".join(lines),
    )
    if missing:
        ctx.exit(ERROR)


def _all_records(server: AdminClient) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        query = "" if after is None else "?" + urlencode({"after": after})
        page = server.request("GET", f"/api/files{query}")
        records += page["files"]
        after = page["next"]
        if after is None:
            return records
