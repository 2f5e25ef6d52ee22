"""`pylonctl backup DIR` and `pylonctl backup verify DIR`.

While a server runs it makes the bundle itself, so that its metrics know of it; without one
the file is copied here, and the data directory is held meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pylon.backup.create import create_backup
from pylon.backup.hold import Held, hold
from pylon.backup.verify import verify_backup
from pylon.cli.output import json_flag, note, result, wants_json
from pylon.cli.running import require
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.errors import BackupRefused


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="DIR | verify DIR")
@dev_flag
@json_flag
def backup(words: tuple[str, ...], dev: bool) -> None:
    """Write a backup bundle to DIR, also while the server runs; or verify the one in DIR."""
    if words[0] == "verify" and len(words) == 2:
        report = verify_backup(Path(words[1]))
        result(report.to_json(), f"{words[1]} is sound: seq {report.seq}, made {report.created_at}")
        return
    if len(words) != 1:
        raise click.UsageError("give one folder, or: verify FOLDER")
    target = Path(words[0]).absolute()
    body = _make(read_settings(dev=dev).config, target)
    result(body, f"{target}: seq {body.get('seq')}, {body.get('size_bytes')} bytes")


def _make(config: Config, target: Path) -> dict[str, Any]:
    if config.in_memory:
        raise BackupRefused("PYLON_IN_MEMORY is on: there is no file to back up")
    db_path = Path(config.db_path).absolute()
    if not db_path.is_file():
        raise BackupRefused(f"there is no database at {db_path} (PYLON_DB_PATH)")
    try:
        with hold(db_path):
            return create_backup(
                db_path, Path(config.manifest).absolute(), target, SystemClock()
            ).to_json()
    except Held:
        return _ask(config, target)


def _ask(config: Config, target: Path) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in require(config).control().call("backup", target=str(target)):
        if not last.get("done") and "remaining" in last and not wants_json():
            note(f"{last['remaining']} of {last.get('pages', '?')} pages left")
    return {"ok": True, **{key: value for key, value in last.items() if key != "done"}}
