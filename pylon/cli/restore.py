"""`pylonctl restore`: replaces the database and the manifest by those of a backup.

`restore DIR` takes a bundle. `restore --at TIME`, `--seq N` or `restore URL` takes a commit of a
continuous backup (`pylon.cli.archives`).

It checks the bundle first, and holds the lock of the data directory during the restore, so that no
server starts. The replaced files stay beside the new ones.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from pylon.archive.url import is_archive_url
from pylon.auth.secret_key import probe_problem, read_keys
from pylon.cli.archives import (
    describe_target,
    open_configured,
    parse_point,
    point_in_time,
    target_json,
)
from pylon.cli.backup import end_by_signals
from pylon.cli.bundle_options import open_bundle, opening_options
from pylon.cli.output import ERROR, OK, ask_operator, json_flag, note, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Config
from pylon.data_dir import KEY_FILE
from pylon.data_dir_lock import DataDirLocked, is_locked, lock_data_dir
from pylon.database_url import shown_url
from pylon.errors import BackupRefused
from pylon.storage.backend import Backend
from pylon.storage.backups import RestoreReport
from pylon.storage.factory import open_store

_YES = ("y", "yes")


@click.command()
@click.argument("source", metavar="[DIR | URL]", required=False)
@click.option(
    "--at", metavar="TIME",
    help="The newest commit at or before a time, as 2026-11-28T12:00:00Z, of the continuous "
    "backup at URL (PYLON_BACKUP_URL).",
)
@click.option(
    "--seq", type=click.IntRange(0), metavar="N",
    help="The same: the newest commit whose seq is not above N.",
)
@click.option(
    "--allow-gap", is_flag=True,
    help="With --at, --seq or URL: where segments are missing, restore the last commit before.",
)
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
    ctx: click.Context, source: str | None, at: str | None, seq: int | None, allow_gap: bool,
    yes: bool, replace: bool, passphrase_file: Path | None, identity: Path | None, dev: bool,
) -> None:
    """Replace database and manifest by the bundle in DIR, or by a commit of the continuous backup
    at URL: the newest one, or that of --at or --seq. The server must be stopped.

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
    is_archive = source is None or is_archive_url(source)
    names_nothing = source is None and at is None and seq is None
    if names_nothing and (url is not None or config.backup_url is None):
        raise click.UsageError(
            "name a bundle (DIR); of SQLite an archive (URL), or set PYLON_BACKUP_URL"
        )
    if not is_archive and (at is not None or seq is not None or allow_gap):
        raise click.UsageError("--at, --seq and --allow-gap are of a continuous backup, not of DIR")
    with end_by_signals():
        if source is not None and not is_archive:
            folder = Path(source)
            with open_bundle(folder, config.data_dir, passphrase_file, identity) as plain:
                restored = _Source(str(folder), plain, {})
                _restore(ctx, config, restored, place, yes=yes, replace=replace or url is None)
            return
        archive = open_configured(config, source)
        _refuse_running(db_path)
        point = parse_point(at, seq)
        with point_in_time(config, archive, point, identity, allow_gap=allow_gap) as made:
            name = f"{archive.place}: {describe_target(made)}"
            restored = _Source(name, made.bundle, {"restored_to": target_json(made)})
            _restore(ctx, config, restored, place, yes=yes, replace=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """The source of a restore: its name for people, its bundle in clear, and more of the result."""

    name: str
    bundle: Path
    more: dict[str, object]


def _refuse_running(db_path: Path) -> None:
    """Refuse early, before a long download.

    Raises:
        BackupRefused: a server runs.
    """
    if is_locked(db_path.absolute()):
        raise BackupRefused(f"a server runs on {db_path}: stop it first (pylonctl stop)")


def _restore(
    ctx: click.Context, config: Config, source: _Source, place: str, *, yes: bool, replace: bool,
) -> None:
    """Ask, and restore. `place`: where to, for people."""
    store, db_path = open_store(config), Path(config.db_path)
    bundle = store.backups.verify(source.bundle)
    try:
        with lock_data_dir(db_path):
            if not yes:
                made = f"(seq {bundle.seq}, made {bundle.created_at})"
                note(f"{place} becomes {source.name}" + ("" if source.more else f" {made}"))
                answer = ask_operator("Continue? [y/N] ")
                if answer not in _YES:
                    result({"ok": False, "aborted": True}, "Aborted.")
                    ctx.exit(OK if answer else ERROR)
            report = store.backups.restore(source.bundle, Path(config.manifest), replace=replace)
            report = dataclasses.replace(report, source=source.name)
    except DataDirLocked:
        raise BackupRefused(
            f"a server runs on {db_path}: stop it first (pylonctl stop)"
        ) from None
    if report.unreadable:
        note(f"the replaced database could not be read ({report.unreadable}); it was kept")
    _report_key(config, store, report)
    kept = "".join(f"\n  kept {name}" for name in report.replaced)
    to = f" to {source.name}" if source.more else ""
    result({**report.to_json(), **source.more}, f"restored {place} at seq {report.seq}{to}{kept}")


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
