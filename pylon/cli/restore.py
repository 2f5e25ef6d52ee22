"""`pylonctl restore DIR`: replaces the database and the manifest by those of a backup bundle.

It checks the bundle first, and holds the lock of the data directory during the restore, so that no
server starts. The replaced files stay beside the new ones.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from pylon.auth.secret_key import probe_problem, read_keys
from pylon.cli.backup import end_by_signals, open_bundle
from pylon.cli.bundle_options import opening_options
from pylon.cli.output import ERROR, OK, ask_operator, json_flag, note, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Config
from pylon.data_dir import KEY_FILE
from pylon.data_dir_lock import DataDirLocked, lock_data_dir
from pylon.database_url import shown_url
from pylon.errors import BackupRefused
from pylon.storage.backend import Backend
from pylon.storage.backups import RestoreReport
from pylon.storage.factory import open_store

_YES = ("y", "yes")


@click.command()
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--replace", is_flag=True,
    help="On PostgreSQL: rename a schema that has tables, and keep it.",
)
@opening_options
@dev_flag
@json_flag
@click.pass_context
def restore(
    ctx: click.Context, source: Path, yes: bool, replace: bool, passphrase_file: Path | None,
    identity: Path | None, dev: bool,
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
    with end_by_signals(), open_bundle(
        source, config.data_dir, passphrase_file, identity
    ) as plain:
        _restore(ctx, config, source, plain, place, yes=yes, replace=replace or url is None)


def _restore(
    ctx: click.Context, config: Config, source: Path, plain: Path, place: str, *, yes: bool,
    replace: bool,
) -> None:
    """Ask, and restore.

    Args:
        plain: the bundle in clear.
        place: where to, for people.
    """
    store, db_path = open_store(config), Path(config.db_path)
    bundle = store.backups.verify(plain)
    try:
        with lock_data_dir(db_path):
            if not yes:
                note(f"{place} becomes {source} (seq {bundle.seq}, made {bundle.created_at})")
                answer = ask_operator("Continue? [y/N] ")
                if answer not in _YES:
                    result({"ok": False, "aborted": True}, "Aborted.")
                    ctx.exit(OK if answer else ERROR)
            report = store.backups.restore(plain, Path(config.manifest), replace=replace)
            report = dataclasses.replace(report, source=str(source))
    except DataDirLocked:
        raise BackupRefused(
            f"a server runs on {db_path}: stop it first (pylonctl stop)"
        ) from None
    if report.unreadable:
        note(f"the replaced database could not be read ({report.unreadable}); it was kept")
    _report_key(config, store, report)
    kept = "".join(f"\n  kept {name}" for name in report.replaced)
    result(report.to_json(), f"restored {place} at seq {report.seq}{kept}")


def _report_key(config: Config, store: Backend, report: RestoreReport) -> None:
    """Print whether the secret key of these settings is that of the restored database."""
    probe, keys = store.key_probe(), read_keys(config)
    problem = None if keys is None else probe_problem(keys, probe, config)
    if problem is not None:
        restored = config.data_dir / KEY_FILE
        where = f"; the bundle's key is in {restored}" if report.secret_key else ""
        note(f"warning: a start will be refused: {problem.message}{where}")
    elif keys is None and probe is not None:
        note(
            "warning: the bundle does not have the secret key of its database: set "
            "PYLON_SECRET_KEY to it before the next start"
        )
