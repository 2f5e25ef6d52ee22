"""`pylonctl restore DIR`: replaces the database and the manifest by those of a backup bundle.

It checks the bundle first, and holds the lock of the data directory during the restore, so that no
server starts. The replaced files stay beside the new ones.
"""

from __future__ import annotations

from pathlib import Path

import click

from pylon.cli.output import ERROR, OK, ask_operator, json_flag, note, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.data_dir_lock import DataDirLocked, lock_data_dir
from pylon.database_url import shown_url
from pylon.errors import BackupRefused
from pylon.storage.factory import open_store

_YES = ("y", "yes")


@click.command()
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--replace", is_flag=True,
    help="On PostgreSQL: rename a schema that has tables, and keep it.",
)
@dev_flag
@json_flag
@click.pass_context
def restore(
    ctx: click.Context, source: Path, yes: bool, replace: bool, dev: bool
) -> None:
    """Replace database and manifest by the bundle in DIR. The server must be stopped.

    The replaced files stay beside the new ones as <name>.replaced-<time>. On PostgreSQL the schema
    must be empty; with --replace it stays in the database as <name>_replaced_<time>. Clients whose
    cursor the restored history does not contain must resync. Exit code 0 if you answer the
    question with no, 1 if stdin is closed: nothing was changed then.
    """
    config = read_settings(dev=dev).config
    db_path, url = Path(config.db_path), config.database_url
    if config.in_memory and url is None:
        raise BackupRefused("PYLON_IN_MEMORY is on: there is no file to restore to")
    place = str(db_path) if url is None else shown_url(url)
    backups = open_store(config).backups
    bundle = backups.verify(source)
    try:
        with lock_data_dir(db_path):
            if not yes:
                note(f"{place} becomes {source} (seq {bundle.seq}, made {bundle.created_at})")
                answer = ask_operator("Continue? [y/N] ")
                if answer not in _YES:
                    result({"ok": False, "aborted": True}, "Aborted.")
                    ctx.exit(OK if answer else ERROR)
            report = backups.restore(
                source, Path(config.manifest), replace=replace or url is None
            )
    except DataDirLocked:
        raise BackupRefused(
            f"a server runs on {db_path}: stop it first (pylonctl stop)"
        ) from None
    if report.unreadable:
        note(f"the replaced database could not be read ({report.unreadable}); it was kept")
    kept = "".join(f"\n  kept {name}" for name in report.replaced)
    result(report.to_json(), f"restored {place} at seq {report.seq}{kept}")
